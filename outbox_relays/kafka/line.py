"""One producer, from its start until it is given up.

An idempotent producer numbers the batches of each partition. One that was refused, or whose fate is unknown, leaves a
gap, and every later one is then out of order for the broker, for ever (aiokafka's issue 1017). And it never gives a
batch up: what it still holds after our deadline it would send behind our back. So a producer lives until the first
batch that fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from gateways.kafka.apart import ended

_STOP_SECONDS = 2.0

#: A topic that is not there after so many looks is missing; one that was just made needs some.
_LOOKS = 5
_BETWEEN_LOOKS = 0.1


class MissingTopicError(Exception):
    """The cluster does not know the topic, or does not show it."""


class Line:
    """Made, started, sent through, given up: once."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from aiokafka import AIOKafkaProducer

        # Made inside the running loop; not connected yet.
        self._producer = AIOKafkaProducer(**settings)
        self._in_flight = 0
        self._closing: asyncio.Task[None] | None = None
        self._looking: dict[str, asyncio.Task[list[int]]] = {}
        self.usable = True

    @property
    def closed(self) -> bool:
        """Whether it has let go of everything."""
        return self._closing is not None and self._closing.done()

    async def start(self) -> None:
        """Connect. Raises what aiokafka does."""
        await self._producer.start()

    async def partitions(self, topic: str) -> list[int]:
        """The topic's partitions, in order. Raises MissingTopicError and TopicAuthorizationFailedError."""
        known = self._producer.client.cluster.partitions_for_topic(topic)
        if known:
            return sorted(known)
        # All who ask at once share one look.
        if topic not in self._looking:
            self._looking[topic] = asyncio.get_running_loop().create_task(self._look_for(topic))
            self._looking[topic].add_done_callback(lambda _: self._looking.pop(topic, None))
        return await asyncio.shield(self._looking[topic])

    async def _look_for(self, topic: str) -> list[int]:
        from aiokafka.errors import TopicAuthorizationFailedError

        client = self._producer.client
        client.add_topic(topic)
        for _ in range(_LOOKS):
            await client.force_metadata_update()
            if found := client.cluster.partitions_for_topic(topic):
                return sorted(found)
            if topic in client.cluster.unauthorized_topics:
                raise TopicAuthorizationFailedError(topic)
            await asyncio.sleep(_BETWEEN_LOOKS)
        raise MissingTopicError(f"no topic {topic!r}: create it, or let this user describe and write it")

    def batch(self) -> Any:
        """An empty batch."""
        return self._producer.create_batch()

    async def send(self, batch: Any, topic: str, partition: int, deadline: float) -> None:
        """Returns when the broker has the batch. Raises what aiokafka does, and TimeoutError at the deadline: unknown.

        After an error this line is given up. One that was refused lets the other partitions' batches finish; one whose
        fate is unknown takes them along, as it must not be sent any more.
        """
        self._in_flight += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await (await self._producer.send_batch(batch, topic, partition=partition))
        except (TimeoutError, asyncio.CancelledError):
            self.usable = False
            self.close_soon(self._abort)
            raise
        except Exception:
            self.usable = False
            raise
        finally:
            self._in_flight -= 1
            if not self.usable and not self._in_flight:
                self.close_soon(self._stop)

    def close_soon(self, how: Callable[[], Any] | None = None) -> None:
        """Let go of it, beside what goes on."""
        self.usable = False
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task((how or self._abort)())

    async def close(self) -> None:
        """Let go of it: at once, if something is in flight."""
        self.close_soon(self._abort if self._in_flight else self._stop)
        if self._closing is not None:
            await asyncio.wait([self._closing])

    async def _stop(self) -> None:
        if not await ended(self._producer.stop(), _STOP_SECONDS):
            await self._abort()

    async def _abort(self) -> None:
        """End it without sending anything more: ``stop`` would first send all that is left."""
        from aiokafka.errors import ProducerClosed

        producer = self._producer
        producer._closed = True  # noqa: SLF001, there is no public way
        accumulator = producer._message_accumulator  # noqa: SLF001
        queued = [batch for batches in accumulator._batches.values() for batch in batches]  # noqa: SLF001
        left = [*queued, *accumulator._pending_batches]  # noqa: SLF001
        accumulator.fail_all(ProducerClosed())
        for future in [batch.future for batch in left] + [batch._drain_waiter for batch in queued]:  # noqa: SLF001
            future.exception()  # nobody else will ask for it
        for looking in list(self._looking.values()):
            looking.cancel()
        sender = producer._sender.sender_task  # noqa: SLF001
        while sender is not None and not sender.done():
            # Cancelled once, it waits for its requests, which may have nobody to answer them.
            sender.cancel()
            await asyncio.wait([sender], timeout=0.05)
        if sender is not None:
            await asyncio.gather(sender, return_exceptions=True)
        await ended(producer.client.close(), _STOP_SECONDS)
