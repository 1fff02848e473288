"""The flush: what a turn writes, when it is refused, and what a second try of it does."""

from dataclasses import replace

import pytest

from edda.errors import StorageDataError
from edda.storage.contract import Storage
from edda.storage.rows import Applied, Record, Release, State, WaitKind
from tests.storage import given
from tests.storage.conftest import OpenStore
from tests.storage.given import APP, OTHER, WORKER

# ---------------------------------------------------------------------------------------------- starts


async def test_a_start_is_born_running_and_owned_with_fence_one(store: Storage) -> None:
    before = await store.now()
    new = given.start(
        "order",
        version="2",
        priority=3,
        chain="root",
        chain_started_at=17,
        parent="p",
        parent_seq=4,
        carried=b"c",
    )
    flushed = await store.flush([new])
    row = await given.row(store, "order")
    assert [result.applied for result in flushed.results] == [Applied.APPLIED]
    assert (row.state, row.owner, row.fence, row.signals) == (State.RUNNING, WORKER, 1, 0)
    assert (row.app, row.workflow, row.version, row.priority, row.chain) == (APP, "order", "2", 3, "root")
    assert before <= row.created_at == row.updated_at == flushed.now_us
    (owned,) = await store.owned(WORKER)
    assert (owned.chain_started_at, owned.carried, owned.start_event) == (17, b"c", 0)


async def test_a_start_without_a_chain_is_its_own_root_from_now_on(store: Storage) -> None:
    flushed = await store.flush([given.start("order")])
    (owned,) = await store.owned(WORKER)
    assert (owned.chain, owned.chain_started_at, owned.created_at) == (
        "order",
        flushed.now_us,
        flushed.now_us,
    )


async def test_a_taken_id_starts_nothing_and_changes_nothing(store: Storage) -> None:
    await given.started(store, "order", owner=OTHER)
    second = given.start("order", workflow="refund", records=[given.record(1)])
    assert await given.applied(store, second) == [Applied.EXISTS]
    assert (await given.row(store, "order")).workflow == "order"
    assert await given.recorded(store, "order") == []


async def test_a_taken_live_key_starts_nothing(store: Storage) -> None:
    await given.started(store, "first", live_key=given.digest("key"))
    assert await given.applied(store, given.start("second", live_key=given.digest("key"))) == [Applied.EXISTS]
    assert await store.get_instance("second") is None


async def test_two_starts_with_one_live_key_in_one_flush_have_one_winner(store: Storage) -> None:
    key = given.digest("key")
    applied = await given.applied(store, given.start("a", live_key=key), given.start("b", live_key=key))
    assert sorted(applied) == [Applied.APPLIED, Applied.EXISTS]
    assert (await store.counts())["instances"] == 1


async def test_a_live_key_is_free_again_when_its_instance_has_ended(store: Storage) -> None:
    await given.started(store, "first", live_key=given.digest("key"))
    assert await given.applied(store, given.end("first")) == [Applied.APPLIED]
    await given.started(store, "second", live_key=given.digest("key"))


async def test_a_start_sent_again_after_an_unknown_commit_is_applied_once(store: Storage) -> None:
    new = given.start("order", records=[given.record(1)])
    assert await given.applied(store, new) == [Applied.APPLIED]
    assert await given.applied(store, new) == [Applied.APPLIED]
    assert await given.recorded(store, "order") == [1]


async def test_a_start_that_ends_at_once_is_not_mistaken_for_an_older_instance_of_that_id(
    store: Storage,
) -> None:
    await given.started(store, "order")
    await given.flush(store, given.end("order", output=b"1"))
    again = replace(given.start("order"), release=Release.END, end_state=State.COMPLETED, output=b"2")
    assert await given.applied(store, again) == [Applied.EXISTS]
    assert (await given.row(store, "order")).output == b"1"


# ---------------------------------------------------------------------------------------------- the fence


async def test_a_turn_with_an_older_fence_is_lost(store: Storage) -> None:
    await given.started(store, "order")
    await store.retire_worker(WORKER)
    assert (await given.row(store, "order")).fence == 2
    stale = given.turn("order", 1, outbox=[given.message("e")], children=[given.instance("child")])
    assert await given.applied(store, stale) == [Applied.LOST]
    assert await given.recorded(store, "order") == []
    assert await given.outgoing(store) == []
    assert await store.get_instance("child") is None


async def test_a_turn_with_the_right_fence_of_another_owner_is_lost(store: Storage) -> None:
    await given.started(store, "order")
    assert await given.applied(store, given.turn("order", 1, owner=OTHER)) == [Applied.LOST]
    assert await given.recorded(store, "order") == []


async def test_a_turn_of_an_unknown_instance_is_lost(store: Storage) -> None:
    assert await given.applied(store, given.turn("nobody", 1)) == [Applied.LOST]
    assert (await store.counts())["history"] == 0


async def test_a_turn_of_a_released_instance_that_releases_nothing_is_lost(store: Storage) -> None:
    await given.parked(store, "order", given.event_wait(1, "key"))
    assert await given.applied(store, given.turn("order", 2)) == [Applied.LOST]


async def test_a_record_that_an_earlier_owner_has_written_is_lost(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", 1))
    await store.retire_worker(WORKER)
    await store.register_worker(OTHER, APP, given.HOUR)
    assert await given.claimed(store, OTHER) == ["order"]
    mine = given.turn("order", 1, owner=OTHER, fence=3)
    assert await given.applied(store, mine) == [Applied.LOST]
    assert await store.record_fence("order", 1) == 1


async def test_a_lost_turn_fails_none_of_its_neighbours(store: Storage) -> None:
    await given.started(store, "a", "b", "c")
    flushed = await given.applied(
        store,
        given.turn("c", 1, outbox=[given.message("c")]),
        given.turn("b", 1, fence=9, outbox=[given.message("b")]),
        given.end("a", 1),
        given.turn("nobody", 1),
        given.start("d"),
    )
    assert flushed == [Applied.APPLIED, Applied.LOST, Applied.APPLIED, Applied.LOST, Applied.APPLIED]
    assert [await given.recorded(store, one) for one in "abcd"] == [[1], [], [1], []]
    assert await given.outgoing(store) == ["c"]


async def test_a_flush_of_nothing_writes_nothing(store: Storage) -> None:
    assert (await store.flush([])).results == ()


# ---------------------------------------------------------------------------------------------- what it writes


async def test_records_come_back_whole_with_the_time_of_their_flush(store: Storage) -> None:
    await given.started(store, "order")
    binary = bytes(range(256)) * 300
    records = [
        given.record(
            2, binary, pos=1, kind="activity", name="näme 🚀", content_type="application/octet-stream"
        ),
        given.record(1, b"", pos=2, kind="timer", args_hash=given.digest("x")[:16]),
    ]
    flushed = await store.flush([given.turn("order", records=records)])
    at = flushed.now_us
    assert await store.get_history("order") == [replace(record, recorded_at=at) for record in records]
    assert (await given.loaded(store, "order")).history == tuple(await store.get_history("order"))
    assert [await store.record_fence("order", seq) for seq in (1, 2, 3)] == [1, 1, None]


async def test_outbox_rows_keep_the_order_of_the_turn_and_all_that_they_hold(store: Storage) -> None:
    await given.started(store, "order", "other")
    full = given.message("e1", destination="d", ordering_key="k", instance_id="order", type="type ü")
    bare = given.message("e2", destination="d", data=None, content_type=None)
    flushed = await store.flush(
        [given.turn("order", 1, outbox=[full, bare]), given.turn("other", 1, outbox=[given.message("e3")])]
    )
    taken = await store.outbox_take("d", "relay", given.HOUR, 10, 1 << 20)
    assert [row.event_id for row in taken.rows] == ["e1", "e2"]
    first, second = taken.rows
    assert (first.type, first.source, first.attributes, first.data, first.content_type, first.ordering_key) == (
        full.type, full.source, full.attributes, full.data, full.content_type, "k",
    )  # fmt: skip
    assert (first.attempts, first.created_at) == (0, flushed.now_us)
    assert (second.data, second.content_type, second.ordering_key) == (None, None, None)
    assert await given.outgoing(store) == ["e3"]


async def test_children_are_inserted_runnable_unless_they_are_there(store: Storage) -> None:
    await given.started(store, "parent", "taken")
    children = [
        given.instance("child", parent="parent", parent_seq=1),
        given.instance("taken", workflow="other"),
    ]
    assert await given.applied(store, given.turn("parent", 1, children=children)) == [Applied.APPLIED]
    child = await given.row(store, "child")
    assert (child.state, child.owner, child.fence) == (State.RUNNABLE, None, 0)
    assert (await given.row(store, "taken")).workflow == "order"


async def test_a_turn_clears_the_recoveries_only_if_it_says_so(store: Storage) -> None:
    await given.started(store, "order")
    await store.register_worker(OTHER, APP, given.HOUR)
    store.clock_offset_us += 2 * given.HOUR
    await store.register_worker("worker-3", APP, given.HOUR)
    assert await store.requeue_expired() == (frozenset({APP}), 1)
    (claimed,) = await store.claim(APP, ["order"], "worker-3", 1)
    assert claimed.recoveries == 1
    await given.flush(store, given.turn("order", 1, owner="worker-3", fence=3))
    assert (await given.row(store, "order")).recoveries == 1
    await given.flush(store, given.turn("order", 2, owner="worker-3", fence=3, reset_recoveries=True))
    assert (await given.row(store, "order")).recoveries == 0


async def test_waits_are_replaced_and_dropped_by_their_number(store: Storage) -> None:
    await given.started(store, "order")
    first = [
        given.event_wait(1, "a", detail=b"d", cursor=5),
        given.timer(2, delay_us=7),
        given.timer(3, deadline_us=9),
    ]
    flushed = await store.flush([given.turn("order", waits=first)])
    waits = await given.waits(store, "order")
    assert (waits[1].kind, waits[1].name, waits[1].hash) == (WaitKind.EVENT, "paid", given.digest("a"))
    assert (waits[1].cursor, waits[1].deadline_us, waits[1].due, waits[1].detail) == (5, None, False, b"d")
    assert (waits[2].kind, waits[2].deadline_us, waits[2].hash) == (WaitKind.TIMER, flushed.now_us + 7, None)
    assert waits[3].deadline_us == 9
    await given.flush(store, given.turn("order", 4, waits=[given.event_wait(1, "b")], drop_waits=[2, 99]))
    waits = await given.waits(store, "order")
    assert sorted(waits) == [1, 3]
    assert (waits[1].hash, waits[1].cursor, waits[1].detail) == (given.digest("b"), 0, None)


async def test_a_replaced_wait_is_not_due_any_more(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.timer(1, delay_us=-1)]))
    await store.fire_timers()
    assert await given.due(store, "order") == [1]
    await given.flush(store, given.turn("order", waits=[given.timer(1, delay_us=given.HOUR)]))
    assert await given.due(store, "order") == []


async def test_many_turns_of_many_records_go_in_one_flush(store: Storage) -> None:
    ids = [f"order-{number:04}" for number in range(700)]
    await given.started(store, *ids)
    turns = [
        given.turn(one, 1, 2, 3, waits=[given.event_wait(4, one)], outbox=[given.message(one)]) for one in ids
    ]
    assert set(await given.applied(store, *turns)) == {Applied.APPLIED}
    counts = await store.counts()
    assert (counts["history"], counts["waits"], counts["outbox"]) == (2100, 700, 700)
    assert set(await given.applied(store, *(given.end(one, 5) for one in ids))) == {Applied.APPLIED}
    assert (await store.counts())["waits"] == 0


# ---------------------------------------------------------------------------------------------- ends


async def test_an_end_sets_the_outcome_deletes_the_waits_and_gives_the_instance_away(store: Storage) -> None:
    await given.started(store, "order", "other", live_key=None)
    await given.flush(store, given.turn("order", waits=[given.timer(1, delay_us=given.HOUR)]))
    await given.flush(store, given.turn("other", waits=[given.timer(1, delay_us=given.HOUR)]))
    flushed = await store.flush([given.end("order", 2, output=b"out", output_type="text/plain")])
    row = await given.row(store, "order")
    assert (row.state, row.owner, row.fence) == (State.COMPLETED, None, 1)
    assert (row.output, row.output_type, row.error) == (b"out", "text/plain", None)
    assert row.ended_at == row.updated_at == flushed.now_us
    assert (await store.counts())["waits"] == 1
    assert await given.recorded(store, "order") == [2]


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.DEAD])
async def test_an_end_in_another_state_keeps_its_error(store: Storage, state: State) -> None:
    await given.started(store, "order", live_key=given.digest("key"))
    await given.flush(store, given.end("order", end_state=state, output=None, error=b"why"))
    row = await given.row(store, "order")
    assert (row.state, row.output, row.error) == (state, None, b"why")
    await given.started(store, "next", live_key=given.digest("key"))


async def test_a_paused_instance_keeps_its_waits_and_its_live_key_whatever_the_signals(
    store: Storage,
) -> None:
    await given.started(store, "order", live_key=given.digest("key"))
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a")]))
    await given.accepted(store, given.event("e", "a"))
    stale = given.turn("order", release=Release.END, end_state=State.PAUSED, error=b"why")
    assert await given.applied(store, stale) == [Applied.APPLIED]
    row = await given.row(store, "order")
    assert (row.state, row.owner, row.ended_at, row.error) == (State.PAUSED, None, None, b"why")
    assert sorted(await given.waits(store, "order")) == [1]
    assert await given.applied(store, given.start("next", live_key=given.digest("key"))) == [Applied.EXISTS]


async def test_a_yield_gives_back_whatever_the_signals(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a")]))
    await given.accepted(store, given.event("e", "a"))
    flushed = await store.flush([given.turn("order", 2, release=Release.YIELD)])
    row = await given.row(store, "order")
    assert [result.applied for result in flushed.results] == [Applied.APPLIED]
    assert (row.state, row.owner, row.fence, row.updated_at) == (State.RUNNABLE, None, 1, flushed.now_us)
    assert await given.claimed(store) == ["order"]


async def test_news_keep_an_end_with_its_owner_and_its_records_are_written(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a")]))
    await given.accepted(store, given.event("e", "a"))
    (result,) = await given.flush(store, given.end("order", 2))
    assert (result.applied, result.signals) == (Applied.KEPT, 1)
    row = await given.row(store, "order")
    assert (row.state, row.owner, row.output) == (State.RUNNING, WORKER, None)
    assert await given.recorded(store, "order") == [2]
    assert await given.due(store, "order") == [1]
    (result,) = await given.flush(store, given.end("order", 3, signals=1))
    assert (result.applied, result.signals) == (Applied.APPLIED, 1)


async def test_a_step_is_not_kept_by_news_but_hears_of_them(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a")]))
    await given.accepted(store, given.event("e", "a"))
    (result,) = await given.flush(store, given.turn("order", 2))
    assert (result.applied, result.signals) == (Applied.APPLIED, 1)


# ---------------------------------------------------------------------------------------------- parking


async def test_a_parked_instance_waits_without_an_owner(store: Storage) -> None:
    await given.started(store, "order")
    flushed = await store.flush(
        [given.park("order", given.event_wait(1, "a"), given.timer(2, delay_us=given.HOUR))]
    )
    row = await given.row(store, "order")
    assert [result.applied for result in flushed.results] == [Applied.APPLIED]
    assert (row.state, row.owner, row.fence, row.updated_at) == (State.WAITING, None, 1, flushed.now_us)
    assert row.wait_kinds == {WaitKind.EVENT, WaitKind.TIMER}
    assert await given.claimed(store) == []


async def test_news_keep_a_parking_instance_with_its_owner(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a")]))
    await given.accepted(store, given.event("e", "a"))
    (result,) = await given.flush(store, given.park("order"))
    assert (result.applied, result.signals) == (Applied.KEPT, 1)
    assert await given.state(store, "order") is State.RUNNING


async def test_an_event_accepted_before_its_wait_keeps_the_instance_that_would_park(store: Storage) -> None:
    await given.started(store, "order")
    await given.accepted(store, given.event("e", "a"))
    (result,) = await given.flush(store, given.park("order", given.event_wait(1, "a")))
    assert (result.applied, result.signals) == (Applied.KEPT, 0)
    row = await given.row(store, "order")
    assert (row.state, row.owner) == (State.RUNNING, WORKER)
    event = await given.first_event(store, "order", 1)
    assert event is not None
    assert event.event_id == "e"


async def test_an_event_accepted_before_its_wait_is_found_by_a_turn_that_goes_on(store: Storage) -> None:
    await given.started(store, "order", "other")
    await given.accepted(store, given.event("e", "a"))
    results = await given.applied(
        store,
        given.turn("order", 1, waits=[given.event_wait(2, "a")]),
        given.turn("other", 1, waits=[given.event_wait(2, "b")]),
    )
    assert results == [Applied.KEPT, Applied.APPLIED]
    assert await given.due(store, "order") == [2]
    assert await given.due(store, "other") == []


async def test_an_event_accepted_before_its_wait_is_found_though_other_news_keep_the_instance(
    store: Storage,
) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a")]))
    await given.accepted(store, given.event("e1", "a"), given.event("e2", "b"))
    for stale in (
        given.park("order", given.event_wait(2, "b")),
        given.end("order", waits=[given.event_wait(3, "b")]),
    ):
        (result,) = await given.flush(store, stale)
        assert (result.applied, result.signals) == (Applied.KEPT, 1)
    assert await given.due(store, "order") == [1, 2, 3]


async def test_a_deadline_that_has_passed_is_left_to_the_timers_by_a_turn_that_goes_on(
    store: Storage,
) -> None:
    await given.started(store, "order")
    waits = [given.event_wait(1, "a", delay_us=0), given.timer(2, delay_us=0)]
    assert await given.applied(store, given.turn("order", waits=waits)) == [Applied.APPLIED]
    assert await given.due(store, "order") == []
    assert await store.fire_timers() == (frozenset({APP}), 2)


async def test_a_wait_that_is_given_back_with_its_instance_is_looked_at_by_the_next_owner(
    store: Storage,
) -> None:
    await given.accepted(store, given.event("e", "a"))
    await given.started(store, "order")
    back = given.turn("order", waits=[given.event_wait(1, "a")], release=Release.YIELD)
    assert await given.applied(store, back) == [Applied.APPLIED]
    assert await given.due(store, "order") == []
    assert await given.claimed(store) == ["order"]
    assert await given.applied(store, given.park("order", fence=2)) == [Applied.KEPT]
    assert await given.due(store, "order") == [1]


async def test_a_wait_of_an_earlier_turn_is_looked_at_when_the_instance_parks(store: Storage) -> None:
    await given.started(store, "order", "other")
    for one, delay in (("order", given.HOUR), ("other", 3 * given.HOUR)):
        await given.flush(store, given.turn(one, waits=[given.event_wait(1, "a", delay_us=delay)]))
    store.clock_offset_us += 2 * given.HOUR
    assert await given.applied(store, given.park("order"), given.park("other")) == [
        Applied.KEPT,
        Applied.APPLIED,
    ]
    assert await given.due(store, "order") == [1]


@pytest.mark.parametrize("kind", ["event", "timer"])
async def test_a_deadline_that_has_passed_keeps_the_instance_that_would_park(
    store: Storage, kind: str
) -> None:
    await given.started(store, "order", "other")
    wait = given.event_wait if kind == "event" else lambda seq, _, **changes: given.timer(seq, **changes)
    results = await given.applied(
        store,
        given.park("order", wait(1, "a", delay_us=0)),
        given.park("other", wait(1, "a", delay_us=given.HOUR)),
    )
    assert results == [Applied.KEPT, Applied.APPLIED]
    assert await given.due(store, "order") == [1]


async def test_a_wait_that_was_due_for_an_event_behind_its_new_cursor_does_not_keep_the_instance(
    store: Storage,
) -> None:
    await given.started(store, "order")
    await given.accepted(store, given.event("e", "a"))
    assert await given.applied(store, given.park("order", given.event_wait(1, "a"))) == [Applied.KEPT]
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a", cursor=1)]))
    assert await given.applied(store, given.park("order")) == [Applied.APPLIED]
    assert await given.due(store, "order") == []


async def test_an_event_of_the_past_that_was_skipped_or_is_somebody_elses_keeps_nobody(
    store: Storage,
) -> None:
    await given.started(store, "order")
    await given.accepted(store, given.event("e1", "a"), given.event("e2", "b", addressee="another"))
    waits = [given.event_wait(1, "a", skip=1), given.event_wait(2, "b")]
    assert await given.applied(store, given.park("order", *waits)) == [Applied.APPLIED]


async def test_an_event_addressed_to_the_chain_keeps_the_instance_that_would_park(store: Storage) -> None:
    await given.started(store, "order", chain="root")
    await given.accepted(store, given.event("e", "a", addressee="order"))
    assert await given.applied(store, given.park("order", given.event_wait(1, "a"))) == [Applied.KEPT]


async def test_since_leaves_out_what_was_accepted_before(store: Storage) -> None:
    await given.started(store, "order")
    await given.accepted(store, given.event("old", "a"))
    store.clock_offset_us += given.HOUR
    now = await store.now()
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a", since_us=now, cursor=0)]))
    wait = (await given.waits(store, "order"))[1]
    assert (wait.cursor, wait.due) == (1, False)
    await given.accepted(store, given.event("new", "a"))
    results = await given.applied(
        store,
        given.turn(
            "order",
            signals=1,
            waits=[
                given.event_wait(1, "a", since_us=now),
                given.event_wait(2, "a", since_us=0),
                given.event_wait(3, "a", since_us=now, cursor=7),
                given.event_wait(4, "a", since_us=now + given.HOUR),
            ],
        ),
    )
    assert results == [Applied.KEPT]
    waits = await given.waits(store, "order")
    assert {seq: wait.cursor for seq, wait in waits.items()} == {1: 1, 2: 0, 3: 7, 4: 2}
    assert {seq: wait.event.event_id for seq, wait in waits.items() if wait.event} == {1: "new", 2: "old"}


# ---------------------------------------------------------------------------------------------- the same turn again


async def test_a_step_flushed_again_is_written_once(store: Storage) -> None:
    await given.started(store, "order")
    step = given.turn("order", 1, 2, outbox=[given.message("e")], children=[given.instance("child")])
    assert await given.applied(store, step) == [Applied.APPLIED]
    assert await given.applied(store, step, given.start("neighbour")) == [Applied.APPLIED, Applied.APPLIED]
    assert await given.recorded(store, "order") == [1, 2]
    assert await given.outgoing(store) == ["e"]


async def test_an_end_flushed_again_is_applied_and_nothing_is_touched(store: Storage) -> None:
    await given.started(store, "order")
    last = given.end("order", 1, outbox=[given.message("e")])
    assert await given.applied(store, last) == [Applied.APPLIED]
    before = await given.row(store, "order")
    store.clock_offset_us += given.HOUR
    assert await given.applied(store, last) == [Applied.APPLIED]
    assert await given.row(store, "order") == before
    assert await given.outgoing(store) == ["e"]


async def test_a_park_flushed_again_after_its_wait_has_fired_does_not_put_the_wait_back(
    store: Storage,
) -> None:
    await given.started(store, "order")
    parking = given.park("order", given.event_wait(2, "a"), records=[given.record(1)])
    assert await given.applied(store, parking) == [Applied.APPLIED]
    await given.accepted(store, given.event("e", "a"))
    assert await given.applied(store, parking) == [Applied.APPLIED]
    assert await given.state(store, "order") is State.RUNNABLE
    assert await given.due(store, "order") == [2]


async def test_a_park_flushed_again_after_another_has_claimed_is_lost(store: Storage) -> None:
    await given.started(store, "order")
    parking = given.park("order", given.event_wait(2, "a"), records=[given.record(1)])
    await given.flush(store, parking)
    await given.accepted(store, given.event("e", "a"))
    assert await given.claimed(store) == ["order"]
    assert await given.applied(store, parking) == [Applied.LOST]
    assert await given.state(store, "order") is State.RUNNING


async def test_a_step_flushed_again_leaves_its_waits_as_they_are_now(store: Storage) -> None:
    await given.started(store, "order")
    step = given.turn("order", 1, waits=[given.timer(2, delay_us=given.HOUR)])
    await given.flush(store, step)
    before = await given.waits(store, "order")
    store.clock_offset_us += 2 * given.HOUR
    await store.fire_timers()
    (result,) = await given.flush(store, step)
    assert (result.applied, result.signals) == (Applied.APPLIED, 1)
    waits = await given.waits(store, "order")
    assert waits == {2: replace(before[2], due=True)}


async def test_a_kept_end_flushed_again_is_judged_by_what_is_there_now(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a")]))
    await given.accepted(store, given.event("e", "a"))
    last = given.end("order", 2, outbox=[given.message("out")])
    assert await given.applied(store, last) == [Applied.KEPT]
    assert await given.applied(store, last) == [Applied.KEPT]
    assert await given.applied(store, replace(last, signals=1)) == [Applied.APPLIED]
    assert await given.recorded(store, "order") == [2]
    assert await given.outgoing(store) == ["out"]


async def test_a_yield_flushed_again_is_applied(store: Storage) -> None:
    await given.started(store, "order")
    back = given.turn("order", 1, release=Release.YIELD)
    assert await given.applied(store, back) == [Applied.APPLIED]
    assert await given.applied(store, back) == [Applied.APPLIED]
    assert await given.recorded(store, "order") == [1]


async def test_a_repeat_among_new_turns_does_not_hide_them(store: Storage) -> None:
    await given.started(store, "a", "b")
    await given.flush(store, given.turn("a", 1))
    results = await given.applied(store, given.turn("a", 1), given.turn("b", 1, outbox=[given.message("b")]))
    assert results == [Applied.APPLIED, Applied.APPLIED]
    assert await given.recorded(store, "b") == [1]
    assert await given.outgoing(store) == ["b"]


# ---------------------------------------------------------------------------------------------- keyed runs


async def keyed(store: Storage, *events: str, started_by: int = 1) -> None:
    """A running instance for a key whose events are these."""
    key = given.digest("key")
    await given.started(store, "order", live_key=key, start_event=started_by)
    await given.accepted(store, *(given.event(name, "key") for name in events))


async def test_a_keyed_run_does_not_end_over_an_event_that_nobody_has_read(store: Storage) -> None:
    await keyed(store, "e1", "e2", "e3")
    unread = given.unread("key", after=1)
    (result,) = await given.flush(store, given.end("order", 1, unread=unread))
    assert (result.applied, result.signals) == (Applied.KEPT, 0)
    assert result.unread is not None
    assert (result.unread.seq, result.unread.event_id, result.unread.data) == (2, "e2", b'{"amount": 1}')
    row = await given.row(store, "order")
    assert (row.state, row.owner, row.output) == (State.RUNNING, WORKER, None)
    assert await given.recorded(store, "order") == [1]


async def test_a_keyed_run_ends_when_its_chain_has_received_all(store: Storage) -> None:
    await keyed(store, "e1", "e2", "e3")
    (result,) = await given.flush(store, given.end("order", unread=given.unread("key", 1, 2)))
    assert result.unread is not None
    assert result.unread.seq == 3
    (result,) = await given.flush(store, given.end("order", unread=given.unread("key", 1, 2, 3)))
    assert (result.applied, result.unread) == (Applied.APPLIED, None)


async def test_an_event_addressed_to_somebody_or_with_another_key_keeps_no_keyed_run(store: Storage) -> None:
    await keyed(store, "e1")
    await given.accepted(store, given.event("e2", "key", addressee="order"), given.event("e3", "other key"))
    assert await given.applied(store, given.end("order", unread=given.unread("key", 1))) == [Applied.APPLIED]


async def test_many_received_events_hide_no_unread_one(store: Storage) -> None:
    names = [f"e{number}" for number in range(600)]
    await keyed(store, *names, started_by=0)
    unread = given.unread("key", 0, *(seq for seq in range(1, 601) if seq != 577))
    (result,) = await given.flush(store, given.end("order", unread=unread))
    assert result.unread is not None
    assert result.unread.seq == 577


async def test_a_run_that_ends_with_a_successor_leaves_its_key_to_it(store: Storage) -> None:
    await keyed(store, "e1", "e2")
    successor = given.instance("next", live_key=given.digest("key"), start_event=2)
    (result,) = await given.flush(
        store, given.end("order", 1, unread=given.unread("key", 1), successor=successor)
    )
    assert (result.applied, result.unread) == (Applied.APPLIED, None)
    assert await given.state(store, "order") is State.COMPLETED
    (claimed,) = await store.claim(APP, ["order"], WORKER, 10)
    assert (claimed.id, claimed.start_event, claimed.live_key) == ("next", 2, given.digest("key"))


async def test_a_successor_is_not_inserted_by_an_end_that_is_kept_lost_or_repeated(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", waits=[given.event_wait(1, "a")]))
    await given.accepted(store, given.event("e", "a"))
    successor = given.instance("next")
    last = given.end("order", 2, successor=successor)
    assert await given.applied(store, last) == [Applied.KEPT]
    assert await given.applied(store, replace(last, fence=7)) == [Applied.LOST]
    assert await store.get_instance("next") is None
    assert await given.applied(store, replace(last, signals=1)) == [Applied.APPLIED]
    assert await given.claimed(store) == ["next"]
    fence = (await given.row(store, "next")).fence
    assert await given.applied(store, replace(last, signals=1)) == [Applied.APPLIED]
    assert (await given.row(store, "next")).fence == fence


async def test_a_successor_whose_key_is_taken_is_not_inserted_and_the_run_ends(store: Storage) -> None:
    await given.started(store, "holder", live_key=given.digest("key"))
    await given.started(store, "order")
    last = given.end("order", successor=given.instance("next", live_key=given.digest("key")))
    assert await given.applied(store, last) == [Applied.APPLIED]
    assert await given.state(store, "order") is State.COMPLETED
    assert await store.get_instance("next") is None


async def test_ends_with_and_without_unread_events_go_in_one_flush(store: Storage) -> None:
    for name in "abc":
        await given.started(store, name, live_key=given.digest(name))
    await given.accepted(store, given.event("e1", "b"), given.event("e2", "c"))
    results = await given.flush(
        store,
        given.end("a", 1, unread=given.unread("a", 0)),
        given.end("b", 1, unread=given.unread("b", 0)),
        given.end(
            "c", 1, unread=given.unread("c", 0), successor=given.instance("d", live_key=given.digest("c"))
        ),
        given.start("e"),
    )
    assert [result.applied for result in results] == [
        Applied.APPLIED,
        Applied.KEPT,
        Applied.APPLIED,
        Applied.APPLIED,
    ]
    assert [result.unread and result.unread.event_id for result in results] == [None, "e1", None, None]
    assert [await given.state(store, one) for one in "abcd"] == [
        State.COMPLETED,
        State.RUNNING,
        State.COMPLETED,
        State.RUNNABLE,
    ]


async def test_a_pause_has_no_successor_and_leaves_its_new_waits_to_the_next_owner(store: Storage) -> None:
    await given.accepted(store, given.event("e", "a"))
    await given.started(store, "order")
    paused = given.end(
        "order",
        end_state=State.PAUSED,
        output=None,
        waits=[given.event_wait(1, "a")],
        successor=given.instance("next", live_key=given.digest("free")),
    )
    assert await given.applied(store, paused) == [Applied.APPLIED]
    assert await store.get_instance("next") is None
    assert await given.due(store, "order") == []


async def test_a_paused_run_leaves_its_events_unread(store: Storage) -> None:
    await keyed(store, "e1", "e2")
    paused = given.end("order", end_state=State.PAUSED, output=None, unread=given.unread("key", 1))
    assert await given.applied(store, paused) == [Applied.APPLIED]


# ---------------------------------------------------------------------------------------------- values


UNSTORABLE = {
    "a lone surrogate in a name": given.record(1, name="\ud800"),
    "a lone surrogate in a content type": given.record(1, content_type="\udfff"),
}


@pytest.mark.parametrize("record", UNSTORABLE.values(), ids=UNSTORABLE.keys())
async def test_a_value_that_cannot_be_stored_is_refused_and_nothing_is_written(
    store: Storage, record: Record
) -> None:
    await given.started(store, "good", "bad")
    turns = [given.turn("good", 1, outbox=[given.message("e")]), given.turn("bad", records=[record])]
    with pytest.raises(StorageDataError):
        await store.flush(turns)
    assert [await given.recorded(store, one) for one in ("good", "bad")] == [[], []]
    assert await given.outgoing(store) == []
    assert await given.applied(store, turns[0]) == [Applied.APPLIED]


async def test_a_nul_in_text_is_stored_whole_or_refused_whole(store: Storage) -> None:
    await given.started(store, "order")
    record = given.record(1, name="a\0b", payload=b"\0")
    try:
        await given.flush(store, given.turn("order", records=[record]))
    except StorageDataError:
        assert store.dialect == "postgresql"
        assert await given.recorded(store, "order") == []
    else:
        assert [one.name for one in await store.get_history("order")] == ["a\0b"]


async def test_a_key_that_is_too_long_is_never_cut(store: Storage) -> None:
    long = "x" * 300
    try:
        await store.flush([given.start("good"), given.start(long)])
    except StorageDataError:
        assert await store.get_instance("good") is None
    else:
        assert store.dialect == "sqlite", "SQLite knows no lengths"
        assert (await given.row(store, long)).id == long


async def test_an_outbox_key_that_is_too_long_is_never_cut(store: Storage) -> None:
    await given.started(store, "order")
    long = given.message("e", ordering_key="k" * 300)
    try:
        await given.flush(store, given.turn("order", 1, outbox=[long]))
    except StorageDataError:
        assert await given.recorded(store, "order") == []
    else:
        assert store.dialect == "sqlite", "SQLite knows no lengths"


async def test_a_record_that_exists_though_the_first_of_its_turn_does_not_is_refused(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", 2))
    with pytest.raises(StorageDataError):
        await given.flush(store, given.turn("order", 1, 2, outbox=[given.message("e")]))
    assert await given.recorded(store, "order") == [2]
    assert await given.outgoing(store) == []


# ---------------------------------------------------------------------------------------------- two processes


async def test_a_process_that_lost_its_instance_to_another_writes_nothing(
    store: Storage, another_store: OpenStore
) -> None:
    await given.started(store, "order")
    other = await another_store()
    await other.register_worker(OTHER, APP, given.HOUR)
    await store.retire_worker(WORKER)
    (claimed,) = await other.claim(APP, ["order"], OTHER, 1)
    await given.flush(other, given.turn("order", 1, owner=OTHER, fence=claimed.fence))
    assert await given.applied(store, given.turn("order", 1)) == [Applied.LOST]
    assert await given.recorded(store, "order") == [1]
    assert await store.record_fence("order", 1) == claimed.fence


# ---------------------------------------------------------------------------------------------- counters


async def test_flushes_and_statements_are_counted(store: Storage) -> None:
    flushes, statements = store.flushes, store.statements
    await given.flush(store, given.start("order", records=[given.record(1)]))
    assert store.flushes == flushes + 1
    assert statements < store.statements <= statements + 5
