"""A TCP proxy in front of a server, for answers that never arrive.

After a commit whose answer was lost nobody knows what became of it. The two ways to get there::

    async with proxied(url) as proxy:
        store = open_store(proxy.url)
        proxy.cut_once(committed)      # the server has committed; the answer is thrown away, the connection cut
        proxy.cut_next_request()       # the next request never reaches the server; the connection is cut
"""

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
        self._swallow_request = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.cuts = 0

    @property
    def url(self) -> str:
        """The database's URL, by way of this proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return self._target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    def cut_once(self, committed: Committed) -> None:
        """Throw away the first answer that comes when ``committed()`` is true, and cut that connection.

        ``committed`` asks the database by another way whether the transaction's effect is visible. That it is asked
        before every answer makes the cut exact: after the commit, before the client hears of it.
        """
        self._committed = committed

    def cut_next_request(self) -> None:
        """Cut the next connection that sends something, before the server gets it."""
        self._swallow_request = True

    @property
    def armed(self) -> bool:
        """Whether a cut is still to come."""
        return self._committed is not None or self._swallow_request

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def stop(self) -> None:
        """Cut everything."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        default = 5432 if self._target.get_backend_name() == "postgresql" else 3306
        with suppress(OSError):
            upstream = await asyncio.open_connection(self._target.host, self._target.port or default)
            both = {writer, upstream[1]}
            self._writers |= both
            try:
                requests = asyncio.create_task(self._pass_on(reader, upstream[1], self._may_request))
                answers = asyncio.create_task(self._pass_on(upstream[0], writer, self._may_answer))
                _, running = await asyncio.wait([requests, answers], return_when=asyncio.FIRST_COMPLETED)
                for task in running:
                    task.cancel()
                await asyncio.gather(requests, answers, return_exceptions=True)
            finally:
                self._writers -= both
                for end in both:
                    end.transport.abort()

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        may: Callable[[], Awaitable[bool]],
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(1 << 16):
                if not await may():
                    self.cuts += 1
                    return
                writer.write(chunk)
                await writer.drain()

    async def _may_request(self) -> bool:
        swallow, self._swallow_request = self._swallow_request, False
        return not swallow

    async def _may_answer(self) -> bool:
        asked = self._committed
        if asked is None or not await asked() or self._committed is not asked:
            return True
        self._committed = None
        return False


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the server that this URL names, until the block ends."""
    proxy = Proxy(sa.make_url(url))
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
