"""What the routing table says about an event: keys it is found by, instances it starts."""

from __future__ import annotations

import logging

import pytest
from pydantic_core import from_json

from edda.cloudevent import CloudEvent
from edda.history.event_input import event_of_input
from edda.inbox.binding import Table
from edda.inbox.shapes import shape_hash
from edda.storage.contract import Storage
from edda.storage.rows import (
    Applied,
    NewInstance,
    Release,
    Routing,
    Shape,
    State,
    Trigger,
    Turn,
    Verdict,
)
from tests.inbox.conftest import MakeInbox
from tests.inbox.given import event, keys

PER_EVENT = Trigger("shop", "fulfil", "order.created")
PER_ORDER = Trigger("shop", "fulfil", "order.*", "data.order_id", policy="key")


def starts(item: CloudEvent, *triggers: Trigger) -> tuple[NewInstance, ...]:
    return Table(Routing(1, (), triggers)).bind(item).starts


def order(id: str, order_id: str, type: str = "order.created") -> CloudEvent:
    return event(id, type=type, data=b'{"order_id": %s}' % order_id.encode())


def test_each_trigger_that_fits_starts_one_run() -> None:
    fitting = [PER_EVENT, Trigger("books", "note", "order.*"), Trigger("audit", "log", "*")]
    found = starts(event(), *fitting, Trigger("x", "x", "order"), Trigger("x", "y", "payment.*"))
    assert {(start.app, start.workflow) for start in found} == {
        ("shop", "fulfil"),
        ("books", "note"),
        ("audit", "log"),
    }
    assert len({start.id for start in found}) == 3


def test_a_started_run_gets_the_event_whole() -> None:
    given = event(
        data=b'{"n": 1}',
        subject="s",
        time="2024-01-01T00:00:00Z",
        extensions={"a": True, "b": 7},
        dataschema="/x",
    )
    [start] = starts(given, PER_EVENT)
    parsed = from_json(start.input)
    assert event_of_input(parsed).json() == {"n": 1}
    assert parsed["$event"]["data"] == {"n": 1}  # readable in the database
    raw = event(data=b"\x00\xff", datacontenttype="application/octet-stream", extensions={"a": True})
    [start] = starts(raw, PER_EVENT)
    assert event_of_input(from_json(start.input)) == raw


def test_an_addressed_event_starts_nothing() -> None:
    addressed = event(extensions={"eddainstanceid": "order-1"})
    assert starts(addressed, PER_EVENT, PER_ORDER) == ()
    assert Table(Routing(1, (), (PER_EVENT,))).bind(addressed).addressee == "order-1"


def test_the_live_key_is_a_key_of_the_event() -> None:
    bound = Table(Routing(1, (), (PER_ORDER,))).bind(order("a", '"o-1"'))
    [start] = bound.starts
    assert start.live_key is not None
    assert bound.keys == (start.live_key,)


def test_an_event_with_a_shape_and_a_keyed_trigger_has_both_keys() -> None:
    shape = Shape(1, "order.created", ("data.order_id",), True, 0)
    bound = Table(Routing(1, (shape,), (PER_ORDER,))).bind(order("a", '"o-1"'))
    wanted = shape_hash("order.created", {"data.order_id": "o-1"})
    assert set(bound.keys) == {wanted, bound.starts[0].live_key}


def test_equal_keys_are_one_live_key_whatever_the_type_and_other_keys_are_not() -> None:
    def live_key(item: CloudEvent, trigger: Trigger = PER_ORDER) -> bytes | None:
        [start] = starts(item, trigger)
        return start.live_key

    first = live_key(order("a", '"o-1"'))
    assert live_key(order("b", '"o-1"', "order.paid")) == first
    assert live_key(order("a", '"o-2"')) != first
    assert live_key(order("a", "1")) != live_key(order("a", '"1"'))
    assert live_key(order("a", "1")) == live_key(order("a", "1.0"))
    other_app = Trigger("books", "fulfil", "order.*", "data.order_id", policy="key")
    assert live_key(order("a", '"o-1"'), other_app) != first


@pytest.mark.parametrize("data", [b"{}", b'{"order_id": null}', b'{"order_id": ', b"[]", None])
def test_an_event_without_the_key_starts_a_run_of_its_own_and_is_told_of(
    data: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        bound = Table(Routing(1, (), (PER_ORDER,))).bind(event(data=data))
    [start] = bound.starts
    assert start.live_key is None
    assert bound.keys == ()
    assert "event_without_key_starts_a_run_of_its_own" in caplog.text


def test_a_trigger_with_a_path_of_another_version_stops_nobody() -> None:
    strange = Trigger("shop", "fulfil", "order.created", "headers.x", policy="key")
    assert [start.live_key for start in starts(event(), strange)] == [None]


async def test_an_addressed_event_starts_nothing_in_the_database(
    store: Storage, make_inbox: MakeInbox
) -> None:
    await store.declare_triggers([PER_EVENT])
    [result] = await make_inbox(store).deliver([event(extensions={"eddainstanceid": "order-1"})])
    assert (result.verdict, result.starts) == (Verdict.UNMATCHED, 0)
    assert (await store.counts())["instances"] == 0


async def test_one_run_lives_per_key_and_its_events_are_found_by_it(
    store: Storage, make_inbox: MakeInbox
) -> None:
    await store.declare_triggers([PER_ORDER])
    inbox = make_inbox(store)
    results = await inbox.deliver([order("a", '"o-1"'), order("b", '"o-1"'), order("c", '"o-2"')])
    assert [result.starts for result in results] == [1, 0, 1]
    [again] = await inbox.deliver([order("d", '"o-1"', "order.paid")])
    assert again.starts == 0
    live = {live_key_of(order("x", f'"{key}"')): key for key in ("o-1", "o-2")}
    found = sorted((live[key], seq) for key, seq in await keys(store))
    assert found == [("o-1", 1), ("o-1", 2), ("o-1", 4), ("o-2", 3)]


def live_key_of(item: CloudEvent) -> bytes:
    [start] = starts(item, PER_ORDER)
    assert start.live_key is not None
    return start.live_key


async def test_the_next_event_starts_a_new_run_when_the_one_before_has_ended(
    store: Storage, make_inbox: MakeInbox
) -> None:
    await store.declare_triggers([PER_ORDER])
    await store.register_worker("w", "shop", 60_000_000)
    inbox = make_inbox(store)
    await inbox.deliver([order("a", '"o-1"')])
    [claimed] = await store.claim("shop", ["fulfil"], "w", 10)
    turn = Turn(
        claimed.id, "w", claimed.fence, claimed.signals, release=Release.END, end_state=State.COMPLETED
    )
    flushed = await store.flush([turn])
    assert flushed.results[0].applied is Applied.APPLIED
    [result] = await inbox.deliver([order("b", '"o-1"')])
    assert result.starts == 1


async def test_events_without_a_key_never_share_a_run(store: Storage, make_inbox: MakeInbox) -> None:
    await store.declare_triggers([PER_ORDER])
    results = await make_inbox(store).deliver([event("a"), event("b"), event("c", data=b'{"order_id":null}')])
    assert [result.starts for result in results] == [1, 1, 1]
