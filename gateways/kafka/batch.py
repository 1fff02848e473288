"""From records to what one accept transaction takes. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping as Pairs
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from edda.inbox.accept import MAX_BYTES, Positioned
from edda.storage.rows import NewDeadLetter, PositionAdvance
from gateways.delivery import Mapping, Poison, bind, letter
from gateways.kafka.record import delivery_of, read

#: (topic, partition), as aiokafka's TopicPartition is.
Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Source:
    """What of a gateway's settings goes into every batch.

    ``cluster`` and ``group`` name the positions in the database.
    """

    cluster: str
    group: str
    mapping: Mapping | None
    max_bytes: int

    def advance(self, place: Place, fetched_from: int, next_offset: int) -> PositionAdvance:
        """One partition's step."""
        return PositionAdvance(self.cluster, self.group, *place, fetched_from, next_offset)


@dataclass(slots=True)
class Batch:
    """``places[i]`` is the partition that ``positions[i]`` moves."""

    places: list[Place] = field(default_factory=list)
    positions: list[PositionAdvance] = field(default_factory=list)
    items: list[Positioned] = field(default_factory=list)
    poison: list[NewDeadLetter] = field(default_factory=list)


def bound(source: Source, records: Pairs[Place, Sequence[Any]], stored: Pairs[Place, int]) -> Batch:
    """Every record is an item, poison, or (left out by the mapping) only a step of its partition's position.

    Each partition's step begins at its stored position, not at the first record's offset: offsets have gaps, where
    records were compacted away or a transaction ended.
    """
    batch = Batch()
    for place, found in records.items():
        index = len(batch.places)
        batch.places.append(place)
        batch.positions.append(source.advance(place, stored[place], found[-1].offset + 1))
        for record in found:
            delivery = delivery_of(record, source.cluster)
            event = bind(delivery, read, source.mapping, source.max_bytes)
            if isinstance(event, Poison):
                batch.poison.append(letter(delivery, event.reason, index))
            elif event is not None:
                batch.items.append(Positioned(event, index, partial(letter, delivery, position=index)))
    return batch


def take(fetched: dict[Place, list[Any]], most: int) -> dict[Place, list[Any]]:
    """Remove, from the beginning of each partition's records, what one transaction takes; one record at least."""
    taken: dict[Place, list[Any]] = {}
    count = size = 0
    for place in list(fetched):
        records = fetched[place]
        end = 0
        while end < len(records) and count < most:
            size += _size(records[end])
            if size > MAX_BYTES and count:
                break
            end += 1
            count += 1
        if end:
            taken[place] = records[:end]
            del records[:end]
        if records:
            break
        del fetched[place]
    return taken


def _size(record: Any) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.value or b"") + len(record.key or b"") + headers
