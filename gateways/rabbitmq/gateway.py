"""The RabbitMQ gateway: its settings, checked at once, and how it does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from edda.errors import ConfigurationError
from edda.inbox.accept import Inbox
from gateways.delivery import Mapping
from gateways.gateway import Health
from gateways.rabbitmq.connection import check_library, check_url
from gateways.rabbitmq.consumer import Consumer
from gateways.rabbitmq.session import Settings, State
from gateways.rabbitmq.topology import Declaration

#: Events up to 64 KiB on the wire must be taken.
_SMALLEST_MAX_BYTES = 64 * 1024
_LONGEST_QUEUE = 255
_MOST_PREFETCH = 65_535

#: Seconds after which a batch that waits for the database makes the gateway unhealthy.
_SLOW = 10.0


class RabbitMQGateway:
    """Takes events from queues, and acknowledges them when they are stored.

    At least once: what the broker delivers again is found to be a duplicate by its (source, id). Order is that of the
    queue while one consumer reads it: with several gateways on one queue, declare it with a single active consumer
    (``single_active=True``). A message that can never become an event is kept as a dead letter and acknowledged.

    While the database is away, what was delivered is held (at most ``prefetch`` messages of each queue) and tried on;
    the broker gives it to somebody else if it takes longer than its consumer timeout (30 minutes by default).

    RabbitMQ 4 drops a quorum queue's message after 20 failed deliveries, unless the queue says otherwise: one fails
    when a connection ends with the message in hand. Give such a queue a dead-letter exchange or ``x-delivery-limit``
    -1; ``declare="quorum"`` does.

    Without ``declare`` the queues must exist, and one that is deleted is waited for, not made again. Queues that
    RabbitMQ itself deletes with their consumer are refused, as are streams.

    Args:
        url: ``amqp://user:password@host:5672/vhost``, or ``amqps://`` (``?cafile=``, ``?certfile=``, ``?keyfile=``).
            Tried again for ever, with backoff.
        queues: Their names; each gets a connection of its own.
        name: Unique in one app, shown in ``/readyz``. Default: ``rabbitmq:`` and the queues.
        mapping: Makes events of messages that are no CloudEvents; ``delivery.key`` is the routing key. A message has a
            ``stable_id`` only if its sender set ``message_id``: bodies and keys of two messages may be equal, so that
            for others the mapping must find an id in the message itself.
        prefetch: Deliveries of one queue in hand at most. Up to 500 share a transaction; twice that keeps the next ones
            coming meanwhile.
        max_bytes: Of one message; a larger one is a dead letter. At least 65,536.
        declare: Make the queues (durable), as ``"quorum"`` or ``"classic"``; None: take them as they are.
        dead_letter_exchange: With ``declare``: where the broker puts what reaches the delivery limit; made, with a
            queue of the same name, unless it exists.
        delivery_limit: With ``declare="quorum"``: failed deliveries of one message after which the broker dead-letters
            or drops it. Default: none, or the broker's own (20) with a dead-letter exchange. The gateway never refuses
            a delivery.
        single_active: The queues have a single active consumer (with ``declare``: are made so). This gateway may then
            get nothing while messages wait.
        connect_timeout: Seconds for connecting.
        stuck_after: Seconds that messages may wait in a queue whose consumer has nothing in hand and gets nothing;
            then it is built anew.
    """

    def __init__(
        self,
        url: str,
        queues: Sequence[str],
        *,
        name: str | None = None,
        mapping: Mapping | None = None,
        prefetch: int = 1_000,
        max_bytes: int = 1024 * 1024,
        declare: Literal["quorum", "classic"] | None = None,
        dead_letter_exchange: str | None = None,
        delivery_limit: int | None = None,
        single_active: bool = False,
        connect_timeout: float = 10.0,
        stuck_after: float = 30.0,
    ) -> None:
        check_url("RabbitMQGateway", url)
        _check_queues(queues)
        if not 1 <= prefetch <= _MOST_PREFETCH:
            msg = f"RabbitMQGateway: prefetch={prefetch} must be 1 to {_MOST_PREFETCH} (1000 is usual)"
            raise ConfigurationError(msg)
        if max_bytes < _SMALLEST_MAX_BYTES:
            msg = (
                f"RabbitMQGateway: max_bytes={max_bytes}: events of {_SMALLEST_MAX_BYTES} bytes must be taken; use at "
                "least that"
            )
            raise ConfigurationError(msg)
        if connect_timeout <= 0 or stuck_after <= 0:
            msg = (
                f"RabbitMQGateway: connect_timeout={connect_timeout:g} (10 is usual) and stuck_after={stuck_after:g} "
                "(30 is usual) must be above 0"
            )
            raise ConfigurationError(msg)
        self.name = name or f"rabbitmq:{','.join(queues)}"
        self._queues = tuple(queues)
        self._settings = Settings(
            url=url,
            name=self.name,
            mapping=mapping,
            prefetch=prefetch,
            max_bytes=max_bytes,
            declaration=_declaration(
                declare, dead_letter_exchange, delivery_limit, single_active=single_active
            ),
            single_active=single_active,
            connect_timeout=connect_timeout,
            stuck_after=stuck_after,
        )
        self._consumers: list[Consumer] = []
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        """Without the URL, which may hold a secret."""
        return f"<RabbitMQGateway {self.name}>"

    async def start(self, inbox: Inbox) -> None:
        """See the contract."""
        check_library("RabbitMQGateway", self._settings.url)
        self._consumers = [Consumer(self._settings, queue, inbox) for queue in self._queues]
        self._tasks = [
            asyncio.create_task(consumer.run(), name=f"{self.name} {consumer.queue}")
            for consumer in self._consumers
        ]

    async def stop(self) -> None:
        """See the contract. A batch whose transaction does not end within 10 s is given back to the broker."""
        for consumer in self._consumers:
            consumer.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def health(self) -> Health:
        """See the contract. Unhealthy: a queue is not consumed, or the database takes its time."""
        if not self._consumers:
            return Health(healthy=False, detail="not started")
        now = asyncio.get_running_loop().time()
        states = {consumer.queue: consumer.state for consumer in self._consumers}
        troubles = [
            f"queue {queue}: {trouble}"
            for queue, state in states.items()
            if (trouble := _trouble(state, now))
        ]
        lags = [
            state.waiting + state.held if state.waiting is not None else None for state in states.values()
        ]
        known = [lag for lag in lags if lag is not None]
        return Health(
            healthy=not troubles,
            detail="; ".join(troubles) or f"consumes {', '.join(self._queues)}",
            lag=sum(known) if len(known) == len(lags) else None,
            idle_seconds=now - max(state.last_accepted for state in states.values()),
        )


def _trouble(state: State, now: float) -> str | None:
    """What somebody should look at."""
    if state.trouble is not None:
        return state.trouble
    if state.unstorable:
        return f"{state.unstorable} messages stay in it: the database refuses them even as dead letters (see the log)"
    if state.accepting_since is not None and now - state.accepting_since > _SLOW:
        return f"{state.held} messages wait for the database, for {now - state.accepting_since:.0f} s"
    if state.link is not None and state.link.blocked is not None:
        return f"the broker has blocked the connection ({state.link.blocked})"
    return None


def _check_queues(queues: Sequence[str]) -> None:
    if isinstance(queues, str):
        msg = f"RabbitMQGateway: queues={queues!r} must be a list of names, for example queues=[{queues!r}]"
        raise ConfigurationError(msg)
    if not queues or len(set(queues)) != len(queues):
        msg = f"RabbitMQGateway: queues={list(queues)!r} must name at least one queue, and each once: queues=['orders']"
        raise ConfigurationError(msg)
    for queue in queues:
        if not 0 < len(queue.encode()) <= _LONGEST_QUEUE or not queue.isprintable():
            msg = (
                f"RabbitMQGateway: the queue name {queue!r} must be printable and have 1 to {_LONGEST_QUEUE} bytes: "
                "'orders'. A queue without a name of its own is gone with its connection, and what is in it is lost"
            )
            raise ConfigurationError(msg)
        if queue.startswith("amq."):
            msg = (
                f"RabbitMQGateway: the queue {queue!r} has a name that the broker has made up: it is gone with its "
                "connection, and what is in it is lost. Use a durable queue, for example 'orders'"
            )
            raise ConfigurationError(msg)


def _declaration(
    declare: Literal["quorum", "classic"] | None,
    dead_letter_exchange: str | None,
    delivery_limit: int | None,
    *,
    single_active: bool,
) -> Declaration | None:
    if declare is None:
        if dead_letter_exchange is not None or delivery_limit is not None:
            msg = "RabbitMQGateway: dead_letter_exchange and delivery_limit are for queues it makes: declare='quorum'"
            raise ConfigurationError(msg)
        return None
    if declare not in {"quorum", "classic"}:
        msg = f"RabbitMQGateway: declare={declare!r} is not one of None, 'quorum' and 'classic'"
        raise ConfigurationError(msg)
    if delivery_limit is not None and (declare != "quorum" or delivery_limit < 1):
        msg = f"RabbitMQGateway: delivery_limit={delivery_limit} must be above 0 (20 is usual), with declare='quorum'"
        raise ConfigurationError(msg)
    if dead_letter_exchange is not None and not 0 < len(dead_letter_exchange.encode()) <= _LONGEST_QUEUE:
        msg = (
            f"RabbitMQGateway: dead_letter_exchange={dead_letter_exchange!r} must have 1 to 255 bytes: 'dead'"
        )
        raise ConfigurationError(msg)
    return Declaration(declare, dead_letter_exchange, delivery_limit, single_active)
