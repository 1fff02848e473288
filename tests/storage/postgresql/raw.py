"""The database by another way than a store: to look at rows, to hold locks, to see who waits for one."""

from __future__ import annotations

from typing import Any

import asyncpg

from edda.storage.postgresql.connection import Row
from edda.storage.postgresql.store import PostgreSQLStore

#: What a store's connections are called.
OURS = "datname = current_database() AND application_name = 'edda'"


class Raw:
    """One connection."""

    def __init__(self, connection: asyncpg.Connection[Row]) -> None:
        self.connection = connection

    async def run(self, script: str) -> None:
        await self.connection.execute(script)

    async def value(self, query: str, *values: Any) -> Any:
        return await self.connection.fetchval(query, *values)

    async def waiting(self) -> int:
        """How many connections wait for a lock."""
        return int(
            await self.value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )

    async def end(self, which: str = OURS) -> int:
        """Disconnect these connections, as an administrator does; how many."""
        return int(
            await self.value(f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {which}")
        )


async def session(store: PostgreSQLStore, setting: str) -> str:
    """A setting, as hot transactions of the store have it."""
    row = await store._fetch_one("SELECT current_setting($1)", setting)
    return str(row[0])
