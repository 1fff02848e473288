"""Equal hash if and only if the values are equal, as JSON understands equality."""

from __future__ import annotations

import datetime as dt
import enum
import json
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError, PayloadError
from edda.inbox.shapes import (
    event_hash,
    parsed_data,
    patterns_of,
    shape_hash,
    validate_path,
    validate_pattern,
)
from edda.storage.rows import Shape
from tests.gateways.events import json_values
from tests.inbox.given import event


def hash_of(value: Any, path: str = "data.x") -> bytes:
    """What a wait for this value looks for."""
    return shape_hash("order.created", {path: value})


def found_by(data: bytes | None, path: str = "data.x", **changes: Any) -> bytes | None:
    """What an event with this data is found by."""
    item = event(data=data, **changes)
    return event_hash(Shape(1, "order.created", (path,), True, 0), item, parsed_data(item))


class Colour(enum.Enum):
    RED = "red"
    TWO = 2


class Level(enum.IntEnum):
    HIGH = 2


class Name(enum.StrEnum):
    ANN = "ann"


A_UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")

EQUAL: list[tuple[Any, Any]] = [
    (42, 42.0),
    (0, -0.0),
    (10**22, 1e22),
    (A_UUID, "12345678-1234-5678-1234-567812345678"),
    (Decimal("1.50"), "1.50"),
    (dt.date(2024, 1, 2), "2024-01-02"),
    (dt.datetime(2024, 1, 2, 3, 4, tzinfo=dt.UTC), "2024-01-02T03:04:00+00:00"),
    (dt.time(3, 4), "03:04:00"),
    (Colour.RED, "red"),
    (Colour.TWO, 2),
    (Level.HIGH, 2),
    (Name.ANN, "ann"),
    ((1, 2), [1, 2]),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({"a": [A_UUID, {"b": 1.0}]}, {"a": [str(A_UUID), {"b": 1}]}),
]

DIFFERENT: list[tuple[Any, Any]] = [
    (42, "42"),
    (True, 1),
    (False, 0),
    (True, "true"),
    (None, "null"),
    (None, ""),
    (None, 0),
    (1, 1.5),
    (2**53, 2**53 + 1),
    (10**400, 10**400 + 1),
    ("a", "A"),
    ("a", "a "),
    ("é", "e\u0301"),  # one letter, two spellings: texts are not normalised
    ([1, 2], [2, 1]),
    ([1], 1),
    ([], {}),
    ({"a": None}, {}),
    (Decimal("1.50"), Decimal("1.5")),
    (Decimal("1.5"), 1.5),
    ("[1]", [1]),
    ('"a"', "a"),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_values_have_one_hash(one: Any, other: Any) -> None:
    assert hash_of(one) == hash_of(other)
    assert hash_of([{"in": one}]) == hash_of([{"in": other}])


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_values_have_another_hash(one: Any, other: Any) -> None:
    assert hash_of(one) != hash_of(other)
    assert hash_of({"in": [one]}) != hash_of({"in": [other]})


def same(one: Any, other: Any) -> bool:
    """Equality as JSON has it: numbers by value, and true is no number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return (type(one) in {int, float} and type(other) in {int, float} and one == other) or (
        type(one) is type(other) and bool(one == other)
    )


_near = st.sampled_from(
    [0, 1, 1.0, True, False, None, "", "1", "true", [], {}, [1], [True], {"a": 1}, {"a": 1.0}]
)


@given(st.one_of(_near, json_values), st.one_of(_near, json_values))
@example(2**53, float(2**53))
@example(2**53 + 1, float(2**53))
def test_hashes_are_equal_if_and_only_if_the_values_are(one: Any, other: Any) -> None:
    assert (hash_of(one) == hash_of(other)) is same(one, other)


@given(json_values)
def test_an_event_is_found_by_the_value_that_is_in_it(value: Any) -> None:
    assert found_by(json.dumps({"x": value}).encode()) == hash_of(value)
    assert found_by(json.dumps({"x": value}, indent=2, ensure_ascii=False).encode()) == hash_of(value)


@given(json_values, json_values)
def test_an_event_is_not_found_by_another_value(value: Any, other: Any) -> None:
    assume(not same(value, other))
    assert found_by(json.dumps({"x": value}).encode()) != hash_of(other)


def test_a_value_of_the_event_is_read_along_the_path() -> None:
    assert found_by(b'{"a":{"b":{"c":7}}}', "data.a.b.c") == hash_of(7, "data.a.b.c")
    assert found_by(b"7", "data") == hash_of(7, "data")
    assert found_by(b"{}", "subject", subject="s") == hash_of("s", "subject")
    assert found_by(b"{}", "source") == hash_of("/shop", "source")
    assert found_by(b"{}", "id") == hash_of("a-1", "id")
    assert found_by(b"{}", "extensions.myext", extensions={"myext": 7}) == hash_of(7, "extensions.myext")


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"{}", "data.x"),
        (b'{"x":{}}', "data.x.y"),
        (b'{"x":[{"y":1}]}', "data.x.y"),
        (b'{"x":"y"}', "data.x.y"),
        (b"[]", "data.x"),
        (b"not json", "data.x"),
        (b'{"x":1e999}', "data.x"),
        (None, "data.x"),
        (None, "data"),
        (b"{}", "subject"),
        (b"{}", "extensions.myext"),
    ],
)
def test_what_is_absent_is_never_found_and_not_by_null_either(data: bytes | None, path: str) -> None:
    assert found_by(data, path) is None


def test_null_is_found_by_none() -> None:
    assert found_by(b'{"x":null}') == hash_of(None)


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream", "application/xml"])
def test_data_of_another_type_matches_no_data_path_though_it_looks_like_json(content_type: str) -> None:
    assert found_by(b'{"x":1}', datacontenttype=content_type) is None


def test_the_pattern_and_the_paths_belong_to_the_hash() -> None:
    assert shape_hash("a", {}) != shape_hash("a.*", {})
    assert shape_hash("a", {"data.x": 1}) != shape_hash("a", {"data.y": 1})
    assert shape_hash("a", {"data.x": 1}) != shape_hash("a", {"data.x": 1, "data.y": 1})
    assert shape_hash("a", {"data.x": 1, "data.y": 2}) == shape_hash("a", {"data.y": 2, "data.x": 1})


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        b"bytes",
        {1, 2},
        object(),
        {1: "a"},
        {"a": {None: 1}},
        [float("-inf")],
    ],
)
def test_a_value_that_is_no_json_is_refused_with_its_path(value: Any) -> None:
    with pytest.raises(PayloadError, match=r"data\.x"):
        hash_of(value)


def test_an_integer_too_long_to_be_written_is_refused() -> None:
    assert hash_of(10**4_000) != hash_of(10**4_000 + 1)
    with pytest.raises(PayloadError, match=r"data\.x.* a int too large to show"):
        hash_of(10**5_000)


# ---------------------------------------------------------------------------------------------- patterns, paths


def test_a_type_is_fitted_by_itself_its_prefixes_and_the_star() -> None:
    assert patterns_of("a.b.c") == ["a.b.c", "a.b.*", "a.*", "*"]
    assert patterns_of("a") == ["a", "*"]


@given(st.lists(st.text("ab.*", min_size=1), min_size=1, max_size=4).map(".".join))
def test_every_pattern_of_a_type_is_a_valid_one_or_the_type_itself(event_type: str) -> None:
    for pattern in patterns_of(event_type)[1:]:
        assert pattern == "*" or event_type.startswith(pattern[:-1])


@pytest.mark.parametrize("pattern", ["a", "a.b", "a.*", "a.b.*", "*", "x" * 255, "été.*"])
def test_a_pattern_is_a_type_or_a_prefix_or_the_star(pattern: str) -> None:
    validate_pattern(pattern)


@pytest.mark.parametrize("pattern", ["", "a*", "*.a", "a.*.b", "**", ".*", "a.**", "x" * 256, "é" * 128])
def test_another_pattern_is_refused_with_what_to_write(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="payment"):
        validate_pattern(pattern)


@pytest.mark.parametrize(
    "path", ["data", "data.a", "data.a.b", "extensions.myext", "source", "subject", "type", "id"]
)
def test_a_path_leads_to_data_an_extension_or_an_attribute(path: str) -> None:
    validate_path(path)


@pytest.mark.parametrize(
    "path", ["", "order_id", "data.", "data..a", "data.a b", "extensions.My", "time", "data.a\n"]
)
def test_another_path_is_refused_with_what_to_write(path: str) -> None:
    with pytest.raises(ConfigurationError, match="order_id"):
        validate_path(path)


def test_two_events_that_json_takes_for_equal_are_found_by_one_wait() -> None:
    events = [
        CloudEvent(str(n), "/s", "order.created", data) for n, data in enumerate([b'{"x":1}', b'{"x":1.0}'])
    ]
    shape = Shape(1, "order.created", ("data.x",), True, 0)
    assert {event_hash(shape, item, parsed_data(item)) for item in events} == {hash_of(1)}
