"""What the tests of this directory say in few words."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

import sqlalchemy as sa

from edda.inbox.accept import Inbox
from edda.storage.contract import Storage
from edda.storage.schema import dead_letters, events
from gateways.kafka import KafkaGateway
from tests.support.eventually import eventually
from tests.support.kafka import Kafka

Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]


def binary(id: str, key: bytes | None = None, body: bytes | None = b"{}", **changes: bytes) -> Record:
    """A record in binary mode; attributes by name."""
    attributes = {
        "specversion": b"1.0",
        "id": id.encode(),
        "source": b"/shop",
        "type": b"order.paid",
    } | changes
    headers = [(f"ce_{name}", value) for name, value in attributes.items()]
    return key, body, [*headers, ("content-type", b"application/json")]


def many(count: int, prefix: str = "e", keys: int = 10) -> list[Record]:
    """So many events, of several keys in turns."""
    return [binary(f"{prefix}-{number}", b"key-%d" % (number % keys)) for number in range(count)]


async def ids(store: Storage) -> list[str]:
    """Of the accepted events, in accept order. A doubled one would be there twice."""
    async with store.engine().connect() as connection:
        return list((await connection.execute(sa.select(events.c.event_id).order_by(events.c.seq))).scalars())


async def accepted(store: Storage, count: int, timeout: float = 20) -> list[str]:
    """Wait until so many events are accepted."""

    async def enough() -> list[str]:
        found = await ids(store)
        assert len(found) >= count, f"{len(found)} events of {count}"
        return found

    found = await eventually(enough, timeout, pause=0.05)
    assert len(found) == count
    return found


@dataclass(frozen=True, slots=True)
class Kept:
    """A dead letter."""

    origin: str
    raw: bytes
    headers: list[tuple[str, bytes]]
    reason: str


async def letters(store: Storage) -> list[Kept]:
    """All dead letters, the oldest first."""
    async with store.engine().connect() as connection:
        rows = (await connection.execute(sa.select(dead_letters).order_by(dead_letters.c.id))).all()
    return [
        Kept(
            row.origin,
            row.raw,
            [(name, base64.b64decode(value)) for name, value in json.loads(row.headers)],
            row.reason,
        )
        for row in rows
    ]


async def reads(gateway: KafkaGateway, count: int) -> None:
    """Wait until the gateway has partitions, and knows where they stand."""
    await eventually(lambda: f"reads {count} partitions" in gateway.health().detail, 20)


async def stands_at(inbox: Inbox, group: str, wanted: dict[tuple[str, int], int]) -> None:
    """Wait until the stored positions are these."""

    async def so() -> bool:
        found = await inbox.positions("kafka", group)
        assert found == wanted, f"{found}"
        return True

    await eventually(so, 20)


async def membership(kafka: Kafka, group: str, count: int) -> None:
    """Wait until the group has so many members."""

    async def so() -> bool:
        return await kafka.members(group) == count

    await eventually(so, 20, pause=0.1)
