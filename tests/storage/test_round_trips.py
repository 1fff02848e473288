"""What each hot transaction costs, in statements sent: packets on MySQL, calls of the writer's thread on SQLite."""

from collections.abc import Awaitable

import pytest

from edda.storage.contract import Storage
from edda.storage.memory import accept as memory
from edda.storage.mysql import accept as mysql
from edda.storage.postgresql import accept as postgresql
from edda.storage.rows import Applied, NewDeadLetter, Turn
from edda.storage.sqlite import accept as sqlite
from tests.storage import given
from tests.storage.given import APP, HOUR, WORKER

#: Of a flush of pure steps; one that meets events may cost two more.
STEP = {"sqlite": 1, "postgresql": 1, "mysql": 5, "memory": 1}

#: Of an accept, whatever it finds.
ACCEPT = {"sqlite": 1, "postgresql": 1, "mysql": 3, "memory": 1}

#: Of marking what it has left.
MARK = {"sqlite": 1, "postgresql": 1, "mysql": 2, "memory": 1}

#: Of a claim and a load.
OTHERS = {"sqlite": 1, "postgresql": 2, "mysql": 5, "memory": 1}


async def cost(store: Storage, work: Awaitable[object]) -> int:
    before = store.statements
    await work
    return store.statements - before


async def warm(store: Storage, *ids: str) -> None:
    """Running instances, and the store has done once what is measured."""
    await given.started(store, *ids, "warm")
    await given.flush(store, given.turn("warm", 1))
    await given.flush(store, given.park("warm", given.event_wait(2, "warm"), records=[given.record(3)]))
    await given.accepted(store, given.event("warm", "warm"))
    await given.claimed(store)
    await store.load(["warm"])


def _step(one: str) -> Turn:
    return given.turn(one, 1, outbox=[given.message(one)], children=[given.instance(f"child of {one}")])


@pytest.mark.parametrize("turns", [1, 50])
async def test_a_flush_of_steps_costs_the_same_however_many_they_are(store: Storage, turns: int) -> None:
    names = [f"order-{number}" for number in range(turns)]
    await warm(store, *names)
    assert await cost(store, store.flush([_step(one) for one in names])) <= STEP[store.dialect]
    assert await cost(store, store.flush([given.end(one, 2) for one in names])) <= STEP[store.dialect]


@pytest.mark.parametrize("turns", [1, 50])
async def test_a_flush_of_starts_costs_no_more_than_one_of_steps(store: Storage, turns: int) -> None:
    await warm(store)
    starts = [given.start(f"order-{number}", records=[given.record(1)]) for number in range(turns)]
    assert await cost(store, store.flush(starts)) <= STEP[store.dialect]


@pytest.mark.parametrize("turns", [1, 50])
async def test_a_flush_that_registers_waits_costs_at_most_two_more(store: Storage, turns: int) -> None:
    names = [f"order-{number}" for number in range(turns)]
    await warm(store, *names)
    going_on = [
        given.turn(one, 1, waits=[given.event_wait(2, one, since_us=1), given.timer(3, delay_us=HOUR)])
        for one in names
    ]
    assert await cost(store, store.flush(going_on)) <= STEP[store.dialect] + 2
    parking = [given.park(one, given.event_wait(4, one), records=[given.record(5)]) for one in names]
    assert await cost(store, store.flush(parking)) <= STEP[store.dialect] + 2


async def test_a_flush_that_ends_keyed_runs_costs_at_most_two_more(store: Storage) -> None:
    names = [f"order-{number}" for number in range(50)]
    await warm(store, *names)
    await given.accepted(store, given.event("e", "order-7"))
    ends = [given.end(one, 1, unread=given.unread(one, 0)) for one in names]
    assert await cost(store, store.flush(ends)) <= STEP[store.dialect] + 2


async def test_a_flush_sent_again_costs_at_most_twice_as_much(store: Storage) -> None:
    await warm(store, "order")
    step = _step("order")
    await store.flush([step])
    assert await cost(store, store.flush([step])) <= 2 * STEP[store.dialect]
    assert await given.applied(store, step) == [Applied.APPLIED]


@pytest.mark.parametrize("events", [1, 300])
async def test_an_accept_costs_the_same_however_many_events_it_has(store: Storage, events: int) -> None:
    await warm(store)
    for number in range(3):
        await given.parked(store, f"order-{number}", given.event_wait(1, f"key-{number}"))
    batch = given.batch(
        "measured",
        *(given.event(f"e{n}", f"key-{n}", starts=(given.instance(f"started-{n}"),)) for n in range(events)),
    )
    assert await cost(store, store.accept(batch)) <= ACCEPT[store.dialect]
    again = store.accept(batch)
    assert await cost(store, again) <= ACCEPT[store.dialect], "sent again it costs no more"


async def test_waits_that_an_accept_leaves_cost_no_statement_more(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (memory, mysql, postgresql, sqlite):
        monkeypatch.setattr(module, "FIRST_WAITS", 1)
    await warm(store)
    await store.mark_due([given.digest("warm")])
    for number in range(3):
        await given.parked(store, f"order-{number}", given.event_wait(1, "key"))
    poison = (NewDeadLetter("http", b"x", b"[]", "bad"),)
    batch = given.batch("measured", given.event("e", "key"), poison=poison)
    assert await cost(store, store.accept(batch)) <= ACCEPT[store.dialect]
    assert (await store.counts())["unmarked"] == 1
    assert await cost(store, store.mark_due([given.digest("key")])) <= MARK[store.dialect]
    assert (await store.counts())["unmarked"] == 0


@pytest.mark.parametrize("instances", [1, 50])
async def test_a_claim_and_its_load_cost_the_same_however_many_they_are(
    store: Storage, instances: int
) -> None:
    await warm(store)
    names = [f"order-{number}" for number in range(instances)]
    for one in names:
        await given.parked(store, one, given.event_wait(1, one))
    await given.accepted(store, *(given.event(one, one) for one in names))
    assert await cost(store, store.claim(APP, ["order"], WORKER, 100)) <= OTHERS[store.dialect]
    assert await cost(store, store.load(names)) <= OTHERS[store.dialect]


async def test_a_beat_costs_one_statement_where_one_can_say_it_all(store: Storage) -> None:
    heart = store.heart()
    await heart.beat(WORKER, APP, HOUR)
    allowed = {"postgresql": 1, "sqlite": 3, "mysql": 3, "memory": 1}[store.dialect]
    assert await cost(store, heart.beat(WORKER, APP, HOUR)) <= allowed
    await heart.close()
