"""CloudEvents to RabbitMQ: the publisher confirm is the confirm, and only it.

Messages are persistent and mandatory, so that a confirmed one is in a queue. What no queue takes is tried again, with
the reason, while other keys go on. A lost answer is unknown: sent again with the same (source, id).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError
from edda.wire.amqp import AmqpMessage, to_binary, to_structured
from gateways.rabbitmq.connection import (
    BrokerError,
    check_library,
    check_url,
    client_name,
    is_cancelled,
    is_of_broker,
    told,
)
from outbox_relays.publisher import Confirm, Confirmed, Outgoing, Permanent, Retry
from outbox_relays.rabbitmq.routing import LONGEST, RoutingKey, routing_of
from outbox_relays.rabbitmq.sender import Sender, Target, open_sender
from outbox_relays.route import Route

if TYPE_CHECKING:
    from pamqp.commands import Basic

_PERSISTENT = 2

#: Of the publish timeout: what is left goes to telling the relay, before the relay itself gives up.
_OWN_PART = 0.9

#: Of the publish timeout, for connecting: a broker that takes longer is not there.
_CONNECTING_PART = 0.5

#: Bytes that a header takes beside its name and value, generously.
_PER_HEADER = 16


class RabbitMQPublisher(Route):
    """One exchange (or, by the default exchange, one queue).

    Args:
        url: ``amqp://user:password@host:5672/vhost``, or ``amqps://`` (``?cafile=``, ``?certfile=``, ``?keyfile=``).
        exchange: Its name; empty: the default exchange, where the routing key is a queue's name.
        routing_key: A text that may hold ``{type}``, ``{subject}`` and ``{key}`` (the ordering key), or a function of
            the event. Default: the type, when an exchange is given.
        types: Patterns of the event types that go there; default all.
        destination: Its name in the outbox; several publishers need different ones.
        mode: ``binary`` (default: attributes as ``ce-`` headers) or ``structured`` (all of the event as JSON).
        publish_timeout: Seconds for one message, its confirm and if need be the connecting included.
        concurrency: Messages in flight at once.
        declare: Make the exchange (durable): ``"topic"``, ``"direct"`` or ``"fanout"``; without an exchange make the
            queue that ``routing_key`` names: ``"quorum"`` or ``"classic"``. None: it must be there.
    """

    lane_batch = 1

    def __init__(
        self,
        url: str,
        exchange: str = "",
        routing_key: RoutingKey | None = None,
        *,
        types: Sequence[str] = ("*",),
        destination: str = "default",
        mode: Literal["binary", "structured"] = "binary",
        publish_timeout: float = 10.0,
        concurrency: int = 256,
        declare: Literal["topic", "direct", "fanout", "quorum", "classic"] | None = None,
    ) -> None:
        check_url("RabbitMQPublisher", url)
        if mode not in {"binary", "structured"}:
            msg = f"RabbitMQPublisher: mode={mode!r} is not one of 'binary' and 'structured'"
            raise ConfigurationError(msg)
        if len(exchange.encode()) > LONGEST:
            msg = (
                f"RabbitMQPublisher: exchange={exchange!r} has more than {LONGEST} bytes; use a shorter name"
            )
            raise ConfigurationError(msg)
        super().__init__("RabbitMQPublisher", destination, types, publish_timeout, concurrency)
        self._url = url
        self._exchange = exchange
        self._routing = routing_of("RabbitMQPublisher", routing_key, exchange)
        self._mode = mode
        self._declaration = _declaration(declare, exchange, routing_key)
        self._sender: Sender | None = None
        self._opening: asyncio.Task[Sender] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """See the contract."""
        check_library("RabbitMQPublisher", self._url)

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Confirm]:
        """See the contract."""
        return [await self._publish(message) for message in messages]

    async def close(self) -> None:
        """See the contract."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._sender is not None:
            self._give_up(self._sender)
        await asyncio.gather(*self._closing)

    # ------------------------------------------------------------------ one message

    async def _publish(self, message: Outgoing) -> Confirm:
        sender: Sender | None = None
        try:
            async with asyncio.timeout(self.publish_timeout * _OWN_PART):
                sender = await self._connected()
                if sender.blocked is not None:
                    return Retry(f"the broker takes no messages now: {sender.blocked}", everything=True)
                return await self._send(sender, message)
        except BrokerError as error:
            return Retry(str(error), everything=True)
        except TimeoutError:
            return self._not_answered(sender)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            return Retry("the connection was lost before the confirm", everything=True)
        except Exception as error:
            if not is_of_broker(error):
                raise
            # Unknown. A channel may end by one message's fault; without a connection nothing can go.
            is_lost = sender is None or sender.is_lost or isinstance(error, ConnectionError)
            return Retry(told(error), everything=is_lost)

    def _not_answered(self, sender: Sender | None) -> Retry:
        """No confirm came: unknown. What else waits on that connection would wait in vain, too."""
        seconds = f"{self.publish_timeout * _OWN_PART:g} s"
        if sender is None:
            return Retry(f"no connection within {seconds}", everything=True)
        blocked = sender.blocked
        self._give_up(sender)
        if blocked is not None:
            return Retry(f"the broker takes no messages now: {blocked}", everything=True)
        return Retry(f"no confirm within {seconds}", everything=True)

    async def _send(self, sender: Sender, message: Outgoing) -> Confirm:
        from aiormq.exceptions import ChannelClosed, ChannelNotFoundEntity, DeliveryError, PublishError

        event = message.event
        try:
            key = self._routing(event, message.key)
        except Exception as error:  # noqa: BLE001, the user's code, which another version may mend
            return Retry(f"routing_key raised {type(error).__name__}: {error}")
        rendered = to_binary(event) if self._mode == "binary" else to_structured(event)
        if fault := _fault(rendered, key, sender.largest_header):
            return Permanent(fault)
        message_id = _message_id(event)
        try:
            await sender.send(
                self._exchange, key, message_id, _properties(rendered, message_id), rendered.body
            )
        except PublishError as error:
            reply = getattr(error.frame, "reply_text", "")
            return Retry(f"no queue takes it: exchange {self._exchange!r}, routing key {key!r} ({reply})")
        except DeliveryError as error:
            return Retry(f"the broker did not take it: {error}")
        except ChannelNotFoundEntity as error:
            return Retry(str(error), everything=True)  # the exchange: every message goes there
        except ChannelClosed as error:
            # Somebody's message was refused, and the answers of all others in flight are lost with the channel.
            if f"message size {len(rendered.body)} is larger" in str(error):
                return Permanent(str(error))
            return Retry(str(error))
        return Confirmed()

    # ------------------------------------------------------------------ the connection

    async def _connected(self) -> Sender:
        """The sender; connecting is done once for all who wait."""
        if self._sender is not None and self._sender.is_over:
            self._give_up(self._sender)
        if self._sender is not None:
            return self._sender
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    async def _open(self) -> Sender:
        within = self.publish_timeout * _CONNECTING_PART
        return await open_sender(
            self._url, client_name(f"relay {self.destination}"), within, self._declaration
        )

    def _opened(self, opening: asyncio.Task[Sender]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._sender = opening.result()

    def _give_up(self, sender: Sender) -> None:
        if self._sender is sender:
            self._sender = None
            task = asyncio.create_task(sender.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _properties(rendered: AmqpMessage, message_id: str) -> Basic.Properties:
    from pamqp.commands import Basic

    return Basic.Properties(
        content_type=rendered.content_type,
        headers=dict(rendered.headers),
        delivery_mode=_PERSISTENT,
        message_id=message_id,
    )


def _message_id(event: CloudEvent) -> str:
    """The event's id, as people look for it; a digest of one that is too long."""
    if len(event.id.encode()) <= LONGEST:
        return event.id
    return hashlib.sha256(event.id.encode()).hexdigest()


def _fault(rendered: AmqpMessage, key: str, largest_header: int) -> str | None:
    """What the protocol cannot carry: it would end the connection, and everybody's messages with it."""
    if len(key.encode()) > LONGEST:
        return f"the routing key has {len(key.encode())} bytes, at most {LONGEST} are possible"
    if rendered.content_type is not None and len(rendered.content_type.encode()) > LONGEST:
        return f"the content type has {len(rendered.content_type.encode())} bytes, at most {LONGEST} are possible"
    size = 0
    for name, value in rendered.headers.items():
        if len(name.encode()) > LONGEST:
            return f"the attribute {name[3:40]!r}... has a name of more than {LONGEST - 3} bytes"
        size += len(name.encode()) + len(value.encode()) + _PER_HEADER
    if size > largest_header:
        return f"the attributes have {size} bytes, at most {largest_header} are possible as headers; mode='structured'"
    return None


def _declaration(kind: str | None, exchange: str, routing_key: RoutingKey | None) -> Target | None:
    if kind is None:
        return None
    if exchange:
        if kind not in {"topic", "direct", "fanout"}:
            msg = f"RabbitMQPublisher: declare={kind!r} is no exchange type; use 'topic', 'direct', 'fanout' or None"
            raise ConfigurationError(msg)
        return Target("exchange", exchange, kind)
    if kind not in {"quorum", "classic"}:
        msg = f"RabbitMQPublisher: declare={kind!r} is no queue type; use 'quorum', 'classic' or None"
        raise ConfigurationError(msg)
    if not isinstance(routing_key, str) or "{" in routing_key:
        msg = f"RabbitMQPublisher: declare={kind!r} needs a routing_key that names one queue, for example 'orders'"
        raise ConfigurationError(msg)
    return Target("queue", routing_key, kind)
