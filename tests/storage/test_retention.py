"""Retention: what is over goes in its time, and never what something live refers to."""

from typing import Any

import pytest

from edda.storage.contract import Storage
from edda.storage.core import expired
from edda.storage.memory import accept as memory
from edda.storage.mysql import accept as mysql
from edda.storage.postgresql import accept as postgresql
from edda.storage.rows import (
    Applied,
    Chunk,
    Expiring,
    Keeps,
    NewDeadLetter,
    RelayOutcome,
    State,
    Swept,
    Verdict,
)
from edda.storage.sqlite import accept as sqlite
from tests.storage import given
from tests.storage.conftest import OpenStore
from tests.storage.given import APP, HOUR, SECOND, WORKER
from tests.storage.sweeping import begun

DAY = 24 * HOUR
WEEK = 7 * DAY


async def swept(store: Storage, what: Expiring, older_than: int = WEEK, **changes: Any) -> Swept:
    """One chunk in a sweep of its own."""
    sweep = await begun(store)
    assert sweep is not None
    if what is Expiring.INSTANCES:
        changes.setdefault("apps", ((APP, await store.now() - older_than),))
    result = await store.sweep(sweep, Chunk(what, await store.now() - older_than, **changes), HOUR)
    await store.end_sweep(sweep, 1_000 * DAY)
    assert result is not None
    return result


async def there(store: Storage) -> list[int]:
    """The events, by their numbers."""
    return [event.seq for event in await store.events_of_pattern("*", 0, 1_000, 1_000)]


async def count(store: Storage, table: str) -> int:
    return (await store.counts())[table]


def later(store: Storage, time: int) -> None:
    store.clock_offset_us += time


# ---------------------------------------------------------------------------------------------- events


async def test_events_and_keys_newer_than_the_cutoff_stay(store: Storage) -> None:
    """``edda-framework 0.16`` deleted claims that were newer than the cutoff."""
    await given.accepted(store, given.event("old", "a", "b"), given.event("older", "a"))
    later(store, 6 * DAY)
    await given.accepted(store, given.event("new", "a", "b"))
    assert await swept(store, Expiring.EVENTS) == Swept(0, 0, None)
    later(store, 2 * DAY)
    assert await swept(store, Expiring.EVENTS) == Swept(2, 0, None)
    assert await there(store) == [3]
    assert await count(store, "event_keys") == 2
    assert await count(store, "identities") == 3


async def test_the_accept_order_goes_on_where_it_was_when_all_events_are_gone(store: Storage) -> None:
    await given.accepted(store, given.event("a", "k"), given.event("b", "k"))
    later(store, 8 * DAY)
    await swept(store, Expiring.EVENTS)
    assert await there(store) == []
    assert (await given.accepted(store, given.event("c", "k"))).results[0].seq == 3
    await given.started(store, "order")
    long_ago = await store.now() - 30 * DAY
    wait = given.event_wait(2, "k", since_us=long_ago)
    assert await given.applied(store, given.turn("order", 1, waits=[wait])) == [Applied.KEPT]
    event = await given.first_event(store, "order", 2)
    assert event is not None
    assert event.seq == 3


@pytest.mark.parametrize("removed", [True, False])
async def test_a_wait_sees_no_event_from_before_its_time_whether_those_were_removed_or_not(
    store: Storage, removed: bool
) -> None:
    await given.accepted(store, given.event("a", "k"))
    later(store, 8 * DAY)
    if removed:
        await swept(store, Expiring.EVENTS)
    await given.started(store, "order")
    wait = given.event_wait(2, "k", since_us=await store.now() - HOUR)
    assert await given.applied(store, given.turn("order", 1, waits=[wait])) == [Applied.APPLIED]
    await given.accepted(store, given.event("b", "k"))
    event = await given.first_event(store, "order", 2)
    assert event is not None
    assert event.event_id == "b"


async def test_an_event_that_waits_for_a_worker_stays_however_long_the_workers_are_away(
    store: Storage,
) -> None:
    """``edda-framework 0.16``: retention deleted live rows."""
    await given.parked(store, "order", given.event_wait(1, "k"))
    await given.accepted(store, given.event("for it", "k"), given.event("for nobody", "x"))
    later(store, 300 * DAY)
    assert await swept(store, Expiring.EVENTS) == Swept(1, 1, None)
    await store.register_worker("new", APP, HOUR)
    assert await given.claimed(store, "new") == ["order"]
    event = await given.first_event(store, "order", 1)
    assert event is not None
    assert event.event_id == "for it"


async def test_an_event_of_a_paused_instance_stays(store: Storage) -> None:
    await given.parked(store, "order", given.event_wait(1, "k"))
    await given.accepted(store, given.event("for it", "k"))
    assert await given.claimed(store) == ["order"]
    signals = (await given.row(store, "order")).signals
    pause = given.end("order", fence=2, signals=signals, end_state=State.PAUSED)
    assert await given.applied(store, pause) == [Applied.APPLIED]
    later(store, 8 * DAY)
    assert await swept(store, Expiring.EVENTS) == Swept(0, 1, None)


async def test_an_event_of_a_running_instance_stays_until_it_is_received(store: Storage) -> None:
    await given.accepted(store, given.event("first", "k"), given.event("second", "k"))
    await given.started(store, "order")
    await given.flush(store, given.turn("order", 1, waits=[given.event_wait(2, "k")]))
    later(store, 8 * DAY)
    assert await swept(store, Expiring.EVENTS) == Swept(0, 2, None)
    received_first = given.turn("order", 2, waits=[given.event_wait(3, "k", cursor=1)], drop_waits=[2])
    await given.flush(store, received_first)
    assert await swept(store, Expiring.EVENTS) == Swept(1, 1, None)
    assert await there(store) == [2]


async def test_the_event_that_started_an_instance_is_not_kept_for_its_waits(store: Storage) -> None:
    await given.accepted(store, given.event("start", "k"))
    await given.started(store, "order")
    await given.flush(store, given.turn("order", 1, waits=[given.event_wait(2, "k", skip=1)]))
    later(store, 8 * DAY)
    assert await swept(store, Expiring.EVENTS) == Swept(1, 0, None)


async def test_an_event_that_is_addressed_to_another_chain_is_not_kept_for_its_hash(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.turn("order", 1, waits=[given.event_wait(2, "k")]))
    await given.accepted(store, given.event("for another", "k", addressee="nobody yet"))
    later(store, 8 * DAY)
    assert await swept(store, Expiring.EVENTS) == Swept(1, 0, None)


async def test_an_addressed_event_stays_as_long_as_a_run_of_its_chain_lives(store: Storage) -> None:
    await given.started(store, "root")
    await given.accepted(store, given.event("for it", "k", addressee="root"))
    successor = given.instance("next", chain="root", owner=WORKER)
    await given.flush(store, given.end("root", 1, successor=successor))
    later(store, 8 * DAY)
    assert await swept(store, Expiring.EVENTS) == Swept(0, 1, None)
    await given.flush(store, given.end("next", 1))
    assert await swept(store, Expiring.EVENTS) == Swept(1, 0, None)


async def test_an_event_for_the_key_of_a_live_run_stays(store: Storage) -> None:
    """When the run ends without having received it, it starts the next one."""
    await given.started(store, "order", live_key=given.digest("key"))
    await given.accepted(store, given.event("for it", "key"))
    later(store, 8 * DAY)
    assert await swept(store, Expiring.EVENTS) == Swept(0, 1, None)
    results = await given.flush(store, given.end("order", 1, unread=given.unread("key", 0)))
    assert results[0].unread is not None
    await given.flush(store, given.end("order", 2, successor=given.instance("next")))
    assert await swept(store, Expiring.EVENTS) == Swept(1, 0, None)


async def test_an_event_whose_waits_are_not_all_marked_stays(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (memory, mysql, postgresql, sqlite):
        monkeypatch.setattr(module, "FIRST_WAITS", 1)
    for name in ("a", "b", "c"):
        await given.parked(store, name, given.event_wait(1, "k"))
    assert (await given.accepted(store, given.event("e", "k"))).more_hashes
    for name in await given.claimed(store):
        await given.flush(store, given.turn(name, 2, fence=2, waits=[given.event_wait(1, "other")]))
    later(store, 8 * DAY)
    assert await swept(store, Expiring.EVENTS) == Swept(0, 1, None)


async def test_events_stay_while_a_wait_stands_on_a_shape_that_is_filling(store: Storage) -> None:
    await given.accepted(store, given.event("e", "other"))
    shape = await store.register_shape("paid", ("data.id",))
    await given.parked(store, "order", given.event_wait(1, "k", shape_id=shape.id))
    later(store, 8 * DAY)
    assert await swept(store, Expiring.EVENTS) == Swept(0, 1, None, postponed=True)
    await store.backfill(shape.id, [(given.digest("k"), "", 1)], done=True)
    assert await swept(store, Expiring.EVENTS) == Swept(0, 1, None)
    assert await given.claimed(store) == ["order"]


async def test_events_wait_while_more_work_has_piled_up_than_can_be_looked_through(
    sql_store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = sql_store
    monkeypatch.setattr(expired, "MOST_BUSY", 2)
    for name in ("a", "b", "c"):
        await given.parked(store, name, given.event_wait(1, name))
    events = [given.event(f"e{name}", name) for name in ("a", "b", "c")]
    await given.accepted(store, *events)
    later(store, 8 * DAY)
    assert await swept(store, Expiring.EVENTS) == Swept(0, 3, None, postponed=True)
    await store.register_worker("new", APP, HOUR)
    for name in await given.claimed(store, "new"):
        done = given.end(name, 2, owner="new", fence=2, signals=1)
        assert await given.applied(store, done) == [Applied.APPLIED]
    assert await swept(store, Expiring.EVENTS) == Swept(3, 0, None)


async def test_a_backfill_leaves_no_key_of_an_event_that_was_removed_meanwhile(store: Storage) -> None:
    await given.accepted(store, given.event("e"))
    shape = await store.register_shape("paid", ("data.id",))
    [event] = await store.events_of_pattern("paid", 0, 9, 9)
    later(store, 8 * DAY)
    assert (await swept(store, Expiring.EVENTS)).removed == 1
    await store.backfill(shape.id, [(given.digest("k"), "", event.seq)], done=True)
    assert await count(store, "event_keys") == 0


async def test_chunk_by_chunk_all_that_is_old_is_gone_through_once(store: Storage) -> None:
    await given.started(store, "order")
    addressed = [given.event(f"to it {number}", addressee="order") for number in range(3)]
    await given.accepted(store, *addressed, *(given.event(f"e{number}") for number in range(4)))
    later(store, DAY)
    await given.accepted(store, given.event("e4"))
    later(store, WEEK)
    sweep = await begun(store)
    chunk = Chunk(Expiring.EVENTS, await store.now() - WEEK, limit=2)
    seen = []
    for _ in range(9):
        result = await store.sweep(sweep, chunk, HOUR)
        assert result is not None
        seen.append((result.removed, result.kept))
        if result.after is None:
            break
        chunk = Chunk(chunk.what, chunk.before, result.after, limit=2)
    assert seen in ([(0, 2), (1, 1), (2, 0), (2, 0), (0, 0)], [(0, 2), (1, 1), (2, 0), (2, 0)])
    assert await there(store) == [1, 2, 3]
    assert (await store.sweeps())[0].events == 5


@pytest.mark.parametrize("what", Expiring)
async def test_a_dry_run_removes_nothing_and_says_what_would_be(store: Storage, what: Expiring) -> None:
    sweep = await begun(store)
    assert sweep is not None
    await store.end_sweep(sweep, 1_000 * DAY)
    version = (await store.routing()).version
    await store.accept(given.batch("b", version=version, poison=(NewDeadLetter("o", b"", b"[]", "r"),)))
    await given.started(store, "order")
    await given.flush(store, given.end("order", 1, outbox=[given.message("m")]))
    taken = await store.outbox_take("default", "relay", HOUR, 9, 1 << 20)
    await store.outbox_settle("default", "relay", RelayOutcome(dead=((taken.rows[0].id, "no"),)))
    await given.accepted(store, given.event("e"))
    later(store, SECOND)
    sweep = await begun(store)
    assert sweep is not None
    await store.end_sweep(sweep, 1_000 * DAY)
    later(store, 8 * DAY)
    if what is Expiring.IDENTITIES:
        await swept(store, Expiring.EVENTS)
    before = await store.counts()
    now = await store.now()
    chunk = Chunk(what, now - WEEK, apps=((APP, now - WEEK),), dry_run=True)
    assert await store.sweep(None, chunk, HOUR) == Swept(1, 0, None)
    assert await store.counts() == before
    assert await swept(store, what) == Swept(1, 0, None)
    assert await store.counts() != before


# ---------------------------------------------------------------------------------------------- identities


async def test_an_identity_goes_when_a_sweep_of_its_time_has_become_old_enough(store: Storage) -> None:
    await given.accepted(store, given.event("old"))
    assert await swept(store, Expiring.IDENTITIES, 14 * DAY) == Swept(0, 0, None), (
        "nobody knows how old it is"
    )
    later(store, DAY)
    await given.accepted(store, given.event("new"))
    later(store, 13 * DAY - HOUR)
    await swept(store, Expiring.EVENTS)
    assert await swept(store, Expiring.IDENTITIES, 14 * DAY) == Swept(0, 0, None)
    later(store, 2 * HOUR)
    assert await swept(store, Expiring.IDENTITIES, 14 * DAY) == Swept(1, 0, None)
    again = await given.accepted(store, given.event("new"), given.event("old"))
    assert [one.verdict for one in again.results] == [Verdict.DUPLICATE, Verdict.UNMATCHED]


async def test_an_identity_stays_as_long_as_its_event_does(store: Storage) -> None:
    await given.started(store, "order")
    await given.accepted(store, given.event("for it", addressee="order"), given.event("for nobody"))
    await swept(store, Expiring.EVENTS)
    later(store, 30 * DAY)
    assert await swept(store, Expiring.EVENTS) == Swept(1, 1, None)
    assert await swept(store, Expiring.IDENTITIES, 14 * DAY) == Swept(1, 1, None)
    again = await given.accepted(store, given.event("for it", addressee="order"))
    assert [one.verdict for one in again.results] == [Verdict.DUPLICATE]


# ---------------------------------------------------------------------------------------------- instances


async def test_finished_instances_go_with_their_histories_and_what_lives_or_is_younger_stays(
    store: Storage,
) -> None:
    """``edda-framework 0.16``: retention deleted live rows."""
    await given.started(store, "done", "lives", "sleeps", "paused", "fails", "young")
    await given.flush(
        store,
        given.end("done", 1, 2),
        given.turn("lives", 1),
        given.park("sleeps", given.timer(1, delay_us=900 * DAY)),
        given.end("paused", 1, end_state=State.PAUSED),
        given.end("fails", 1, end_state=State.FAILED),
    )
    later(store, 30 * DAY)
    await given.flush(store, given.end("young", 1))
    later(store, DAY)
    assert await swept(store, Expiring.INSTANCES, 30 * DAY) == Swept(2, 4, None)
    left = {row.id for row in await store.find_instances()}
    assert left == {"lives", "sleeps", "paused", "young"}
    assert await store.get_history("done") == []
    assert await given.recorded(store, "lives") == [1]


async def test_an_app_that_says_nothing_keeps_its_instances(store: Storage) -> None:
    await given.started(store, "mine")
    await given.started(store, "theirs", app="another")
    await given.flush(store, given.end("mine", 1), given.end("theirs", 1))
    later(store, 31 * DAY)
    now = await store.now()
    await swept(store, Expiring.INSTANCES, apps=((APP, now - 30 * DAY), ("third", now)))
    assert [row.id for row in await store.find_instances()] == ["theirs"]


async def test_the_runs_of_a_chain_stay_as_long_as_one_of_them_lives(store: Storage) -> None:
    await given.started(store, "first")
    await given.flush(
        store, given.end("first", 1, successor=given.instance("second", chain="first", owner=WORKER))
    )
    await given.flush(
        store, given.end("second", 1, successor=given.instance("third", chain="first", owner=WORKER))
    )
    later(store, 31 * DAY)
    assert await swept(store, Expiring.INSTANCES, 30 * DAY) == Swept(0, 3, None)
    await given.flush(store, given.end("third", 1))
    assert await swept(store, Expiring.INSTANCES, 30 * DAY) == Swept(2, 1, None)
    later(store, 31 * DAY)
    assert await swept(store, Expiring.INSTANCES, 30 * DAY) == Swept(1, 0, None)


async def test_a_parent_stays_as_long_as_a_child_lives_and_a_child_as_long_as_its_parent(
    store: Storage,
) -> None:
    await given.started(store, "parent", "other parent")
    await given.flush(
        store,
        given.turn("parent", 1, children=[given.instance("child", parent="parent", owner=WORKER)]),
        given.turn(
            "other parent", 1, children=[given.instance("other child", parent="other parent", owner=WORKER)]
        ),
    )
    await given.flush(store, given.end("parent", 2), given.end("other child", 1))
    later(store, 31 * DAY)
    assert await swept(store, Expiring.INSTANCES, 30 * DAY) == Swept(0, 4, None)
    await given.flush(store, given.end("child", 1), given.end("other parent", 2))
    assert await swept(store, Expiring.INSTANCES, 30 * DAY) == Swept(2, 2, None)
    assert {row.id for row in await store.find_instances()} == {"child", "other parent"}


async def test_of_long_histories_few_are_removed_at_a_time_and_each_as_a_whole(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expired, "MOST_RECORDS", 5)
    for number in range(4):
        await given.started(store, f"i{number}")
        await given.flush(store, given.end(f"i{number}", 1, 2, 3))
    await given.started(store, "long", "lives")
    await given.flush(store, given.end("long", *range(1, 9)))
    later(store, 31 * DAY)
    sweep = await begun(store)
    before = await store.now() - 30 * DAY
    after, removed = (0, ""), 0
    for _ in range(9):
        result = await store.sweep(sweep, Chunk(Expiring.INSTANCES, 0, after, apps=((APP, before),)), HOUR)
        assert result is not None
        removed += result.removed
        assert result.removed <= 1 or store.dialect == "memory", "two would have six records"
        for row in await store.find_instances():
            assert len(await store.get_history(row.id)) == {"long": 8, "lives": 0}.get(row.id, 3)
        if result.after is None:
            break
        after = result.after
    assert removed == 5
    assert [row.id for row in await store.find_instances()] == ["lives"]


async def test_the_id_of_a_removed_instance_is_free(store: Storage) -> None:
    await given.started(store, "order")
    await given.flush(store, given.end("order", 1))
    assert await given.applied(store, given.start("order")) == [Applied.EXISTS]
    later(store, 31 * DAY)
    await swept(store, Expiring.INSTANCES, 30 * DAY)
    assert await given.applied(store, given.start("order", records=[given.record(1)])) == [Applied.APPLIED]


# ---------------------------------------------------------------------------------------------- dead letters


async def test_dead_letters_go_in_their_time(store: Storage) -> None:
    letter = NewDeadLetter("kafka:orders/3@15", b"raw", b"[]", "why")
    await store.accept(given.batch("one", poison=(letter, letter)))
    later(store, 2 * DAY)
    await store.accept(given.batch("two", poison=(letter,)))
    later(store, 6 * DAY)
    assert await swept(store, Expiring.LETTERS) == Swept(2, 0, None)
    assert await count(store, "dead_letters") == 1


async def test_a_dead_row_that_goes_frees_what_is_parked_behind_it(store: Storage) -> None:
    await given.started(store, "order")
    messages = [given.message(name, ordering_key="k") for name in ("dead", "parked")]
    await given.flush(store, given.turn("order", 1, outbox=messages))
    taken = await store.outbox_take("default", "relay", HOUR, 9, 1 << 20)
    outcome = RelayOutcome(dead=((taken.rows[0].id, "no"),), parked=(taken.rows[1].id,))
    assert await store.outbox_settle("default", "relay", outcome)
    await store.outbox_release("default", "relay")
    assert await swept(store, Expiring.DEAD_ROWS) == Swept(0, 0, None)
    later(store, 8 * DAY)
    assert await swept(store, Expiring.DEAD_ROWS) == Swept(1, 0, None)
    assert await given.outgoing(store) == ["parked"]


async def test_rows_on_their_way_out_stay_however_old_they_are(store: Storage) -> None:
    await given.started(store, "order")
    messages = [given.message(name) for name in ("pending", "retrying")]
    await given.flush(store, given.turn("order", 1, outbox=messages))
    taken = await store.outbox_take("default", "relay", HOUR, 9, 1 << 20)
    assert await store.outbox_settle(
        "default", "relay", RelayOutcome(failed=((taken.rows[1].id, 0, "later"),))
    )
    later(store, 900 * DAY)
    assert await swept(store, Expiring.DEAD_ROWS) == Swept(0, 0, None)
    assert await count(store, "outbox") == 2


# ---------------------------------------------------------------------------------------------- who sweeps


async def test_one_sweeps_at_a_time(store: Storage, another_store: OpenStore) -> None:
    other = await another_store()
    first = await begun(store)
    assert first is not None
    assert await begun(other) is None
    await store.end_sweep(first, DAY)
    second = await begun(other)
    assert second is not None
    assert second.id == first.id + 1


async def test_a_sweep_is_not_due_again_before_its_time(store: Storage) -> None:
    sweep = await begun(store)
    assert sweep is not None
    await store.end_sweep(sweep, DAY)
    assert await begun(store, every_us=HOUR) is None
    later(store, HOUR)
    assert await begun(store, every_us=HOUR) is not None


async def test_a_sweep_that_died_is_taken_over_at_once_when_its_time_is_over(store: Storage) -> None:
    await given.accepted(store, given.event("e"))
    later(store, 8 * DAY)
    died = await begun(store, lease_us=HOUR)
    assert died is not None
    assert await begun(store, every_us=DAY) is None
    later(store, HOUR + SECOND)
    chunk = Chunk(Expiring.EVENTS, await store.now() - WEEK)
    assert await store.sweep(died, chunk, HOUR) is None, "nobody has taken over, but it may not go on"
    sweep = await begun(store, every_us=DAY)
    assert sweep is not None
    assert await store.sweep(died, chunk, HOUR) is None
    assert await there(store) == [1]
    await store.end_sweep(died, DAY)
    assert (await store.sweeps())[0].ended_at is None, "it cannot end another's"
    assert await store.sweep(sweep, chunk, HOUR) == Swept(1, 0, None)


async def test_each_chunk_renews_the_right(store: Storage) -> None:
    sweep = await begun(store, lease_us=HOUR)
    for _ in range(3):
        later(store, HOUR // 2 + SECOND)
        assert await store.sweep(sweep, Chunk(Expiring.EVENTS, 1), HOUR) == Swept(0, 0, None)
    assert await begun(store) is None


async def test_a_beginning_whose_answer_was_lost_is_asked_for_again(store: Storage) -> None:
    sweep = await store.begin_sweep("me", HOUR, 0)
    assert sweep == await store.begin_sweep("me", HOUR, 0)


async def test_of_the_sweeps_that_are_to_be_forgotten_the_newest_stays(store: Storage) -> None:
    """It says which identities are as old as that."""
    for _ in range(4):
        await swept(store, Expiring.EVENTS)
        later(store, DAY)
    sweep = await begun(store)
    assert sweep is not None
    await store.end_sweep(sweep, 2 * DAY + HOUR)
    assert [row.id for row in await store.sweeps()] == [5, 4, 3, 2]


async def test_what_apps_keep_is_known_to_all(store: Storage, another_store: OpenStore) -> None:
    assert await store.retention() == {}
    await store.declare_retention("b", Keeps(WEEK, 14 * DAY, None, None))
    await store.declare_retention("a", Keeps(None, None, DAY, HOUR))
    await store.declare_retention("b", Keeps(DAY, DAY, None, None))
    other = await another_store()
    assert await other.retention() == {"a": Keeps(None, None, DAY, HOUR), "b": Keeps(DAY, DAY, None, None)}
    await other.declare_retention("a", None)
    assert list(await store.retention()) == ["b"]
