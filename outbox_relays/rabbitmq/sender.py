"""One connection with one channel in confirm mode: a message, and what the broker said to it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gateways.rabbitmq.connection import BrokerError, Link, connect
from gateways.rabbitmq.topology import Declaration

if TYPE_CHECKING:
    from aiormq import Channel
    from pamqp.commands import Basic


@dataclass(frozen=True, slots=True)
class Target:
    """What is declared before the first message: an exchange, or a queue, of which type."""

    what: Literal["exchange", "queue"]
    name: str
    kind: str


class Sender:
    """Publishes until its channel or connection ends; then there must be another.

    A returned message is matched with its confirm by the message id alone, so that two with one id in flight would get
    each other's answer (the lost one would be reported as confirmed): the second waits for the first.
    """

    def __init__(self, link: Link, channel: Channel) -> None:
        self._link = link
        self._channel = channel
        self._in_flight: dict[str, asyncio.Event] = {}

    @property
    def blocked(self) -> str | None:
        """Why the broker takes no messages now; None: it does."""
        return self._link.blocked

    @property
    def is_over(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._link.lost.done() or self._channel.is_closed

    @property
    def is_lost(self) -> bool:
        """Whether the whole connection has ended."""
        return self._link.lost.done()

    @property
    def largest_header(self) -> int:
        """Bytes of headers and properties that one frame can hold, by a safe margin."""
        return self._link.largest_frame - 1_024

    async def send(
        self, exchange: str, routing_key: str, message_id: str, properties: Basic.Properties, body: bytes
    ) -> None:
        """Returns when the broker has confirmed it; raises what aiormq raises (PublishError: no queue takes it)."""
        while (other := self._in_flight.get(message_id)) is not None:
            await other.wait()
        done = self._in_flight[message_id] = asyncio.Event()
        try:
            # Without waiting for the socket to drain: confirms arrive for many at once.
            await self._channel.basic_publish(
                body,
                exchange=exchange,
                routing_key=routing_key,
                properties=properties,
                mandatory=True,
                wait=False,
            )
        finally:
            del self._in_flight[message_id]
            done.set()

    async def close(self) -> None:
        """Let go; what is in flight fails."""
        await self._link.close()


async def open_sender(url: str, name: str, within: float, target: Target | None) -> Sender:
    """Connect, and make the target if it is asked for; each takes ``within`` seconds at most. Raises BrokerError."""
    link = await connect(url, name, within)
    try:
        async with asyncio.timeout(within):
            if target is not None:
                await _declare(link, target)
            return Sender(link, await link.channel())
    except BaseException:
        await link.close()
        raise


async def _declare(link: Link, target: Target) -> None:
    from aiormq.exceptions import ChannelClosed

    channel = await link.channel()
    try:
        if target.what == "exchange":
            await channel.exchange_declare(target.name, exchange_type=target.kind, durable=True)
        else:
            kind: Literal["quorum", "classic"] = "quorum" if target.kind == "quorum" else "classic"
            arguments = dict(Declaration(kind).arguments(link.server_version))
            await channel.queue_declare(target.name, durable=True, arguments=arguments)
    except ChannelClosed as error:
        msg = f"{target.what} {target.name!r} cannot be declared ({error}); declare=None takes it as it is"
        raise BrokerError(msg) from error
    await channel.close()
