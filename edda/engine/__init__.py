"""Run workflows: claim, replay, turn.

In:    instances claimed from the store, or started here.   Out: turns, written by the journal.
Tx:    claim (worker.py) and flush (journal.py).
Crash: anywhere: the history is replayed by the next owner; a loser's writes are fenced.
Read:  run.py (one instance while it runs), journal.py (group commit), worker.py (who runs what), lease.py.
"""
