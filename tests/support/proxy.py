"""A TCP proxy in front of a server, for answers that never arrive.

After a commit whose answer was lost nobody knows what became of it. The two ways to get there::

    async with proxied(url) as proxy:
        store = open_store(proxy.url)
        proxy.cut_once(committed)   # the server has committed; the answer is thrown away, the connection cut
        proxy.cut_request()         # the next request never reaches the server; the connection is cut
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import sqlalchemy as sa

Committed = Callable[[], Awaitable[bool]]


class Proxy:
    """Passes bytes on in both directions until it is told to cut. Made by ``proxied``."""

    def __init__(self, url: sa.URL) -> None:
        self._target = url
        self._committed: Committed | None = None
        self._asker = b""  # only connections that have sent this
        self._request: bytes | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[object]] = set()
        self.cuts = 0

    @property
    def url(self) -> str:
        """The database's URL, by way of this proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return self._target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    def cut_once(self, committed: Committed, *, asker: bytes = b"") -> None:
        """Throw away the first answer that comes when ``committed()`` is true, and cut that connection.

        ``committed`` asks the database by another way whether the transaction's effect is visible. That it is asked
        before every answer makes the cut exact: after the commit, before the client hears of it. ``asker``: cut only
        a connection that has sent these bytes.
        """
        self._committed, self._asker = committed, asker

    def cut_request(self, containing: bytes = b"") -> None:
        """Cut the next connection that sends these bytes, before the server gets them."""
        self._request = containing

    def cut_all(self) -> None:
        """Cut every connection now. What the server has got by then it goes on with."""
        for writer in list(self._writers):
            writer.transport.abort()

    @property
    def armed(self) -> bool:
        """Whether a cut is still to come."""
        return self._committed is not None or self._request is not None

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Cut everything."""
        assert self._server is not None
        self._server.close()
        self.cut_all()
        await self._server.wait_closed()
        await asyncio.gather(*self._connections)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        default = 5432 if self._target.get_backend_name() == "postgresql" else 3306
        with suppress(OSError):
            upstream = await asyncio.open_connection(self._target.host, self._target.port or default)
            both = {writer, upstream[1]}
            self._writers |= both
            sent = _Sent()
            try:
                tasks = [
                    asyncio.create_task(self._requests(reader, upstream[1], sent)),
                    asyncio.create_task(self._answers(upstream[0], writer, sent)),
                ]
                _, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in running:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                self._writers -= both
                for end in both:
                    end.transport.abort()

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: _Sent
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(1 << 16):
                if self._request is not None and self._request in chunk:
                    self._request = None
                    self.cuts += 1
                    return
                if self._committed is not None and self._asker in chunk:
                    sent.asked_for = self._committed
                writer.write(chunk)
                await writer.drain()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: _Sent) -> None:
        with suppress(OSError):
            while chunk := await reader.read(1 << 16):
                asked = self._committed
                if (
                    asked is not None
                    and sent.asked_for is asked
                    and await asked()
                    and self._committed is asked
                ):
                    self._committed = None
                    self.cuts += 1
                    return
                writer.write(chunk)
                await writer.drain()


class _Sent:
    """The cut that a connection's requests have made it the candidate of."""

    asked_for: Committed | None = None


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the server that this URL names, until the block ends."""
    proxy = Proxy(sa.make_url(url))
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
