"""Relays in processes of their own, stopped and killed: nothing is lost, and nothing is published late."""

from __future__ import annotations

import asyncio

from edda.cloudevent import CloudEvent
from edda.storage.contract import Storage
from tests.outbox_relays.conftest import MakeRelay
from tests.outbox_relays.given import enqueue, is_empty, keyed, row
from tests.outbox_relays.sink import Sink
from tests.support.databases import Database
from tests.support.eventually import eventually
from tests.support.processes import spawn

PROGRAM = "tests.outbox_relays.programs:relay"


def of_the_process(sink: Sink) -> list[str]:
    return [got.event.id for got in sink.got if got.headers.get("x-relay") == "process"]


async def test_a_stopped_relay_that_wakes_publishes_nothing_late(
    database: Database, store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    gate = asyncio.Event()

    async def script(event: CloudEvent) -> int:
        if len(sink.got) == 1:
            await gate.wait()
        return 204

    sink.script = script
    await enqueue(store, *keyed("abcdefgh", 3))
    with spawn(PROGRAM, database.url, sink.url, "2", "1") as process:
        await eventually(lambda: len(sink.got) == 1, 20)
        process.pause()  # with one message in flight, and 23 in memory
        await make_relay(store, sink.url, headers={"x-relay": "other"}, lease_seconds=20)
        await eventually(lambda: is_empty(store), 20)
        process.resume()
        gate.set()
        await process.line("relay_lease_lost", 20)
        assert of_the_process(sink) == ["a-0"]
        for key in "abcdefgh":
            others = [
                got.event.id
                for got in sink.got
                if got.event.subject == key and got.headers["x-relay"] == "other"
            ]
            assert others == [f"{key}-{number}" for number in range(3)]


async def test_a_relay_that_is_killed_loses_nothing_and_repeats_with_the_same_identity(
    database: Database, store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    await enqueue(store, *keyed("abcd", 50))
    with spawn(PROGRAM, database.url, sink.url, "1", "4") as process:
        await eventually(lambda: len(sink.got) > 40, 20)
        process.kill()
    await make_relay(store, sink.url)
    await eventually(lambda: is_empty(store), 20)
    for key in "abcd":
        sent = sink.of_key(key)
        assert list(dict.fromkeys(sent)) == [f"{key}-{number}" for number in range(50)]
    numbers = {(got.event.id, got.event.extensions["sequence"]) for got in sink.got}
    assert len(numbers) == 200


async def test_a_relay_that_was_stopped_works_on_when_it_wakes_as_the_only_one(
    database: Database, store: Storage, sink: Sink
) -> None:
    gate = asyncio.Event()

    async def script(_: CloudEvent) -> int:
        await gate.wait()
        return 204

    sink.script = script
    await enqueue(store, row("a"))
    with spawn(PROGRAM, database.url, sink.url, "1", "1") as process:
        await eventually(lambda: sink.ids == ["a"], 20)
        process.pause()  # it waits for the answer, and holds no lock of the database
        await enqueue(store, row("b"))
        gate.set()
        process.resume()
        await eventually(lambda: is_empty(store), 20)
    assert set(sink.ids) == {"a", "b"}
