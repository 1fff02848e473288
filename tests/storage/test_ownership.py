"""Workers, leases and timers: who is alive, whose instances go back, what comes due."""

import asyncio

import pytest

from edda.storage.contract import Storage
from edda.storage.rows import Applied, Beat, RelayOutcome, State
from tests.storage import given
from tests.storage.conftest import OpenStore
from tests.storage.given import APP, HOUR, OTHER, SECOND, WORKER


async def beat(store: Storage, worker: str = WORKER, lease_us: int = HOUR) -> Beat:
    heart = store.heart()
    try:
        return await heart.beat(worker, APP, lease_us)
    finally:
        await heart.close()


# ---------------------------------------------------------------------------------------------- leases


async def test_a_beat_renews_the_lease(store: Storage) -> None:
    await store.register_worker(OTHER, APP, SECOND)
    assert (await beat(store, OTHER, HOUR)).alive
    store.clock_offset_us += HOUR // 2
    assert await store.requeue_expired() == (frozenset(), 0)
    assert (await beat(store, OTHER)).alive


async def test_a_heart_beats_again_and_again(store: Storage) -> None:
    heart = store.heart()
    for _ in range(3):
        first = await heart.beat(WORKER, APP, HOUR)
        assert first.alive
        store.clock_offset_us += HOUR // 2
    await heart.close()
    await heart.close()


async def test_a_heart_beats_in_a_thread_with_an_event_loop_of_its_own(store: Storage) -> None:
    heart = store.heart()

    async def live() -> list[bool]:
        beats = [(await heart.beat(WORKER, APP, HOUR)).alive for _ in range(2)]
        await heart.close()
        return beats

    assert await asyncio.to_thread(asyncio.run, live()) == [True, True]
    assert await store.requeue_expired() == (frozenset(), 0)


async def test_a_worker_that_was_declared_dead_finds_itself_dead(store: Storage) -> None:
    await store.register_worker(OTHER, APP, SECOND)
    store.clock_offset_us += 2 * SECOND
    await store.requeue_expired()
    assert not (await beat(store, OTHER)).alive
    store.clock_offset_us -= 2 * SECOND
    assert not (await beat(store, OTHER)).alive, "dead is dead, whatever the clock says"
    assert (await beat(store, WORKER)).alive


async def test_an_unknown_worker_is_not_alive(store: Storage) -> None:
    assert not (await beat(store, "nobody")).alive


async def test_a_late_beat_before_anybody_looked_keeps_the_worker_alive(store: Storage) -> None:
    await store.register_worker(OTHER, APP, SECOND)
    await given.started(store, "order", owner=OTHER)
    store.clock_offset_us += 2 * SECOND
    assert (await beat(store, OTHER)).alive
    assert await store.requeue_expired() == (frozenset(), 0)
    assert (await given.row(store, "order")).owner == OTHER


async def test_what_a_dead_worker_owns_goes_back_under_a_raised_fence(store: Storage) -> None:
    await store.register_worker(OTHER, APP, SECOND)
    await given.started(store, "order", owner=OTHER)
    await given.started(store, "elsewhere", owner=OTHER, app="elsewhere")
    await given.started(store, "mine")
    await given.parked(store, "parked", given.event_wait(1, "a"), app="parked")
    store.clock_offset_us += 2 * SECOND
    before = await store.now()
    assert await store.requeue_expired() == (frozenset({APP, "elsewhere"}), 2)
    row = await given.row(store, "order")
    assert (row.state, row.owner, row.fence, row.recoveries, row.signals) == (State.RUNNABLE, None, 2, 1, 0)
    assert row.updated_at >= before
    assert (await given.row(store, "mine")).owner == WORKER
    assert await given.state(store, "parked") is State.WAITING
    assert await given.applied(store, given.turn("order", 1, owner=OTHER)) == [Applied.LOST]
    assert await store.requeue_expired() == (frozenset(), 0)
    (claimed,) = await store.claim(APP, ["order"], WORKER, 9)
    assert (claimed.fence, claimed.recoveries) == (3, 1)


async def test_requeueing_goes_on_where_its_limit_stopped_it(store: Storage) -> None:
    await store.register_worker(OTHER, APP, SECOND)
    await given.started(store, *(f"order-{number}" for number in range(5)), owner=OTHER)
    store.clock_offset_us += 2 * SECOND
    counts = []
    for _ in range(4):
        _, count = await store.requeue_expired(limit=2)
        counts.append(count)
    assert counts == [2, 2, 1, 0]
    assert (await store.counts())["instances.runnable"] == 5


async def test_a_worker_whose_lease_ends_right_now_is_still_alive(store: Storage) -> None:
    await store.register_worker(OTHER, APP, HOUR)
    await given.started(store, "order", owner=OTHER)
    store.clock_offset_us += HOUR - 10 * SECOND
    assert await store.requeue_expired() == (frozenset(), 0)


async def test_old_dead_workers_are_forgotten_once_they_own_nothing(store: Storage) -> None:
    await store.register_worker(OTHER, APP, SECOND)
    store.clock_offset_us += 2 * SECOND
    await store.requeue_expired()
    assert (await store.counts())["workers"] == 2
    store.clock_offset_us += 48 * HOUR
    await store.register_worker("worker-3", APP, HOUR)
    await store.requeue_expired()
    await store.requeue_expired()
    assert (await store.counts())["workers"] <= 2
    assert not (await beat(store, OTHER)).alive


async def test_a_worker_that_leaves_gives_back_at_once_what_it_owns(store: Storage) -> None:
    await given.started(store, "a", "b")
    await given.started(store, "c", owner=OTHER)
    assert await store.retire_worker(WORKER) == 2
    row = await given.row(store, "a")
    assert (row.state, row.owner, row.fence, row.recoveries) == (State.RUNNABLE, None, 2, 0)
    assert (await given.row(store, "c")).owner == OTHER
    assert not (await beat(store)).alive
    assert await store.retire_worker(WORKER) == 0
    assert await store.retire_worker("nobody") == 0


# ---------------------------------------------------------------------------------------------- looking around


async def test_a_beat_says_when_the_next_foreign_lease_ends(store: Storage) -> None:
    assert (await beat(store)).foreign_expiry_us is None
    now = await store.now()
    await store.register_worker(OTHER, "other app", HOUR)
    await store.register_worker("worker-3", APP, 2 * HOUR)
    expiry = (await beat(store)).foreign_expiry_us
    assert expiry is not None
    assert now + HOUR <= expiry <= await store.now() + HOUR
    store.clock_offset_us += HOUR + SECOND
    await beat(store, WORKER, 9 * HOUR)
    await store.requeue_expired()
    later = (await beat(store)).foreign_expiry_us
    assert later is not None
    assert later > expiry, "the dead have no lease"


async def test_a_beat_says_which_deadline_comes_next(store: Storage) -> None:
    await given.parked(store, "order", given.timer(1, deadline_us=5 * 10**16), given.event_wait(2, "a"))
    await given.parked(store, "other", given.event_wait(1, "a", deadline_us=4 * 10**16))
    assert (await beat(store)).next_deadline_us == 4 * 10**16
    await given.accepted(store, given.event("e", "a"))
    assert (await beat(store)).next_deadline_us == 5 * 10**16, "what is due waits for nothing"


async def test_a_beat_says_whether_instances_of_its_app_can_run(store: Storage) -> None:
    assert not (await beat(store)).runnable
    await store.insert_instances([given.instance("elsewhere", app="elsewhere")])
    now = await store.now()
    await store.insert_instances(
        [given.instance("soon", delay_us=HOUR), given.instance("later", delay_us=2 * HOUR)]
    )
    looked = await beat(store)
    assert not looked.runnable
    assert looked.next_available_us is not None
    assert now + HOUR <= looked.next_available_us < now + 2 * HOUR
    store.clock_offset_us += HOUR
    assert (await beat(store)).runnable


async def test_a_beat_says_whether_rows_wait_in_the_outbox(store: Storage) -> None:
    await given.started(store, "order")
    assert not (await beat(store)).outbox
    await given.flush(store, given.turn("order", 1, outbox=[given.message("e")]))
    assert (await beat(store)).outbox
    taken = await store.outbox_take("default", "relay", HOUR, 10, 1 << 20)
    await store.outbox_settle("default", "relay", RelayOutcome(failed=((taken.rows[0].id, HOUR, "why"),)))
    assert not (await beat(store)).outbox
    store.clock_offset_us += 2 * HOUR
    assert (await beat(store)).outbox


async def test_a_beat_tells_the_databases_time_with_the_offset(store: Storage) -> None:
    store.clock_offset_us = -HOUR
    before = await store.now()
    looked = await beat(store)
    assert before <= looked.now_us <= await store.now()


async def test_a_poll_looks_around_and_renews_nothing(store: Storage) -> None:
    await store.register_worker(OTHER, APP, SECOND)
    await store.insert_instances([given.instance("order"), given.instance("later", delay_us=HOUR)])
    await given.parked(store, "parked", given.timer(1, deadline_us=4 * 10**16))
    polled, looked = await store.poll(APP), await beat(store)
    assert (polled.alive, polled.runnable, polled.outbox) == (True, True, False)
    assert polled.next_deadline_us == looked.next_deadline_us == 4 * 10**16
    assert polled.next_available_us == looked.next_available_us
    assert polled.next_available_us is not None
    assert not (await store.poll("other app")).runnable
    store.clock_offset_us += 2 * SECOND
    await store.poll(APP)
    await store.requeue_expired()
    assert not (await beat(store, OTHER)).alive


async def test_a_poll_is_one_statement(store: Storage) -> None:
    await store.poll(APP)
    before = store.statements
    await store.poll(APP)
    assert store.statements == before + 1


# ---------------------------------------------------------------------------------------------- timers


async def test_a_timer_that_is_due_wakes_its_instance(store: Storage) -> None:
    await given.parked(store, "order", given.timer(1, delay_us=HOUR), given.timer(2, delay_us=3 * HOUR))
    assert await store.fire_timers() == (frozenset(), 0)
    store.clock_offset_us += 2 * HOUR
    before = await store.now()
    assert await store.fire_timers() == (frozenset({APP}), 1)
    row = await given.row(store, "order")
    assert (row.state, row.signals, row.owner) == (State.RUNNABLE, 1, None)
    assert row.updated_at >= before
    assert await given.due(store, "order") == [1]
    assert await store.fire_timers() == (frozenset(), 0)


async def test_a_deadline_of_an_event_wait_fires_like_a_timer(store: Storage) -> None:
    await given.parked(store, "order", given.event_wait(1, "a", delay_us=HOUR))
    store.clock_offset_us += 2 * HOUR
    assert await store.fire_timers() == (frozenset({APP}), 1)
    assert await given.first_event(store, "order", 1) is None


async def test_a_timer_of_a_running_instance_signals_its_owner(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.timer(1, delay_us=-1)]))
    assert await store.fire_timers() == (frozenset({APP}), 1)
    row = await given.row(store, "order")
    assert (row.state, row.owner, row.signals) == (State.RUNNING, WORKER, 1)


async def test_several_timers_of_one_instance_signal_once_per_round(store: Storage) -> None:
    await given.parked(store, "order", given.timer(1, delay_us=HOUR), given.timer(2, delay_us=HOUR))
    store.clock_offset_us += 2 * HOUR
    assert await store.fire_timers() == (frozenset({APP}), 2)
    assert (await given.row(store, "order")).signals == 1


async def test_timers_fire_in_pieces_until_none_is_left(store: Storage) -> None:
    for number in range(5):
        await given.parked(store, f"order-{number}", given.timer(1, delay_us=HOUR), app=f"app-{number}")
    store.clock_offset_us += 2 * HOUR
    rounds = [await store.fire_timers(limit=2) for _ in range(4)]
    assert [count for _, count in rounds] == [2, 2, 1, 0]
    assert [len(apps) for apps, _ in rounds] == [2, 2, 1, 0]
    assert (await store.counts())["instances.runnable"] == 5


async def test_any_process_fires_the_timers_of_all(store: Storage, another_store: OpenStore) -> None:
    await given.parked(store, "order", given.timer(1, delay_us=SECOND))
    other = await another_store()
    other.clock_offset_us = HOUR
    assert await other.fire_timers() == (frozenset({APP}), 1)
    assert await given.state(store, "order") is State.RUNNABLE


# ---------------------------------------------------------------------------------------------- inserted by hand


async def test_instances_are_inserted_unless_their_id_or_live_key_is_taken(store: Storage) -> None:
    key = given.digest("key")
    await given.started(store, "taken")
    new = [
        given.instance("a", live_key=key),
        given.instance("taken", workflow="other"),
        given.instance("b"),
        given.instance("c", live_key=key),
    ]
    assert await store.insert_instances(new) == [True, False, True, False]
    row = await given.row(store, "a")
    assert (row.state, row.owner, row.fence) == (State.RUNNABLE, None, 0)
    assert (await given.row(store, "taken")).workflow == "order"
    assert await store.get_instance("c") is None
    assert await store.insert_instances([]) == []


async def test_the_clock_is_the_databases_plus_the_offset(store: Storage, another_store: OpenStore) -> None:
    other = await another_store()
    first = await store.now()
    assert first <= await other.now() < first + 60 * SECOND
    store.clock_offset_us += HOUR
    assert first + HOUR <= await store.now() < first + HOUR + 60 * SECOND


async def test_ping_answers_and_close_may_be_called_twice(store: Storage) -> None:
    await store.ping()
    await store.close()
    await store.close()


@pytest.mark.parametrize("times", [1, 2])
async def test_a_store_that_was_closed_can_be_opened_again(store: Storage, times: int) -> None:
    await given.started(store, "order")
    for _ in range(times):
        await store.close()
        await store.open()
    assert await given.state(store, "order") is State.RUNNING
