"""Messages as no client library would send them, byte for byte."""

from __future__ import annotations

import struct

import aiormq
import pamqp.frame
from aiormq.abc import ChannelFrame
from pamqp.body import ContentBody
from pamqp.commands import Basic

from tests.support.eventually import eventually
from tests.support.rabbitmq import Broker

_CONTENT_TYPE, _HEADERS, _TIMESTAMP = 1 << 15, 1 << 13, 1 << 6


def content_type(value: bytes) -> bytes:
    """Properties with that and nothing else."""
    return struct.pack(">HB", _CONTENT_TYPE, len(value)) + value


def headers(table: bytes) -> bytes:
    """Properties with a table of headers that is given as it is."""
    return struct.pack(">HI", _HEADERS, len(table)) + table


def timestamp(seconds: int) -> bytes:
    """Properties with a time."""
    return struct.pack(">HQ", _TIMESTAMP, seconds)


def text_header(name: bytes, value: bytes) -> bytes:
    """One entry of a table."""
    return struct.pack(">B", len(name)) + name + b"S" + struct.pack(">I", len(value)) + value


def nested(depth: int) -> bytes:
    """Tables in tables in tables."""
    table = b""
    for _ in range(depth):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    return table


async def publish_raw(
    broker: Broker,
    queue: str,
    properties: bytes,
    body: bytes,
    *,
    exchange: str = "",
    key: bytes | None = None,
) -> None:
    """Publish to a queue (or with any key to an exchange that it is bound to), and wait until it is there."""
    before = await broker.ready(queue)
    # Without confirms: the library would count what it has not sent.
    channel = await (await broker.channel(confirms=False)).get_underlay_channel()
    assert isinstance(channel, aiormq.Channel)
    routing_key = queue.encode() if key is None else key
    method = struct.pack(">HHHB", 60, 40, 0, len(exchange)) + exchange.encode()
    method += struct.pack(">B", len(routing_key)) + routing_key + b"\x00"
    header = struct.pack(">HHQ", Basic.frame_id, 0, len(body)) + properties
    payload = b""
    for kind, content in ((1, method), (2, header)):
        payload += struct.pack(">BHI", kind, channel.number, len(content)) + content + b"\xce"
    payload += pamqp.frame.marshal(ContentBody(body), channel.number)
    await channel.write_queue.put(ChannelFrame(payload=payload, should_close=False, drain_future=None))

    async def there() -> bool:
        return await broker.ready(queue) > before

    await eventually(there)
