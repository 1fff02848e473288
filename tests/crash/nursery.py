"""A process that has dozens of children: each dies at another point of one order, and a second one takes over.

The children are forked, because importing everything takes longer than an order does. Each point has an app, a
destination and event types of its own ("shop"), so that nobody else does what this child should.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import gc
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import sqlalchemy as sa

from edda.app import EddaApp
from edda.cloudevent import CloudEvent
from edda.errors import InstanceExistsError
from edda.storage import schema
from edda.storage.connect import open_store
from edda.storage.contract import Storage
from edda.storage.mysql import store as mysql
from edda.storage.rows import WaitKind
from outbox_relays.http import HttpPublisher
from tests.crash import killpoints, workflows
from tests.crash.killpoints import Point, Points, say
from tests.crash.programs import LEASE_SECONDS, log_to_stdout
from tests.support.eventually import eventually

AMOUNT = 7

#: Seconds until a child that hangs says where, and dies; longer if it is going to be stopped for a while.
_PATIENCE = 50
_PATIENCE_WHEN_STOPPED = 250


def shop_of(point: str) -> str:
    """The app of one point."""
    return point.replace(".", "-").replace("_", "-")


def order_of(point: str) -> str:
    """The one order of that app."""
    return f"{shop_of(point)}/1"


def url_of(url: str, shop: str) -> str:
    """The database of that app: on SQLite a file of its own, since writers of one file wait for each other."""
    return url.replace(".db", f"-{shop}.db") if url.startswith("sqlite:") else url


def die_at_every_point(text: str) -> None:
    """Rehearse one order; then for each point reached have a process end there, and another one take over.

    Settings: url, sink, signal (SIGKILL or SIGSTOP), only (a pattern of points), limit (children at once).
    Says ``died <point>`` for each that got its signal, ``missed <point>`` for each that ended without reaching it,
    ``FAILED <point>`` for what should not be, and ``all ended``.
    """
    settings = json.loads(text)
    number = signal.Signals[settings["signal"]]
    only = re.compile(settings.get("only", ""))
    _import_everything(settings["url"])
    points = [point for point in _rehearse(settings) if only.search(point)]
    _Play(settings, points, number).run()
    say("all ended")


class _Play:
    def __init__(self, settings: dict[str, Any], points: list[str], number: signal.Signals) -> None:
        self._settings = settings
        self._points = points
        self._signal = number
        self._limit = settings.get("limit", 10)
        self._first: dict[int, str] = {}
        self._second: dict[int, str] = {}
        self._stopped: dict[str, int] = {}
        self._woken: dict[int, str] = {}

    def run(self) -> None:
        waiting = self._points[::-1]
        while waiting or self._first or self._second or self._woken:
            while waiting and len(self._first) + len(self._second) < self._limit:
                point = waiting.pop()
                self._first[self._fork(point, fatal=True)] = point
            self._ended(*os.waitpid(-1, os.WUNTRACED))

    def _fork(self, point: str, *, fatal: bool) -> int:
        points = Points(Point.of(point) if fatal else None, self._signal)
        stops = fatal and self._signal is signal.SIGSTOP
        return fork(
            lambda: _live(self._settings, shop_of(point), points),
            patience=_PATIENCE_WHEN_STOPPED if stops else _PATIENCE,
        )

    def _ended(self, pid: int, status: int) -> None:
        if pid in self._first:
            point = self._first.pop(pid)
            if os.WIFSTOPPED(status):
                self._stopped[point] = pid
            died = os.WIFSTOPPED(status) or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
            how = "died" if died else "missed" if status == 0 else "FAILED"
            say(f"{how} {point}" + (f" first, status {status}" if how == "FAILED" else ""))
            if died:
                self._second[self._fork(point, fatal=False)] = point
        elif pid in self._second:
            point = self._second.pop(pid)
            self._tell_failure(point, "second", status)
            if point in self._stopped:
                woken = self._stopped.pop(point)
                os.kill(woken, signal.SIGCONT)
                self._woken[woken] = point
        else:
            self._tell_failure(self._woken.pop(pid), "woken", status)

    @staticmethod
    def _tell_failure(point: str, which: str, status: int) -> None:
        if status != 0:
            say(f"FAILED {point} {which}, status {status}")


def _rehearse(settings: dict[str, Any]) -> list[str]:
    """Every point of one order that nobody dies in."""
    reader, writer = os.pipe()

    def rehearse() -> None:
        points = Points()
        _live(settings, shop_of(REHEARSAL), points)
        os.write(writer, json.dumps([str(point) for point in points.all()]).encode())

    pid = fork(rehearse)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        points: list[str] = json.loads(stream.read() or b"[]")
    _, status = os.waitpid(pid, 0)
    if status != 0:
        say(f"FAILED rehearsal, status {status}")
    return points


REHEARSAL = "rehearsal.1.before"


def _import_everything(url: str) -> None:
    """What is imported on first use is imported here, once; a child then costs a tenth."""
    import httpx  # noqa: F401, by the publisher

    open_store(url)
    gc.collect()
    gc.freeze()


def fork(work: Callable[[], None], *, patience: float = _PATIENCE) -> int:
    """A child that does the work and ends; its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid != 0:
        return pid
    status = 1
    try:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        faulthandler.dump_traceback_later(patience, exit=True)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _live(settings: dict[str, Any], shop: str, points: Points) -> None:
    log_to_stdout()
    killpoints.here = points
    killpoints.watch_session_commits()
    mysql.MIN_WAIT_TIMEOUT = 1  # type: ignore[attr-defined]  # of those that are stopped there are many at a time
    asyncio.run(_fulfil_one_order(url_of(settings["url"], shop), settings["sink"], shop))


async def _fulfil_one_order(url: str, sink: str, shop: str) -> None:
    """From the start to the last confirm. Whatever of it was done already is not done again."""
    order_id = f"{shop}/1"
    publisher = HttpPublisher(sink, destination=shop, publish_timeout=LEASE_SECONDS / 2)
    app = EddaApp(
        shop, url, workflows=[workflows.order], relays=[publisher], lease_seconds=LEASE_SECONDS, pool_size=2
    )
    raw = app.store
    app.store = killpoints.watch(raw)
    async with app:
        if raw.dialect == "sqlite":
            async with raw.engine().begin() as connection:
                await connection.run_sync(workflows.metadata.create_all)
        try:
            start = workflows.order.options(id=order_id)
            handle = await start.submit(order_id=order_id, customer="c")
        except InstanceExistsError:
            handle = app.handle(order_id)

        async def has_come_to_its_wait() -> bool:
            row = await raw.get_instance(order_id)
            return row is not None and (WaitKind.EVENT in row.wait_kinds or row.ended_at is not None)

        async def is_all_out() -> bool:
            rows = (
                sa.select(sa.func.count())
                .select_from(schema.outbox)
                .where(schema.outbox.c.destination == shop)
            )
            async with raw.engine().connect() as connection:
                return await connection.scalar(rows) == 0

        async def is_delivered() -> bool:
            await app.deliver(payment(order_id, AMOUNT))
            return True

        async def fulfil() -> None:
            await _until(raw, has_come_to_its_wait)
            await _until(raw, is_delivered)
            await handle.result()
            await _until(raw, is_all_out)

        try:
            await _within(_PATIENCE - 10, fulfil())
        except TimeoutError:
            await _describe(app, raw)
            raise


async def _within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Like ``asyncio.timeout``, but the time in which the process is stopped does not count."""
    task = asyncio.create_task(work)
    for _ in range(int(seconds * 10)):
        done, _ = await asyncio.wait({task}, timeout=0.1)
        if done:
            return await task
    task.cancel()
    raise TimeoutError


async def _until(store: Storage, question: Callable[[], Awaitable[bool]]) -> None:
    """Ask again until it is so, also where the database did not answer: a process that was stopped has lost it."""

    async def asked() -> bool:
        try:
            return await question()
        except Exception as error:
            if not store.is_transient(error):
                raise
            print(f"{os.getpid()} asks again: {error}")
            return False

    await eventually(asked, timeout=_PATIENCE_WHEN_STOPPED, pause=0.05)


async def _describe(app: EddaApp, store: Storage) -> None:
    """Everything that may say why it goes on no more."""
    async with store.engine().connect() as connection:
        for table in (schema.instances, schema.waits, schema.outbox, schema.workers, schema.relay_leases):
            for row in await connection.execute(sa.select(table)):
                print(f"{os.getpid()} {table.name}: {dict(row._mapping)}")
    print(f"{os.getpid()} is {app.worker.owner}, runs {list(app.worker.runs)}")
    for task in asyncio.all_tasks():
        task.print_stack(limit=4, file=sys.stdout)


def payment(order_id: str, amount: int) -> CloudEvent:
    """The event that an order waits for."""
    data = json.dumps({"order_id": order_id, "amount": amount}).encode()
    return CloudEvent(
        f"payment of {order_id}", "/bank", workflows.payment_type(order_id), data, "application/json"
    )


def start_at_once(text: str) -> None:
    """So many processes, each with an app of its own, initialise at the same moment and run one workflow each.

    Settings: url, processes. Says ``completed`` for each.
    """
    settings = json.loads(text)
    _import_everything(settings["url"])
    reader, writer = os.pipe()

    def begin_with_the_others(number: int) -> None:
        log_to_stdout()
        os.close(writer)
        os.read(reader, 1)  # ends when the parent closes its end: for all at once
        asyncio.run(_run_one(settings["url"], f"app-{number}"))

    children = [fork(partial(begin_with_the_others, number)) for number in range(settings["processes"])]
    os.close(writer)
    _wait_for(children)


def migrate_in_small_steps(text: str) -> None:
    """Process after process migrates the database and is killed at its first, second, third ... statement.

    Settings: url. Says ``completed`` when one comes to the end and has run a workflow.
    """
    settings = json.loads(text)
    _import_everything(settings["url"])
    for number in range(1, 500):
        pid = fork(partial(_migrate_and_die, settings["url"], number))
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            say(f"FAILED at statement {number}, status {status}")
            return


def _migrate_and_die(url: str, number: int) -> None:
    log_to_stdout()
    killpoints.here = Points(Point("statement", number, "before"))

    def count(*_: object) -> None:
        killpoints.here.reach("statement", "before")

    async def migrate() -> None:
        store = open_store(url)
        await store.open()
        sa.event.listen(sa.Engine, "before_cursor_execute", count)
        await store.migrate()
        sa.event.remove(sa.Engine, "before_cursor_execute", count)
        await store.close()

    asyncio.run(migrate())
    asyncio.run(_run_one(url, "app"))


async def _run_one(url: str, app_name: str) -> None:
    app = EddaApp(app_name, url, workflows=[workflows.small], lease_seconds=LEASE_SECONDS, pool_size=2)
    async with app:
        handle = await workflows.small.submit()
        assert await handle.result(timeout=_PATIENCE) == "done"
        say("completed")


def _wait_for(children: list[int]) -> None:
    for child in children:
        _, status = os.waitpid(child, 0)
        if status != 0:
            say(f"FAILED {child}, status {status}")
