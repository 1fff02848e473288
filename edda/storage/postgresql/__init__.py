"""PostgreSQL from version 13.

In:    the rows of ``edda.storage.rows``.   Out: rows again, or an error of ``edda.errors``.
Tx:    each hot transaction is one autocommitted statement over a connection of our own: accept, flush, timers are
       calls of functions (functions.sql, installed by the migrations), claim and load are plain statements. Everything
       cold goes through SQLAlchemy in ``edda.storage.core``.
Crash: no client holds a lock between two round trips; a process that stops in mid-statement holds what it has for no
       longer than the statement runs. Sessions that do think (users', cold ones) have timeouts below half a lease.
Read:  functions.sql (the transactions), connection.py (addresses, PgBouncer, pool), then flush.py, accept.py, claim.py.
"""
