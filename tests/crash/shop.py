"""A whole shop for a test: its database, a sink, and the processes that are started and started again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from edda.storage import schema
from tests.crash import ledger, roads
from tests.crash.programs import port_of, start
from tests.crash.roads import Found, Road
from tests.support.databases import Database
from tests.support.eventually import eventually
from tests.support.processes import Process


@dataclass
class Shop:
    """``start`` adds a process that ends with the test, whatever state it is in.

    ``way_in``, ``way_out``: the roads of its gateways (beside HTTP) and of its relays (in place of the sink).
    """

    database: Database
    directory: Path
    stack: ExitStack
    url: str = ""
    sink_port: int = 0
    processes: list[Process] = field(default_factory=list)
    way_in: Road | None = None
    way_out: Road | None = None

    def __post_init__(self) -> None:
        self.url = self.database.url
        self.diary.mkdir(exist_ok=True)

    @property
    def diary(self) -> Path:
        """Where the bodies note that they run."""
        return self.directory / "diary"

    @property
    def sink_file(self) -> Path:
        """What the sink was sent."""
        return self.directory / "sink"

    @property
    def hold(self) -> Path:
        """While this file exists the sink answers nobody."""
        return self.directory / "hold"

    def start(self, program: str, **settings: Any) -> Process:
        """Start a program of ``programs.py`` on this shop's database."""
        process = start(program, **{"url": self.url, "diary": self.diary, **settings})
        self.stack.enter_context(process)
        self.processes.append(process)
        return process

    def start_sink(self) -> None:
        """Where the relays send to."""
        sink = self.start("sink", ledger=str(self.sink_file), hold=str(self.hold))
        self.sink_port = port_of(sink)

    def start_relay(self, **settings: Any) -> Process:
        """A process that relays and does nothing else."""
        road = self.way_out or Road("http", f"http://127.0.0.1:{self.sink_port}/")
        return self.start("relay", road=asdict(road), **settings)

    def start_gateway(self, **settings: Any) -> Process:
        """A process that takes events in over HTTP, and over this shop's road if it has one."""
        return self.start("gateway", roads=[] if self.way_in is None else [asdict(self.way_in)], **settings)

    async def start_ready(self, program: str, **settings: Any) -> Process:
        """Start it, and wait until it works."""
        process = self.start(program, **settings)
        await process.line("^ready$", timeout=60)
        return process

    async def select(self, statement: sa.Select[Any]) -> list[Any]:
        """Rows, read past all processes."""
        engine = create_async_engine(self.database.driver_url, poolclass=NullPool)
        try:
            async with engine.connect() as connection:
                return list((await connection.execute(statement)).all())
        finally:
            await engine.dispose()

    async def counts(self) -> dict[str, int]:
        """How many instances there are in each state, and rows in the outbox."""
        states = schema.instances.c.state
        rows = await self.select(sa.select(states, sa.func.count()).group_by(states))
        [(outbox,)] = await self.select(sa.select(sa.func.count()).select_from(schema.outbox))
        return {**dict(tuple(row) for row in rows), "outbox": outbox}

    async def all_done(self, orders: int, timeout: float = 40) -> None:
        """Wait until so many orders have completed and nothing is left to be sent."""

        async def done() -> None:
            counts = await self.counts()
            assert (counts.get("completed", 0), counts["outbox"]) == (orders, 0), counts

        async def is_done() -> bool:
            await done()
            return True

        try:
            await eventually(is_done, timeout, pause=0.2)
        except AssertionError as error:
            for process in self.processes:
                last = "\n".join(process.output.splitlines()[-40:])
                error.add_note(f"{process.target} ({process.pid}), {process.returncode}:\n{last}")
            raise

    async def faults(self, orders: dict[str, int], course: str = "full") -> list[str]:
        """What the ledger says."""
        return ledger.faults(await ledger.read([self.database.url], self.sink_file), orders, course)

    async def accepted(self) -> list[tuple[str, str]]:
        """The (source, id) of all events, in the order in which they were accepted."""
        columns = schema.events.c
        rows = await self.select(sa.select(columns.source, columns.event_id).order_by(columns.seq))
        return [(row.source, row.event_id) for row in rows]

    async def positions(self, group: str) -> dict[int, int]:
        """Where each partition stands that this group reads."""
        columns = schema.source_positions.c
        rows = await self.select(
            sa.select(columns.partition_id, columns.next_offset).where(columns.group_id == group)
        )
        return dict(tuple(row) for row in rows)

    async def drained(self, timeout: float = 30) -> None:
        """Wait until nothing is left to be read on the road in."""
        road = self.way_in
        assert road is not None

        async def is_empty() -> bool:
            if road.kind == "rabbitmq":
                return await roads.waiting(road) == 0
            stand = await self.positions(road.group)
            end = await roads.ends(road)
            assert stand == end, (stand, end)
            return True

        await eventually(is_empty, timeout, pause=0.2)

    async def close(self) -> list[Found]:
        """End every process that lives as SIGTERM does it; then write down what has come out, and return it."""
        living = [process for process in self.processes if process.returncode is None]
        for process in living:
            process.terminate()
        for process in living:
            # Beside this loop: the way to the database may lead through it. A server that has stopped as it should
            # gives itself the signal again, which then ends it.
            assert await asyncio.to_thread(process.wait) in {0, -signal.SIGTERM}, process.output
        if self.way_out is None:
            return []
        found = await roads.read(self.way_out)
        roads.write_down(found, self.sink_file)
        return found


@contextmanager
def open_shop(database: Database, directory: Path) -> Iterator[Shop]:
    """A shop whose processes are gone when the block ends."""
    with ExitStack() as stack:
        yield Shop(database, directory, stack)
