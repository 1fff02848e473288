"""The Kafka gateway: one membership of the group after the other, until stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Literal, Unpack

from edda.errors import ConfigurationError
from edda.inbox.accept import MAX_EVENTS, Inbox
from gateways.delivery import Mapping
from gateways.gateway import Health
from gateways.kafka.batch import Source
from gateways.kafka.client import ClientOptions, client_settings, need_aiokafka, why_not
from gateways.kafka.member import Member
from gateways.kafka.watch import Changed, StalledError, watch

log = logging.getLogger("edda.gateway.kafka")

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 15.0
_SMALLEST_MAX_BYTES = 64 * 1024

#: Seconds that ``stop`` gives a batch to be accepted; then it is given up, and delivered again.
_STOP_SECONDS = 10.0


class KafkaGateway:
    """Events from topics, read as a member of a consumer group. Any number of gateways may share a group.

    Where each partition stands is written in the accept transaction, in the database: what a group has committed in
    Kafka is looked at only for a partition that the database does not know yet. Records are read committed.

    Args:
        bootstrap_servers: ``host:port``, several with commas or as a list.
        topics: Their names. One that is missing is told by ``health`` and waited for; the others go on.
        group_id: The consumer group; also part of the position's key.
        name: Shown in ``/readyz``; default ``kafka-<group_id>``.
        mapping: Makes events of records that are no CloudEvents; without it they are dead letters.
        start: Where a topic begins that the group has never read: ``earliest`` or ``latest`` record. Partitions that a
            known topic gets later begin at their first record.
        batch: Records of one accept transaction at most, up to 500.
        max_bytes: Largest record, its headers and key included; a larger one is a dead letter. At least 65,536.
        cluster: Names the cluster in the position's key; give it where one database reads equal topics of two clusters.
            Default ``kafka``.
        session_timeout: Seconds after which the group misses a member that died.
        stall_after: Seconds without progress, while there are records, after which the consumer is made anew.
        client: security_protocol, ssl_context, sasl_mechanism, sasl_plain_username, sasl_plain_password, ...: see
            ``gateways.kafka.client.ClientOptions``.

    Raises ConfigurationError for what can never work.
    """

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str],
        topics: Sequence[str],
        group_id: str,
        *,
        name: str | None = None,
        mapping: Mapping | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        batch: int = MAX_EVENTS,
        max_bytes: int = 1024 * 1024,
        cluster: str | None = None,
        session_timeout: float = 30.0,
        stall_after: float = 60.0,
        **client: Unpack[ClientOptions],
    ) -> None:
        self._client = client_settings("KafkaGateway", bootstrap_servers, client)
        _check(topics, group_id, start, cluster)
        _check_numbers(batch, max_bytes, session_timeout, stall_after)
        self.name = name or f"kafka-{group_id}"
        self._topics = tuple(dict.fromkeys(topics))
        self._source = Source(cluster or "kafka", group_id, mapping, max_bytes)
        self._start = start
        self._batch = batch
        self._stall_after = stall_after
        self._session_timeout = session_timeout
        self._consumer: dict[str, Any] = {
            **self._client,
            "group_id": group_id,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "session_timeout_ms": int(session_timeout * 1000),
            "rebalance_timeout_ms": int(session_timeout * 1000),
            "heartbeat_interval_ms": max(100, int(session_timeout * 1000 / 10)),
            "metadata_max_age_ms": 60_000,
        }
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._member: Member | None = None
        self._trouble: str | None = None
        self._started_at = 0.0
        self._accepted_at = 0.0
        self.accepted = 0
        self.rebuilt = 0

    def __repr__(self) -> str:
        """Without addresses and secrets."""
        return f"<KafkaGateway {self.name}>"

    async def start(self, inbox: Inbox) -> None:
        """See the contract."""
        need_aiokafka("KafkaGateway")
        self._stopping.clear()
        self._started_at = time.monotonic()
        self._task = asyncio.get_running_loop().create_task(self._run(inbox))

    async def stop(self) -> None:
        """See the contract. What the database does not take within 10 s is delivered again, to whoever is next."""
        self._stopping.set()
        if self._task is None:
            return
        await asyncio.wait([self._task], timeout=_STOP_SECONDS)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    def health(self) -> Health:
        """See the contract."""
        if self._task is None:
            return Health(healthy=False, detail="not started")
        if self._task.done():
            return Health(healthy=False, detail="ended by itself; see the log")
        idle = time.monotonic() - max(self._started_at, self._accepted_at)
        if self._member is None:
            detail = self._trouble or "connecting"
            return Health(healthy=False, detail=detail, idle_seconds=idle)
        troubles = self._member.troubles()
        if self._trouble is not None:
            troubles.insert(0, self._trouble)
        detail = "; ".join(troubles) or f"reads {len(self._member.stored)} partitions"
        return Health(healthy=not troubles, detail=detail, lag=self._member.lag, idle_seconds=idle)

    # ------------------------------------------------------------------ one membership after the other

    async def _run(self, inbox: Inbox) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            before = self.accepted
            try:
                await self._membership(inbox)
            except Changed as change:
                log.info("kafka_gateway_rejoins", extra={"gateway": self.name, "reason": str(change)})
                continue
            except Exception as error:  # noqa: BLE001, whatever it is: nothing is lost, and it is tried again
                await self._tell(error)
            if self.accepted > before:
                pause = _FIRST_PAUSE
            await _within(pause, self._stopping)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _membership(self, inbox: Inbox) -> None:
        member = Member(
            self._consumer,
            self._topics,
            self._source,
            inbox,
            start=self._start,
            batch=self._batch,
            who=self.name,
        )
        member.on_accepted = self._count
        member.on_assigned = self._recovered
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = []
        try:
            await member.join()
            self._member = member
            tasks = [
                loop.create_task(member.read(self._stopping)),
                loop.create_task(watch(member, self._stall_after, self._session_timeout)),
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                _reraise(task)
        except Exception as error:
            self._trouble = f"{type(error).__name__}: {error}"  # told while it leaves
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._member = None
            await member.leave()

    def _count(self, records: int) -> None:
        self.accepted += records
        self._accepted_at = time.monotonic()

    def _recovered(self) -> None:
        self._trouble = None

    async def _tell(self, error: Exception) -> None:
        from aiokafka.errors import KafkaConnectionError, KafkaError

        self._trouble = f"{type(error).__name__}: {error}"
        if isinstance(error, KafkaConnectionError):
            self._trouble = f"no connection to Kafka: {await why_not(self._client)}"
        expected = isinstance(error, KafkaError | OSError | StalledError)
        self.rebuilt += isinstance(error, StalledError)
        log.log(
            logging.WARNING if expected else logging.ERROR,
            "kafka_gateway_tries_again",
            exc_info=None if expected else error,
            extra={"gateway": self.name, "error": self._trouble},
        )


def _reraise(task: asyncio.Task[None]) -> None:
    if task.cancelled():  # and not by us: we would be cancelled, too
        raise StalledError("the client library has cancelled its reader")
    task.result()


def _check(topics: Sequence[str], group_id: str, start: str, cluster: str | None) -> None:
    if isinstance(topics, str) or not topics or not all(topics):
        msg = f"KafkaGateway: topics={topics!r} must be a list of names, for example topics=['orders']"
        raise ConfigurationError(msg)
    if any(len(topic.encode()) > 249 for topic in topics):
        raise ConfigurationError("KafkaGateway: topics: a name has at most 249 characters in Kafka")
    if not 0 < len(group_id.encode()) <= 255:
        msg = f"KafkaGateway: group_id={group_id!r} must have 1 to 255 bytes, for example 'orders-service'"
        raise ConfigurationError(msg)
    if cluster is not None and not 0 < len(cluster.encode()) <= 128:
        msg = f"KafkaGateway: cluster={cluster!r} must have 1 to 128 bytes, for example 'kafka-eu'"
        raise ConfigurationError(msg)
    if start not in {"earliest", "latest"}:
        msg = f"KafkaGateway: start={start!r} is neither 'earliest' nor 'latest'"
        raise ConfigurationError(msg)


def _check_numbers(batch: int, max_bytes: int, session_timeout: float, stall_after: float) -> None:
    if not 1 <= batch <= MAX_EVENTS:
        msg = f"KafkaGateway: batch={batch} must be 1 to {MAX_EVENTS}; {MAX_EVENTS} is usual"
        raise ConfigurationError(msg)
    if max_bytes < _SMALLEST_MAX_BYTES:
        msg = f"KafkaGateway: max_bytes={max_bytes} must be at least {_SMALLEST_MAX_BYTES}: such events must be taken"
        raise ConfigurationError(msg)
    if session_timeout < 1 or stall_after <= 0:
        msg = (
            f"KafkaGateway: session_timeout={session_timeout:g} must be at least 1 (30 is usual), "
            f"stall_after={stall_after:g} above 0 (60 is usual)"
        )
        raise ConfigurationError(msg)


async def _within(seconds: float, event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
