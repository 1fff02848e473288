"""The ground floor: the only place with SQL and database drivers.

In:    the rows of ``rows.py``.   Out: rows again, or one of the errors of ``edda.errors``.
Tx:    each method of ``contract.Storage`` is one transaction.
Crash: every transaction may be sent again with the same input after an unknown commit.
Read:  contract.py, rows.py, schema.py; then one database, for instance sqlite/.
"""
