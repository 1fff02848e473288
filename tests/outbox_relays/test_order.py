"""Order per key, through retry, dead letter and replay; a failing key stands in nobody else's way."""

from __future__ import annotations

import asyncio
import random

import pytest
import sqlalchemy as sa

from edda.cloudevent import CloudEvent
from edda.outbox.dead_letters import dead_rows, discard, replay
from edda.storage.contract import Storage
from edda.storage.core import letters
from edda.storage.schema import outbox
from outbox_relays.retry import Backoff
from tests.outbox_relays.conftest import MakeRelay, OpenStore
from tests.outbox_relays.given import enqueue, is_empty, keyed, row, rows
from tests.outbox_relays.sink import Answer, Fails, Sink
from tests.support.eventually import eventually


def series(key: str, count: int) -> list[str]:
    return [f"{key}-{number}" for number in range(count)]


async def test_events_of_one_key_leave_in_order(store: Storage, sink: Sink, make_relay: MakeRelay) -> None:
    await enqueue(store, *keyed("abc", 20))
    await make_relay(store, sink.url, batch=7)
    await eventually(lambda: is_empty(store))
    for key in "abc":
        assert sink.of_key(key) == series(key, 20)


async def test_a_retried_event_keeps_its_place_and_the_other_keys_their_rate(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    sink.script = Fails(500, "a-3", times=3)
    await enqueue(store, *keyed("abc", 10))
    await make_relay(store, sink.url, backoff=Backoff(first=0.5, longest=0.5))
    # a's fourth is still failing when all of the others have left.
    await eventually(lambda: sink.of_key("b") == series("b", 10) and sink.of_key("c") == series("c", 10))
    assert "a-4" not in sink.ids
    await eventually(lambda: is_empty(store))
    assert sink.of_key("a") == [*series("a", 3), *["a-3"] * 4, *series("a", 10)[4:]]


async def test_what_comes_behind_a_failed_event_of_its_key_waits_behind_it(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    sink.script = Fails(500, "a-0", times=2)
    await enqueue(store, row("a-0", "a"))
    relay = await make_relay(store, sink.url, backoff=Backoff(first=0.3, longest=0.3))
    await eventually(lambda: sink.ids == ["a-0"])
    for number in range(1, 6):  # while it retries
        await enqueue(store, row(f"a-{number}", "a"), row(f"b-{number}", "b"))
        relay.kick()
    await eventually(lambda: is_empty(store))
    assert sink.of_key("a") == ["a-0", "a-0", *series("a", 6)]


async def test_a_key_stays_behind_its_dead_letter_until_that_is_replayed(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    sink.script = Fails(400, "a-3", times=1)
    await enqueue(store, *keyed("ab", 8))
    relay = await make_relay(store, sink.url)
    await eventually(lambda: sink.of_key("b") == series("b", 8))
    await eventually(lambda: dead_rows(store.engine()))
    await enqueue(store, row("a-8", "a"))
    relay.kick()

    async def parked() -> bool:
        states = await rows(store)
        return list(states) == series("a", 9)[3:] and {state for state, _ in states.values()} == {
            "dead",
            "parked",
        }

    await eventually(parked)
    [dead] = await dead_rows(store.engine())
    assert (dead.event_id, dead.ordering_key, dead.attempts) == ("a-3", "a", 1)
    assert dead.reason.startswith("HTTP 400")

    assert await replay(store.engine(), dead.id)
    relay.kick()
    await eventually(lambda: is_empty(store))
    assert sink.of_key("a") == [*series("a", 4), *series("a", 9)[3:]]


async def test_a_key_goes_on_when_its_dead_letter_is_discarded(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    sink.script = Fails(410, "a-3", times=1)
    await enqueue(store, *keyed("a", 8))
    relay = await make_relay(store, sink.url)
    [dead] = await eventually(lambda: dead_rows(store.engine()))
    assert await discard(store.engine(), dead.id)
    relay.kick()
    await eventually(lambda: is_empty(store))
    assert sink.of_key("a") == series("a", 8)  # the fourth was sent once, and refused


async def test_a_row_that_is_not_dead_is_neither_replayed_nor_discarded(store: Storage) -> None:
    await enqueue(store, row("a-0", "a"))
    for operation in (replay, discard):
        assert not await operation(store.engine(), 1)
        assert not await operation(store.engine(), 99)
    assert await rows(store) == {"a-0": ("pending", 0)}


async def test_a_dead_letter_that_dies_again_is_listed_with_all_its_attempts(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    sink.script = Fails(400, "a-0", times=3)
    await enqueue(store, *keyed("a", 3))
    relay = await make_relay(store, sink.url)
    for attempt in (1, 2, 3):

        async def dead_again(attempt: int = attempt) -> bool:
            return [row.attempts for row in await dead_rows(store.engine())] == [attempt]

        await eventually(dead_again)
        [dead] = await dead_rows(store.engine())
        await replay(store.engine(), dead.id)
        relay.kick()
    await eventually(lambda: is_empty(store))
    assert sink.of_key("a") == ["a-0"] * 3 + series("a", 3)


async def test_events_without_a_key_wait_for_nobody(
    store: Storage, sink: Sink, make_relay: MakeRelay
) -> None:
    sink.script = Fails(500, "x-0", "x-1", times=1_000)
    await enqueue(store, *(row(f"x-{number}") for number in range(30)))
    await make_relay(store, sink.url)
    await eventually(lambda: set(sink.ids) >= {f"x-{number}" for number in range(30)})

    async def only_failing() -> bool:
        return set(await rows(store)) == {"x-0", "x-1"}

    await eventually(only_failing)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_fails_each_key_leaves_in_order_and_nothing_is_lost(
    store: Storage, sink: Sink, make_relay: MakeRelay, seed: int
) -> None:
    dice = random.Random(seed)
    answers: dict[str, list[Answer]] = {}

    def script(event: CloudEvent) -> Answer:
        planned = answers.setdefault(
            event.id, [dice.choice([500, 502, 408, 425]) for _ in range(dice.choice([0, 0, 0, 1, 2]))]
        )
        return planned.pop() if planned else 204

    sink.script = script
    relay = await make_relay(store, sink.url, batch=20, concurrency=5)
    for at in range(0, 12, 3):
        await enqueue(store, *(row(f"{key}-{n}", key) for n in range(at, at + 3) for key in "abcdefgh"))
        relay.kick()
        await asyncio.sleep(0)
    await eventually(lambda: is_empty(store), 30)
    for key in "abcdefgh":
        sent = sink.of_key(key)
        confirmed = [one for at, one in enumerate(sent) if at + 1 == len(sent) or sent[at + 1] != one]
        assert confirmed == series(key, 12), f"seed {seed}"


async def test_a_row_is_never_parked_behind_a_dead_letter_that_is_being_discarded(
    store: Storage, another_store: OpenStore
) -> None:
    relay_store = await another_store()

    async def take() -> list[str]:
        taken = await relay_store.outbox_take("default", "relay", 60_000_000, 10, 1_000_000)
        return [each.event_id for each in taken.rows]

    await enqueue(store, row("dead", "a"))
    assert await take() == ["dead"]  # a relay leads
    async with store.engine().begin() as connection:
        await connection.execute(sa.update(outbox).values(state="dead"))
    await enqueue(store, row("new", "a"))
    [dead] = await dead_rows(store.engine())
    async with store.engine().begin() as connection:
        assert await connection.run_sync(letters.discard, dead.id)
        # Not committed yet: to a relay that looks now, the dead row is still there. It must wait, and then look.
        taking = asyncio.create_task(take())
        await asyncio.wait([taking], timeout=0.5)
    assert "new" in [*await taking, *await take()]
