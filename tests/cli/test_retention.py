"""``edda retention``: what is kept, what would be removed, and removing it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from edda.cli.output import opened
from edda.inbox.retention import sweep_once
from edda.retention import Retention
from edda.storage.contract import Storage
from tests.cli.conftest import Run
from tests.storage import given
from tests.support.databases import Database

DAY = 86_400_000_000
WEEK = timedelta(days=7)


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Storage]:
    async with opened(database.url) as store:
        yield store


async def old_and_new(store: Storage) -> None:
    """An order that ended eight days ago with its event, and one of now; a dead row of then."""
    store.clock_offset_us = -8 * DAY
    await given.started(store, "old")
    await given.flush(store, given.end("old", 1))
    await given.accepted(store, given.event("old"))
    await sweep_once(store)
    store.clock_offset_us = 0
    await given.started(store, "new")
    await given.flush(store, given.end("new", 1))
    await given.accepted(store, given.event("new"))
    await store.declare_retention(given.APP, Retention(instances=WEEK).keeps())


async def test_a_dry_run_tells_what_a_run_removes(edda: Run, store: Storage, database: Database) -> None:
    await old_and_new(store)
    dry = await edda("retention", "run", "--dry-run", "--json", EDDA_DB_URL=database.url)
    expected = {"events": 1, "identities": 0, "instances": 1, "letters": 0, "dead_rows": 0}
    told = json.loads(dry.out)
    assert (dry.code, told["dry_run"], told["removed"]) == (0, True, expected), dry.err
    counts = await store.counts()
    assert (counts["events"], counts["instances"]) == (2, 2)
    ran = await edda("retention", "run", "--json", EDDA_DB_URL=database.url)
    assert (ran.code, json.loads(ran.out)["removed"]) == (0, expected), ran.err
    counts = await store.counts()
    assert (counts["events"], counts["instances"]) == (1, 1)
    for_people = await edda("retention", "run", EDDA_DB_URL=database.url)
    assert for_people.code == 0
    assert "finished instances" in for_people.out


async def test_show_tells_what_each_app_keeps_and_what_was_removed(
    edda: Run, store: Storage, database: Database
) -> None:
    await old_and_new(store)
    await store.declare_retention("audit", Retention(events=None, identities=None).keeps())
    await sweep_once(store)
    shown = await edda("retention", "show", "--json", EDDA_DB_URL=database.url)
    told = json.loads(shown.out)
    assert told["apps"] == {
        "audit": {"events": None, "identities": None, "instances": None, "dead_letters": None},
        "shop": {"events": 604800, "identities": 1209600, "instances": 604800, "dead_letters": None},
    }
    assert told["in_force"] == {"events": None, "identities": None, "dead_letters": None}
    assert [sweep["instances"] for sweep in told["sweeps"]] == [1, 0]
    assert told["sweeps"][0]["ended_at"] is not None
    for_people = await edda("retention", "show", EDDA_DB_URL=database.url)
    assert "for ever" in for_people.out
    assert "7 days" in for_people.out


async def test_an_app_that_is_gone_is_forgotten_by_hand(
    edda: Run, store: Storage, database: Database
) -> None:
    await store.declare_retention("gone", Retention(events=None, identities=None).keeps())
    assert (await edda("retention", "forget", "gone", EDDA_DB_URL=database.url)).code == 0
    assert await store.retention() == {}
    again = await edda("retention", "forget", "gone", EDDA_DB_URL=database.url)
    assert again.code == 1
    assert "nothing was changed" in again.err


async def test_nothing_is_removed_for_apps_that_have_not_said_what_they_keep(
    edda: Run, store: Storage, database: Database
) -> None:
    await given.accepted(store, given.event("e"))
    ran = await edda("retention", "run", EDDA_DB_URL=database.url)
    assert ran.code == 1
    assert "nothing was removed" in ran.err
    assert (await store.counts())["events"] == 1


async def test_two_do_not_sweep_at_once(edda: Run, store: Storage, database: Database) -> None:
    await old_and_new(store)
    assert await store.begin_sweep("another", DAY, 0) is not None
    ran = await edda("retention", "run", EDDA_DB_URL=database.url)
    assert ran.code == 1
    assert "another process is sweeping" in ran.err
    assert (await store.counts())["events"] == 2
