"""A connection to RabbitMQ that tells when and why it ends. It does not mend itself: its owner opens another.

aio-pika's robust connection declares deleted queues again, has no backoff, and has been seen connected without a
consumer. This is its protocol layer, aiormq, where an owner who stores before it acknowledges needs no more.
"""

from __future__ import annotations

import asyncio
import random
import socket
from typing import TYPE_CHECKING, cast

from edda.errors import ConfigurationError, EddaError, MissingExtraError

if TYPE_CHECKING:
    import aiormq

    from gateways.rabbitmq.wire import Wire

#: Seconds between heartbeats, unless the URL says otherwise (``?heartbeat=``): a dead peer is noticed within a minute.
_HEARTBEAT = 20

#: Seconds that opening a channel may take.
_OPENING = 10.0

#: Seconds that closing may take: the broker is asked politely, and then left.
_CLOSING = 3.0

#: Seconds between two tries, at first and at most.
_FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0


class BrokerError(EddaError):
    """RabbitMQ cannot be reached or refuses. It is tried again."""

    code = "EDDA420"


class Link:
    """One connection."""

    def __init__(self, connection: aiormq.Connection, wire: Wire) -> None:
        self._connection = connection
        self._wire = wire
        self.lost: asyncio.Future[object] = connection.closing  # done: it is over

    @property
    def blocked(self) -> str | None:
        """Why the broker takes no messages (memory or disk alarm); None: it does."""
        return self._wire.blocked

    @property
    def why(self) -> str:
        """Why it ended."""
        if self._wire.closed is not None:
            return self._wire.closed
        if not self.lost.done() or self.lost.cancelled():
            return "the connection was closed"
        error = self.lost.exception()
        if error is None or isinstance(error, asyncio.CancelledError):
            return "the connection was closed, or its heartbeats went unanswered"
        return told(error)

    @property
    def server_version(self) -> tuple[int, ...]:
        """Of the broker, as far as it consists of numbers."""
        said = (
            self._connection.server_properties.get("version", "")
            if self._connection.server_properties
            else ""
        )
        return tuple(int(part) for part in str(said).split(".")[:2] if part.isdecimal())

    @property
    def largest_frame(self) -> int:
        """Bytes; the properties of a message must fit into one frame."""
        return int(self._connection.connection_tune.frame_max)

    async def channel(self) -> aiormq.Channel:
        """A channel that confirms what is published, and raises for what cannot be routed."""
        async with asyncio.timeout(_OPENING):
            channel = await self._connection.channel(on_return_raises=True)
        return cast("aiormq.Channel", channel)

    async def close(self) -> None:
        """Let go. Whoever still waits for something gets a ConnectionError, never a cancellation."""
        try:
            async with asyncio.timeout(_CLOSING):
                await self._connection.close(ConnectionError("closed by this side"))
        except (Exception, asyncio.CancelledError):
            self._wire.cut()
            if is_cancelled():
                raise


async def connect(url: str, name: str, within: float) -> Link:
    """Open a connection; ``name`` is shown in the broker's management. Raises BrokerError, without secrets."""
    import aiormq
    from yarl import URL

    from gateways.rabbitmq.wire import Transport, Wire

    parsed = URL(url)
    where = f"RabbitMQ at {parsed.host}:{parsed.port or (5671 if parsed.scheme == 'amqps' else 5672)}"
    wire = Wire()
    connection = aiormq.Connection(
        parsed.update_query({"heartbeat": str(_HEARTBEAT), "name": name, **parsed.query}),
        transport_factory=Transport(wire, is_tls=parsed.scheme == "amqps"),
    )
    try:
        async with asyncio.timeout(within):
            await connection.connect()
    except TimeoutError as error:
        msg = f"{where} did not answer within {within:g} s"
        raise BrokerError(msg) from error
    except Exception as error:  # what a server that is none may answer has no bounds
        msg = f"{where}: {wire.closed or told(error)}"
        raise BrokerError(msg) from error
    return Link(connection, wire)


def told(error: BaseException) -> str:
    """What an error of the client library says, in one line."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def is_of_broker(error: BaseException) -> bool:
    """Whether it is what a broken connection or a refusal looks like, not a fault of ours."""
    from aiormq.exceptions import AMQPError, ChannelInvalidStateError

    return isinstance(error, (AMQPError, ChannelInvalidStateError, OSError))


def is_cancelled() -> bool:
    """Whether somebody has cancelled this task.

    If not, a CancelledError only says that the connection is over: the library throws one at whoever waits when its
    heartbeats go unanswered.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def check_url(who: str, url: str) -> None:
    """Raises ConfigurationError for what is no address of RabbitMQ, without showing it."""
    if not url.startswith(("amqp://", "amqps://")):
        msg = f"{who}: the URL must begin with amqp:// or amqps://, for example 'amqp://user:password@host:5672/'"
        raise ConfigurationError(msg)


def check_library(who: str, url: str) -> None:
    """Raises MissingExtraError if it is not installed, ConfigurationError for a URL that it cannot read."""
    try:
        import aiormq
        from yarl import URL
    except ImportError as error:
        raise MissingExtraError(who, "rabbitmq") from error
    try:
        readable = bool(URL(url).host) and callable(aiormq.connect)
    except ValueError:
        readable = False
    if not readable:
        msg = f"{who}: its URL cannot be read (it is not shown, it may hold a secret); 'amqp://user:password@host:5672/'"
        raise ConfigurationError(msg)


def client_name(what: str) -> str:
    """How the broker's management shows this connection."""
    return f"edda {what} on {socket.gethostname()}"


class Pauses:
    """Seconds between two tries: exponential with jitter, from the start again after a success."""

    def __init__(self) -> None:
        self._tries = 0

    def succeeded(self) -> None:
        """The next one is short."""
        self._tries = 0

    def next(self) -> float:
        """The next one."""
        ceiling = min(LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._tries, 30))
        self._tries += 1
        return random.uniform(ceiling / 4, ceiling)  # noqa: S311, jitter
