"""Every form of header that a client may send, and what is no event."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import Any

import pytest
from aiormq.abc import DeliveredMessage
from hypothesis import given
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from edda.cloudevent import CloudEvent
from edda.wire.amqp import AmqpMessage, to_binary, to_structured
from gateways.delivery import Delivery, Poison, bind, letter
from gateways.rabbitmq.reading import delivery_of, reader
from tests.gateways.events import cloud_events
from tests.gateways.test_round_trips import in_binary_mode

REQUIRED = {"id": "a-1", "source": "/shop", "type": "order.paid", "specversion": "1.0"}


def message(
    headers: dict[str, Any] | None = None,
    body: bytes = b"{}",
    *,
    content_type: str | None = "application/json",
    redelivered: bool = False,
    **properties: Any,
) -> DeliveredMessage:
    """As the client library hands it over."""
    basic = Basic.Properties(headers=headers, content_type=content_type or "", **properties)
    deliver = Basic.Deliver("tag", 1, redelivered, "shop", "key")
    return DeliveredMessage(deliver, ContentHeader(body_size=len(body), properties=basic), body, None)  # type: ignore[arg-type]


def bound(found: DeliveredMessage) -> CloudEvent | Poison | None:
    """What the gateway makes of it."""
    return bind(delivery_of("orders", found), reader(found), None, 1_000_000)


def event(found: DeliveredMessage) -> CloudEvent:
    """It is one."""
    event = bound(found)
    assert isinstance(event, CloudEvent), event
    return event


def reason(found: DeliveredMessage) -> str:
    """It is none, and why."""
    poison = bound(found)
    assert isinstance(poison, Poison), poison
    return poison.reason


def prefixed(prefix: str, **changes: Any) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in {**REQUIRED, **changes}.items()}


@pytest.mark.parametrize("prefix", ["ce-", "cloudEvents:", "cloudEvents_", "CE-", "cloudevents_"])
def test_attributes_are_read_with_every_prefix(prefix: str) -> None:
    found = event(message(prefixed(prefix, subject="Grüße € 100%25", shopid="7")))
    expected = CloudEvent(
        "a-1",
        "/shop",
        "order.paid",
        b"{}",
        "application/json",
        subject="Grüße € 100%25",
        extensions={"shopid": "7"},
    )
    assert found == expected


def test_attributes_may_have_several_prefixes_if_they_say_the_same() -> None:
    assert event(message({**prefixed("ce-"), **prefixed("cloudEvents:")})).id == "a-1"
    assert "'id' is there twice" in reason(message({**prefixed("ce-"), "cloudEvents:id": "b"}))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5", "5"),
        (5, "5"),
        (-(2**31), "-2147483648"),
        (True, "true"),
        (False, "false"),
        (dt.datetime(2026, 11, 25, 3, 4, 5, tzinfo=dt.UTC), "2026-11-25T03:04:05Z"),
        (dt.datetime(2026, 11, 25, 3, 4, 5, 120_000, tzinfo=dt.UTC), "2026-11-25T03:04:05.120000Z"),
        (bytearray(b"\xfb\xff"), "+/8="),
        (bytearray(b""), ""),
    ],
)
def test_typed_values_are_read_in_their_canonical_text(value: object, text: str) -> None:
    assert event(message(prefixed("ce-", x=value))).extensions == {"x": text}


def test_time_as_a_timestamp_and_id_as_a_number_are_read() -> None:
    found = event(message(prefixed("ce-", id=42, time=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))))
    assert (found.id, found.time) == ("42", "2026-01-01T00:00:00Z")


def test_header_without_a_value_is_an_absent_attribute() -> None:
    assert event(message(prefixed("ce-", subject=None, time=None))).subject is None
    assert "'id' is missing" in reason(message(prefixed("ce-", id=None)))


@pytest.mark.parametrize("value", [1.5, decimal.Decimal("1.5"), {"a": 1}, [1], b"\xff"])
def test_value_that_no_attribute_can_have_is_poison(value: object) -> None:
    assert "'ce-x'" in reason(message(prefixed("ce-", x=value)))


@pytest.mark.parametrize("name", ["id", "source", "type", "specversion"])
def test_nothing_that_is_missing_is_made_up(name: str) -> None:
    headers = {key: value for key, value in prefixed("ce-").items() if key != f"ce-{name}"}
    assert f"{name!r} is missing" in reason(message(headers))
    assert event(message(prefixed("ce-"))).time is None


def test_content_type_is_the_property_and_never_a_header() -> None:
    assert "content_type says it" in reason(message(prefixed("ce-", datacontenttype="text/plain")))
    assert event(message(prefixed("ce-"), content_type=None)).datacontenttype is None
    found = event(message(prefixed("ce-"), b"\x00\x01", content_type="image/png"))
    assert (found.datacontenttype, found.data) == ("image/png", b"\x00\x01")


STRUCTURED = b'{"id":"s-1","source":"/shop","type":"t","specversion":"1.0","data":{"n":1}}'


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents+json",
        "Application/CloudEvents+JSON; charset=utf-8",
        "application/cloudevents+json ;x=y",
    ],
)
def test_mode_is_chosen_by_the_content_type_alone(content_type: str) -> None:
    found = event(message(prefixed("ce-", id="other"), STRUCTURED, content_type=content_type))
    assert (found.id, found.data) == ("s-1", b'{"n":1}')


def test_formats_that_are_not_read_are_poison() -> None:
    assert "no batches" in reason(message({}, b"[]", content_type="application/cloudevents-batch+json"))
    assert "not read here" in reason(message({}, b"", content_type="application/cloudevents+avro"))
    assert "JSON" in reason(message({}, b"{", content_type="application/cloudevents+json"))


def test_compressed_body_is_no_events_data() -> None:
    assert "compressed" in reason(message(prefixed("ce-"), content_encoding="gzip"))
    assert event(message(prefixed("ce-"), content_encoding="UTF-8")).data == b"{}"


def test_message_without_attributes_is_no_event() -> None:
    assert "no CloudEvent" in reason(message({"x": "ce-id", "cex": "1"}))
    assert "no CloudEvent" in reason(message(None))
    assert "no name of an attribute" in reason(message({"ce-": "x", **prefixed("ce-")}))


@pytest.mark.parametrize(
    ("headers", "redelivered", "attempts"),
    [
        ({}, False, 1),
        ({}, True, 2),
        ({"x-delivery-count": 4}, True, 5),
        ({"x-delivery-count": 1, "x-acquired-count": 6}, True, 7),
        ({"x-delivery-count": "many"}, True, 2),
        ({"x-delivery-count": True}, False, 1),
        ({"x-delivery-count": -5}, False, 1),
        ({"x-delivery-count": 2**62}, True, 2**31 - 1),
    ],
)
def test_attempts_are_counted_as_far_as_the_broker_tells(
    headers: dict[str, Any], redelivered: bool, attempts: int
) -> None:
    assert delivery_of("orders", message(headers, redelivered=redelivered)).attempts == attempts


def test_stable_id_is_the_senders_message_id_or_none() -> None:
    assert delivery_of("orders", message(message_id="m-1")).stable_id == "m-1"
    assert delivery_of("orders", message()).stable_id is None


def test_delivery_and_dead_letter_hold_whatever_the_headers_are() -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"a": deep}
    headers: dict[str, Any] = {
        "text": "é",
        "number": 5,
        "flag": True,
        "nothing": None,
        "bytes": bytearray(b"\xff"),
        "not text": b"\xff",
        "time": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        "price": decimal.Decimal("1.50"),
        "float": float("nan"),
        "table": {"a": [1, bytearray(b"\xff"), {"b": None}]},
        "deep": deep,
    }
    delivery = delivery_of("orders", message(headers, reply_to="me", priority=3, message_type="t"))
    found = dict(delivery.headers)
    assert found["text"] == "é".encode()
    assert (found["number"], found["flag"], found["nothing"]) == (b"5", b"true", b"null")
    assert (found["bytes"], found["not text"]) == (b"\xff", b"\xff")
    assert (found["time"], found["price"], found["float"]) == (b"2026-01-01T00:00:00Z", b"1.50", b'"NaN"')
    assert found["table"] == b'{"a":[1,"_w==",{"b":null}]}'
    assert (found["amqp-exchange"], found["amqp-reply-to"], found["amqp-priority"]) == (b"shop", b"me", b"3")
    assert found["amqp-message-type"] == b"t"
    assert letter(delivery, "x").headers


def received(sent: AmqpMessage) -> DeliveredMessage:
    return message(dict(sent.headers), sent.body, content_type=sent.content_type)


@given(cloud_events())
def test_event_that_we_send_is_read_as_the_same_event(event_: CloudEvent) -> None:
    assert event(received(to_binary(event_))) == in_binary_mode(event_)
    assert event(received(to_structured(event_))) == event_


def test_bodies_are_handed_on_as_they_are() -> None:
    delivery = delivery_of("orders", message({}, b"\x00"))
    assert isinstance(delivery, Delivery)
    assert (delivery.body, delivery.key, delivery.topic, delivery.origin) == (
        b"\x00",
        b"key",
        "orders",
        "rabbitmq:orders",
    )
