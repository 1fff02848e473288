"""Serving an ASGI application until SIGTERM. Needs the extra ``http``."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import typer
import uvicorn
from starlette.types import ASGIApp

from edda.cli.until import terminated


async def serve(
    application: ASGIApp,
    host: str,
    port: int,
    on_listening: Callable[[int], None] = lambda port: typer.echo(f"listening {port}"),
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight; ``on_listening`` is told the port."""
    config = uvicorn.Config(application, host=host, port=port, log_level="warning", lifespan="on")
    server = _Server(config, on_listening)

    async def end() -> None:
        await terminated()
        server.should_exit = True

    ending = asyncio.create_task(end())
    try:
        await server.serve()
    finally:
        ending.cancel()


class _Server(uvicorn.Server):
    """Says when it listens, and where; ends by itself, and not by the signal that told it to."""

    def __init__(self, config: uvicorn.Config, on_listening: Callable[[int], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        await super().startup(sockets)
        if self.servers:
            self._on_listening(self.servers[0].sockets[0].getsockname()[1])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are ``serve``'s."""
        yield
