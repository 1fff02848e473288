"""A real HTTP endpoint that a test can script: it records every request and answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edda.cloudevent import CloudEvent
from gateways.cloudevents import from_http
from tests.support.eventually import eventually

#: What to answer: a status, or a whole response.
Answer = int | Response
Script = Callable[[CloudEvent], Answer | Awaitable[Answer]]


@dataclass
class Got:
    """One request."""

    event: CloudEvent
    headers: dict[str, str]
    at: float


@dataclass
class Sink:
    """What came, in order, and what is answered."""

    url: str = ""
    script: Script = lambda _: 204
    got: list[Got] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    @property
    def ids(self) -> list[str]:
        """Of every request."""
        return [got.event.id for got in self.got]

    def of_key(self, key: str) -> list[str]:
        """Ids of the requests whose subject is this key."""
        return [got.event.id for got in self.got if got.event.subject == key]

    async def take(self, request: Request) -> Response:
        """One request of one event."""
        [event] = from_http(request.headers.raw, await request.body())
        self.got.append(Got(event, dict(request.headers), time.monotonic()))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self.script(event)
            if inspect.isawaitable(answer):
                answer = await answer
        finally:
            self.in_flight -= 1
        return answer if isinstance(answer, Response) else Response(status_code=answer)


@contextlib.asynccontextmanager
async def open_sink(listener: socket.socket | None = None) -> AsyncIterator[Sink]:
    """Behind a real server; on a socket that is bound already, or on any port."""
    sink = Sink()
    application = Starlette(routes=[Route("/events", sink.take, methods=["POST"])])
    config = uvicorn.Config(
        application, host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none"
    )
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(None if listener is None else [listener]))
    await eventually(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    sink.url = f"http://127.0.0.1:{port}/events"
    try:
        yield sink
    finally:
        server.should_exit = True
        await task


def bound_socket() -> tuple[socket.socket, str]:
    """A port that is taken and refuses connections until somebody listens; and its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}/events"


class Fails:
    """A script: the first ``times`` requests of these events get this answer."""

    def __init__(self, answer: Answer, *ids: str, times: int = 1) -> None:
        self.answer, self.ids, self.times = answer, ids, times
        self.seen: Counter[str] = Counter()

    def __call__(self, event: CloudEvent) -> Answer:
        """204 once it has failed often enough."""
        if event.id not in self.ids:
            return 204
        self.seen[event.id] += 1
        return self.answer if self.seen[event.id] <= self.times else 204
