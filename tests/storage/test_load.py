"""Load: what an owner reads, and which event a due wait gets."""

from edda.storage.contract import Storage
from edda.storage.rows import Applied, EventRow, NewWait
from tests.storage import given


async def due(store: Storage, *waits: NewWait, chain: str = "order") -> None:
    """A running instance whose waits were looked at."""
    await given.started(store, "order", chain=chain)
    await given.flush(store, given.turn("order", waits=list(waits)))


async def test_an_unknown_instance_is_not_in_the_answer(store: Storage) -> None:
    await given.started(store, "order")
    assert list(await store.load(["nobody", "order"])) == ["order"]
    assert await store.load([]) == {}


async def test_history_comes_in_the_order_observed(store: Storage) -> None:
    await given.started(store, "order", "other")
    await given.flush(store, given.turn("order", records=[given.record(3, pos=1), given.record(1, pos=2)]))
    await given.flush(store, given.turn("order", records=[given.record(2, pos=3)]), given.turn("other", 7))
    loaded = await store.load(["order", "other"])
    assert [(record.seq, record.pos) for record in loaded["order"].history] == [(3, 1), (1, 2), (2, 3)]
    assert [record.seq for record in loaded["other"].history] == [7]


async def test_an_owner_that_has_its_history_does_not_read_it_again(store: Storage) -> None:
    await due(store, given.event_wait(2, "a"))
    await given.flush(store, given.turn("order", 1))
    loaded = (await store.load(["order"], history=False))["order"]
    assert (loaded.history, [wait.seq for wait in loaded.waits]) == ((), [2])


async def test_waits_come_in_the_order_of_their_numbers(store: Storage) -> None:
    await due(store, given.event_wait(12, "a"), given.timer(3), given.event_wait(1, "b"))
    assert [wait.seq for wait in (await given.loaded(store, "order")).waits] == [1, 3, 12]


async def test_signals_count_what_came(store: Storage) -> None:
    await due(store, given.event_wait(1, "a"), given.event_wait(2, "b"))
    assert (await given.loaded(store, "order")).signals == 0
    await given.accepted(store, given.event("e1", "a"))
    await given.accepted(store, given.event("e2", "b"))
    assert (await given.loaded(store, "order")).signals == 2


async def test_a_due_wait_gets_its_event_whole(store: Storage) -> None:
    await given.accepted(
        store, given.event("e ü", "a", type="typ ü", source="s/ü", data=b"\0\xff", content_type="text/plain")
    )
    await due(store, given.event_wait(1, "a"))
    accepted_at = (await store.events_of_pattern("*", 0, 9, 9))[0].accepted_at
    assert await given.first_event(store, "order", 1) == EventRow(
        1, "typ ü", "s/ü", "e ü", b'{"subject":"x"}', b"\0\xff", "text/plain", None, accepted_at
    )


async def test_an_event_without_data_stays_without_data(store: Storage) -> None:
    await given.accepted(store, given.event("e", "a", data=None, content_type=None))
    await due(store, given.event_wait(1, "a"))
    event = await given.first_event(store, "order", 1)
    assert event is not None
    assert (event.data, event.content_type, event.addressee) == (None, None, None)


async def test_a_wait_that_is_not_due_gets_no_event(store: Storage) -> None:
    await due(store, given.event_wait(1, "a"))
    await given.accepted(store, given.event("e", "b"))
    assert await given.first_event(store, "order", 1) is None


async def test_the_first_event_behind_the_cursor_is_chosen_whichever_fired(store: Storage) -> None:
    await given.accepted(store, *(given.event(f"e{number}", "a") for number in range(1, 5)))
    await due(
        store,
        given.event_wait(1, "a"),
        given.event_wait(2, "a", cursor=1),
        given.event_wait(3, "a", skip=1),
        given.event_wait(4, "a", cursor=1, skip=2),
        given.event_wait(5, "a", cursor=1, skip=3),
        given.event_wait(6, "a", cursor=3, skip=4),
        given.event_wait(7, "a", cursor=4),
    )
    waits = await given.waits(store, "order")
    assert {seq: wait.event and wait.event.seq for seq, wait in waits.items()} == {
        1: 1, 2: 2, 3: 2, 4: 3, 5: 2, 6: None, 7: None,
    }  # fmt: skip
    assert await given.due(store, "order") == [1, 2, 3, 4, 5]


async def test_events_addressed_to_the_chain_and_to_nobody_come_in_accept_order(store: Storage) -> None:
    await given.started(store, "root")
    await given.accepted(
        store,
        given.event("e1", "a", addressee="another"),
        given.event("e2", "a", addressee="root"),
        given.event("e3", "a"),
    )
    await due(store, given.event_wait(1, "a"), given.event_wait(2, "a", cursor=2), chain="root")
    waits = await given.waits(store, "order")
    assert {seq: wait.event and wait.event.event_id for seq, wait in waits.items()} == {1: "e2", 2: "e3"}
    event = waits[1].event
    assert event is not None
    assert event.addressee == "root"


async def test_a_timer_gets_no_event(store: Storage) -> None:
    await due(store, given.timer(1, delay_us=-1))
    await store.fire_timers()
    assert await given.due(store, "order") == [1]
    assert await given.first_event(store, "order", 1) is None


async def test_a_wait_whose_deadline_passed_gets_the_event_that_is_there_too(store: Storage) -> None:
    await due(store, given.event_wait(1, "a", delay_us=given.HOUR))
    await given.accepted(store, given.event("e", "a"))
    store.clock_offset_us += 2 * given.HOUR
    await store.fire_timers()
    wait = (await given.waits(store, "order"))[1]
    assert wait.event is not None
    assert wait.deadline_us is not None
    assert wait.event.accepted_at < wait.deadline_us


async def test_a_wait_on_a_shape_that_is_filling_gets_its_event_when_it_is_ready(store: Storage) -> None:
    await given.accepted(store, given.event("old"))
    shape = await store.register_shape("paid", ())
    await given.accepted(store, given.event("new", "a"))
    await given.started(store, "order")
    wait = given.event_wait(1, "a", shape_id=shape.id)
    assert await given.applied(store, given.park("order", wait)) == [Applied.APPLIED]
    await store.mark_due([given.digest("a")])
    assert await given.due(store, "order") == []
    assert await store.backfill(shape.id, [(given.digest("a"), "", 1)], done=True) == {given.APP}
    event = await given.first_event(store, "order", 1)
    assert event is not None
    assert event.event_id == "old", "order holds: the older event was backfilled"


async def test_a_due_wait_on_a_shape_that_is_filling_gets_no_event(store: Storage) -> None:
    await given.accepted(store, given.event("old"))
    shape = await store.register_shape("paid", ())
    await due(store, given.event_wait(1, "a", shape_id=shape.id))
    await given.accepted(store, given.event("new", "a"))
    assert await given.due(store, "order") == [1]
    assert await given.first_event(store, "order", 1) is None


async def test_many_instances_with_many_waits_are_loaded_at_once(store: Storage) -> None:
    names = [f"order-{number:04}" for number in range(600)]
    await given.started(store, *names)
    await given.accepted(store, *(given.event(name, name) for name in names))
    turns = [given.turn(one, 1, waits=[given.event_wait(2, one), given.timer(3)]) for one in names]
    assert set(await given.applied(store, *turns)) == {Applied.KEPT}
    loaded = await store.load(names)
    assert len(loaded) == 600
    for one in names:
        first, second = loaded[one].waits
        assert first.event is not None
        assert (first.event.event_id, second.event) == (one, None)
        assert len(loaded[one].history) == 1
