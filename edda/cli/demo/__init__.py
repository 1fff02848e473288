"""The demo: real processes, a real kill -9, and a ledger checked against the sink and the database.

Read:  workflows.py (what a user would write), processes.py (gateway, worker, sink), command.py (the play), ledger.py.
"""
