"""A record becomes an event, a claim that fails, or nothing: whatever bytes are in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edda.cloudevent import CloudEvent
from gateways.cloudevents import MalformedEventError
from gateways.delivery import Delivery, Poison, bind
from gateways.kafka.batch import Source, bound, take
from gateways.kafka.record import delivery_of, read
from outbox_relays.kafka.record import record_of
from tests.gateways.events import cloud_events
from tests.gateways.kafka.given import binary
from tests.gateways.test_round_trips import in_binary_mode


@dataclass
class Got:
    """As aiokafka hands it out."""

    key: bytes | None = None
    value: bytes | None = None
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)
    offset: int = 7
    topic: str = "orders"
    partition: int = 3


def got(record: Any, offset: int = 7) -> Got:
    return Got(record[0], record[1], list(record[2]), offset)


def event_of(record: Any) -> CloudEvent | None:
    return read(delivery_of(got(record), "c"))


STRUCTURED = [("content-type", b"application/cloudevents+json; charset=utf-8")]


def test_binary_mode_has_attributes_in_headers_as_they_are() -> None:
    event = event_of(binary("a", subject="Euro € %20".encode(), time=b"2026-01-02T03:04:05.6Z", traceid=b"x"))
    assert event == CloudEvent(
        "a",
        "/shop",
        "order.paid",
        b"{}",
        "application/json",
        subject="Euro € %20",  # not percent-encoded in Kafka
        time="2026-01-02T03:04:05.6Z",
        extensions={"traceid": "x"},
    )


def test_structured_mode_is_chosen_by_the_content_type_alone() -> None:
    body = b'{"specversion":"1.0","id":"in","source":"/s","type":"t","data":[1]}'
    headers = [*STRUCTURED, ("ce_id", b"out"), ("ce_specversion", b"1.0")]
    event = event_of((None, body, headers))
    assert event is not None
    assert (event.id, event.data) == ("in", b"[1]")


def test_record_without_a_value_is_an_event_without_data() -> None:
    assert event_of(binary("a", body=None)) == CloudEvent(
        "a", "/shop", "order.paid", None, "application/json"
    )
    assert event_of((None, None, [*binary("a")[2][:4], ("content-type", b"text/plain")])) == CloudEvent(
        "a", "/shop", "order.paid", None, "text/plain"
    )


def test_delivery_keeps_everything_apart_from_the_event() -> None:
    found = delivery_of(Got(b"\xff", None, [("x", None), ("x", b"1"), ("content-type", b"\xff")]), "c")
    assert found == Delivery(
        "kafka:c/orders/3@7",
        "orders",
        None,
        (("x", b""), ("x", b"1"), ("content-type", b"\xff")),
        "\ufffd",
        b"\xff",
        "c/orders/3/7",
    )


def headers_but(drop: str = "", **more: bytes) -> list[tuple[str, bytes]]:
    return [pair for pair in binary("a")[2] if pair[0] != drop] + list(more.items())


RUBBISH: dict[str, tuple[Any, str]] = {
    "no id": ((None, b"{}", headers_but("ce_id")), "'id' is missing"),
    "no specversion": ((None, b"{}", headers_but("ce_specversion")), "'specversion' is missing"),
    "unknown version": (binary("a", specversion=b"9"), "specversion"),
    "empty id": (binary(""), "id must not be empty"),
    "attribute that is not UTF-8": (binary("a", subject=b"\xff\xfe"), "'ce_subject' is not UTF-8"),
    "content type that is not UTF-8": (
        (None, b"{}", [*binary("a")[2][:4], ("content-type", b"\xff")]),
        "'content-type' is not UTF-8",
    ),
    "same attribute twice": ((None, b"{}", headers_but(ce_id=b"b")), "'ce_id' is there twice"),
    "content type twice": (
        (None, b"{}", [*binary("a")[2], ("content-type", b"text/plain")]),
        "'content-type' is there twice",
    ),
    "name in capitals": ((None, b"{}", headers_but(ce_Shout=b"b")), "Shout"),
    "name of nothing": ((None, b"{}", headers_but(ce_=b"b")), "no name of an attribute"),
    "content type as an attribute": (
        (None, b"{}", headers_but(ce_datacontenttype=b"text/plain")),
        "must not be there",
    ),
    "structured without a value": ((b"k", None, STRUCTURED), "JSON"),
    "structured with broken JSON": ((None, b'{"id":', STRUCTURED), "JSON"),
    "structured and not UTF-8": ((None, b'{"id":"\xff"}', STRUCTURED), "not"),
    "structured with a name twice": ((None, b'{"id":"a","id":"b"}', STRUCTURED), "twice"),
    "structured with NaN": (
        (None, b'{"specversion":"1.0","id":"a","source":"/s","type":"t","data":NaN}', STRUCTURED),
        "not",
    ),
    "structured array": ((None, b"[]", STRUCTURED), "object"),
    "batch": ((None, b"[]", [("content-type", b"application/cloudevents-batch+json")]), "no batch mode"),
    "other format": ((None, b"\x00", [("content-type", b"application/cloudevents+avro")]), "avro"),
}

NO_EVENT: dict[str, Any] = {
    "no headers": (None, b"hello", []),
    "tombstone": (b"k", None, []),
    "nothing at all": (None, None, []),
    "other headers": (None, b"{}", [("x", b"1"), ("x", b"\xff"), ("", b"")]),
    "other content type, twice": (None, b"{}", [("content-type", b"a/b"), ("Content-Type", b"c/d")]),
}


@pytest.mark.parametrize("what", RUBBISH)
def test_record_that_claims_to_be_an_event_and_is_none_is_refused_with_a_reason(what: str) -> None:
    record, reason = RUBBISH[what]
    with pytest.raises(MalformedEventError, match=reason):
        event_of(record)


@pytest.mark.parametrize("what", NO_EVENT)
def test_record_that_does_not_claim_it_is_none(what: str) -> None:
    assert event_of(NO_EVENT[what]) is None


@given(
    st.none() | st.binary(max_size=40),
    st.lists(
        st.tuples(
            st.sampled_from(["ce_id", "ce_type", "ce_source", "ce_specversion", "content-type", "ce_x"])
            | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
            st.none() | st.sampled_from([b"1.0", b"application/cloudevents+json"]) | st.binary(max_size=8),
        ),
        max_size=8,
    ),
)
def test_any_bytes_at_all_are_an_event_poison_or_no_event(
    body: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    found = bind(delivery_of(Got(None, body, headers), "c"), read, lambda _: None, 1_000)
    assert found is None or isinstance(found, CloudEvent | Poison)


@given(cloud_events(), st.sampled_from(["binary", "structured"]), st.none() | st.binary(max_size=5))
def test_an_event_leaves_and_comes_back_equal(
    event: CloudEvent, mode: Literal["binary", "structured"], key: bytes | None
) -> None:
    record = record_of(event, key, mode, tombstones=True)
    found = event_of((record.key, record.value, record.headers))
    if mode == "structured":
        assert found == event
    else:
        wanted = in_binary_mode(event)
        # Unlike HTTP, Kafka tells no value from an empty one.
        assert found == (replace(wanted, data=None) if event.data is None else wanted)


def test_event_without_data_is_no_tombstone_unless_asked_for() -> None:
    event = CloudEvent("a", "/s", "t")
    assert record_of(event, b"k", "binary", tombstones=False).value == b""
    assert record_of(event, b"k", "binary", tombstones=True).value is None
    assert record_of(event, None, "binary", tombstones=False).value is None
    assert record_of(event, b"k", "structured", tombstones=True).value


SOURCE = Source("c", "g", lambda delivery: None if delivery.body == b"skip" else 1 / 0, 1_000)  # type: ignore[arg-type, return-value]


def test_each_record_moves_its_partitions_position_whatever_becomes_of_it() -> None:
    first, second = ("orders", 3), ("orders", 4)
    records = {
        first: [got(binary("a"), 12), got((b"k", b"skip", []), 15), got((None, b"x" * 2_000, []), 16)],
        second: [got((None, b"boom", []), 99)],
    }
    batch = bound(SOURCE, records, {first: 10, second: 42})
    assert batch.places == [first, second]
    # From what is stored, not from the first record's offset: offsets have gaps.
    assert [(p.topic, p.partition, p.fetched_from, p.next_offset) for p in batch.positions] == [
        ("orders", 3, 10, 17),
        ("orders", 4, 42, 100),
    ]
    assert [(item.event.id, item.position) for item in batch.items] == [("a", 0)]
    assert [(one.position, one.raw[:4]) for one in batch.poison] == [(0, b"xxxx"), (1, b"boom")]
    assert "at most 1000 are taken" in batch.poison[0].reason
    assert "ZeroDivisionError" in batch.poison[1].reason
    refused = batch.items[0].dead_letter
    assert refused is not None
    kept = refused("because")
    assert (kept.origin, kept.raw, kept.reason, kept.position) == ("kafka:c/orders/3@12", b"{}", "because", 0)


def test_a_transaction_takes_no_more_records_and_bytes_than_it_may() -> None:
    big: Any = (None, b"x" * 3_000_000, [])
    fetched = {("t", 0): [got(big, 0), got(big, 1), got(binary("a"), 2)], ("t", 1): [got(binary("b"), 5)]}
    pieces = []
    while fetched:
        taken = take(fetched, 2)
        pieces.append({place: [record.offset for record in records] for place, records in taken.items()})
    assert pieces == [{("t", 0): [0]}, {("t", 0): [1, 2]}, {("t", 1): [5]}]
    alone = {("t", 0): [got((None, b"x" * 9_000_000, []), 3)]}
    assert take(alone, 500)
    assert not alone
