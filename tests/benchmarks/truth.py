"""What the database says, read by SQL of our own: a benchmark does not take its client's word."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.support import servers

#: Seconds after which work that does not end is given up.
PATIENCE = 60.0


class Truth:
    """A connection that only looks."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def count(self, table: str, condition: str = "1 = 1") -> int:
        """Rows of a table."""
        query = sa.text(f"SELECT count(*) FROM edda_{table} WHERE {condition}")
        return int((await self._connection.execute(query)).scalar_one())

    async def in_state(self, workflow: str, state: str) -> int:
        """Instances of a workflow in a state."""
        return await self.count("instances", f"workflow = '{workflow}' AND state = '{state}'")

    async def expect(self, what: str, table: str, condition: str, wanted: int) -> None:
        """Raises AssertionError if the rows are not that many."""
        found = await self.count(table, condition)
        assert found == wanted, f"{what}: the database has {found}, {wanted} were expected"


@asynccontextmanager
async def truth(url: str) -> AsyncIterator[Truth]:
    """Look into a database."""
    async with servers.engine(url).connect() as connection:
        yield Truth(connection)


class Deadline:
    """``deadline.check("what")`` raises when ``PATIENCE`` is over."""

    def __init__(self) -> None:
        self._at = time.monotonic() + PATIENCE

    def check(self, what: str) -> None:
        """Raises TimeoutError that says what was waited for."""
        if time.monotonic() > self._at:
            raise TimeoutError(f"{what}: not within {PATIENCE:g} s")
