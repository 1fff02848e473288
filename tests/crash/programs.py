"""The processes: gateway, worker, relay and sink, each a function that ``tests.support.processes.spawn`` runs.

Each takes one JSON object of settings, says on standard output when it is ready, and ends cleanly on SIGTERM.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import CoroutineType
from typing import Any

import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edda.app import EddaApp
from edda.engine.run import Run
from tests.crash import killpoints, workflows
from tests.crash.killpoints import Point, Points
from tests.crash.roads import ATTRIBUTES, Road
from tests.support.eventually import eventually
from tests.support.processes import Process, spawn

#: Short, so that a take-over takes two seconds.
LEASE_SECONDS = 2.0

#: The app whose workflows the gateway's events start.
SHOP = "shop"


def start(program: str, **settings: Any) -> Process:
    """One of these programs (or another module's, as ``module:function``) with its settings, as a process."""
    diary = settings.pop("diary", None)
    env = {} if diary is None else {"CRASH_DIARY": str(diary)}
    target = program if ":" in program else f"tests.crash.programs:{program}"
    return spawn(target, json.dumps(settings), env=env)


async def gateway(text: str) -> None:
    """Accepts events. It has no user code, because triggers are rows. Settings: url, fatal, patience, roads."""
    settings = _begin(text)
    app = EddaApp(
        "gateway",
        settings["url"],
        workflows=[],
        gateways=[Road(**road).gateway() for road in settings.get("roads", ())],
        work=False,
        lease_seconds=LEASE_SECONDS,
    )
    app.store = killpoints.watch(app.store)
    serving = asyncio.create_task(serve(app))
    if "patience" in settings:
        await eventually(lambda: app.ready or serving.done(), timeout=60)
        if app.ready:
            app.inbox._patience = settings["patience"]
    await serving


async def worker(text: str) -> None:
    """Runs orders. Settings: url, app, course, lease, fatal, signal, patience of a shutdown."""
    settings = _begin(text)
    app = EddaApp(
        settings.get("app", SHOP),
        settings["url"],
        workflows=[workflows.courses[settings.get("course", "full")].workflow],
        lease_seconds=settings.get("lease", LEASE_SECONDS),
        shutdown_timeout=settings.get("shutdown_timeout", 10.0),
    )
    app.store = killpoints.watch(app.store)
    await run_until_terminated(app)


async def slow_worker(text: str) -> None:
    """Starts ``orders`` workflows that wait for the file ``gate``, and works. Settings: url, lease, ..."""
    settings = _begin(text)
    os.environ["CRASH_GATE"] = settings["gate"]
    app = EddaApp(
        SHOP,
        settings["url"],
        workflows=[workflows.slow],
        lease_seconds=settings["lease"],
        shutdown_timeout=settings.get("shutdown_timeout", 30.0),
    )
    async with _working(app):
        for number in range(settings["orders"]):
            await workflows.slow.submit(order_id=f"slow/{number}")


async def crowd(text: str) -> None:
    """Starts as many slow workflows and as many waiters, says ``all there`` when they run and wait, and works.

    Settings: url, gate, slow, waiters, wake (so many waiters get their event), lease.
    """
    settings = _begin(text)
    os.environ["CRASH_GATE"] = settings["gate"]
    app = EddaApp(
        SHOP,
        settings["url"],
        workflows=[workflows.slow, workflows.waiter],
        lease_seconds=settings.get("lease", LEASE_SECONDS),
    )
    async with _working(app):
        for number in range(settings.get("slow", 0)):
            await workflows.slow.submit(order_id=f"slow/{number}")
        await park(settings.get("waiters", 0))
        if settings.get("slow"):
            await eventually(lambda: len(app.worker.runs) == settings["slow"], timeout=50)
        print("all there", flush=True)
        if settings.get("wake"):
            await app.deliver([workflows.go(number) for number in range(settings["wake"])])


async def park(count: int, first: int = 0, at_once: int = 200) -> None:
    """Start so many waiters; each is parked when its start returns."""
    for begin in range(first, first + count, at_once):
        async with asyncio.TaskGroup() as group:
            for number in range(begin, min(begin + at_once, first + count)):
                group.create_task(workflows.waiter.start(number=number))


async def parked(text: str) -> None:
    """Parks so many instances, and says each time what the process holds. Settings: url, few, many."""
    settings = _begin(text)
    app = EddaApp("parked", settings["url"], workflows=[workflows.waiter])
    async with _working(app):
        await park(settings["few"])
        print("few", json.dumps(census()), flush=True)
        await park(settings["many"] - settings["few"], first=settings["few"])
        print("many", json.dumps(census()), flush=True)


async def ready_again(text: str) -> None:
    """Starts where ``parked`` has been, and says what it has loaded; then one event, and again. Settings: url."""
    settings = _begin(text)
    app = EddaApp("parked", settings["url"], workflows=[workflows.waiter])
    app.store = killpoints.watch(app.store)
    async with _working(app):
        print("ready", json.dumps({**census(), "loads": killpoints.here.reached["load"]}), flush=True)
        await app.deliver(workflows.go(7))

        async def has_one_completed() -> bool:
            return (await app.store.counts()).get("instances.completed", 0) == 1

        await eventually(has_one_completed, timeout=30, pause=0.05)
        print("woken", json.dumps({**census(), "loads": killpoints.here.reached["load"]}), flush=True)


def census() -> dict[str, int]:
    """Tasks, coroutines and runs of this process, and its memory."""
    gc.collect()
    things = gc.get_objects()
    return {
        "tasks": len(asyncio.all_tasks()),
        "coroutines": sum(1 for thing in things if isinstance(thing, CoroutineType)),
        "runs": sum(1 for thing in things if isinstance(thing, Run)),
        "memory": psutil.Process().memory_info().rss,
    }


async def poisoned(text: str) -> None:
    """Runs what kills its process, among others. Settings: url, start."""
    settings = _begin(text)
    app = EddaApp(
        SHOP,
        settings["url"],
        workflows=[workflows.poison, workflows.waiter],
        lease_seconds=LEASE_SECONDS,
        max_recoveries=2,
    )
    async with _working(app):
        if settings["start"]:
            await park(5)
            await workflows.poison.submit()


async def blocker(text: str) -> None:
    """Runs workflows that block the event loop. Settings: url, orders (their ids), seconds, max_loop_block."""
    settings = _begin(text)
    app = EddaApp(SHOP, settings["url"], workflows=[workflows.blocking], lease_seconds=LEASE_SECONDS)
    app._options = replace(app._options, max_loop_block=settings["max_loop_block"])
    async with _working(app):
        for order_id in settings["orders"]:
            await workflows.blocking.submit(order_id=order_id, seconds=settings["seconds"])


async def relay(text: str) -> None:
    """Sends the outbox to the end of a road. Settings: url, road, fatal, publish_timeout."""
    settings = _begin(text)
    publisher = Road(**settings["road"]).publisher(settings.get("publish_timeout", LEASE_SECONDS / 2))
    app = EddaApp("relay", settings["url"], workflows=[], relays=[publisher], lease_seconds=LEASE_SECONDS)
    app.store = killpoints.watch(app.store)
    await run_until_terminated(app)


async def sink(text: str) -> None:
    """Writes down every event; answers when the line is in the file, and not while the file ``hold`` exists.

    Settings: ledger, hold, port.
    """
    settings = _begin(text)
    hold = Path(settings["hold"]) if "hold" in settings else None
    with Path(settings["ledger"]).open("ab", buffering=0) as lines:  # noqa: ASYNC230, this process does nothing else

        async def take(request: Request) -> Response:
            headers = request.headers
            line = {name: headers[f"ce-{name}"] for name in ATTRIBUTES}
            lines.write(json.dumps({**line, "data": (await request.body()).decode()}).encode() + b"\n")
            if hold is not None and hold.exists():
                print(f"holds {line['id']}", flush=True)
                await eventually(lambda: not hold.exists(), timeout=60)
            return Response(status_code=204)

        await serve(Starlette(routes=[Route("/", take, methods=["POST"])]), settings.get("port", 0))


async def run_until_terminated(app: EddaApp) -> None:
    """``ready`` on standard output, then work until SIGTERM."""
    async with _working(app):
        pass


@asynccontextmanager
async def _working(app: EddaApp) -> AsyncIterator[None]:
    """``ready`` on standard output, then what the block does, then work until SIGTERM; then ``stopping``."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with app:
        print("ready", flush=True)
        yield
        await stop.wait()
        print("stopping", flush=True)


async def serve(application: ASGIApp, port: int = 0) -> None:
    """``listening on <port>`` on standard output, then serve until SIGTERM."""
    config = uvicorn.Config(application, host="127.0.0.1", port=port, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started or serving.done(), timeout=30)
    if server.started:
        print(f"listening on {server.servers[0].sockets[0].getsockname()[1]}", flush=True)
    await serving


def port_of(process: Process) -> int:
    """Where a gateway or sink listens."""
    return int(process.wait_for_line(r"listening on (\d+)", timeout=60)[1])


def _begin(text: str) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(text)
    log_to_stdout()
    killpoints.watch_session_commits()
    if "fatal" in settings:
        number = signal.Signals[settings.get("signal", "SIGKILL")]
        killpoints.here = Points(Point.of(settings["fatal"]), number)
    return settings


class _WithFields(logging.Formatter):
    """An event and its fields on one line."""

    _known = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in self._known}
        return f"{super().format(record)} {fields}"


def log_to_stdout() -> None:
    """Warnings and worse, with their fields."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_WithFields("%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
