"""Shops on every database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.crash import ledger
from tests.crash.shop import Shop, open_shop
from tests.support.databases import Database


@pytest.fixture
async def shop(database: Database, tmp_path: Path) -> AsyncIterator[Shop]:
    """An empty shop; its processes are gone when the test ends."""
    await ledger.create_bookings(database)
    with open_shop(database, tmp_path) as opened:
        yield opened
