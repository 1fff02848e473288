"""Turns at the write lock: who waits gets it, and a busy process makes room."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable

import pytest

from edda.storage.connect import open_store
from edda.storage.sqlite import write_lock
from edda.storage.sqlite.store import SQLiteStore
from edda.storage.sqlite.write_lock import BUSY_TIMEOUT, WriteLock
from tests.storage import given
from tests.storage.conftest import OpenStore
from tests.storage.sqlite.conftest import raw_connection
from tests.support.databases import Database
from tests.support.processes import spawn

MILLISECOND = 0.001


class Clock:
    """Time that passes only in ``sleep``; what then happens in the world is up to the test."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(write_lock, "time", clock)
    return clock


@pytest.fixture
async def mine(server: Database) -> AsyncIterator[sqlite3.Connection]:
    with raw_connection(server) as connection:
        yield connection


@pytest.fixture
async def others(server: Database) -> AsyncIterator[sqlite3.Connection]:
    with raw_connection(server) as connection:
        yield connection


def test_a_lock_that_nobody_wants_is_taken_again_at_once(clock: Clock, mine: sqlite3.Connection) -> None:
    lock = WriteLock()
    for _ in range(3):
        lock.begin(mine)
        mine.execute("COMMIT")
        lock.released()
    assert clock.slept == []


def test_who_waits_asks_every_millisecond_at_first_and_less_often_later(
    clock: Clock, mine: sqlite3.Connection, others: sqlite3.Connection
) -> None:
    others.execute("BEGIN IMMEDIATE")
    clock.meanwhile = lambda: len(clock.slept) < 100 or others.execute("COMMIT").fetchall()
    WriteLock().begin(mine)
    assert mine.in_transaction
    assert clock.slept[:10] == [MILLISECOND] * 10
    assert clock.slept == sorted(clock.slept)
    assert clock.slept[-1] == 10 * MILLISECOND


def test_who_has_seen_the_lock_in_others_hands_makes_room_after_each_commit(
    clock: Clock, mine: sqlite3.Connection, others: sqlite3.Connection
) -> None:
    lock = WriteLock()
    others.execute("BEGIN IMMEDIATE")
    clock.meanwhile = lambda: others.in_transaction and others.execute("COMMIT")
    lock.begin(mine)
    clock.slept.clear()
    for _ in range(3):
        mine.execute("COMMIT")
        lock.released()
        lock.begin(mine)
    assert clock.slept == pytest.approx([MILLISECOND] * 3)
    mine.execute("COMMIT")
    lock.released()
    clock.slept.clear()
    clock.now += MILLISECOND
    lock.begin(mine)
    assert sum(clock.slept) == 0, "a millisecond has passed by itself"


def test_others_are_forgotten_when_they_were_not_seen_for_some_seconds(
    clock: Clock, mine: sqlite3.Connection, others: sqlite3.Connection
) -> None:
    lock = WriteLock()
    others.execute("BEGIN IMMEDIATE")
    clock.meanwhile = lambda: others.in_transaction and others.execute("COMMIT")
    lock.begin(mine)
    assert lock.is_contended
    clock.now += 10
    assert not lock.is_contended


def test_room_is_made_while_a_session_of_this_process_waits(clock: Clock, mine: sqlite3.Connection) -> None:
    lock = WriteLock()
    lock.released()
    with lock.waiting():
        lock.begin(mine)
    assert clock.slept == pytest.approx([MILLISECOND])
    mine.execute("COMMIT")
    lock.released()
    lock.begin(mine)
    assert len(clock.slept) == 1


def test_a_lock_that_never_comes_free_is_given_up(
    clock: Clock, mine: sqlite3.Connection, others: sqlite3.Connection
) -> None:
    others.execute("BEGIN IMMEDIATE")
    began = clock.now
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        WriteLock().begin(mine)
    assert BUSY_TIMEOUT < clock.now - began < BUSY_TIMEOUT + 0.1
    assert not mine.in_transaction


def test_an_error_that_is_not_about_the_lock_is_not_waited_for(
    clock: Clock, mine: sqlite3.Connection
) -> None:
    mine.execute("BEGIN")
    with pytest.raises(sqlite3.OperationalError, match="within a transaction"):
        WriteLock().begin(mine)
    assert clock.slept == []


# ---------------------------------------------------------------------------------------------- processes


async def test_heartbeats_come_through_between_two_processes_that_flush_without_a_pause(
    sqlite_store: SQLiteStore, server: Database
) -> None:
    heart = sqlite_store.heart()
    program = "tests.storage.sqlite.programs:flush_until_killed"
    with spawn(program, server.url, "one") as one, spawn(program, server.url, "two") as two:
        for process in (one, two):
            await process.line("flushes")
        before = (await sqlite_store.counts())["history"]
        for _ in range(20):
            # Not one of them raises for want of the lock.
            assert (await heart.beat(given.WORKER, given.APP, given.HOUR)).alive
        after = (await sqlite_store.counts())["history"]
        assert after > before, "the others were flushing meanwhile"
    await heart.close()


async def test_a_process_that_dies_in_a_transaction_leaves_nothing_and_no_lock(
    sqlite_store: SQLiteStore, server: Database
) -> None:
    with spawn("tests.storage.sqlite.programs:stop_in_a_transaction", server.url) as process:
        await process.line("half written")
        flushing = asyncio.create_task(sqlite_store.flush([given.start("order")]))
        process.kill()
        await flushing
    assert (await sqlite_store.counts())["instances"] == 1


async def test_a_stopped_process_holds_writes_up_and_no_reads_and_they_go_on_when_it_does(
    sqlite_store: SQLiteStore, another_store: OpenStore, server: Database
) -> None:
    await given.started(sqlite_store, "order")
    with spawn("tests.storage.sqlite.programs:stop_in_a_transaction", server.url) as process:
        await process.line("half written")
        process.pause()
        flushing = asyncio.create_task(sqlite_store.flush([given.turn("order", 1)]))
        assert [one.id for one in await sqlite_store.owned(given.WORKER)] == ["order"]
        process.resume()
        process.terminate()
        await flushing
    assert await given.recorded(sqlite_store, "order") == [1]


@pytest.mark.long
async def test_two_processes_that_flush_without_a_pause_share_the_file(
    sqlite_store: SQLiteStore, server: Database
) -> None:
    program = "tests.storage.sqlite.programs:flush_until_killed"
    with spawn(program, server.url, "one") as one, spawn(program, server.url, "two") as two:
        for process in (one, two):
            await process.line("flushes")
        counts: dict[str, int] = {}
        while sum(counts.values()) < 1_000:
            counts = {name: await records_of(server, name) for name in ("one", "two")}
    # Without making room one of them had 84 of 100.
    assert min(counts.values()) > 0.25 * sum(counts.values()), counts


async def records_of(server: Database, name: str) -> int:
    store = open_store(server.url)
    try:
        return len(await store.get_history(name))
    finally:
        await store.close()
