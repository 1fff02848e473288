"""What SQLAlchemy Core says once for all databases: the contract's cold transactions, as functions of a connection.

In:    the rows of ``edda.storage.rows``.   Out: rows again, or an error of ``edda.errors``.
Tx:    routing and backfill, new instances, ownership, relay, queries, and what is written on users' open sessions. The
       hot ones (accept, claim, load, flush, timers, hearts) are written by hand, once for each database.
Crash: each is one transaction, and changes nothing twice when it is sent again.
Read:  traits.py (what differs), store.py, routing.py, ownership.py, relay.py, sessions.py, queries.py.
"""
