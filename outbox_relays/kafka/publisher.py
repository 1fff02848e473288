"""CloudEvents to Kafka: which topic, which key; confirmed when all replicas in sync have the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Unpack

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError
from edda.inbox.shapes import patterns_of, validate_pattern
from gateways.kafka.client import ClientOptions, client_settings, need_aiokafka
from outbox_relays.kafka.record import Record, record_of
from outbox_relays.kafka.sender import Sender
from outbox_relays.publisher import Confirm, Outgoing, Permanent
from outbox_relays.route import Route

#: Calls of ``publish`` in flight: those of one moment share batches.
_CONCURRENCY = 1_000

#: What a record takes in a batch beside its parts, at most.
_OVERHEAD = 100


class KafkaPublisher(Route):
    """One cluster. The record's key is the event's ordering key; records of one key keep their order.

    Args:
        bootstrap_servers: ``host:port``, several with commas or as a list.
        topic: Where events go that no pattern of ``topics`` takes. It must exist.
        topics: Patterns of event types and their topics; the closest pattern decides.
        types: Patterns of the event types that go to this cluster; default all.
        destination: Its name in the outbox; several publishers need different ones.
        mode: ``binary`` (default) or ``structured``.
        partitionkey: An event without an ordering key has its extension ``partitionkey`` as the record's key. That
            chooses the partition; order is kept for ordering keys alone.
        tombstones: An event with a key and without data deletes the key's value in a compacted topic.
        compression: None, ``gzip``, ``snappy``, ``lz4`` or ``zstd``; of those, aiokafka has gzip by itself.
        publish_timeout: Seconds for one publish, everything included. What is not confirmed then is published again.
        batch_bytes: About the most of one partition in one request.
        max_record_bytes: Largest record; a larger one is given up. Not above the topic's ``max.message.bytes``.
        client: security_protocol, ssl_context, sasl_mechanism, sasl_plain_username, sasl_plain_password, ...: see
            ``gateways.kafka.client.ClientOptions``.

    Raises ConfigurationError for what can never work.
    """

    lane_batch = 500

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str],
        topic: str,
        *,
        topics: Mapping[str, str] | None = None,
        types: Sequence[str] = ("*",),
        destination: str = "default",
        mode: Literal["binary", "structured"] = "binary",
        partitionkey: bool = False,
        tombstones: bool = False,
        compression: Literal["gzip", "snappy", "lz4", "zstd"] | None = None,
        publish_timeout: float = 10.0,
        batch_bytes: int = 256 * 1024,
        max_record_bytes: int = 1_000_000,
        **client: Unpack[ClientOptions],
    ) -> None:
        super().__init__("KafkaPublisher", destination, types, publish_timeout, _CONCURRENCY)
        settings = client_settings("KafkaPublisher", bootstrap_servers, client)
        by_pattern = dict(topics or {})
        _check(topic, by_pattern, mode, batch_bytes, max_record_bytes)
        self._topic = topic
        self._by_pattern = by_pattern
        self._mode = mode
        self._partitionkey = partitionkey
        self._tombstones = tombstones
        self._max_record_bytes = max_record_bytes
        self._sender = Sender(
            {
                **settings,
                "acks": "all",
                "enable_idempotence": True,
                "compression_type": compression,
                "max_batch_size": batch_bytes,
                "request_timeout_ms": max(1_000, int(publish_timeout * 1_000)),
                "metadata_max_age_ms": 60_000,
            },
            timeout=publish_timeout,
            only_topic=not by_pattern,
        )

    async def open(self) -> None:
        """See the contract."""
        need_aiokafka("KafkaPublisher")

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Confirm]:
        """See the contract."""
        topic = self._topic_of(messages[0].event)
        records: list[Record] = []
        for message in messages:
            if self._topic_of(message.event) != topic:
                break  # order between two topics: one after the other
            record = record_of(message.event, self._key(message), self._mode, tombstones=self._tombstones)
            size = _size(record)
            if size > self._max_record_bytes:
                if records:
                    break
                return [
                    Permanent(
                        f"the record has {size} bytes, and at most {self._max_record_bytes} are sent: raise "
                        f"max_record_bytes of the publisher, and max.message.bytes of the topic {topic!r}"
                    )
                ]
            records.append(record)
        return await self._sender.send(topic, records)

    async def close(self) -> None:
        """See the contract."""
        await self._sender.close()

    def _topic_of(self, event: CloudEvent) -> str:
        if self._by_pattern:
            for pattern in patterns_of(event.type):
                if pattern in self._by_pattern:
                    return self._by_pattern[pattern]
        return self._topic

    def _key(self, message: Outgoing) -> bytes | None:
        if message.key is not None:
            return message.key.encode()
        wanted = message.event.extensions.get("partitionkey") if self._partitionkey else None
        return None if wanted is None else str(wanted).encode()


def _size(record: Record) -> int:
    headers = sum(len(name.encode()) + len(value) + 10 for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers + _OVERHEAD


def _check(topic: str, topics: Mapping[str, str], mode: str, batch_bytes: int, max_record_bytes: int) -> None:
    for pattern in topics:
        validate_pattern(pattern)
    for name in (topic, *topics.values()):
        if not 0 < len(name.encode()) <= 249:
            msg = f"KafkaPublisher: topic={name!r} must have 1 to 249 characters, for example 'orders'"
            raise ConfigurationError(msg)
    if mode not in {"binary", "structured"}:
        msg = f"KafkaPublisher: mode={mode!r} is not one of 'binary' and 'structured'"
        raise ConfigurationError(msg)
    if batch_bytes < 1 or max_record_bytes < 64 * 1024:
        msg = (
            f"KafkaPublisher: batch_bytes={batch_bytes} must be above 0 (262144 is usual) and max_record_bytes="
            f"{max_record_bytes} at least 65536: events of that size must be sent"
        )
        raise ConfigurationError(msg)
