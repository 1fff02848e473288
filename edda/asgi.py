"""The app as an ASGI application: the HTTP gateway, health, and the lifespan."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edda.cloudevent import CloudEvent
from edda.errors import NotRunningError, StorageError
from edda.sdk_events import cloudevent_of
from edda.storage.rows import EventResult
from gateways.http.app import http_gateway, unauthorized

if TYPE_CHECKING:
    from edda.app import EddaApp

log = logging.getLogger("edda.app")

#: Seconds in which a wrong configuration shows itself, so that the server does not start at all.
_START_WATCHED = 2.0

#: Seconds for which ``POST /cancel`` waits for the end.
_CANCEL_TIMEOUT = 20.0

#: Seconds that the database has to answer ``/readyz``.
_PING_TIMEOUT = 5.0


def compose(app: EddaApp, tokens: Sequence[str]) -> ASGIApp:
    """``POST`` anywhere takes CloudEvents; ``/healthz`` and ``/readyz`` answer also while the database is away.

    ``/readyz``: whether it can take requests now. ``/readyz/gateways``: whether every gateway does well. Not one
    answer: a broker that is down is no reason to send no HTTP requests here either.
    """
    start = _Start(app)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await start.begin()
        try:
            yield
        finally:
            await start.end()

    async def healthz(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> JSONResponse:
        reason = await start.not_ready()
        if reason is None:
            return JSONResponse({"status": "ready", "app": app.service_name, **_parts(app)})
        return JSONResponse({"status": "waiting", "reason": reason, **_parts(app)}, status_code=503)

    async def readyz_gateways(_: Request) -> JSONResponse:
        reason = await start.not_ready()
        ill = [gateway.name for gateway in app.running_gateways if not gateway.health().healthy]
        if reason is None and not ill:
            return JSONResponse({"status": "ready", **_parts(app)})
        reason = reason or f"look at {', '.join(ill)}"
        return JSONResponse({"status": "unhealthy", "reason": reason, **_parts(app)}, status_code=503)

    secrets = [token.encode() for token in tokens]

    async def cancel(request: Request) -> Response:
        """As ``edda-framework 0.16`` answered; 202 where it is asked for and has not ended yet."""
        if (refusal := unauthorized(request, secrets)) is not None:
            return refusal
        instance_id = request.path_params["instance_id"]
        try:
            if not await app.cancel(instance_id, by="http", wait=_CANCEL_TIMEOUT):
                error = f"instance {instance_id!r} does not exist, or has ended: nothing was cancelled"
                return JSONResponse({"error": error}, status_code=400)
            status = await app.handle(instance_id).status()
        except (StorageError, NotRunningError) as error:
            return JSONResponse({"error": str(error), "retryable": True}, status_code=503)
        code = 200 if status == "cancelled" else 202
        return JSONResponse({"status": status, "instance_id": instance_id}, status_code=code)

    routes = Starlette(
        routes=[
            Route("/cancel/{instance_id}", cancel, methods=["POST"]),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/readyz/gateways", readyz_gateways),
            Mount("/", http_gateway(_LateInbox(app), tokens=tokens)),
        ],
        lifespan=lifespan,
    )

    return start.by_the_first_request_of(routes)


def _parts(app: EddaApp) -> dict[str, Any]:
    """How each gateway and relay does, for people and probes."""
    return {
        "gateways": {gateway.name: asdict(gateway.health()) for gateway in app.running_gateways},
        "relays": {
            relay.destination: {"published": relay.published, "last_error": relay.last_error}
            for relay in app.relays
        },
    }


class _Start:
    """The app's start, in the background: a server answers while its database is still away."""

    def __init__(self, app: EddaApp) -> None:
        self._app = app
        self._starting: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Raises what makes no sense to wait out: the server then does not start."""
        self._starting = asyncio.create_task(self._app.initialize())
        self._starting.add_done_callback(_tell)
        done, _ = await asyncio.wait([self._starting], timeout=_START_WATCHED)
        if done and self._starting.exception() is not None:
            await self._app.shutdown()
            self._starting.result()

    def by_the_first_request_of(self, routes: ASGIApp) -> ASGIApp:
        """For servers without a lifespan (WSGI, mounted apps)."""

        async def entry(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and not self._app.was_initialized and self._starting is None:
                await self.begin()
            await routes(scope, receive, send)

        return entry

    async def end(self) -> None:
        """Stop, wherever the start has come to."""
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self._app.shutdown()

    async def not_ready(self) -> str | None:
        """Why no work can be done now; None: it can."""
        if self._app.ready:
            try:
                async with asyncio.timeout(_PING_TIMEOUT):
                    await self._app.store.ping()
            except StorageError as error:
                return str(error)
            except TimeoutError:
                return f"the database has not answered for {_PING_TIMEOUT:g} s"
            return None
        failed = (
            self._starting is not None
            and self._starting.done()
            and not self._starting.cancelled()
            and self._starting.exception()
        )
        return f"the start failed: {failed}" if failed else self._app.waiting_for or "starting"


def _tell(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("initialize_failed", exc_info=task.exception())


class _LateInbox:
    """The app's inbox once there is one."""

    def __init__(self, app: EddaApp) -> None:
        self._app = app

    async def deliver(self, events: Sequence[CloudEvent]) -> list[EventResult]:
        return await self._app.inbox.deliver(events)


__all__ = ["cloudevent_of", "compose"]
