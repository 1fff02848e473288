"""Answers that get lost: the transaction is committed and its caller does not know."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edda.errors import StorageUnavailableError
from edda.storage.contract import Storage
from tests.support.proxy import Proxy

Call = Callable[[], Awaitable[Any]]


class Lossy:
    """A store whose answers can get lost. SQLite's cannot, but its process can die: then the call is just repeated."""

    def __init__(self, store: Storage, proxy: Proxy | None) -> None:
        self.store = store
        self.proxy = proxy

    async def lose_answer(self, call: Call, committed: Callable[[], Awaitable[bool]]) -> None:
        """Make the call; the server commits, the caller hears nothing. ``committed`` says when that is."""
        assert not await committed()
        if self.proxy is None:
            await call()
        else:
            self.proxy.cut_once(committed)
            with pytest.raises(StorageUnavailableError):
                await call()
            assert not self.proxy.armed
        assert await committed()

    async def lose_request(self, call: Call) -> None:
        """Make the call; it never reaches the server."""
        if self.proxy is None:
            return
        self.proxy.cut_request()
        with pytest.raises(StorageUnavailableError):
            await call()
        assert not self.proxy.armed
