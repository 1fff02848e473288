"""The play: every part is a process, gateway, worker and relay are each killed with -9, the ledger is checked."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import tempfile
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic_core import to_json
from rich.console import Console
from rich.live import Live

from edda.cli.demo.brokers import broker_of
from edda.cli.demo.customers import send_everything
from edda.cli.demo.ledger import KILLED, Ledger, check, show_progress, show_result
from edda.cli.demo.processes import Places
from edda.errors import ConfigurationError
from edda.storage.connect import open_store
from edda.storage.contract import Storage

#: Seconds that the whole may take beside one for every ten orders; what has not happened then is a fault of the ledger.
_DEADLINE = 50.0


@dataclass(frozen=True)
class World:
    """What the demo is to be played on; nothing said: a fresh SQLite file and an embedded Kafka."""

    database_url: str | None = None
    kafka: str | None = None
    rabbitmq: str | None = None


@dataclass
class _Cast:
    """The processes, by part."""

    stack: AsyncExitStack
    places: Places
    playing: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    async def start(self, part: str) -> str:
        """Start it, or another one in its place; what it says of itself."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edda.cli.demo.processes", part, to_json(asdict(self.places)).decode()),
            stdout=asyncio.subprocess.PIPE,
        )
        self.stack.push_async_callback(_end, process)
        assert process.stdout is not None  # noqa: S101, asked for
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().split()
        if not line:
            msg = f"the demo's {part} did not start; its error is above"
            raise RuntimeError(msg)
        self.playing[part] = process
        return line[-1]

    async def kill(self, part: str) -> None:
        """``kill -9``; and another takes over."""
        process = self.playing[part]
        process.kill()
        await process.wait()
        await self.start(part)


async def run_demo(orders: int, world: World, *, as_json: bool) -> int:
    """Returns the exit code: 0 only if the ledger adds up."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="edda-demo-") as folder:
        ledger, faults = await perform(orders, world, Path(folder), console)
    if as_json:
        sys.stdout.write(to_json(ledger.as_dict(orders, faults), indent=2).decode() + "\n")
    else:
        show_result(console, ledger, orders, faults)
    return 1 if faults else 0


async def perform(orders: int, world: World, folder: Path, console: Console) -> tuple[Ledger, list[str]]:
    """The play, whole, with what it leaves in ``folder``; the ledger, and what in it does not add up."""
    url = world.database_url or f"sqlite:///{folder}/demo.db"
    sink_file = folder / "sink.jsonl"
    async with AsyncExitStack() as stack:
        store = open_store(url)
        stack.push_async_callback(store.close)
        await store.open()
        await store.migrate()
        await _refuse_a_used_database(store)
        cast = _Cast(stack, Places(url, "", "", "", "", ledger=str(sink_file), port=_free_port()))
        await _open_world(cast, world)
        for part in ("gateway", "worker", "relay"):
            await cast.start(part)
        ledger = Ledger(orders_via=broker_of(cast.places.orders_broker).name)
        started = time.monotonic()
        deadline = started + _DEADLINE + orders / 10
        with Live(console=console, refresh_per_second=8, transient=False) as live:
            sending = asyncio.create_task(
                send_everything(
                    orders,
                    ledger,
                    broker_of(cast.places.orders_broker),
                    cast.places.orders,
                    cast.places.port,
                )
            )
            stack.push_async_callback(_cancelled, sending)
            while time.monotonic() < deadline:
                ledger.look(await store.counts(), sink_file)
                live.update(show_progress(ledger, orders, time.monotonic() - started))
                if sending.done():
                    sending.result()
                if (victim := _victim(ledger, orders)) is not None:
                    ledger.killed[victim] = ledger.out
                    await cast.kill(victim)
                if sending.done() and ledger.finished(orders):
                    break
                await asyncio.sleep(0.1)
        ledger.look(await store.counts(), sink_file)
        ledger.seconds = time.monotonic() - started
        return ledger, await check(ledger, orders, store, sink_file)


async def _open_world(cast: _Cast, world: World) -> None:
    """Brokers, topics or queues of this play's own, and the sink."""
    play = uuid.uuid4().hex[:8]
    cast.places = replace(cast.places, orders=f"edda-demo-orders-{play}", paid=f"edda-demo-paid-{play}")
    given = [address for address in (world.kafka, world.rabbitmq) if address is not None]
    for address in given:
        await broker_of(address).prepare(cast.places.orders, cast.places.paid)
    brokers = given or [await cast.start("broker")]
    cast.places = replace(cast.places, orders_broker=brokers[0], paid_broker=brokers[-1])
    port = await cast.start("sink")
    cast.places = replace(cast.places, sink_url=f"http://127.0.0.1:{port}/")


def _victim(ledger: Ledger, orders: int) -> str | None:
    """Whose turn it is to die: one after the other, while there is work for each."""
    for number, part in enumerate(KILLED):
        if ledger.killed[part] is None:
            return part if ledger.out >= max(1, orders * (number + 1) // 4) else None
    return None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def _refuse_a_used_database(store: Storage) -> None:
    before = await store.counts()
    if before["instances"] or before["events"]:
        msg = (
            "edda demo: this database holds instances or events already, and the ledger counts all of them. Nothing "
            "was changed. Give an empty one, or leave --database-url away for a fresh SQLite file: edda demo"
        )
        raise ConfigurationError(msg)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 15)
        except TimeoutError:
            process.kill()
            await process.wait()
