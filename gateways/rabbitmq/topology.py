"""Queues: taken as they are, declared only if asked, and refused where messages would be lost by nobody's fault."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gateways.rabbitmq.connection import BrokerError, Link

if TYPE_CHECKING:
    from aiormq.abc import AbstractChannel

#: Seconds for one answer of the broker.
ANSWER = 10.0

#: From this version on quorum queues drop (or dead-letter) a message after 20 failed deliveries, unless told otherwise.
_LIMITS_BY_ITSELF = (4, 0)


@dataclass(frozen=True, slots=True)
class Declaration:
    """How queues are made; see ``RabbitMQGateway``."""

    kind: Literal["quorum", "classic"]
    dead_letter_exchange: str | None = None
    delivery_limit: int | None = None
    single_active: bool = False

    def arguments(self, server_version: tuple[int, ...]) -> Mapping[str, Any]:
        """Of the declaration."""
        found: dict[str, Any] = {"x-queue-type": self.kind}
        if self.single_active:
            found["x-single-active-consumer"] = True
        if self.dead_letter_exchange is not None:
            found["x-dead-letter-exchange"] = self.dead_letter_exchange
            if self.kind == "quorum":
                # By default the broker forgets a message on its way there when it is restarted in between.
                found |= {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
        if self.delivery_limit is not None:
            found["x-delivery-limit"] = self.delivery_limit
        elif (
            self.kind == "quorum"
            and self.dead_letter_exchange is None
            and server_version >= _LIMITS_BY_ITSELF
        ):
            found["x-delivery-limit"] = -1
        return found


async def message_count(channel: AbstractChannel, queue: str) -> int:
    """Messages that are ready; raises what aiormq raises if there is no such queue."""
    declared = await channel.queue_declare(queue, passive=True, timeout=ANSWER)
    return declared.message_count or 0


async def declare_queue(link: Link, queue: str, declaration: Declaration) -> None:
    """Make it, unless it is there. Raises BrokerError if it is there, but not like that."""
    from aiormq.exceptions import ChannelPreconditionFailed

    arguments = dict(declaration.arguments(link.server_version))
    try:
        if declaration.dead_letter_exchange is not None:
            await _ensure_dead_letter_exchange(link, declaration.dead_letter_exchange)
        channel = await link.channel()
        await channel.queue_declare(queue, durable=True, arguments=arguments, timeout=ANSWER)
        await channel.close()
    except ChannelPreconditionFailed as error:
        msg = f"queue {queue!r} exists, but was declared otherwise ({error}); declare=None takes it as it is"
        raise BrokerError(msg) from error


async def _ensure_dead_letter_exchange(link: Link, name: str) -> None:
    """One that exists is taken as it is. A new one gets a queue of its name: without one, nothing would be kept."""
    from aiormq.exceptions import ChannelNotFoundEntity

    channel = await link.channel()
    try:
        await channel.exchange_declare(name, passive=True, timeout=ANSWER)
    except ChannelNotFoundEntity:
        channel = await link.channel()
        kind: dict[str, Any] = {"x-queue-type": "quorum"}
        await channel.queue_declare(name, durable=True, arguments=kind, timeout=ANSWER)
        await channel.exchange_declare(name, exchange_type="fanout", durable=True, timeout=ANSWER)
        await channel.queue_bind(name, name, timeout=ANSWER)
    await channel.close()


async def refuse_unfit(link: Link, queue: str) -> None:
    """Raises BrokerError for an existing queue that loses messages with its consumer, or is a stream.

    Asks with a declaration that can never succeed, so that nothing is made by asking.
    An existing queue answers with the first thing that differs (auto-delete comes before arguments); for one that does
    not exist, no queue can have an expiry of 0. Who may not declare may still consume: then there is only the name.
    """
    from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

    channel = await link.channel()
    try:
        await channel.queue_declare(queue, durable=True, arguments={"x-expires": 0}, timeout=ANSWER)
    except ChannelAccessRefused:
        return
    except ChannelPreconditionFailed as error:
        if "arg 'auto_delete'" in str(error):
            msg = f"queue {queue!r} is deleted when its consumer is away, and what is in it is lost; use a durable one"
            raise BrokerError(msg) from error
        if "current is 'stream'" in str(error):
            msg = f"queue {queue!r} is a stream, and this gateway reads quorum and classic queues"
            raise BrokerError(msg) from error
    else:
        await channel.close()
