"""Counting what goes over the wire to a database: round trips, past whatever the library itself says it sends.

On PostgreSQL a round trip is a Sync or a simple query, on MySQL a command packet. SQLite has no wire: there a
transaction counts, by the driver's own trace.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest import mock

import sqlalchemy as sa

from tests.crash.proxies import Proxy
from tests.support.databases import Database

_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
_QUIT = 1


class Meter:
    """``round_trips`` so far; ``sent`` tells which."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sent: Counter[str] = Counter()

    @property
    def round_trips(self) -> int:
        return self.sent.total()


@asynccontextmanager
async def metered(database: Database) -> AsyncIterator[Meter]:
    """Counts what this process sends to ``meter.url``."""
    meter = Meter(database.url)
    if database.kind == "sqlite":
        with mock.patch.object(sqlite3, "connect", _traced(meter)):
            yield meter
        return
    wire = _Wire(database.url, meter)
    await wire.up()
    meter.url = wire.url
    try:
        yield meter
    finally:
        await wire.down()


def _traced(meter: Meter) -> Any:
    connect = sqlite3.connect

    def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **kwargs)
        connection.set_trace_callback(sent)
        return connection

    def sent(statement: str) -> None:
        if statement.startswith("BEGIN"):
            meter.sent[statement] += 1

    return traced


class _Wire(Proxy):
    def __init__(self, url: str, meter: Meter) -> None:
        super().__init__(url)
        self._meter = meter
        self._postgresql = sa.make_url(url).get_backend_name() == "postgresql"

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if reader in self.clients:
            with suppress(OSError, EOFError):
                await (self._postgresql_client if self._postgresql else self._mysql_client)(reader, writer)
        else:
            await super()._pass(reader, writer)

    async def _postgresql_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = await reader.readexactly(8)
        writer.write(start)
        if start == _SSL_REQUEST:  # a server without TLS says no, and the start follows
            start = await reader.readexactly(8)
            writer.write(start)
        writer.write(await reader.readexactly(int.from_bytes(start[:4], "big") - 8))
        while True:
            head = await reader.readexactly(5)
            body = await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
            if head[:1] == b"Q":
                self._meter.sent[body.rstrip(b"\0").decode()[:60]] += 1
            elif head[:1] == b"S":
                self._meter.sent["Sync"] += 1
            writer.write(head + body)
            await writer.drain()

    async def _mysql_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readexactly(4)
            body = await reader.readexactly(int.from_bytes(head[:3], "little"))
            if head[3] == 0 and body[:1] != bytes([_QUIT]):
                self._meter.sent[body[1:61].decode(errors="replace")] += 1
            writer.write(head + body)
            await writer.drain()
