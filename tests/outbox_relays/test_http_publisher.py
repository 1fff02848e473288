"""What each answer of an HTTP endpoint means, and what is sent."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.responses import Response, StreamingResponse

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError
from gateways.cloudevents import from_http
from outbox_relays.http import HttpPublisher
from outbox_relays.http.publisher import _retry_after
from outbox_relays.publisher import Confirm, Confirmed, Outgoing, Permanent, Retry
from outbox_relays.retry import Backoff
from tests.outbox_relays.sink import Sink, bound_socket, open_sink

EVENT = CloudEvent("a-1", "/shop", "order.paid", b'{"n":1}', "application/json", subject="Grüße €")


async def published(url: str, event: CloudEvent = EVENT, **settings: Any) -> Confirm:
    publisher = HttpPublisher(url, **settings)
    await publisher.open()
    try:
        [confirm] = await publisher.publish([Outgoing(event)])
        return confirm
    finally:
        await publisher.close()


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with open_sink() as sink:
        yield sink


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_confirms(sink: Sink, status: int) -> None:
    sink.script = lambda _: status
    assert await published(sink.url) == Confirmed()


@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 410, 413, 415, 422, 301, 302, 303, 307, 308])
async def test_a_permanent_refusal_is_a_dead_letter_with_its_reason(sink: Sink, status: int) -> None:
    sink.script = lambda _: Response("because", status, headers={"location": sink.url})
    assert await published(sink.url) == Permanent(f"HTTP {status}: because")
    assert len(sink.got) == 1  # redirects are not followed


@pytest.mark.parametrize("status", [401, 407, 408, 425, 500, 502, 503, 504])
async def test_what_may_be_otherwise_next_time_is_retried(sink: Sink, status: int) -> None:
    sink.script = lambda _: Response("later", status)
    assert await published(sink.url) == Retry(f"HTTP {status}: later")


@pytest.mark.parametrize(("status", "everything"), [(429, True), (503, True), (500, False), (408, False)])
async def test_retry_after_is_passed_on_and_says_whether_the_service_is_meant(
    sink: Sink, status: int, everything: bool
) -> None:
    sink.script = lambda _: Response(status_code=status, headers={"retry-after": "30"})
    confirm = await published(sink.url)
    assert confirm == Retry(f"HTTP {status}: ", 30.0, everything=everything)


async def test_too_many_requests_rests_the_destination_without_a_time_too(sink: Sink) -> None:
    sink.script = lambda _: 429
    assert await published(sink.url) == Retry("HTTP 429: ", None, everything=True)


async def test_nobody_there_is_retried_and_meant_for_all() -> None:
    listener, url = bound_socket()
    confirm = await published(url)
    listener.close()
    assert isinstance(confirm, Retry)
    assert confirm.everything


async def test_an_unknown_host_is_retried_and_shows_no_secret_of_the_url() -> None:
    confirm = await published("http://user:s3cret@nowhere.invalid/events?token=s3cret")
    assert isinstance(confirm, Retry)
    assert confirm.everything
    assert "s3cret" not in confirm.reason


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 30 ", 30.0),
        ("86400", 3_600.0),
        ("9" * 400, 3_600.0),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3_600.0),
        ("Fri, 99 Dec 9999 23:59:59 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_never_an_error(
    value: str | None, seconds: float | None
) -> None:
    assert _retry_after(value) == seconds


def test_a_date_in_the_future_is_waited_for() -> None:
    value = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 90 < (_retry_after(value) or 0) <= 100


# ---------------------------------------------------------------------------------------------- what is sent


@pytest.mark.parametrize("mode", ["binary", "structured", "batch"])
async def test_what_is_sent_is_read_by_our_own_gateway_as_the_same_event(sink: Sink, mode: str) -> None:
    assert await published(sink.url, mode=mode) == Confirmed()
    [got] = sink.got
    assert got.event == EVENT
    assert got.headers["content-type"].startswith("application/")


async def test_a_token_and_more_headers_are_sent_and_need_not_be_ascii(sink: Sink) -> None:
    await published(sink.url, token="schlüssel", headers={"x-more": "é"})
    [got] = sink.got
    assert got.headers["authorization"].encode("latin-1") == "Bearer schlüssel".encode()
    assert got.headers["x-more"].encode("latin-1") == "é".encode()


async def test_an_event_that_no_header_could_hold_as_it_is_arrives_whole(sink: Sink) -> None:
    event = CloudEvent(
        'i d%"\\é😀', "/s", "t" * 255, None, subject=" x ", extensions={"a": "%41", "b": True, "c": -1}
    )
    await published(sink.url, event)
    [got] = sink.got
    assert (got.event.id, got.event.subject, got.event.extensions) == (
        event.id,
        " x ",
        {"a": "%41", "b": "true", "c": "-1"},
    )
    assert got.event.data is None


# ---------------------------------------------------------------------------------------------- strange answers


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 65_536
        await asyncio.sleep(0)


async def silent() -> AsyncIterator[bytes]:
    yield b"x"
    await asyncio.Event().wait()


@pytest.mark.parametrize("body", [endless, silent])
async def test_a_confirm_is_one_though_its_body_never_ends(
    sink: Sink, monkeypatch: pytest.MonkeyPatch, body: Any
) -> None:
    monkeypatch.setattr("outbox_relays.http.publisher._DRAIN_SECONDS", 0.2)
    sink.script = lambda _: StreamingResponse(body(), 200)
    assert await published(sink.url) == Confirmed()


async def test_a_refusal_with_an_endless_body_takes_no_memory(sink: Sink) -> None:
    sink.script = lambda _: StreamingResponse(endless(), 400)
    confirm = await published(sink.url)
    assert isinstance(confirm, Permanent)
    assert len(confirm.reason) < 600


async def test_a_compressed_answer_is_not_unpacked(sink: Sink) -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    headers = {"content-encoding": "gzip"}
    for status, expected in ((200, Confirmed), (400, Permanent)):
        sink.script = lambda _, status=status: Response(bomb, status, headers=headers)  # type: ignore[misc]
        assert isinstance(await published(sink.url), expected)


async def test_an_answer_that_claims_a_coding_it_has_not_means_what_its_status_says(sink: Sink) -> None:
    sink.script = lambda _: Response(b"plain", 200, headers={"content-encoding": "gzip"})
    assert await published(sink.url) == Confirmed()
    sink.script = lambda _: Response(b"plain", 400, headers={"content-encoding": "gzip"})
    assert await published(sink.url) == Permanent("HTTP 400: plain")


# ---------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("ftp://x/", {}),
        ("events", {}),
        ("", {}),
        ("http://x/", {"destination": ""}),
        ("http://x/", {"destination": "x" * 256}),
        ("http://x/", {"mode": "xml"}),
        ("http://x/", {"publish_timeout": 0}),
        ("http://x/", {"concurrency": 0}),
        ("http://x/", {"types": "order.*"}),
        ("http://x/", {"types": ["*.created"]}),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_once(url: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        HttpPublisher(url, **settings)


async def test_a_url_that_is_none_is_refused_at_the_start_and_not_shown() -> None:
    publisher = HttpPublisher("http://user:s3cret@x:port-s3cret/")
    with pytest.raises(ConfigurationError) as caught:
        await publisher.open()
    assert "s3cret" not in str(caught.value)


def test_the_url_is_not_in_the_repr() -> None:
    assert "s3cret" not in repr(HttpPublisher("http://user:s3cret@x/", token="s3cret"))


def test_it_takes_the_types_it_was_given() -> None:
    publisher = HttpPublisher("http://x/", types=["order.*", "invoice.sent"])
    assert [publisher.takes(name) for name in ("order.paid", "invoice.sent", "invoice.lost", "order")] == [
        True,
        True,
        False,
        False,
    ]
    assert HttpPublisher("http://x/").takes("anything")


def test_backoff_grows_with_jitter_to_its_longest_and_obeys_what_was_asked() -> None:
    backoff = Backoff(first=1, longest=60)
    for attempts, ceiling in ((0, 1), (1, 2), (3, 8), (10, 60), (10_000, 60)):
        delays = [backoff.delay(attempts, None) for _ in range(200)]
        assert ceiling / 10 <= min(delays) <= max(delays) <= ceiling
        assert len(set(delays)) > 100
    assert backoff.delay(5, 0.0) == 0.0
    assert backoff.delay(0, 3_600.0) == 3_600.0


async def test_a_batch_of_one_is_an_array() -> None:
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        bodies.append(await reader.readexactly(int(length.split(b":")[1])))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        assert await published(url, mode="batch") == Confirmed()
    assert bodies[0].startswith(b"[{")
    assert from_http([(b"content-type", b"application/cloudevents-batch+json")], bodies[0]) == [EVENT]
