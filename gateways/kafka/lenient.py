r"""Records that aiokafka cannot parse: it wants names of headers to be UTF-8, and Kafka does not.

One such record makes its whole batch unreadable, so the batch is fetched again and parsed here, by aiokafka's parser in
Python, with such names made readable (``\xff``). Rare, and slow, and it looks behind the library's curtain.
"""

from __future__ import annotations

from typing import Any

_MAX_WAIT_MS = 500
_MAX_BYTES = 1024 * 1024


async def read_leniently(consumer: Any, place: Any, offset: int) -> list[Any]:
    """The partition's next records, as many as one request gives. Raises KafkaError where this cannot, either."""
    from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
    from aiokafka.errors import LeaderNotAvailableError, for_code
    from aiokafka.protocol.fetch import FetchRequest

    client = consumer._client  # noqa: SLF001
    node = client.cluster.leader_for_partition(place)
    if node is None:
        raise LeaderNotAvailableError(place)
    wanted = [(place.topic, [(place.partition, offset, _MAX_BYTES)])]
    response = await client.send(
        node, FetchRequest(_MAX_WAIT_MS, 1, _MAX_BYTES, READ_COMMITTED, wanted, rack_id="")
    )
    [(_, [(_, code, _, *rest)])] = response.topics
    if code:
        raise for_code(code)(place)
    aborted = rest[2] if response.API_VERSION >= 11 else rest[-2]
    batches = _Batches(rest[-1])
    return list(PartitionRecords(place, batches, aborted, offset, None, None, False, READ_COMMITTED))


class _Batches:
    """As aiokafka's MemoryRecords."""

    def __init__(self, raw: bytes) -> None:
        from aiokafka.record.memory_records import _MemoryRecordsPy

        self._raw = _MemoryRecordsPy(raw)

    def has_next(self) -> bool:
        return bool(self._raw.has_next())

    def next_batch(self) -> Any:
        from aiokafka.errors import CorruptRecordException
        from aiokafka.record.default_records import _DefaultRecordBatchPy

        raw = self._raw._next_slice  # noqa: SLF001
        batch = self._raw.next_batch()
        if batch.magic < 2:
            return batch  # a format without headers
        if not batch.validate_crc():
            raise CorruptRecordException("the checksum of a batch is wrong")
        lenient = _DefaultRecordBatchPy(raw)
        lenient._maybe_uncompress()  # noqa: SLF001
        lenient._buffer = _Lenient(lenient._buffer)  # noqa: SLF001
        return lenient


class _Lenient(bytearray):
    """Bytes whose slices decode, whatever is in them."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Lenient(found) if isinstance(at, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        del errors
        return super().decode(encoding, "backslashreplace")
