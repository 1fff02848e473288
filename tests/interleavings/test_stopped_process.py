"""A process that is stopped inside a transaction of Edda's stops the others for a moment, not for as long as it lies.

PostgreSQL: half a lease (``idle_in_transaction_session_timeout``), where anything is held by a client at all. MySQL and
MariaDB: half a lease (``wait_timeout``), but not less than ten seconds, which the programs here shorten. SQLite has no
such limit: a process that is stopped while it writes holds the file until it goes on or is gone.
"""

from contextlib import ExitStack

import pytest

from edda.storage.connect import open_store
from edda.storage.contract import Storage
from edda.storage.rows import Applied, Verdict
from edda.storage.schema import event_keys, events, history, instances
from tests.interleavings import given
from tests.interleavings.barrier import Barrier
from tests.interleavings.raw import Raw
from tests.support.databases import Database
from tests.support.eventually import eventually
from tests.support.processes import spawn

SERVERS = pytest.mark.parametrize("database", ["postgresql", "mysql", "mariadb"], indirect=True)


@SERVERS
async def test_a_process_stopped_while_it_holds_the_accept_lock_stops_no_gateway_for_long(
    store: Storage, database: Database, raw: Raw, barrier: Barrier
) -> None:
    with ExitStack() as stack:
        async with barrier.at(event_keys, "INSERT"):
            process = stack.enter_context(
                spawn("tests.interleavings.programs:accept", database.url, "e", "key")
            )
            await process.line("^accepting$")
            await eventually(raw.lock_waits)
            process.pause()
        (result,) = (await store.accept(given.batch("ours", given.event("e2", "key")))).results
        assert result.verdict is Verdict.UNMATCHED
        stored = [row.event_id for row in await raw.rows(events.select().order_by(events.c.seq))]
        assert stored in (["e2"], ["e", "e2"])

        process.resume()
        told = await process.line(r"^accepted (\w+) (\d+)$")
        # What it had not committed was undone, and is accepted behind ours; its number says so.
        assert int(told[2]) == (1 if stored == ["e", "e2"] else 2)
        assert await raw.count(events) == 2


@SERVERS
async def test_a_process_stopped_while_it_holds_an_instance_loses_it_and_writes_nothing_when_it_wakes(
    store: Storage, other: Storage, database: Database, raw: Raw, barrier: Barrier
) -> None:
    await store.flush([given.start("order", owner="stopped"), given.start("neighbour")])
    await store.register_worker("stopped", given.APP, 1_000_000)
    other.clock_offset_us = 10_000_000
    with ExitStack() as stack:
        # "zzz" is inserted before the rows of the others are locked: the server goes on to lock them on its own.
        async with barrier.at(instances, "INSERT", "NEW.id = 'zzz'"):
            process = stack.enter_context(
                spawn("tests.interleavings.programs:flush", database.url, "stopped", "order")
            )
            await process.line("^flushing$")
            await eventually(raw.lock_waits)
            process.pause()

        async def taken_back() -> bool:
            return (await other.requeue_expired())[1] > 0

        await eventually(taken_back, 30)
        claimed = await other.claim(given.APP, [given.WORKFLOW], "b", 10)
        (mine,) = [one for one in claimed if one.id == "order"]
        loaded = (await other.load(["order"]))["order"]
        # Either its flush was over before the requeue, and we see it, or it never was.
        written = [record.seq for record in loaded.history]
        assert written in ([1], [1, 2])
        turn = given.step("order", len(written) + 1, owner="b", fence=mine.fence, payload=b"b's")
        assert (await other.flush([turn])).results[0].applied is Applied.APPLIED

        process.resume()
        told = await process.line("^flushed (.+)$")
        if written == [1]:
            assert told[1].split() == ["LOST", "APPLIED"]
        await process.line("^and then LOST$")
    found = await other.get_history("order")
    assert [record.seq for record in found] == [*written, len(written) + 1]
    assert found[-1].payload == b"b's"
    assert await raw.count(history) == len(found) + 2


@SERVERS
async def test_a_process_killed_inside_its_transaction_leaves_nothing_and_holds_nobody(
    store: Storage, database: Database, raw: Raw, barrier: Barrier
) -> None:
    async with barrier.at(event_keys, "INSERT"):
        with spawn("tests.interleavings.programs:accept", database.url, "e", "key") as process:
            await process.line("^accepting$")
            await eventually(raw.lock_waits)
            process.kill()
        accepting = await barrier.waiting(store.accept(given.batch("ours", given.event("e2"))))
    assert (await accepting).results[0].verdict is Verdict.UNMATCHED
    stored = {row.event_id for row in await raw.rows(events.select())}
    # An autocommitted call may have been committed by a server that did not know yet; never half of it.
    assert stored in ({"e2"}, {"e", "e2"})
    assert await raw.count(event_keys) == len(stored) - 1


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_process_stopped_while_the_server_awaits_its_next_message_holds_no_lock_for_long(
    database: Database,
) -> None:
    """No timeout of the server's counts there."""
    ours = open_store(database.url)
    await ours.open(2_000_000)
    with spawn(
        "tests.interleavings.programs:take_and_freeze_while_preparing", database.url, "frozen"
    ) as process:
        await process.line("^frozen$")
        taken = await ours.outbox_take("default", "ours", 1_000_000, 100, 1 << 20)
        assert taken.held
        process.resume()
        await process.line("^refused .*terminating connection due to administrator command")
    await ours.close()


async def test_a_process_stopped_while_it_writes_a_sqlite_file_holds_it_until_it_is_gone(
    sqlite_database: Database,
) -> None:
    """Said in the documentation: on SQLite one process per file is what is recommended."""
    store = open_store(sqlite_database.url)
    await store.open(given.LEASE_US)
    await store.migrate()
    await store.flush([given.start("order"), given.start("neighbour")])
    barrier = Barrier(Raw(sqlite_database))
    with spawn("tests.interleavings.programs:hold_the_writer", sqlite_database.url) as process:
        await process.line("^holding$")
        process.pause()
        flushing = await barrier.waiting(store.flush([given.step("neighbour", 2)]))
        assert len((await store.load(["order"]))["order"].history) == 1  # readers go on
        assert not flushing.done()
        process.kill()
        assert (await flushing).results[0].applied is Applied.APPLIED
    assert [record.seq for record in await store.get_history("order")] == [1]
    await store.close()
