"""Routing: shapes and triggers, and the version that tells a batch it was computed for older ones."""

from dataclasses import replace

from edda.storage.contract import Storage
from edda.storage.rows import Applied, State, Trigger
from tests.storage import given
from tests.storage.conftest import OpenStore
from tests.storage.given import APP


async def version(store: Storage) -> int:
    return (await store.routing()).version


# ---------------------------------------------------------------------------------------------- shapes


async def test_an_empty_database_has_no_shapes_and_no_triggers(store: Storage) -> None:
    routing = await store.routing()
    assert (routing.version, routing.shapes, routing.triggers) == (1, (), ())


async def test_a_shape_registered_before_the_first_event_is_born_ready(store: Storage) -> None:
    shape = await store.register_shape("paid", ("data.id", "source"))
    assert (shape.pattern, shape.paths, shape.ready, shape.backfill_until) == (
        "paid", ("data.id", "source"), True, 0,
    )  # fmt: skip
    routing = await store.routing()
    assert (routing.shapes, routing.version) == ((shape,), 2)


async def test_a_shape_registered_later_is_filling_up_to_the_last_event(store: Storage) -> None:
    await given.accepted(store, given.event("e1"), given.event("e2"))
    shape = await store.register_shape("paid", ())
    assert (shape.ready, shape.backfill_until) == (False, 2)
    assert (await store.routing()).shapes == (shape,)


async def test_a_shape_that_exists_is_returned_as_it_is_and_changes_nothing(
    store: Storage, another_store: OpenStore
) -> None:
    await given.accepted(store, given.event("e1"))
    first = await store.register_shape("paid", ("data.id",))
    await given.accepted(store, given.event("e2"))
    routing = await store.routing()
    assert await (await another_store()).register_shape("paid", ("data.id",)) == first
    assert await store.routing() == routing


async def test_shapes_that_differ_in_pattern_paths_or_case_are_distinct(store: Storage) -> None:
    what = [
        ("paid", ()),
        ("paid", ("data.id",)),
        ("paid", ("data.ID",)),
        ("Paid", ()),
        ("paid ", ()),
        ("paid.*", ()),
    ]
    shapes = [await store.register_shape(pattern, paths) for pattern, paths in what]
    assert len({shape.id for shape in shapes}) == len(what)
    assert [(shape.pattern, shape.paths) for shape in (await store.routing()).shapes] == what


async def test_backfill_inserts_what_is_not_there_and_is_ready_when_it_is_done(store: Storage) -> None:
    await given.accepted(store, given.event("e1", "k"), given.event("e2"))
    shape = await store.register_shape("paid", ())
    before = await version(store)
    keys = [(given.digest("k"), "", 1), (given.digest("k"), "", 2), (given.digest("k"), "root", 2)]
    assert await store.backfill(shape.id, keys, done=False) == frozenset()
    assert await store.backfill(shape.id, keys, done=False) == frozenset()
    assert (await store.counts())["event_keys"] == 3
    assert (await store.routing()).shapes[0].ready is False
    assert await version(store) == before
    assert await store.backfill(shape.id, [], done=True) == frozenset()
    assert (await store.routing()).shapes[0].ready is True
    assert await version(store) == before + 1


async def test_a_shape_that_becomes_ready_wakes_its_waits_that_have_an_event_and_no_others(
    store: Storage,
) -> None:
    await given.accepted(store, given.event("old 1"), given.event("old 2"))
    shape = await store.register_shape("paid", ())
    waits = {
        "finds": given.event_wait(1, "a", shape_id=shape.id),
        "has it": given.event_wait(1, "a", shape_id=shape.id, cursor=2),
        "skips": given.event_wait(1, "a", shape_id=shape.id, cursor=1, skip=2),
        "other": given.event_wait(1, "b", shape_id=shape.id),
        "other shape": given.event_wait(1, "c", shape_id=shape.id + 1),
        "timer": replace(given.timer(1), hash=given.digest("a"), shape_id=shape.id),
    }
    for name, wait in waits.items():
        await given.parked(store, name, wait, app=f"app of {name}")
    keys = [(given.digest(key), "", seq) for key, seq in (("a", 1), ("a", 2), ("c", 1))]
    assert await store.backfill(shape.id, keys, done=True) == {"app of finds"}
    assert [name for name in waits if await given.state(store, name) is State.RUNNABLE] == ["finds"]
    assert (await given.row(store, "finds")).signals == 1


async def test_backfill_that_is_done_again_wakes_nobody_twice(store: Storage) -> None:
    await given.accepted(store, given.event("old"))
    shape = await store.register_shape("paid", ())
    await given.parked(store, "order", given.event_wait(1, "a", shape_id=shape.id))
    keys = [(given.digest("a"), "", 1)]
    await store.backfill(shape.id, keys, done=True)
    await store.backfill(shape.id, keys, done=True)
    assert (await given.row(store, "order")).signals == 1


async def test_a_shape_with_more_than_a_thousand_waits_wakes_all_of_them(store: Storage) -> None:
    await given.accepted(store, given.event("old"))
    shape = await store.register_shape("paid", ())
    names = [f"order-{number:04}" for number in range(1_100)]
    await given.started(store, *names)
    wait = given.event_wait(1, "a", shape_id=shape.id)
    assert set(await given.applied(store, *(given.park(one, wait) for one in names))) == {Applied.APPLIED}
    assert await store.backfill(shape.id, [(given.digest("a"), "", 1)], done=True) == {APP}
    assert (await store.counts())["instances.runnable"] == 1_100


async def test_events_of_a_pattern_come_in_accept_order_within_bounds(store: Storage) -> None:
    types = ["a.b", "a.b.c", "a.bc", "a", "a.", "a/b", "ab", "A.b", "a.b%", "a_b", "a.b"]
    await given.accepted(store, *(given.event(f"e{at}", type=one) for at, one in enumerate(types)))

    async def found(pattern: str, after: int = 0, until: int = 99, limit: int = 99) -> list[int]:
        return [event.seq for event in await store.events_of_pattern(pattern, after, until, limit)]

    assert await found("a.b") == [1, 11]
    assert await found("a.*") == [1, 2, 3, 5, 9, 11]
    assert await found("a.b.*") == [2]
    assert await found("*") == list(range(1, 12))
    assert await found("*", after=3, until=6) == [4, 5, 6]
    assert await found("*", after=3, limit=2) == [4, 5]
    assert await found("a.*", after=1, until=10) == [2, 3, 5, 9]
    assert await found("nothing") == []


# ---------------------------------------------------------------------------------------------- triggers


async def test_declared_triggers_are_routed(store: Storage) -> None:
    first = Trigger(APP, "order", "placed")
    second = Trigger(APP, "refund", "paid.*", key_path="data.ü", version="2", policy="key")
    await store.declare_triggers([first, second])
    routing = await store.routing()
    assert (routing.triggers, routing.version) == ((first, second), 2)


async def test_a_trigger_declared_again_changes_nothing(store: Storage) -> None:
    triggers = [
        Trigger(APP, "order", "placed"),
        Trigger(APP, "order", "paid", key_path="data.id", policy="key"),
    ]
    await store.declare_triggers(triggers)
    before = await store.routing()
    await store.declare_triggers(list(reversed(triggers)))
    await store.declare_triggers([])
    assert await store.routing() == before


async def test_a_trigger_declared_otherwise_is_updated_and_the_others_stay(store: Storage) -> None:
    old = Trigger(APP, "order", "placed", key_path="data.id", policy="key")
    others = [
        Trigger("other", "order", "placed"),
        Trigger(APP, "other", "placed"),
        Trigger(APP, "order", "other"),
    ]
    await store.declare_triggers([old, *others])
    before = await version(store)
    for number, new in enumerate(
        (
            replace(old, key_path="data.other"),
            replace(old, key_path=None),
            replace(old, key_path=None, policy="event"),
            replace(old, key_path=None, policy="event", version="2"),
        ),
        start=1,
    ):
        await store.declare_triggers([new])
        routing = await store.routing()
        assert set(routing.triggers) == {new, *others}
        assert routing.version == before + number


async def test_a_process_reads_what_another_has_registered(store: Storage, another_store: OpenStore) -> None:
    other = await another_store()
    await store.register_shape("paid", ())
    await other.declare_triggers([Trigger(APP, "order", "placed")])
    assert await store.routing() == await other.routing()
    assert await version(store) == 3
