"""The HTTP gateway before a real inbox and a real database: statuses, problem details, tokens, shared transactions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError, NotRunningError, StorageUnavailableError
from edda.inbox import accept
from edda.inbox.accept import Inbox
from edda.storage.connect import open_store
from edda.storage.contract import Storage
from edda.storage.rows import EventResult
from gateways.http import http_gateway
from tests.gateways.messages import BATCH, MINIMAL, binary, form, structured, without
from tests.inbox.given import TOO_LONG, refuse_long_content_types, stored
from tests.inbox.wire import Wire
from tests.support.databases import Database

Post = Callable[..., Any]


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Storage]:
    store = open_store(database.url)
    await store.open()
    await store.migrate()
    yield store
    await store.close()


@pytest.fixture
async def wire(sqlite_database: Database) -> AsyncIterator[Wire]:
    """SQLite at the end of a line that can be cut."""
    store = open_store(sqlite_database.url)
    await store.open()
    await store.migrate()
    yield Wire(store)
    await store.close()


@pytest.fixture
async def inbox(wire: Wire) -> AsyncIterator[Inbox]:
    inbox = Inbox(wire, patience=0.2)  # type: ignore[arg-type]
    yield inbox
    wire.open.set()
    await inbox.close()


def client(inbox: Any, **settings: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(http_gateway(inbox, **settings))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


async def post(
    to: httpx.AsyncClient, message: tuple[Any, bytes], path: str = "/", **extra: str | bytes
) -> httpx.Response:
    headers, body = message
    more = [
        (name.replace("_", "-").encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in extra.items()
    ]
    return await to.post(path, headers=[*headers, *more], content=body)


def problem(answer: httpx.Response) -> dict[str, Any]:
    """The refusal, which is always of one form."""
    assert answer.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = answer.json()
    assert set(told) == {"type", "title", "status", "detail", "error", "error_type", "retryable"}
    assert told["status"] == answer.status_code
    assert told["error"] == told["detail"]
    assert told["error_type"]
    assert told["retryable"] is (answer.status_code in {429, 500, 503})
    assert ("retry-after" in answer.headers) is (answer.status_code in {429, 503})
    return told


# ---------------------------------------------------------------------------------------------- accepted


async def test_an_event_in_any_mode_is_stored_when_202_is_said(store: Storage) -> None:
    inbox = Inbox(store)
    async with client(inbox) as http:
        for message in (
            binary(b"{}", "application/json", id="a"),
            structured(form(id="b")),
            structured([form(id="c"), form(id="d")], BATCH),
        ):
            answer = await post(http, message, "/any/path")
            assert answer.status_code == 202
            assert answer.json()["status"] == "accepted"
    assert await stored(store) == ["a", "b", "c", "d"]


async def test_a_batch_is_answered_event_by_event(database: Database, store: Storage) -> None:
    await refuse_long_content_types(database)
    batch = [form(id="a"), form(id="b", datacontenttype=TOO_LONG), form(id="a"), form(id="a", data=1)]
    async with client(Inbox(store)) as http:
        answer = await post(http, structured(batch, BATCH))
    assert answer.status_code == 202
    results = answer.json()["results"]
    assert [result["result"] for result in results] == ["unmatched", "refused", "duplicate", "conflict"]
    assert [result.get("sequence") for result in results] == [1, None, 1, 1]
    assert [("reason" in result) for result in results] == [False, True, False, False]


async def test_an_event_that_the_database_refuses_is_the_senders_fault(
    database: Database, store: Storage
) -> None:
    await refuse_long_content_types(database)
    async with client(Inbox(store)) as http:
        answer = await post(http, binary(b"x", TOO_LONG))
        assert answer.status_code == 400
        assert problem(answer)["error_type"] == "Refused"
        assert (await post(http, binary())).status_code == 202


async def test_an_empty_batch_is_accepted_and_stores_nothing(inbox: Inbox, wire: Wire) -> None:
    async with client(inbox) as http:
        answer = await post(http, structured([], BATCH))
    assert (answer.status_code, answer.json()) == (202, {"status": "accepted", "results": []})
    assert wire.sent == []


async def test_an_event_sent_again_is_a_duplicate_and_still_202(inbox: Inbox) -> None:
    async with client(inbox) as http:
        first, second = await post(http, binary()), await post(http, structured(MINIMAL))
    assert [first.status_code, second.status_code] == [202, 202]
    assert second.json()["results"] == [{"result": "duplicate", "sequence": 1}]


async def test_202_is_said_only_after_the_commit(inbox: Inbox, wire: Wire) -> None:
    wire.open.clear()
    inbox = Inbox(wire)  # type: ignore[arg-type]
    async with client(inbox) as http:
        asking = asyncio.create_task(post(http, binary()))
        await wire.waiting.wait()
        assert await stored(wire) == []  # type: ignore[arg-type]
        assert not asking.done()
        wire.open.set()
        assert (await asking).status_code == 202
    assert await stored(wire) == ["a-1"]  # type: ignore[arg-type]


async def test_concurrent_requests_share_accept_transactions(inbox: Inbox, wire: Wire) -> None:
    inbox._patience = 30
    async with client(inbox) as http:
        first = await asyncio.gather(*(post(http, binary(id=f"a-{number}")) for number in range(100)))
    assert [answer.status_code for answer in first] == [202] * 100
    assert len(wire.sent) <= 10
    assert sum(len(batch.events) for batch in wire.sent) == 100


# ---------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    "message",
    [
        binary(id=None),
        binary(subject=b"%C0%A0"),
        structured(without("source")),
        structured(b"{"),
        structured(b'{"id":' + b"[" * 50_000),
        structured([form(), without("id")], BATCH),
        ([], b""),
        ([(b"ce-id", b"\xff")], b"\x00"),
    ],
)
async def test_a_malformed_request_is_400_and_stores_nothing(
    inbox: Inbox, wire: Wire, message: tuple[Any, bytes]
) -> None:
    async with client(inbox) as http:
        answer = await post(http, message)
    assert answer.status_code == 400
    assert problem(answer)["error_type"] == "MalformedEventError"
    assert wire.sent == []


async def test_a_body_of_another_event_format_is_415(inbox: Inbox) -> None:
    async with client(inbox) as http:
        answer = await post(http, binary(b"x", "application/cloudevents+avro"))
    assert answer.status_code == 415
    assert problem(answer)["error_type"] == "UnsupportedFormatError"


async def test_a_compressed_body_is_415_and_not_taken_for_the_data(inbox: Inbox, wire: Wire) -> None:
    async with client(inbox) as http:
        answer = await post(http, binary(b"\x1f\x8b", "application/json"), content_encoding="gzip")
        assert answer.status_code == 415
        problem(answer)
        assert (await post(http, binary(b"{}"), content_encoding="identity")).status_code == 202


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD"])
async def test_another_method_is_405_and_told_the_right_one(inbox: Inbox, method: str) -> None:
    async with client(inbox) as http:
        answer = await http.request(method, "/")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST, OPTIONS"


async def test_64_kib_are_taken_and_more_than_the_maximum_is_413(inbox: Inbox, wire: Wire) -> None:
    def chunks(size: int) -> AsyncIterator[bytes]:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(0, size, 1024):
                yield b"x" * 1024

        return pieces()

    headers, _ = binary(b"", "text/plain")
    async with client(inbox, max_bytes=65_536) as http:
        assert (await post(http, binary(b"x" * 65_536, "text/plain"))).status_code == 202
        declared = await post(http, binary(b"x" * 65_537, "text/plain"))
        counted = await http.post("/", headers=headers, content=chunks(66_560))
        lying = await http.post("/", headers=[*headers, (b"content-length", b"5")], content=chunks(66_560))
    for answer in (declared, counted, lying):
        assert answer.status_code == 413
        assert problem(answer)["error_type"] == "PayloadTooLarge"
    assert len(wire.sent) == 1


@pytest.mark.parametrize("length", ["²", "-1", "1e9", "9" * 5_000, "x"])
async def test_a_strange_content_length_is_no_error_of_ours(inbox: Inbox, length: str) -> None:
    async with client(inbox) as http:
        headers, body = binary(b"{}")
        answer = await http.post(
            "/", headers=[*headers, (b"content-length", length.encode("latin-1"))], content=body
        )
    assert answer.status_code in {202, 413}


@pytest.mark.parametrize("size", [0, 1, 65_535])
def test_a_maximum_below_64_kib_is_refused_at_start(size: int) -> None:
    with pytest.raises(ConfigurationError, match="65536"):
        http_gateway(Inbox(open_store("sqlite:///unused.db")), max_bytes=size)


# ---------------------------------------------------------------------------------------------- tokens


async def test_any_of_two_tokens_lets_in_and_nothing_else_does(inbox: Inbox, wire: Wire) -> None:
    async with client(inbox, tokens=["old", "new"]) as http:
        for header in ("Bearer old", "bearer new", "BEARER  new "):
            assert (await post(http, binary(), authorization=header)).status_code == 202
        assert (await post(http, binary(), "/?access_token=new")).status_code == 202
        sent = len(wire.sent)
        for header in (
            "",
            "Bearer",
            "Bearer ",
            "Bearer nope",
            "Basic old",
            "old",
            "Bearer old new",
            "Bearer OLD",
        ):
            answer = await post(http, binary(id="evil"), authorization=header)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "old" not in problem(answer)["detail"]
        for path in ("/", "/?access_token=", "/?access_token=nope", "/?access_token=%ff"):
            assert (await post(http, binary(id="evil"), path)).status_code == 401
        assert (
            await post(http, binary(), "/?access_token=new", authorization="Bearer nope")
        ).status_code == 401
    assert len(wire.sent) == sent


async def test_tokens_that_are_not_ascii_are_compared_and_do_not_crash(inbox: Inbox) -> None:
    async with client(inbox, tokens=["schlüssel-€"]) as http:
        right = await post(http, binary(), authorization="Bearer schlüssel-€".encode())
        in_query = await post(http, binary(), "/?access_token=schl%C3%BCssel-%E2%82%AC")
        wrong = await post(http, binary(), authorization="Bearer schlüssel-€".encode("utf-16-le"))
        latin = await post(http, binary(), authorization="Bearer schlüssel".encode("latin-1"))
    assert [answer.status_code for answer in (right, in_query, wrong, latin)] == [202, 202, 401, 401]


async def test_a_body_is_not_read_before_the_token_is_checked(inbox: Inbox) -> None:
    asked = []
    gateway = http_gateway(inbox, tokens=["right"])

    async def receive() -> Any:
        asked.append(1)
        return {"type": "http.request", "body": b"{}", "more_body": False}

    answers: list[Any] = []

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    await gateway(scope, receive, send)
    assert answers[0]["status"] == 401
    assert asked == []


@pytest.mark.parametrize("tokens", [[""], ["right", ""], "right"])
def test_a_token_that_would_let_everybody_in_is_refused_at_start(tokens: Sequence[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        http_gateway(Inbox(open_store("sqlite:///unused.db")), tokens=tokens)
    assert "right" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- handshake


async def test_the_webhook_handshake_is_consented_to_without_a_token(inbox: Inbox) -> None:
    async with client(inbox, tokens=["right"]) as http:
        answer = await http.options(
            "/", headers={"WebHook-Request-Origin": "shop.example", "WebHook-Request-Rate": "120"}
        )
        silent = await http.options("/")
    assert answer.status_code == 200
    assert answer.headers["webhook-allowed-origin"] == "shop.example"
    assert answer.headers["webhook-allowed-rate"] == "*"
    assert "POST" in answer.headers["allow"]
    assert "webhook-allowed-origin" not in silent.headers


# ---------------------------------------------------------------------------------------------- a database that fails


async def test_a_database_that_is_away_is_503_and_the_event_may_be_sent_again(
    inbox: Inbox, wire: Wire
) -> None:
    wire.lost_requests = 10_000
    async with client(inbox) as http:
        answer = await post(http, binary())
        assert answer.status_code == 503
        assert problem(answer)["error_type"] == "StorageUnavailableError"
        wire.lost_requests = 0
        assert (await post(http, binary())).json()["results"][0]["result"] == "unmatched"


async def test_a_database_that_hangs_is_503_and_its_event_is_a_duplicate_later(
    inbox: Inbox, wire: Wire
) -> None:
    wire.open.clear()
    async with client(inbox) as http:
        answer = await post(http, binary())
        assert answer.status_code == 503
        problem(answer)
        wire.open.set()
        assert (await post(http, binary())).json()["results"][0]["result"] == "duplicate"


async def test_more_than_may_wait_is_429_and_memory_is_bounded(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "MAX_WAITING", 50)
    wire.open.clear()
    inbox = Inbox(wire)  # type: ignore[arg-type]
    async with client(inbox) as http:
        asking = [asyncio.create_task(post(http, binary(id="first")))]
        await wire.waiting.wait()
        asking += [asyncio.create_task(post(http, binary(id=f"a-{number}"))) for number in range(200)]
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0)
        for answer in [await task for task in done]:
            assert answer.status_code == 429
            assert problem(answer)["error_type"] == "OverloadedError"
        wire.open.set()
        answers = await asyncio.gather(*asking)
    await inbox.close()
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert len(accepted) == 51
    assert sum(answer.status_code == 429 for answer in answers) == 150
    assert len(await stored(wire)) == 51  # type: ignore[arg-type]


class Broken:
    """An inbox that raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def deliver(self, events: Sequence[CloudEvent]) -> list[EventResult]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotRunningError("not yet"), 503),
        (StorageUnavailableError("away, password=s3cret"), 503),
        (RuntimeError("a bug, password=s3cret"), 500),
    ],
)
async def test_whatever_goes_wrong_inside_is_a_problem_that_may_be_retried_and_tells_no_secret(
    error: Exception, status: int
) -> None:
    async with client(Broken(error)) as http:
        answer = await post(http, binary())
    assert answer.status_code == status
    assert "s3cret" not in json.dumps(problem(answer))


# ---------------------------------------------------------------------------------------------- clients that go


async def asgi(inbox: Any, messages: list[dict[str, Any]], headers: Any) -> list[dict[str, Any]]:
    """One request as a server makes it, message by message."""
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await http_gateway(inbox)(scope, receive, send)
    return sent


async def test_a_client_that_disconnects_in_the_middle_of_its_body_stores_nothing(
    inbox: Inbox, wire: Wire
) -> None:
    headers, _ = binary(b"", "application/json")
    begun = {"type": "http.request", "body": b"{", "more_body": True}
    assert await asgi(inbox, [begun, {"type": "http.disconnect"}], headers) == []
    assert wire.sent == []


async def test_a_request_that_is_cancelled_while_it_waits_is_accepted_all_the_same(wire: Wire) -> None:
    wire.open.clear()
    inbox = Inbox(wire)  # type: ignore[arg-type]
    headers, body = binary()
    whole = {"type": "http.request", "body": body, "more_body": False}
    asking = asyncio.create_task(asgi(inbox, [whole], headers))
    await wire.waiting.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    wire.open.set()
    await inbox.close()
    assert await stored(wire) == ["a-1"]  # type: ignore[arg-type]


async def test_a_websocket_is_closed_and_not_left_hanging(inbox: Inbox) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await http_gateway(inbox)({"type": "websocket", "path": "/"}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
