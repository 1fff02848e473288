"""Records to partitions: those of one moment share a batch, and one batch of a partition is in flight at a time.

That is what keeps the order of a key: a batch is in its partition as a whole or not at all, and the next is sent only
when it is known which.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateways.kafka.client import why_not
from outbox_relays.kafka.line import Line, MissingTopicError
from outbox_relays.kafka.record import Record
from outbox_relays.publisher import Confirm, Confirmed, Permanent, Retry

log = logging.getLogger("edda.relay.kafka")

#: How much of the publish timeout is for the broker; the rest is for telling the relay.
_SHARE = 0.9

#: Seconds for which one failed attempt to connect speaks for all who ask.
_REFUSED = 0.5


class NoConnectionError(Exception):
    """Why there is no producer."""


@dataclass(slots=True)
class _Parcel:
    """Records of one key (or one without a key), in order."""

    records: Sequence[Record]
    deadline: float
    answer: asyncio.Future[list[Confirm]]


@dataclass(frozen=True, slots=True)
class _Part:
    """The beginning of a parcel that is in a batch."""

    parcel: _Parcel
    count: int


class Sender:
    """All that goes to one cluster. ``only_topic``: there is no other, so that what is said of it holds for all."""

    def __init__(self, settings: dict[str, Any], *, timeout: float, only_topic: bool) -> None:
        self._settings = settings
        self._timeout = timeout * _SHARE
        self._only_topic = only_topic
        self._line: Line | None = None
        self._lines: set[Line] = set()
        self._starting = asyncio.Lock()
        self._refusal: NoConnectionError | None = None
        self._refused_until = 0.0
        self._queues: dict[tuple[str, int], deque[_Parcel]] = {}
        self._draining: set[asyncio.Task[None]] = set()
        self._turn = 0  # whose turn it is among the partitions of a topic, for records without a key

    async def send(self, topic: str, records: Sequence[Record]) -> list[Confirm]:
        """Send records of one key, in order; as the contract of ``Publisher.publish`` has it."""
        deadline = time.monotonic() + self._timeout
        try:
            async with asyncio.timeout(self._timeout):
                partitions = await (await self._usable_line()).partitions(topic)
        except Exception as error:  # noqa: BLE001, whatever it is: nothing was sent
            return [self._not_sent(error)]
        place = (topic, _partition(records[0].key, partitions, self._turn))
        parcel = _Parcel(records, deadline, asyncio.get_running_loop().create_future())
        if place in self._queues:
            self._queues[place].append(parcel)
        else:
            self._queues[place] = deque([parcel])
            task = asyncio.get_running_loop().create_task(self._drain(place))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)
        return await parcel.answer

    async def close(self) -> None:
        """Send nothing more."""
        for task in list(self._draining):
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)
        self._line = None
        await asyncio.gather(*(line.close() for line in list(self._lines)))
        self._lines.clear()

    # ------------------------------------------------------------------ batches

    async def _drain(self, place: tuple[str, int]) -> None:
        queue = self._queues[place]
        most: int | None = None  # records of the next batch, while a refused one is looked for
        try:
            await asyncio.sleep(0)  # what comes in the same tick shares the batch
            self._turn += 1
            while queue:
                most = await self._batch(place, queue, most)
        finally:
            del self._queues[place]
            for parcel in queue:
                if not parcel.answer.done():
                    parcel.answer.set_result([Retry("not sent: the publisher was closed")])

    async def _batch(self, place: tuple[str, int], queue: deque[_Parcel], most: int | None) -> int | None:
        """Send one; how many records the next may have."""
        try:
            line = await self._usable_line()
        except Exception as error:  # noqa: BLE001, whatever it is: nothing was sent
            confirm = self._not_sent(error)
            while queue:
                _answer(queue.popleft(), [confirm])
            return None
        batch = line.batch()
        parts = _fill(batch, queue, most)
        if not parts:
            return most
        count = sum(part.count for part in parts)
        try:
            await line.send(batch, *place, min(part.parcel.deadline for part in parts))
        except Exception as error:  # noqa: BLE001, every caller hears of it
            if count > 1 and _is_about_a_record(error):
                # One of them, and nobody says which: halve until it is alone.
                queue.extendleft(part.parcel for part in reversed(parts))
                return count // 2
            confirm = self._refused(error, place[0], parts[0].parcel.records[0], count)
            for part in parts:
                _answer(part.parcel, [confirm])
            return None
        for part in parts:
            _answer(part.parcel, [Confirmed()] * part.count)
        return None

    async def _usable_line(self) -> Line:
        if self._line is not None and self._line.usable:
            return self._line
        async with self._starting:
            if self._line is not None and self._line.usable:
                return self._line
            if self._refusal is not None and time.monotonic() < self._refused_until:
                raise self._refusal
            line = Line(self._settings)
            try:
                async with asyncio.timeout(self._timeout):
                    await line.start()
            except Exception as error:
                await line.close()
                self._refusal = NoConnectionError(await self._why(error))
                self._refused_until = time.monotonic() + _REFUSED
                raise self._refusal from error
            except BaseException:
                await line.close()
                raise
            self._lines = {kept for kept in self._lines if not kept.closed}
            self._lines.add(line)
            self._line = line
            return line

    # ------------------------------------------------------------------ what went wrong

    def _not_sent(self, error: Exception) -> Confirm:
        from aiokafka.errors import TopicAuthorizationFailedError

        if isinstance(error, MissingTopicError | TopicAuthorizationFailedError):
            return Retry(_told(error), everything=self._only_topic)
        return Retry(f"no connection to Kafka: {str(error) or type(error).__name__}", everything=True)

    async def _why(self, error: Exception) -> str:
        from aiokafka.errors import KafkaConnectionError

        return await why_not(self._settings) if isinstance(error, KafkaConnectionError) else _told(error)

    def _refused(self, error: Exception, topic: str, first: Record, count: int) -> Confirm:
        from aiokafka.errors import KafkaConnectionError, TopicAuthorizationFailedError

        if isinstance(error, TimeoutError):
            return Retry(f"no confirm from Kafka within {self._timeout:g} s: unknown", everything=True)
        if isinstance(error, KafkaConnectionError):
            return Retry(_told(error), everything=True)
        if isinstance(error, TopicAuthorizationFailedError):
            return Retry(_told(error), everything=self._only_topic)
        if count == 1 and _is_too_large(error):
            size = len(first.key or b"") + len(first.value or b"")
            return Permanent(
                f"the topic {topic!r} does not take a record of {size} bytes and its headers: raise its "
                f"max.message.bytes, or the broker's message.max.bytes ({_told(error)})"
            )
        return Retry(_told(error))


def _fill(batch: Any, queue: deque[_Parcel], most: int | None) -> list[_Part]:
    """Move parcels from the queue into the batch, as far as it goes: of the last one perhaps only its beginning.

    A parcel whose time is over is not sent any more: the relay that waited for it may have lost its lease.
    """
    parts: list[_Part] = []
    now = time.monotonic()
    stamp = time.time_ns() // 1_000_000
    left = most or 1_000_000
    while queue and left:
        parcel = queue[0]
        if parcel.answer.done() or parcel.deadline <= now:
            _answer(parcel, [Retry("not sent in time: its partition was busy")])
            queue.popleft()
            continue
        count = 0
        for record in parcel.records[:left]:
            if (
                batch.append(timestamp=stamp, key=record.key, value=record.value, headers=record.headers)
                is None
            ):
                left = 0
                break
            count += 1
        if count:
            parts.append(_Part(parcel, count))
            queue.popleft()
        left -= min(left, count)
    return parts


def _answer(parcel: _Parcel, confirms: list[Confirm]) -> None:
    if not parcel.answer.done():
        parcel.answer.set_result(confirms)


def _partition(key: bytes | None, partitions: Sequence[int], turn: int) -> int:
    """As Kafka's own clients choose it; without a key one partition after the other, whole batches each."""
    from aiokafka.partitioner import murmur2

    if key is None:
        return partitions[turn % len(partitions)]
    hashed: int = murmur2(key)
    return partitions[(hashed & 0x7FFFFFFF) % len(partitions)]


def _is_too_large(error: Exception) -> bool:
    from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

    return isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError)


def _is_about_a_record(error: Exception) -> bool:
    """Whether a batch was refused for what one of its records is (aiokafka does not know all of Kafka's errors)."""
    from aiokafka.errors import CorruptRecordException, InvalidTimestampError, UnknownError

    return _is_too_large(error) or isinstance(
        error, CorruptRecordException | InvalidTimestampError | UnknownError
    )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
