"""An HTTP endpoint in a process of its own that says yes and counts what it was sent.

By hand on asyncio's protocol, because a web framework would be the slower half of the measurement.
"""

from __future__ import annotations

import asyncio
import re

_YES = b"HTTP/1.1 204 No Content\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:\s*chunked", re.IGNORECASE)
_IDENTITY = re.compile(rb"\r\nce-id:\s*([^\r]*)", re.IGNORECASE)


class Sink(asyncio.Protocol):
    """POST: 204. GET: how many requests with an event's id came, and how many different ids."""

    def __init__(self, seen: dict[bytes, int]) -> None:
        self._seen = seen
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            assert not _CHUNKED.search(head), "this sink takes bodies of a known length only"
            length = _LENGTH.search(head)
            after = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < after:
                return
            self._buffer = self._buffer[after:]
            self._transport.write(self._answer(head))

    def _answer(self, head: bytes) -> bytes:
        if head.startswith(b"GET"):
            body = b"%d %d" % (sum(self._seen.values()), len(self._seen))
            return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        if identity := _IDENTITY.search(head):
            self._seen[identity[1]] = self._seen.get(identity[1], 0) + 1
        return _YES


async def serve() -> None:
    """Print the port, and serve until killed."""
    seen: dict[bytes, int] = {}
    server = await asyncio.get_running_loop().create_server(lambda: Sink(seen), "127.0.0.1", 0)
    print(f"listening on {server.sockets[0].getsockname()[1]}")
    async with server:
        await server.serve_forever()
