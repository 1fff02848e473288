"""The app as an ASGI application: the HTTP gateway, ``/cancel``, health, and the lifespan."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edda.cloudevent import CloudEvent
from edda.errors import EddaError, StorageError
from gateways.http.app import http_gateway

if TYPE_CHECKING:
    from edda.app import EddaApp


def compose(app: EddaApp, tokens: Sequence[str]) -> ASGIApp:
    """``POST`` anywhere takes CloudEvents; ``/healthz`` and ``/readyz`` answer also while the database is away."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # Not awaited: while the database is down, /readyz says so and events are refused with a 503.
        starting = asyncio.create_task(app.initialize())
        starting.add_done_callback(_tell)
        await asyncio.sleep(0)
        try:
            yield
        finally:
            starting.cancel()
            await app.shutdown()

    async def healthz(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> JSONResponse:
        reason = app.waiting_for
        if app.ready:
            try:
                await app.store.ping()
            except StorageError as error:
                reason = str(error)
            else:
                return JSONResponse({"status": "ready", "app": app.service_name})
        return JSONResponse({"status": "waiting", "reason": reason or "starting"}, status_code=503)

    gateway = http_gateway(_LateInbox(app), tokens=tokens)
    return Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Mount("/", gateway)],
        lifespan=lifespan,
    )


def _tell(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        import logging

        logging.getLogger("edda.app").error("initialize_failed", exc_info=task.exception())


class _LateInbox:
    """The app's inbox once there is one."""

    def __init__(self, app: EddaApp) -> None:
        self._app = app

    async def deliver(self, events: Sequence[Any]) -> list[Any]:
        return await self._app.inbox.deliver(events)


def cloudevent_of(event: Any) -> CloudEvent:
    """Our event from one of the ``cloudevents`` SDK (1.x attributes or 2.x getters), or from a mapping of attributes and data."""
    if isinstance(event, CloudEvent):
        return event
    if hasattr(event, "get_attributes"):
        attributes: Mapping[str, Any] = event.get_attributes()
        data = event.get_data() if hasattr(event, "get_data") else getattr(event, "data", None)
    elif isinstance(event, Mapping):
        attributes = {name: value for name, value in event.items() if name != "data"}
        data = event.get("data")
    else:
        msg = f"a CloudEvent is needed, not {type(event).__name__}"
        raise TypeError(msg)
    from edda.outbox.message import data_bytes

    body, content_type = data_bytes(data, attributes.get("datacontenttype"))
    known = {"id", "source", "type", "specversion", "datacontenttype", "dataschema", "subject", "time"}
    time = attributes.get("time")
    return CloudEvent(
        id=str(attributes["id"]),
        source=str(attributes["source"]),
        type=str(attributes["type"]),
        data=body,
        datacontenttype=content_type,
        dataschema=attributes.get("dataschema"),
        subject=attributes.get("subject"),
        time=time if time is None or isinstance(time, str) else time.isoformat(),
        extensions={name: value for name, value in attributes.items() if name not in known},
    )


__all__ = ["EddaError", "Receive", "Scope", "Send", "cloudevent_of", "compose"]
