"""What survives kill -9, SIGSTOP and a database that goes away: real processes on real databases.

``workflows.py`` is what a user would write, ``programs.py`` runs it in processes of its own (gateway, worker, relay,
sink), ``killpoints.py`` says where such a process dies, ``nursery.py`` has dozens of them die one after the other, and
``ledger.py`` compares what went in with what the database and the sink have at the end.
"""
