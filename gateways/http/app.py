"""The HTTP gateway: 202 only after the accept transaction has committed.

Refusals are problem details (RFC 9457) that also carry ``error``, ``error_type`` and ``retryable``: with 4xx the sender
must not repeat the request as it is, with 5xx and 429 it should. Concurrent requests share accept transactions; a slow
database gives 503, and more than may wait 429, not a pile of memory.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError, EddaError, NotRunningError, StorageError
from edda.inbox.accept import OverloadedError
from edda.storage.rows import EventResult, Verdict
from gateways.cloudevents import MalformedEventError, UnsupportedFormatError, from_http

log = logging.getLogger("edda.gateway")

#: Events up to 64 KiB on the wire must be taken; a batch may be larger.
DEFAULT_MAX_BYTES = 1024 * 1024

_SMALLEST_MAX_BYTES = 64 * 1024
_RETRY_AFTER = {"retry-after": "2"}
_METHODS = {"allow": "POST, OPTIONS"}


class Accepts(Protocol):
    """What the gateway needs of the inbox."""

    async def deliver(self, events: Sequence[CloudEvent]) -> list[EventResult]:
        """See ``edda.inbox.accept.Inbox``."""
        ...


def http_gateway(
    inbox: Accepts, *, tokens: Sequence[str] = (), max_bytes: int = DEFAULT_MAX_BYTES
) -> ASGIApp:
    """An ASGI application: ``POST`` on any path takes events, ``OPTIONS`` answers the webhook handshake.

    ``tokens``: any of them as ``Authorization: Bearer`` (or ``access_token`` in the query) lets a request in; while one
    replaces another, both are given. None at all: open to everybody. ``max_bytes``: largest body, at least 65,536.
    """
    if isinstance(tokens, str) or not all(tokens):
        msg = "gateway tokens are a list of texts that are not empty, for example ['s3cret'] (they are not shown here)"
        raise ConfigurationError(msg)
    if max_bytes < _SMALLEST_MAX_BYTES:
        msg = f"max_bytes={max_bytes}: events of {_SMALLEST_MAX_BYTES} bytes must be taken; use at least that"
        raise ConfigurationError(msg)
    secrets = tuple(token.encode() for token in tokens)

    async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "events are sent by POST"})
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            response = await _answer(request, inbox, secrets, max_bytes)
        except ClientDisconnect:
            return  # before its request was complete: nothing was handed in
        await response(scope, receive, send)

    return gateway


def unauthorized(request: Request, secrets: Sequence[bytes]) -> Response | None:
    """The answer to a request without one of the tokens; None: it has one, or none is asked for."""
    if not secrets or _let_in(request, secrets):
        return None
    headers = {"www-authenticate": "Bearer"}
    return _problem(401, "Unauthorized", "a valid bearer token is needed", headers=headers)


async def _answer(request: Request, inbox: Accepts, secrets: tuple[bytes, ...], max_bytes: int) -> Response:
    if request.method == "OPTIONS":
        return _handshake(request)
    if request.method != "POST":
        return _problem(405, "MethodNotAllowed", "events are sent by POST", headers=_METHODS)
    if (refusal := unauthorized(request, secrets)) is not None:
        return refusal
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        # Stored as it is, it would be taken for the event's data.
        return _problem(415, "UnsupportedEncoding", "the body must not be compressed; nothing was stored")
    body = await _read(request, max_bytes)
    if body is None:
        return _problem(413, "PayloadTooLarge", f"at most {max_bytes} bytes are taken; nothing was stored")
    try:
        events = from_http(request.headers.raw, body)
    except UnsupportedFormatError as error:
        return _problem(415, type(error).__name__, error.reason)
    except MalformedEventError as error:
        return _problem(400, type(error).__name__, error.reason)
    return await _deliver(inbox, events)


async def _deliver(inbox: Accepts, events: list[CloudEvent]) -> Response:
    try:
        results = await inbox.deliver(events)
    except OverloadedError as error:
        return _problem(429, type(error).__name__, str(error), headers=_RETRY_AFTER)
    except NotRunningError as error:
        detail = "the app is starting or stopping; nothing was stored, send it again"
        return _problem(503, type(error).__name__, detail, headers=_RETRY_AFTER)
    except StorageError as error:
        log.warning("events_not_accepted", extra={"events": len(events), "error": str(error)})
        detail = "the database does not answer; whether the events are stored is unknown, send them again"
        return _problem(503, type(error).__name__, detail, headers=_RETRY_AFTER)
    except EddaError as error:
        log.exception("events_not_accepted", extra={"events": len(events)})
        return _problem(500, type(error).__name__, str(error))
    except Exception as error:  # a bug must still tell the sender that its events may not be stored
        log.exception("events_not_accepted", extra={"events": len(events)})
        return _problem(500, type(error).__name__, "an error inside the gateway; see its log. Send it again.")
    refused = [result for result in results if result.verdict is Verdict.REFUSED]
    if refused and len(refused) == len(results):
        return _problem(400, "Refused", refused[0].reason)
    return JSONResponse(
        {"status": "accepted", "results": [_result(result) for result in results]}, status_code=202
    )


def _result(result: EventResult) -> dict[str, Any]:
    told: dict[str, Any] = {"result": str(result.verdict)}
    if result.seq:
        told["sequence"] = result.seq
    if result.reason:
        told["reason"] = result.reason
    return told


async def _read(request: Request, max_bytes: int) -> bytes | None:
    """The body; None as soon as it is known to be too large."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdecimal() and int(declared[:20]) > max_bytes:
        return None
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def _let_in(request: Request, secrets: Sequence[bytes]) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        token = given.strip().encode("latin-1")  # the bytes that were sent: UTF-8, if the token needs it
    else:
        token = request.query_params.get("access_token", "").encode("utf-8", "replace")
    # All are compared: how long it takes tells nothing about which one nearly fits.
    fitting = [hmac.compare_digest(token, secret) for secret in secrets]
    return any(fitting)


def _handshake(request: Request) -> Response:
    """Source: HTTP 1.1 Web Hooks for Event Delivery 1.0.2, section 4."""
    origin = request.headers.get("webhook-request-origin")
    headers = dict(_METHODS)
    if origin is not None:
        headers["webhook-allowed-origin"] = origin
        headers["webhook-allowed-rate"] = "*"
    return Response(status_code=200, headers=headers)


def _problem(status: int, kind: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(
        {
            "type": "about:blank",
            "title": kind,
            "status": status,
            "detail": detail,
            "error": detail,
            "error_type": kind,
            "retryable": status >= 500 or status == 429,
        },
        status_code=status,
        media_type="application/problem+json",
        headers=headers,
    )
