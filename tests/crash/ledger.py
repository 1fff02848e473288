"""What went in, compared with what the database and the sink have at the end.

``faults`` is a function of what was read; ``test_ledger.py`` shows that it finds each fault that it is here to find.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from edda.history.codec import decode
from edda.storage import schema
from tests.crash import workflows
from tests.crash.roads import Found
from tests.crash.workflows import Course
from tests.support import servers
from tests.support.databases import Database


@dataclass(frozen=True, slots=True)
class Instance:
    """A row of ``edda_instances``."""

    id: str
    app: str
    state: str
    owner: str | None
    fence: int
    output: Any


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of ``edda_history``."""

    seq: int
    pos: int
    fence: int
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request that the sink has answered, in the order of arrival."""

    source: str
    id: str
    type: str
    order_id: str


@dataclass
class Books:
    """All that is left at the end."""

    instances: list[Instance] = field(default_factory=list)
    history: dict[str, list[Entry]] = field(default_factory=dict)
    bookings: list[tuple[str, int]] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    leftovers: dict[str, int] = field(default_factory=dict)


def faults(books: Books, orders: Mapping[str, int], course: str = "full") -> list[str]:
    """What does not add up, given the orders, their amounts and their course; empty if all does."""
    going = workflows.courses[course]
    return [
        *_lost_or_doubled_runs(books, orders, going),
        *_wrong_histories(books, going),
        *_wrong_bookings(books, orders),
        *_wrong_events(books, orders),
        *(f"left over: {number} rows of {what}" for what, number in books.leftovers.items() if number),
    ]


def _lost_or_doubled_runs(books: Books, orders: Mapping[str, int], course: Course) -> Iterable[str]:
    runs: Counter[str] = Counter()
    for instance in books.instances:
        if instance.state != "completed":
            yield f"stuck: instance {instance.id} is {instance.state}, owner {instance.owner}"
            continue
        if instance.owner is not None:
            yield f"instance {instance.id} has ended and is owned by {instance.owner}"
        order_id = instance.output["order_id"]
        runs[order_id] += 1
        if order_id not in orders:
            yield f"instance {instance.id} ran for {order_id}, which was never sent"
        elif instance.output != course.result(order_id, orders[order_id]):
            yield f"order {order_id} has another result: {instance.output}"
    for order_id in orders:
        if runs[order_id] != 1:
            yield f"order {order_id} ran {runs[order_id]} times"


def _wrong_histories(books: Books, course: Course) -> Iterable[str]:
    for instance in books.instances:
        entries = books.history.get(instance.id, [])
        told = tuple((entry.kind, entry.name) for entry in sorted(entries, key=lambda entry: entry.seq))
        if told != course.history:
            yield f"history of {instance.id}: {told}"
        observed = sorted(entries, key=lambda entry: entry.pos)
        if len({entry.pos for entry in observed}) != len(observed):
            yield f"two records of {instance.id} have one place in the observed order"
        fences = [entry.fence for entry in observed]
        if fences != sorted(fences):
            yield f"owners' writes are mixed in the history of {instance.id}: fences {fences}"
        if fences and fences[-1] > instance.fence:
            yield f"history of {instance.id} was written under fence {fences[-1]}, above its {instance.fence}"


def _wrong_bookings(books: Books, orders: Mapping[str, int]) -> Iterable[str]:
    if sorted(books.bookings) != sorted(orders.items()):
        booked = Counter(books.bookings)
        for entry in orders.items():
            if booked[entry] != 1:
                yield f"order {entry[0]} over {entry[1]} was booked {booked[entry]} times"
        for entry in booked:
            if entry not in orders.items():
                yield f"booked, but never sent: {entry}"


def _wrong_events(books: Books, orders: Mapping[str, int]) -> Iterable[str]:
    ids: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    first: dict[str, list[str]] = defaultdict(list)
    for delivery in books.deliveries:
        seen = ids[delivery.order_id, delivery.type]
        if not seen:
            first[delivery.order_id].append(delivery.type)
        seen.add((delivery.source, delivery.id))
    for order_id in orders:
        for event_type in workflows.EVENTS:
            number = len(ids[order_id, event_type])
            if number != 1:
                yield f"{event_type} of {order_id} came out under {number} ids"
        if first[order_id] != [kind for kind in workflows.EVENTS if kind in first[order_id]]:
            yield f"the events of {order_id} came out in the order {first[order_id]}"
    for order_id in set(first) - set(orders):
        yield f"events came out for {order_id}, which was never sent"


def out_of_order(sent: Iterable[Found], accepted: Iterable[tuple[str, str]]) -> list[str]:
    """Where events were accepted in another order than they have in their lane, the first of each counting.

    ``accepted``: (source, id) in accept order.
    """
    order = {identity: at for at, identity in enumerate(accepted)}
    last: dict[int, int] = defaultdict(lambda: -1)
    seen: set[tuple[str, str]] = set()
    found = []
    for event in sent:
        if event.identity in seen:
            continue
        seen.add(event.identity)
        at = order.get(event.identity)
        if at is None:
            found.append(f"{event.identity} of lane {event.lane} was never accepted")
        elif at < last[event.lane]:
            found.append(f"{event.identity} of lane {event.lane} was accepted before what came before it")
        else:
            last[event.lane] = at
    found += [f"{identity} was accepted, and is in no lane" for identity in order if identity not in seen]
    return found


def out_of_sequence(keys: Mapping[str, Iterable[Found]]) -> list[str]:
    """Where an event came behind one of its ordering key with a higher ``sequence``, the first of each counting."""
    found = []
    for key, events in keys.items():
        seen: set[tuple[str, str]] = set()
        last = ""
        for event in events:
            if event.identity in seen:
                continue
            seen.add(event.identity)
            sequence = event.attributes["sequence"]
            if sequence <= last:
                found.append(f"{event.identity} of {key} has sequence {sequence}, behind {last}")
            last = max(last, sequence)
    return found


async def read(urls: Iterable[str], sink: Path) -> Books:
    """Read everything from the databases and from the sink's file."""
    books = Books()
    for url in urls:
        engine = create_async_engine(servers.with_driver(url), poolclass=NullPool)
        async with engine.connect() as connection:
            await _read_database(connection, books)
        await engine.dispose()
    books.deliveries = read_sink(sink)
    return books


def read_sink(sink: Path) -> list[Delivery]:
    """Every whole line of the sink's file."""
    if not sink.exists():
        return []
    lines = [json.loads(line) for line in sink.read_bytes().split(b"\n")[:-1]]
    return [
        Delivery(line["source"], line["id"], line["type"], json.loads(line["data"])["order_id"])
        for line in lines
    ]


async def _read_database(connection: AsyncConnection, books: Books) -> None:
    for row in await connection.execute(sa.select(schema.instances)):
        output = None if row.output is None else decode(row.output, row.output_type)
        books.instances.append(Instance(row.id, row.app, row.state, row.owner, row.fence, output))
    for row in await connection.execute(sa.select(schema.history)):
        entry = Entry(row.seq, row.pos, row.fence, row.kind, row.name)
        books.history.setdefault(row.instance_id, []).append(entry)
    for row in await connection.execute(sa.select(workflows.bookings)):
        books.bookings.append((row.order_id, row.amount))
    for table in (schema.waits, schema.unmarked, schema.outbox, schema.dead_letters):
        number = await connection.scalar(sa.select(sa.func.count()).select_from(table))
        books.leftovers[table.name] = books.leftovers.get(table.name, 0) + (number or 0)


async def create_bookings(database: Database) -> None:
    """The user's own table, made as a user would."""
    engine = create_async_engine(database.driver_url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(workflows.metadata.create_all)
    await engine.dispose()
