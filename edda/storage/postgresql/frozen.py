"""Sessions whose process stands still where no limit of the server's counts.

In:    a lock timeout.   Out: the sessions of Edda's that have waited for their client for too long are ended.

asyncpg lets the server parse a statement and reads the answer before it sends what executes it. In between the
session is "active", not "idle in transaction": while the server awaits that message, neither
``idle_in_transaction_session_timeout`` nor ``statement_timeout`` applies, so that a process which is stopped there
keeps its locks for as long as it lies. The same goes for rows that it does not fetch from its socket. Whoever has
waited for a lock in vain looks for such sessions. Other programs' are left alone, and of users' own sessions those that
may be meant to wait: COPY, and large results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edda.storage.postgresql.connection import Link

#: How the sessions are called in ``pg_stat_activity``: Edda's own, and those in which users' statements run.
OWN_SESSION = "edda"
USERS_SESSION = "edda session"

_END = f"""
SELECT count(pg_terminate_backend(pid))
FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
  AND state = 'active' AND wait_event_type = 'Client' AND xact_start IS NOT NULL
  AND state_change < clock_timestamp() - $1::bigint * interval '1 microsecond'
  AND (application_name = '{OWN_SESSION}'
       OR application_name = '{USERS_SESSION}' AND wait_event = 'ClientRead' AND query NOT ILIKE 'copy%')
"""


async def end_frozen_sessions(link: Link, patience_us: int) -> int:
    """End those that have stood still for ``patience_us``; how many there were."""
    (row,) = await link.fetch(_END, patience_us)
    return int(row[0])
