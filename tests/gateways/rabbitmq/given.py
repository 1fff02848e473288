"""What the tests of this directory say in few words."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from edda.storage.contract import Storage
from edda.storage.schema import dead_letters
from gateways.rabbitmq import RabbitMQGateway
from tests.support.eventually import eventually
from tests.support.rabbitmq import Broker

Message = tuple[bytes, dict[str, Any]]


def binary(id: str, body: bytes = b'{"n":1}', **changes: Any) -> Message:
    """An event in binary mode; an attribute that is None is left out."""
    attributes = {"id": id, "source": "/shop", "type": "order.paid", "specversion": "1.0", **changes}
    return body, {f"ce-{name}": value for name, value in attributes.items() if value is not None}


def numbered(count: int, prefix: str = "a") -> list[Message]:
    """``a-0``, ``a-1`` ..."""
    return [binary(f"{prefix}-{number}") for number in range(count)]


def ids(count: int, prefix: str = "a") -> list[str]:
    """Their ids."""
    return [f"{prefix}-{number}" for number in range(count)]


@dataclass(frozen=True)
class Letter:
    """A row of the dead letters."""

    origin: str
    raw: bytes
    headers: list[tuple[str, bytes]]
    reason: str
    attempts: int

    def header(self, name: str) -> bytes:
        """Of that name."""
        return dict(self.headers)[name]


async def letters(store: Storage) -> list[Letter]:
    """All that is kept, in order."""
    async with store.engine().connect() as connection:
        found = await connection.execute(sa.select(dead_letters).order_by(dead_letters.c.id))
        return [
            Letter(
                row.origin,
                bytes(row.raw),
                [(name, base64.b64decode(value)) for name, value in json.loads(row.headers)],
                row.reason,
                row.attempts,
            )
            for row in found
        ]


async def consuming(gateway: RabbitMQGateway) -> None:
    """Until it does."""
    await eventually(lambda: gateway.health().healthy, 20)


async def nothing_left(gateway: RabbitMQGateway, broker: Broker, *queues: str) -> None:
    """Stop, and see that nothing comes back: what is not acknowledged would be ready again."""
    await gateway.stop()
    for queue in queues:
        assert await broker.ready(queue) == 0
