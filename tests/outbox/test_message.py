"""What becomes of a user's data, and what is refused by name before anything is written."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import uuid
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import from_json

from edda.errors import PayloadError
from edda.outbox.message import message


class Paid(BaseModel):
    amount: Decimal
    at: dt.date


@dataclasses.dataclass
class Line:
    sku: str


class Colour(enum.Enum):
    RED = "red"


def built(data: Any, content_type: str | None = None) -> tuple[bytes | None, str | None]:
    made = message("order.paid", "/shop", data, content_type=content_type)
    return made.data, made.content_type


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"a": [1, 1.5, None, True]}, b'{"a":[1,1.5,null,true]}'),
        ("text", b'"text"'),
        (Paid(amount=Decimal("1.10"), at=dt.date(2024, 1, 2)), b'{"amount":"1.10","at":"2024-01-02"}'),
        ([Line("x")], b'[{"sku":"x"}]'),
        (Colour.RED, b'"red"'),
        (uuid.UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        ({"raw": b"\xff"}, b'{"raw":"_w=="}'),
        (0, b"0"),
        ("", b'""'),
        ([], b"[]"),
        ("NaN", b'"NaN"'),
    ],
)
def test_values_become_json(data: Any, expected: bytes) -> None:
    assert built(data) == (expected, "application/json")
    assert built(data, "application/vnd.shop+json") == (expected, "application/vnd.shop+json")


@pytest.mark.parametrize("data", [b"\x00\xff", bytearray(b"\x00\xff"), memoryview(b"\x00\xff")])
def test_bytes_go_as_they_are(data: Any) -> None:
    assert built(data) == (b"\x00\xff", "application/octet-stream")
    assert built(data, "application/json") == (b"\x00\xff", "application/json")


def test_text_of_another_content_type_goes_as_it_is() -> None:
    assert built("Grüße", "text/plain; charset=utf-8") == ("Grüße".encode(), "text/plain; charset=utf-8")


def test_none_is_no_data() -> None:
    assert built(None) == (None, None)
    assert built(None, "application/json") == (None, "application/json")


class Unstorable:
    """Has no JSON form."""


@pytest.mark.parametrize(
    "data",
    [
        Unstorable(),
        {"deep": [Unstorable()]},
        float("nan"),
        {"a": float("inf")},
        "\ud800",
        {"\ud800": 1},
        lambda: None,
    ],
    ids=["object", "inside", "nan", "infinity", "surrogate", "surrogate as name", "function"],
)
def test_data_that_cannot_be_sent_is_refused_by_the_events_name(data: Any) -> None:
    with pytest.raises(PayloadError, match=r"order\.paid"):
        message("order.paid", "/shop", data)


def test_data_that_is_neither_json_nor_text_needs_bytes() -> None:
    with pytest.raises(PayloadError, match="application/xml"):
        message("order.paid", "/shop", {"a": 1}, content_type="application/xml")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"type": ""}, "type"),
        ({"type": "t" * 256}, "type"),
        ({"type": "a\nb"}, "type"),
        ({"source": ""}, "source"),
        ({"source": "two words"}, "source"),
        ({"id": "a\x00"}, "id"),
        ({"subject": "\ud800"}, "subject"),
        ({"subject": ""}, "subject"),
        ({"time": "yesterday"}, "time"),
        ({"content_type": "text"}, "datacontenttype"),
        ({"content_type": "text/plain\r\nx: y"}, "datacontenttype"),
        ({"extensions": {"id": "evil"}}, "reserved"),
        ({"extensions": {"data": "evil"}}, "reserved"),
        ({"extensions": {"My-Ext": "x"}}, "My-Ext"),
        ({"extensions": {"myext": 1.5}}, "myext"),
        ({"extensions": {"myext": 2**31}}, "myext"),
        ({"key": ""}, "key"),
        ({"key": "x" * 256}, "key"),
        ({"key": "a\x00"}, "key"),
    ],
)
def test_an_attribute_that_no_receiver_would_take_is_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    given = {"type": "order.paid", "source": "/shop", "data": b"x", **changes}
    with pytest.raises(PayloadError, match=named):
        message(**given)


def test_id_and_time_are_made_where_none_are_given() -> None:
    first, second = (message("order.paid", "/shop", {}) for _ in range(2))
    assert first.event_id < second.event_id
    attributes = from_json(first.attributes)
    assert dt.datetime.fromisoformat(attributes["time"]).tzinfo is not None
    kept = message("order.paid", "/shop", {}, id="mine", time="2024-01-02T03:04:05.000000001Z")
    assert kept.event_id == "mine"
    assert from_json(kept.attributes)["time"] == "2024-01-02T03:04:05.000000001Z"


@pytest.mark.parametrize(
    ("key", "stored"), [("k", "k"), (7, "7"), (uuid.UUID(int=1), str(uuid.UUID(int=1))), (None, None)]
)
def test_an_ordering_key_is_its_text(key: object, stored: str | None) -> None:
    assert message("order.paid", "/shop", {}, key=key).ordering_key == stored
