"""Events on their way out: rows committed with their cause.

In:    what a workflow, an activity or plain application code publishes.   Out: rows that a relay takes.
Tx:    the turn's, the activity's or the user's own; a rollback takes the row with it.
Crash: a committed row stays until a broker has confirmed that very message.
Read:  message.py, enqueue.py, dead_letters.py; then outbox_relays/relay.py.
"""
