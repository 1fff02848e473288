"""SQLite: one file, one writer's thread, WAL, synchronous=FULL.

In:    the rows of ``edda.storage.rows``.   Out: rows again, or an error of ``edda.errors``.
Tx:    a hot transaction is one call on the writer's thread, BEGIN IMMEDIATE to COMMIT, over ``sqlite3``; what only
       reads has threads of its own; everything cold goes through SQLAlchemy in ``edda.storage.core``, on the same
       threads.
Crash: what was committed is on the disk. The write lock of a process that is killed is free at once; that of a
       process that is stopped stays taken until it goes on or is killed, which is why one process per file is best.
Read:  statements.py (many rows, few steps), write_lock.py (whose turn it is), connection.py, then flush.py, accept.py,
       claim.py, signal.py.

The write lock is all the locks that the contract names: under it nobody else accepts, claims or flushes.
"""
