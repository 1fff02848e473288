"""A database that goes away: a TCP proxy in front of it that refuses everybody, or says nothing any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import sqlalchemy as sa

_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306}


class Proxy:
    """Passes bytes on while it is ``up``."""

    def __init__(self, url: str) -> None:
        self._target = sa.make_url(url)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._handlers: set[asyncio.Task[None]] = set()
        self.clients: set[asyncio.StreamReader] = set()
        self._flows = asyncio.Event()
        self._flows.set()

    @property
    def url(self) -> str:
        """The database's URL by way of this proxy; also while nobody listens there."""
        return self._target.set(host="127.0.0.1", port=self._port).render_as_string(hide_password=False)

    async def reserve(self) -> None:
        """Choose the port. Nobody listens there yet."""
        await self.up()
        await self.down()

    async def up(self) -> None:
        """Serve, from now on or again."""
        self._flows.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Cut all connections and refuse new ones, as when the server has ended."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        while self._handlers:
            for handler in self._handlers:
                handler.cancel()
            await asyncio.wait(set(self._handlers))
        await asyncio.sleep(0)  # what is aborted is closed by the loop's next turn
        if server is not None:
            await server.wait_closed()

    def freeze(self) -> None:
        """Keep all connections and pass nothing on, as when the server's machine or the network is gone."""
        self._flows.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        port = self._target.port or _DEFAULT_PORTS[self._target.get_backend_name()]
        self.clients.add(reader)
        ends = [writer]
        # Cancelled by ``down``, which is a good end: asyncio would tell of a cancelled handler as of an error.
        with suppress(OSError, asyncio.CancelledError):
            try:
                from_server, to_server = await asyncio.open_connection(self._target.host, port)
                ends.append(to_server)
                async with asyncio.TaskGroup() as both:
                    passing = [
                        both.create_task(self._pass(reader, to_server)),
                        both.create_task(self._pass(from_server, writer)),
                    ]
                    await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
                    for task in passing:
                        task.cancel()
            finally:
                self._handlers.discard(handler)
                self.clients.discard(reader)
                for end in ends:
                    end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(1 << 16):
                await self._flows.wait()
                writer.write(chunk)
                await writer.drain()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """A proxy whose port is known and that is down until the test says ``up``."""
    proxy = Proxy(url)
    await proxy.reserve()
    try:
        yield proxy
    finally:
        proxy._flows.set()
        await proxy.down()
