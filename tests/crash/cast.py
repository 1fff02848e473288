"""Those who are killed and frozen at random, and what stands between them and their database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.crash.programs import port_of
from tests.crash.proxies import Proxy, proxied
from tests.crash.shop import Shop
from tests.support.eventually import eventually
from tests.support.processes import Process


class Role:
    """A part that is played by one process after the other."""

    def __init__(self, name: str, start: Callable[[], Process]) -> None:
        self.name = name
        self._start = start
        self._process: Process | None = None
        self._stopped = False
        self.port = 1  # nobody listens there

    async def start(self) -> None:
        """A new process; it works when this returns."""
        self._process = self._start()
        if self.name == "gateway":
            self.port = await asyncio.to_thread(port_of, self._process)
        else:
            await self._process.line("^ready$", timeout=60)

    async def kill(self) -> None:
        """And another one takes the part."""
        assert self._process is not None
        process, self._process = self._process, None  # whoever has frozen it need not wake it any more
        process.must_live()
        await asyncio.to_thread(process.kill)
        self._stopped = False
        self._process = self._start()
        if self.name == "gateway":
            self.port = await asyncio.to_thread(port_of, self._process)

    async def stop_for(self, seconds: float) -> None:
        """Frozen meanwhile."""
        if self._process is None or self._stopped:
            return
        process, self._stopped = self._process, True
        process.pause()
        await asyncio.sleep(seconds)
        if self._process is process:
            process.resume()
            self._stopped = False

    async def heal(self) -> None:
        """Whatever was done to it is over, and it works."""
        assert self._process is not None
        self._process.resume()
        await eventually(lambda: not self._stopped, timeout=20)
        self._process.must_live()


@asynccontextmanager
async def between(shop: Shop) -> AsyncIterator[Proxy | None]:
    """All processes reach the database through a proxy, where there is a server."""
    if shop.database.kind == "sqlite":
        yield None
        return
    async with proxied(shop.database.url) as proxy:
        shop.url = proxy.url
        await proxy.up()
        yield proxy
