"""One membership of a consumer group: join, find out where each partition stands, read, accept, leave.

The database says where a partition stands. A partition that the group assigns is paused until its stored position has
been read; from then on each batch moves that position by compare-and-set, in the transaction that accepts the batch. A
batch that comes too late (its partition has another owner by now) finds another position there and leaves no trace.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, TypeVar

from edda.inbox.accept import Inbox
from edda.storage.rows import PositionAdvance
from gateways.gateway import accept_until_stored
from gateways.kafka.apart import ended
from gateways.kafka.batch import Place, Source, bound, take
from gateways.kafka.commits import Commits
from gateways.kafka.lenient import read_leniently

log = logging.getLogger("edda.gateway.kafka")

T = TypeVar("T")

_POLL_MS = 200

#: Seconds for Kafka to let a consumer in, and to let it go.
_JOIN_SECONDS = 30.0
_LEAVE_SECONDS = 5.0

#: Seconds after which a reader that waits for the database asks Kafka for nothing, again and again: a member that never
#: asks is thrown out of its group.
_ASK_EVERY = 1.0

#: Seconds of waiting for the database that are worth telling.
_LONG_WAIT = 10.0

#: Seconds between two looks at the stored positions, which an operator may have moved: usually, and while a partition
#: stands still until somebody does.
_LOOK_AGAIN = 30.0
_LOOK_AGAIN_SOON = 2.0


class NoTopicError(Exception):
    """None of the topics is there (or may be seen)."""


class Member:
    """Made, joined, read from, left: once.

    Attributes:
        stored: The stored position of each partition that it reads.
        stopped: Why a partition is not read, until an operator moves its position.
        polled_at: When the client library answered last, by the monotonic clock.
        waits_since: Since when the reader waits for the database.
        lag: Records that wait in Kafka, as of the last look.
        trouble: What the watch has found.
    """

    def __init__(
        self,
        consumer: dict[str, Any],
        topics: Sequence[str],
        source: Source,
        inbox: Inbox,
        *,
        start: str,
        batch: int,
        who: str,
    ) -> None:
        from aiokafka import AIOKafkaConsumer

        # Made inside the running loop; not connected yet.
        self._consumer = AIOKafkaConsumer(**consumer)
        self._commits = Commits(self._consumer)
        self._topics = topics
        self._source = source
        self._inbox = inbox
        self._start = start
        self._batch = batch
        self._who = who
        self._fresh: set[Any] = set()  # assigned, their position not yet read
        self._assignments = 0
        self._looked_at = 0.0
        self._missing: list[str] = []
        self.on_assigned: Callable[[], None] = lambda: None
        self.on_accepted: Callable[[int], None] = lambda _: None
        self.stored: dict[Place, int] = {}
        self.stopped: dict[Place, tuple[int, str]] = {}
        self.polled_at = time.monotonic()
        self.waits_since: float | None = None
        self.lag: int | None = None
        self.trouble: str | None = None

    # ------------------------------------------------------------------ join and leave

    async def join(self) -> None:
        """Connect, and ask for partitions. Raises what aiokafka does, TimeoutError and NoTopicError."""
        async with asyncio.timeout(_JOIN_SECONDS):
            await self._consumer.start()
            known = await self._consumer.topics()
        self._missing = [topic for topic in self._topics if topic not in known]
        present = [topic for topic in self._topics if topic in known]
        if not present:
            raise NoTopicError(self._told_missing())
        if self._missing:
            log.warning("kafka_topics_missing", extra={"gateway": self._who, "topics": self._missing})
        self._consumer.subscribe(present, listener=_listener(self))
        self.polled_at = time.monotonic()

    async def leave(self) -> None:
        """Commit what is accepted, leave the group, disconnect; a Kafka that does not answer is not waited for long."""
        if not await ended(self._let_go(), _LEAVE_SECONDS):
            await ended(_abandon(self._consumer), _LEAVE_SECONDS)

    async def _let_go(self) -> None:
        await self._commits.last()
        await self._consumer.stop()

    def assigned(self, partitions: Collection[Any]) -> None:
        """The group has spoken: these, and no others. Nothing is read of them before their positions are known."""
        self._assignments += 1
        self.stored.clear()
        self.stopped.clear()
        self._fresh = set(partitions)
        self._consumer.pause(*self._fresh)
        self.on_assigned()
        log.info(
            "kafka_partitions_assigned",
            extra={"gateway": self._who, "partitions": sorted(f"{t}/{p}" for t, p in self._fresh)},
        )

    def revoked(self) -> None:
        """All are given back; those that stay come again."""
        self._assignments += 1
        self.stored.clear()
        self._fresh.clear()

    # ------------------------------------------------------------------ read

    async def read(self, stopping: asyncio.Event) -> None:
        """Place, poll, accept: until told to stop."""
        while not stopping.is_set():
            if self._fresh:
                await self._place()
            elif time.monotonic() - self._looked_at > (_LOOK_AGAIN_SOON if self.stopped else _LOOK_AGAIN):
                await self._look_again()
            fetched = await self._poll()
            while fetched and not stopping.is_set():
                await self._accept(fetched)
            self._commits.soon()

    async def _poll(self) -> dict[Place, list[Any]]:
        """Records by partition: of those alone whose position is known."""
        from aiokafka.errors import (
            CorruptRecordException,
            NoOffsetForPartitionError,
            OffsetOutOfRangeError,
        )

        try:
            # Not inside wait_for or timeout(): a cancelled getmany leaves a counter behind, and the library believes
            # ever after that somebody asks.
            fetched = await self._consumer.getmany(timeout_ms=_POLL_MS, max_records=self._batch)
        except NoOffsetForPartitionError:
            return {}  # of one that is not placed yet
        except OffsetOutOfRangeError as error:
            for place, offset in error.args[0].items():
                await self._stop(place, offset, "is not there any more (or not yet)")
            return {}
        except (CorruptRecordException, ValueError) as error:
            await self._around(error)
            return {}
        finally:
            self.polled_at = time.monotonic()
        return {place: list(records) for place, records in fetched.items() if place in self.stored}

    async def _accept(self, fetched: dict[Place, list[Any]]) -> None:
        """The next transaction's records, which are removed."""
        assignments = self._assignments
        records = take(fetched, self._batch)
        batch = bound(self._source, records, self.stored)
        _, stale = await self._while_polling(
            lambda: accept_until_stored(
                self._inbox, batch.items, batch.positions, batch.poison, who=self._who
            )
        )
        self.on_accepted(sum(len(records[place]) for at, place in enumerate(batch.places) if at not in stale))
        if assignments != self._assignments:
            fetched.clear()  # who goes on with them reads their position anew
            return
        for index, place in enumerate(batch.places):
            if index in stale:
                log.warning("kafka_position_moved", extra=self._place_extra(place, stale[index]))
                fetched.pop(place, None)
                self._go_to(place, stale[index])
            else:
                self.stored[place] = batch.positions[index].next_offset
                self._commits.note(place, self.stored[place])

    async def _around(self, error: Exception) -> None:
        """The library cannot parse a record, and does not say whose: read one step of each partition in another way."""
        from aiokafka.errors import CorruptRecordException

        log.warning("kafka_record_unreadable", extra={"gateway": self._who, "error": str(error)})
        for place in list(self.stored):
            assignments = self._assignments
            try:
                records = await read_leniently(self._consumer, place, self.stored[place])
            except CorruptRecordException as corrupt:
                await self._stop(place, self.stored[place], f"cannot be read: {corrupt}")
                continue
            while records and assignments == self._assignments:
                fetched = {place: records}
                await self._accept(fetched)
                records = fetched.get(place, [])
            if assignments != self._assignments:
                return
            # From there, also where the library has handed out records together with its error, which are lost.
            if place in self.stored:
                self._consumer.seek(place, self.stored[place])

    # ------------------------------------------------------------------ positions

    async def _place(self) -> None:
        """Go to the stored positions of what was assigned; a partition that has none gets one first."""
        assignments, fresh = self._assignments, set(self._fresh)
        found = await self._while_polling(lambda: self._positions(fresh))
        if assignments != self._assignments:
            return
        self._looked_at = time.monotonic()
        self._fresh -= fresh
        for place in fresh:
            self._go_to(place, found[place])

    async def _positions(self, wanted: Collection[Any]) -> dict[Place, int]:
        """All of the group; those of the wanted that are new are stored on the way.

        Stored at once, and not with the first record: a gateway that begins at the latest record and is started again
        before one came would else skip what came in between.
        """
        stored: dict[Place, int] = await self._stored_positions()
        known = {topic for topic, _ in stored}
        new = [place for place in wanted if place not in stored]
        for topic in {topic for topic, _ in new} - known:
            # Of a new topic all partitions at once, so that one that is added later can be told from them.
            new += [place for place in self._partitions_of(topic) if place not in new]
        if not new:
            return stored
        begins = await self._beginnings(new, known)
        places = sorted(begins)
        steps: list[PositionAdvance] = [
            self._source.advance(place, begins[place], begins[place]) for place in places
        ]
        _, stale = await accept_until_stored(self._inbox, (), steps, who=self._who)
        return stored | {place: stale.get(index, begins[place]) for index, place in enumerate(places)}

    async def _stored_positions(self) -> dict[Place, int]:
        from edda.errors import StorageError

        while True:
            try:
                return await self._inbox.positions(self._source.cluster, self._source.group)
            except StorageError as error:
                log.warning("gateway_waits_for_database", extra={"gateway": self._who, "error": str(error)})
                await asyncio.sleep(_ASK_EVERY)

    async def _beginnings(self, new: Sequence[Any], known: Collection[str]) -> dict[Place, int]:
        """Where to begin: what the group has committed in Kafka, else the first record, or the latest if asked."""
        begins: dict[Place, int] = {}
        for place in new:
            committed = await self._consumer.committed(place)
            if committed is not None:
                begins[place] = committed
        rest = [place for place in new if place not in begins]
        latest = [place for place in rest if self._start == "latest" and place[0] not in known]
        begins |= await self._consumer.end_offsets(latest)
        begins |= await self._consumer.beginning_offsets([place for place in rest if place not in latest])
        return begins

    def _partitions_of(self, topic: str) -> list[Any]:
        from aiokafka import TopicPartition

        return [TopicPartition(topic, number) for number in self._consumer.partitions_for_topic(topic) or ()]

    async def _look_again(self) -> None:
        """An operator may have moved positions."""
        self._looked_at = time.monotonic()
        assignments = self._assignments
        found = await self._while_polling(self._stored_positions)
        if assignments != self._assignments:
            return
        for place, position in self.stored.items():
            if found.get(place, position) != position:
                log.warning("kafka_position_moved", extra=self._place_extra(place, found[place]))
                self._go_to(place, found[place])
        for place, (position, _) in list(self.stopped.items()):
            if found.get(place, position) != position:
                log.warning("kafka_partition_goes_on", extra=self._place_extra(place, found[place]))
                del self.stopped[place]
                self._go_to(place, found[place])

    def _go_to(self, place: Any, position: int) -> None:
        self.stored[place] = position
        self._consumer.seek(place, position)
        if self.waits_since is None:
            self._consumer.resume(place)

    async def _stop(self, place: Any, offset: int, why: str) -> None:
        """What this partition should go on with is not there. To go on elsewhere would skip it in silence."""
        self.stored.pop(place, None)
        self._consumer.pause(place)
        topic, partition = place
        cluster = "" if self._source.cluster == "kafka" else f" --cluster {self._source.cluster}"
        at = f"{self._source.group} {topic} {partition} OFFSET{cluster}"
        reason = (
            f"{topic}/{partition} is stopped: its next record, {offset}, {why}. Find out what is lost, then say "
            f"where it goes on: edda positions seek {at}"
        )
        self.stopped[place] = (offset, reason)
        begins = await self._consumer.beginning_offsets([place])
        ends = await self._consumer.end_offsets([place])
        if place in self.stopped:
            reason += f". Kafka has {begins[place]} up to {ends[place]}"
            self.stopped[place] = (offset, reason)
        log.error("kafka_partition_stopped", extra={**self._place_extra(place, offset), "reason": reason})

    # ------------------------------------------------------------------ while the database takes its time

    async def _while_polling(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do the work; if it takes long, ask Kafka for nothing meanwhile, so that the membership lasts."""
        task = asyncio.get_running_loop().create_task(work())
        try:
            await asyncio.wait([task], timeout=_ASK_EVERY)
            if not task.done():
                self.waits_since = time.monotonic()
                self._consumer.pause(*self._consumer.assignment())
                while not task.done():
                    await self._ask_for_nothing()
                    await asyncio.wait([task], timeout=_ASK_EVERY)
                self._consumer.resume(*self.stored)
            return await task
        finally:
            self.waits_since = None
            task.cancel()

    async def _ask_for_nothing(self) -> None:
        """All partitions are paused, those of a new assignment, too. What is handed out all the same is not skipped."""
        for place, records in (await self._poll()).items():
            self._consumer.seek(place, records[0].offset)

    # ------------------------------------------------------------------ what others see

    async def look(self) -> dict[Place, tuple[int, int]]:
        """Position and lag of each partition, asked of Kafka."""
        places = list(self.stored)
        ends = await self._consumer.end_offsets(places)
        found: dict[Place, tuple[int, int]] = {}
        for place in places:
            if place in self.stored:
                position = await self._consumer.position(place)
                found[place] = (position, max(0, ends[place] - position))
        self.lag = sum(lag for _, lag in found.values())
        return found

    async def missing_appeared(self) -> bool:
        """Whether a topic that was missing is there now."""
        if not self._missing:
            return False
        known = await self._consumer.topics()
        return any(topic in known for topic in self._missing)

    def troubles(self) -> list[str]:
        """What somebody should look at."""
        found = [reason for _, reason in self.stopped.values()]
        if self._missing:
            found.append(self._told_missing())
        if self.waits_since is not None and time.monotonic() - self.waits_since > _LONG_WAIT:
            found.append(f"the database has not answered for {time.monotonic() - self.waits_since:.0f} s")
        if self.trouble is not None:
            found.append(self.trouble)
        return found

    def _told_missing(self) -> str:
        return (
            f"no topic {', '.join(map(repr, self._missing))}: create it, or let this user describe and read it "
            "(it is looked for again by itself)"
        )

    def _place_extra(self, place: Place, offset: int) -> dict[str, object]:
        return {"gateway": self._who, "topic": place[0], "partition": place[1], "offset": offset}


async def _abandon(consumer: Any) -> None:
    """End what is left of a consumer whose ``stop`` waits for a group that does not answer."""
    coordinator, fetcher = consumer._coordinator, consumer._fetcher  # noqa: SLF001, there is no public way
    tasks = [
        getattr(coordinator, name, None)
        for name in ("_coordination_task", "_heartbeat_task", "_commit_refresh_task")
    ]
    pending = [task for task in tasks if task is not None]
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    if fetcher is not None:
        await fetcher.close()
    await consumer._client.close()  # noqa: SLF001


def _listener(member: Member) -> Any:
    """Aiokafka calls it from a task of its own, and swallows what it raises."""
    from aiokafka import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
        def on_partitions_revoked(self, revoked: Any) -> None:
            del revoked
            member.revoked()

        def on_partitions_assigned(self, assigned: Any) -> None:
            member.assigned(assigned)

    return Listener()
