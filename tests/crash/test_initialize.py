"""Starting on an empty database: ten at once, and again after a kill in the middle of the migration."""

from __future__ import annotations

import asyncio

import pytest

from tests.crash.programs import start
from tests.support.databases import Database

pytestmark = pytest.mark.empty_database


@pytest.mark.timeout(120)
async def test_ten_processes_start_at_once_on_an_empty_database(database: Database) -> None:
    with start("tests.crash.nursery:start_at_once", url=database.url, processes=10) as process:
        assert await asyncio.to_thread(process.wait, 100) == 0
        assert process.output.count("completed") == 10, process.output
        assert "FAILED" not in process.output, process.output


@pytest.mark.timeout(300)
async def test_migration_killed_at_any_statement_goes_on_where_it_was(database: Database) -> None:
    # The first is killed at its first statement, the next at its second, and so on, each in what the last one left.
    with start("tests.crash.nursery:migrate_in_small_steps", url=database.url) as process:
        assert await asyncio.to_thread(process.wait, 280) == 0
        assert "FAILED" not in process.output, process.output
        assert process.output.count("SIGKILL at statement") > 5, process.output
        assert "completed" in process.output, process.output
