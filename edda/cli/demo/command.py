"""The play: sink, gateway and worker are processes, the worker is killed in the middle, the ledger is checked."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from pydantic_core import from_json, to_json
from rich.console import Console
from rich.live import Live

from edda.cli.demo.ledger import Ledger, check, customer_of, show_progress, show_result
from edda.errors import ConfigurationError
from edda.storage.connect import open_store
from edda.storage.contract import Storage

#: Seconds that the whole may take; what has not happened by then is a fault of the ledger.
_DEADLINE = 50.0


@dataclass
class Part:
    """One of the demo's processes."""

    process: asyncio.subprocess.Process
    port: int = 0


@dataclass
class Play:
    """What has been sent so far."""

    orders: int
    ledger: Ledger = field(default_factory=Ledger)


async def run_demo(orders: int, database_url: str | None, *, as_json: bool) -> int:
    """Returns the exit code: 0 only if the ledger adds up."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="edda-demo-") as folder:
        ledger, faults = await perform(orders, database_url, Path(folder), console)
    if as_json:
        sys.stdout.write(to_json(ledger.as_dict(orders, faults), indent=2).decode() + "\n")
    else:
        show_result(console, ledger, orders, faults)
    return 1 if faults else 0


async def perform(
    orders: int, database_url: str | None, folder: Path, console: Console
) -> tuple[Ledger, list[str]]:
    """The play, whole, with what it leaves in ``folder``; the ledger, and what in it does not add up."""
    url = database_url or f"sqlite:///{folder}/demo.db"
    sink_file = folder / "sink.jsonl"
    async with AsyncExitStack() as stack:
        store = open_store(url)
        stack.push_async_callback(store.close)
        await store.open()
        await store.migrate()
        await _refuse_a_used_database(store)
        sink = await _spawn(stack, "sink", "--ledger", str(sink_file))
        gateway = await _spawn(stack, "gateway", "--database-url", url)
        worker = ("worker", "--database-url", url, "--sink-url", f"http://127.0.0.1:{sink.port}/")
        victim = await _spawn(stack, *worker)
        play = Play(orders)
        ledger = play.ledger
        started = time.monotonic()
        with Live(console=console, refresh_per_second=8, transient=False) as live:
            sending = asyncio.create_task(_send(play, gateway.port))
            stack.callback(sending.cancel)
            while time.monotonic() - started < _DEADLINE:
                ledger.look(await store.counts(), sink_file)
                live.update(show_progress(ledger, orders, time.monotonic() - started))
                if sending.done():
                    sending.result()
                if ledger.killed_after is None and ledger.out >= max(1, orders // 3):
                    victim.process.kill()
                    await victim.process.wait()
                    ledger.look(await store.counts(), sink_file)
                    ledger.killed_after = ledger.out
                    await _spawn(stack, *worker)
                if sending.done() and ledger.finished(orders):
                    break
                await asyncio.sleep(0.1)
        ledger.look(await store.counts(), sink_file)
        ledger.seconds = time.monotonic() - started
        return ledger, await check(ledger, orders, store, sink_file)


async def _refuse_a_used_database(store: Storage) -> None:
    before = await store.counts()
    if before["instances"] or before["events"]:
        msg = (
            "edda demo: this database holds instances or events already, and the ledger counts all of them. Nothing "
            "was changed. Give an empty one, or leave --database-url away for a fresh SQLite file: edda demo"
        )
        raise ConfigurationError(msg)


async def _spawn(stack: AsyncExitStack, *arguments: str) -> Part:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edda.cli.demo.processes", *arguments, stdout=asyncio.subprocess.PIPE
    )
    stack.push_async_callback(_end, process)
    assert process.stdout is not None  # noqa: S101, asked for
    line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().split()
    if not line:
        msg = f"the demo's {arguments[0]} did not start; its error is above"
        raise RuntimeError(msg)
    return Part(process, int(line[1]) if line[0] == "listening" else 0)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 15)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _send(play: Play, port: int) -> None:
    """Orders and payments in a shuffled order: some payments before their order, some twice."""
    dice = random.Random(7)  # noqa: S311, a play and no secret
    deliveries: list[tuple[float, str, str]] = []
    for number in range(play.orders):
        order_id = f"order-{number}"
        at = number * 0.02
        deliveries.append((at, "order.created", order_id))
        early = dice.random() < 0.3
        pays_at = max(0.0, at - dice.uniform(0.05, 0.3)) if early else at + dice.uniform(0.05, 0.5)
        deliveries.append((pays_at, "payment.completed", order_id))
        if dice.random() < 0.2 or number == 0:  # one at least is sent twice
            deliveries.append((pays_at + dice.uniform(0, 0.4), "payment.completed", order_id))
        if dice.random() < 0.1:
            deliveries.append((at + dice.uniform(0, 0.4), "order.created", order_id))
    deliveries.sort()
    begun = time.monotonic()
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=aiohttp.ClientTimeout(10)) as client,
        asyncio.TaskGroup() as group,
    ):
        for at, kind, order_id in deliveries:
            await asyncio.sleep(max(0.0, at - (time.monotonic() - begun)))
            group.create_task(_post(client, play, kind, order_id))


async def _post(client: aiohttp.ClientSession, play: Play, kind: str, order_id: str) -> None:
    customer = customer_of(order_id)
    data: Sequence[tuple[str, str]]
    if kind == "order.created":
        data = (("order_id", order_id), ("customer", customer))
    else:
        data = (("order_id", order_id), ("payment_id", f"payment-of-{order_id}"))
    headers = {
        "ce-specversion": "1.0",
        "ce-id": f"{kind}/{order_id}",
        "ce-source": "/demo/customers",
        "ce-type": kind,
        "content-type": "application/json",
    }
    while True:
        try:
            async with client.post("/events", headers=headers, data=to_json(dict(data))) as answer:
                status, told = answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(0.2)
            continue
        if status == 202:
            play.ledger.sent(kind, order_id, from_json(told)["results"][0]["result"])
            return
        if status < 500 and status != 429:
            msg = f"the gateway refused an event: {told}"
            raise RuntimeError(msg)
        await asyncio.sleep(0.2)
