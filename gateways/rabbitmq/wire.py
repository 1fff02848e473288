"""Between the socket and the client library: what the library cannot do for itself.

pamqp decodes the properties of a message before anybody can ask for them, and one that it cannot decode (text that is
not UTF-8, a time beyond the year 9999, deep nesting; the broker checks none of it) ends the whole connection. It is
delivered again over the next one, for ever, and nothing behind it is. Here such a frame is replaced by one that can be
decoded and carries the bytes, so that the message is poison like any other.

The library also keeps to itself whether the broker has blocked the connection, and why it was refused.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any

import pamqp.frame
from aiormq import TransportFactory
from aiormq.connection import TCPTransportFactory, TLSTransportFactory
from pamqp.commands import Basic
from pamqp.header import ContentHeader

if TYPE_CHECKING:
    from yarl import URL

#: Header of a message whose own properties could not be decoded: their bytes.
UNDECODABLE = "edda-undecodable"

#: Header of a message whose routing key is not UTF-8: its bytes.
UNDECODABLE_KEY = "edda-undecodable-key"

_METHOD, _HEADER = 1, 2
_END = b"\xce"
_HEAD = struct.Struct(">BHI")
_DELIVER = b"\x00\x3c\x00\x3c"
_CLOSE, _BLOCKED, _UNBLOCKED = b"\x00\x0a\x00\x32", b"\x00\x0a\x00\x3c", b"\x00\x0a\x00\x3d"

#: Method, class and method of a delivery, its weight, its size: before the properties.
_FIXED_PART = 12


class Wire:
    """Hands whole frames to the library, in place of the stream it would read them from.

    Attributes:
        blocked: Why the broker takes no messages from this connection; None: it does.
        closed: What the broker said when it closed the connection.
    """

    def __init__(self) -> None:
        self.blocked: str | None = None
        self.closed: str | None = None
        self._stream: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._frame = b""
        self._key: bytes | None = None  # the broken one of the delivery whose properties come next

    def attach(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read from there."""
        self._stream, self._writer = stream, writer

    def cut(self) -> None:
        """End the connection without a word."""
        if self._writer is not None:
            self._writer.transport.abort()

    def at_eof(self) -> bool:
        """As of a stream."""
        return not self._frame and self._attached().at_eof()

    async def read(self, n: int = -1) -> bytes:
        """As of a stream."""
        return await self._attached().read(n)

    async def readexactly(self, n: int) -> bytes:
        """The next bytes: the library asks for a frame piece by piece."""
        if not self._frame:
            self._frame = await self._next()
        piece, self._frame = self._frame[:n], self._frame[n:]
        return piece

    def _attached(self) -> asyncio.StreamReader:
        if self._stream is None:
            msg = "no stream yet"
            raise RuntimeError(msg)
        return self._stream

    async def _next(self) -> bytes:
        stream = self._attached()
        head = await stream.readexactly(_HEAD.size)
        if head.startswith(b"AMQP"):  # the protocol version that the server would speak
            return head
        kind, channel, size = _HEAD.unpack(head)
        rest = await stream.readexactly(size + 1)
        if kind == _METHOD:
            rest = self._method(rest)
        elif kind == _HEADER:
            rest = self._properties(rest)
        else:
            return head + rest
        return _HEAD.pack(kind, channel, len(rest) - 1) + rest

    def _method(self, frame: bytes) -> bytes:
        name = frame[:4]
        if name == _DELIVER:
            return self._delivery(frame)
        if name == _BLOCKED:
            self.blocked = frame[5 : 5 + frame[4]].decode("utf-8", "replace") or "no reason given"
        elif name == _UNBLOCKED:
            self.blocked = None
        elif name == _CLOSE:
            self.closed = frame[7 : 7 + frame[6]].decode("utf-8", "replace")
        return frame

    def _delivery(self, frame: bytes) -> bytes:
        """Consumer tag, delivery tag (8), redelivered (1), exchange, routing key."""
        exchange = 4 + 1 + frame[4] + 9
        key = exchange + 1 + frame[exchange]
        try:
            frame[exchange + 1 : key].decode()
            frame[key + 1 : -1].decode()
        except UnicodeDecodeError:
            # Nothing of another channel's comes between: only one channel of a connection consumes.
            self._key = frame[key + 1 : -1]
            return frame[:exchange] + b"\x00\x00" + _END
        return frame

    def _properties(self, frame: bytes) -> bytes:
        key, self._key = self._key, None
        if key is None and _can_be_decoded(frame):
            return frame
        headers: dict[str, Any] = {UNDECODABLE: bytearray(frame[_FIXED_PART:-1])}
        if key is not None:
            headers[UNDECODABLE_KEY] = bytearray(key)
        size = int.from_bytes(frame[4:_FIXED_PART], "big")
        return ContentHeader(body_size=size, properties=Basic.Properties(headers=headers)).marshal() + _END


def _can_be_decoded(frame: bytes) -> bool:
    whole = _HEAD.pack(_HEADER, 1, len(frame) - 1) + frame
    try:
        pamqp.frame.unmarshal(whole)
    except Exception:  # noqa: BLE001, whatever would end the connection: RecursionError is not the library's own
        return False
    return True


class Transport(TransportFactory):
    """Opens a connection whose incoming bytes pass a wire."""

    def __init__(self, wire: Wire, *, is_tls: bool) -> None:
        self._wire = wire
        self._opener: TransportFactory = TLSTransportFactory() if is_tls else TCPTransportFactory()

    async def create(self, url: URL, **kwargs: Any) -> tuple[Any, asyncio.StreamWriter]:
        """See aiormq."""
        stream, writer = await self._opener.create(url, **kwargs)
        self._wire.attach(stream, writer)
        return self._wire, writer
