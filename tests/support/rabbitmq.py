"""RabbitMQ for the tests: one server for the run, another for those who stop it, and names of its own for each test.

The server comes from the first of ``EDDA_TEST_RABBITMQ_URL`` and a container; without either, tests are skipped with
the reason (with ``EDDA_REQUIRE_DATABASES=1`` they fail), as with databases.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

import aio_pika
import aiormq
import docker
import pytest
from aio_pika.abc import AbstractIncomingMessage, HeadersType

from tests.support import containers, run
from tests.support.eventually import eventually
from tests.support.servers import READY_WITHIN, UnavailableError, run_apart

T = TypeVar("T")

VARIABLE = "EDDA_TEST_RABBITMQ_URL"

_IMAGE = "rabbitmq:4-management"
_ENVIRONMENT = {
    "RABBITMQ_DEFAULT_USER": "edda",
    "RABBITMQ_DEFAULT_PASS": "edda",
    "RABBITMQ_NODENAME": "rabbit@localhost",  # rabbitmqctl finds it by this
}


def server_url() -> str:
    """The URL of the run's server; started on first use. Raises UnavailableError."""
    return os.environ.get(VARIABLE) or _known("rabbitmq")["url"]


def serves(url: str) -> bool:
    """True if a server answers there now."""
    try:
        run_apart(lambda: _connect(url))
    except Exception:
        return False
    return True


class Broker:
    """A server, and what one test has made there. Its names are taken away at the end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection: aio_pika.abc.AbstractConnection | None = None
        self._names: list[str] = []

    def name(self, what: str = "test") -> str:
        """A name that no other test has, for a queue or an exchange; whatever gets it is deleted afterwards."""
        name = f"edda-{what}-{uuid.uuid4().hex}"
        self._names.append(name)
        return name

    async def channel(self, *, confirms: bool = True) -> aio_pika.abc.AbstractChannel:
        """A channel of this test's own connection."""
        if self._connection is None:
            self._connection = await aio_pika.connect(self.url)
        return await self._connection.channel(publisher_confirms=confirms, on_return_raises=confirms)

    async def queue(
        self, kind: str = "classic", name: str | None = None, arguments: Mapping[str, Any] = {}
    ) -> str:
        """A durable queue."""
        name = name or self.name("queue")
        channel = await self.channel()
        await channel.declare_queue(name, durable=True, arguments={"x-queue-type": kind, **arguments})
        await channel.close()
        return name

    async def exchange(self, kind: str = "topic", name: str | None = None) -> str:
        """A durable exchange."""
        name = name or self.name("exchange")
        channel = await self.channel()
        await channel.declare_exchange(name, kind, durable=True)
        await channel.close()
        return name

    async def bind(self, queue: str, exchange: str, key: str) -> None:
        """What has this key goes there, too."""
        channel = await self.channel()
        await (await channel.get_queue(queue)).bind(exchange, key)
        await channel.close()

    async def publish(
        self,
        queue: str,
        *messages: tuple[bytes, HeadersType],
        content_type: str | None = "application/json",
        **properties: Any,
    ) -> None:
        """Persistent messages, each confirmed."""
        channel = await self.channel()
        sent = [
            channel.default_exchange.publish(
                aio_pika.Message(
                    body, headers=headers, content_type=content_type, delivery_mode=2, **properties
                ),
                queue,
            )
            for body, headers in messages
        ]
        await asyncio.gather(*sent)
        await channel.close()

    async def take(self, queue: str, count: int = 1) -> list[AbstractIncomingMessage]:
        """The next messages, acknowledged; waits for them."""
        channel = await self.channel()
        found = await channel.get_queue(queue)
        taken: list[AbstractIncomingMessage] = []

        async def all_there() -> bool:
            while len(taken) < count and (message := await found.get(fail=False)) is not None:
                await message.ack()
                taken.append(message)
            return len(taken) == count

        await eventually(all_there)
        await channel.close()
        return taken

    async def ready(self, queue: str) -> int:
        """Messages that wait in it and are in nobody's hands."""
        channel = await self.channel()
        found = await channel.declare_queue(queue, passive=True)
        await channel.close()
        return found.declaration_result.message_count or 0

    async def exists(self, queue: str) -> bool:
        """Whether there is such a queue."""
        channel = await self.channel()
        try:
            await channel.declare_queue(queue, passive=True)
        except aio_pika.exceptions.ChannelClosed:
            return False
        await channel.close()
        return True

    async def delete_queue(self, queue: str) -> None:
        """Away with it."""
        channel = await self.channel()
        await channel.queue_delete(queue)
        await channel.close()

    async def close(self) -> None:
        """Take everything away that has a name of this test; what does not answer is left."""
        with suppress(Exception):
            async with asyncio.timeout(20):
                await self._take_away()
        if self._connection is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await self._connection.close()

    async def _take_away(self) -> None:
        for name in self._names:
            channel = await self.channel()
            await channel.queue_delete(name)
            await channel.exchange_delete(name)
            await channel.close()


class OwnBroker(Broker):
    """A server that a test may stop: nobody else uses it meanwhile."""

    def __init__(self, url: str, container: str) -> None:
        super().__init__(url)
        self._container = container

    async def control(self, *arguments: str) -> str:
        """Run ``rabbitmqctl``."""
        return await asyncio.to_thread(self._control, arguments)

    async def stop_server(self) -> None:
        """As a restart of the node begins: every connection is cut, the port is closed."""
        self._connection = None
        await self.control("stop_app")

    async def start_server(self) -> None:
        """As it ends."""
        await self.control("start_app")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It holds every connection and answers nothing."""
        with closing(docker.from_env()) as client:
            container = client.containers.get(self._container)
            container.pause()
            try:
                yield
            finally:
                container.unpause()

    def _control(self, arguments: tuple[str, ...]) -> str:
        with closing(docker.from_env()) as client:
            found = client.containers.get(self._container)
            status, output = found.exec_run(["rabbitmqctl", *arguments])
        text = output.decode() if isinstance(output, bytes) else ""
        if status != 0:
            msg = f"rabbitmqctl {' '.join(arguments)} ended with {status}: {text}"
            raise RuntimeError(msg)
        return text


@pytest.fixture
async def rabbitmq() -> AsyncIterator[Broker]:
    """The run's server."""
    broker = Broker(_or_skip(server_url))
    yield broker
    await broker.close()


@pytest.fixture
async def own_rabbitmq() -> AsyncIterator[OwnBroker]:
    """A server that the test may stop and starve."""
    known = _or_skip(lambda: _known("rabbitmq-to-stop"))
    with run.lock("rabbitmq-in-use"):
        broker = OwnBroker(known["url"], known["container"])
        yield broker
        await broker.close()


def _or_skip(find: Callable[[], T]) -> T:
    try:
        return find()
    except UnavailableError as error:
        reason = str(error)
    if os.environ.get("EDDA_REQUIRE_DATABASES") == "1":
        pytest.fail(f"EDDA_REQUIRE_DATABASES=1, but {reason}", pytrace=False)
    pytest.skip(reason)


def _known(server: str) -> dict[str, str]:
    with run.lock(server):
        known = run.directory() / f"{server}.json"
        if not known.exists():
            known.write_text(json.dumps(_start()))
        found: dict[str, str] = json.loads(known.read_text())
    if "url" not in found:
        raise UnavailableError(found["reason"])
    return found


def _start() -> dict[str, str]:
    image = os.environ.get("EDDA_TEST_RABBITMQ_IMAGE", _IMAGE)
    try:
        started = containers.start(image, 5672, environment=_ENVIRONMENT)
        url = f"amqp://edda:edda@{started.host}:{started.port}/"
        run_apart(lambda: _wait_until_it_serves(url, started.id))
    except Exception as error:
        return {
            "reason": f"no RabbitMQ for the tests. Tried a container: {type(error).__name__}: {error}. Start a "
            f"container engine, or set {VARIABLE} to a server where queues may be made, or EDDA_TEST_RABBITMQ_IMAGE to "
            "an image that this machine has."
        }
    return {"url": url, "container": started.id}


async def _wait_until_it_serves(url: str, container: str) -> None:
    async def serves() -> bool:
        if logs := containers.logs_if_stopped(container):
            msg = f"the container stopped by itself:\n{logs}"
            raise RuntimeError(msg)
        try:
            await _connect(url)
        except Exception as error:
            msg = f"{type(error).__name__}: {error}"
            raise AssertionError(msg) from error
        return True

    await eventually(serves, READY_WITHIN, pause=0.2)


async def _connect(url: str) -> None:
    async with asyncio.timeout(5):
        connection = await aiormq.connect(url)
        await connection.close()
