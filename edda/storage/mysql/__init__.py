"""MySQL 8 and 9, and MariaDB from 10.6: one store, in statements that both take.

In:    the rows of ``edda.storage.rows``.   Out: rows again, or an error of ``edda.errors``.
Tx:    hot transactions go over connections of our own, several statements in one packet; everything cold goes
       through SQLAlchemy in ``edda.storage.core``.
Crash: a process that stops in mid-transaction loses its connection after ``wait_timeout``, and its locks with it.
Read:  statements.py (SQL as text and values), connection.py (packets, pool), then flush.py, accept.py, claim.py.

Neither RETURNING (MySQL has none), nor FOR SHARE, FOR UPDATE OF and row aliases (MariaDB has none), nor
``INSERT IGNORE`` (it cuts values silently) and ``VALUES()`` in updates (MySQL warns of it) is used.
"""
