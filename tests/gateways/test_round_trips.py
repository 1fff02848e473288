"""What came in leaves again equal, in every mode; and any bytes at all are events or a refusal."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from edda.cloudevent import CloudEvent
from edda.wire.http import Headers, to_batch, to_binary, to_structured
from gateways.cloudevents import MalformedEventError, from_http
from tests.gateways.events import cloud_events
from tests.gateways.messages import BATCH, STRUCTURED


def received(message: tuple[Headers, bytes]) -> list[CloudEvent]:
    """Read it as a server hands it over: header names in lower case, values as bytes of ASCII."""
    headers, body = message
    return from_http(
        [(name.lower().encode(), value.encode("ascii")) for name, value in headers.items()], body
    )


def in_binary_mode(event: CloudEvent) -> CloudEvent:
    """What binary mode cannot tell: types of extensions, an implied content type, empty data from none."""
    content_type = event.datacontenttype
    if content_type is None and event.data is not None:
        content_type = "application/json"
    data = event.data
    if not data:
        data = None if content_type is None or replace(event, datacontenttype=content_type).is_json else b""
    extensions = {
        name: ("true" if value else "false") if isinstance(value, bool) else str(value)
        for name, value in event.extensions.items()
    }
    return replace(event, datacontenttype=content_type, data=data, extensions=extensions)


@given(cloud_events())
def test_an_event_leaves_and_comes_back_equal_in_structured_mode(event: CloudEvent) -> None:
    assert received(to_structured(event)) == [event]


@given(cloud_events())
def test_an_event_leaves_and_comes_back_equal_in_binary_mode(event: CloudEvent) -> None:
    assert received(to_binary(event)) == [in_binary_mode(event)]


@given(st.lists(cloud_events(), max_size=4))
def test_a_batch_leaves_and_comes_back_equal(events: list[CloudEvent]) -> None:
    events = [replace(event, specversion="1.0") for event in events]
    assert received(to_batch(events)) == events


@given(cloud_events())
def test_binary_to_structured_to_binary_changes_nothing(event: CloudEvent) -> None:
    [first] = received(to_binary(event))
    [second] = received(to_structured(first))
    assert second == first
    assert to_binary(second) == to_binary(first)


@given(cloud_events())
def test_an_event_is_the_same_after_the_database(event: CloudEvent) -> None:
    again = CloudEvent.from_parts(
        event.type, event.source, event.id, event.attributes_json(), event.data, event.datacontenttype
    )
    assert again == event
    assert (again.digest(), again.data_hash()) == (event.digest(), event.data_hash())


@given(cloud_events())
def test_no_header_value_can_break_the_request_it_stands_in(event: CloudEvent) -> None:
    headers, _ = to_binary(event)
    for name, value in headers.items():
        assert (name + value).isascii()
        assert (name + value.replace("\t", "")).isprintable()


_names = st.sampled_from(
    [
        b"ce-id",
        b"ce-source",
        b"ce-type",
        b"ce-specversion",
        b"CE-Time",
        b"ce-data",
        b"content-type",
        b"ce-",
        b"x",
    ]
)
_content_types = st.sampled_from(
    [STRUCTURED.encode(), BATCH.encode(), b"application/json", b"", b"APPLICATION/CLOUDEVENTS", b"a/b;\xff"]
)
_headers = st.lists(
    st.one_of(
        st.tuples(_names, st.binary(max_size=20)),
        st.tuples(st.just(b"content-type"), _content_types),
        st.tuples(st.binary(max_size=12), st.binary(max_size=12)),
    ),
    max_size=8,
)
_bodies = st.one_of(
    st.binary(max_size=80),
    st.text('{}[]",:\\uidespcvron01. \ud800', max_size=60).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    ),
)


@given(_headers, _bodies)
@example([(b"content-type", STRUCTURED.encode())], b'{"id":' + b"[" * 100_000)
@example([(b"content-type", BATCH.encode())], b"[" * 100_000)
@example([(b"content-type", STRUCTURED.encode())], b'{"data":' + b"1" * 10_000 + b"}")
def test_any_bytes_are_events_or_a_refusal(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    reason = "none"
    try:
        from_http(headers, body)
    except MalformedEventError as error:
        reason = error.reason
    assert reason.encode()  # it can be told to the sender


@given(cloud_events(), st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_a_message_that_was_damaged_on_its_way_is_an_event_or_a_refusal(
    event: CloudEvent, at: int, garbage: bytes
) -> None:
    for headers, body in (to_structured(event), to_batch([event])):
        cut = at % (len(body) + 1)
        try:
            events = received((headers, body[:cut] + garbage + body[cut + 1 :]))
        except MalformedEventError:
            continue
        assert len(events) <= 1
