"""Retention: removes what is over, chunk by chunk, one process of a database at a time.

Off the way of the work: every ten minutes a process asks whether it is time, in one transaction. The one that finds
that it is goes through what is old, and rests after each chunk for several times as long as the chunk took. What is
never removed is said in ``contract.Storage.sweep``, and in docs/explanation/guarantees.md for people.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from edda.errors import StorageError
from edda.storage.contract import Storage
from edda.storage.rows import Chunk, Expiring, Keeps, Sweep

log = logging.getLogger("edda.inbox")

#: Between the beginnings of two sweeps of a database, and how long after its start a process asks first.
EVERY_SECONDS = 600.0
FIRST_SECONDS = 60.0

#: How long a sweep that died keeps others from it.
LEASE_US = 300_000_000

#: Pause after a chunk, in times that the chunk took: in the beginning, and when so many chunks show that there is much
#: to be done, lest more comes than goes.
_REST, _SHORT_REST, _MANY_CHUNKS = 4.0, 1.0, 100

#: Longest pause in seconds: far below what keeps others from sweeping.
_LONGEST_REST = 60.0

#: For this long the database knows of sweeps that are over, if identities are kept for ever.
_FORGET_US = 14 * 86_400_000_000


@dataclass(slots=True)
class Report:
    """What a sweep removed, or with ``dry_run`` would; ``kept``: what is as old, and something live refers to it."""

    removed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, Expiring), 0))
    kept: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, Expiring), 0))
    postponed: bool = False  # events wait until there is less to be done
    lost: bool = False  # another process took over, because this one stood still


def in_force(keeps: Mapping[str, Keeps]) -> Keeps:
    """What a database keeps, that is what the most careful of its apps says. Each one's instances are its own."""

    def longest(name: str) -> int | None:
        times = [getattr(one, name) for one in keeps.values()]
        return None if not times or None in times else max(times)

    return Keeps(longest("events"), longest("identities"), None, longest("dead_letters"))


def chunks_of(keeps: Mapping[str, Keeps], now: int) -> list[Chunk]:
    """The first chunk of everything that is not kept for ever. Events before identities, which stay with them."""
    all_keep = in_force(keeps)
    times = {
        Expiring.EVENTS: all_keep.events,
        Expiring.IDENTITIES: all_keep.identities,
        Expiring.LETTERS: all_keep.dead_letters,
        Expiring.DEAD_ROWS: all_keep.dead_letters,
    }
    found = [Chunk(what, now - time) for what, time in times.items() if time is not None]
    apps = tuple((app, now - one.instances) for app, one in keeps.items() if one.instances is not None)
    return [*found, Chunk(Expiring.INSTANCES, 0, apps=apps)] if apps else found


async def sweep_once(
    store: Storage, *, every_seconds: float = 0.0, dry_run: bool = False, rests: bool = False
) -> Report | None:
    """One sweep; None: it is not time, or another process is at it. Raises StorageError; what is done is done.

    ``rests``: others have work for the database, too.
    """
    owner = f"sweep-{uuid.uuid4().hex}"
    sweep: Sweep | None = None
    if not dry_run:
        sweep = await store.begin_sweep(owner, LEASE_US, int(every_seconds * 1_000_000))
        if sweep is None:
            return None
    keeps = await store.retention()
    report = Report()
    for first in chunks_of(keeps, await store.now()):
        await _walk(store, sweep, replace(first, dry_run=dry_run), report, rests=rests)
        if report.lost:
            return report
    if sweep is not None:
        await store.end_sweep(sweep, in_force(keeps).identities or _FORGET_US)
    return report


async def _walk(store: Storage, sweep: Sweep | None, chunk: Chunk, report: Report, *, rests: bool) -> None:
    """Chunk behind chunk, to the end of what is old."""
    clock = asyncio.get_running_loop().time
    for number in itertools.count():
        began = clock()
        swept = await store.sweep(sweep, chunk, LEASE_US)
        if swept is None:
            report.lost = True
            return
        report.removed[chunk.what] += swept.removed
        report.kept[chunk.what] += swept.kept
        report.postponed = report.postponed or swept.postponed
        if swept.removed and chunk.what is Expiring.DEAD_ROWS and not chunk.dry_run:
            await store.notify(["outbox"])  # what was parked behind them flows again
        if swept.after is None:
            return
        chunk = replace(chunk, after=swept.after)
        if rests:
            times = _REST if number < _MANY_CHUNKS else _SHORT_REST
            await asyncio.sleep(min(_LONGEST_REST, times * (clock() - began)))


class Sweeper:
    """Sweeps from time to time, if no other process does."""

    def __init__(self, store: Storage, on_outbox: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._on_outbox = on_outbox
        self._task: asyncio.Task[None] | None = None

    async def declare(self, app: str, keeps: Keeps) -> None:
        """Say what the app keeps from now on."""
        if (await self._store.retention()).get(app) != keeps:
            await self._store.declare_retention(app, keeps)

    def start(self) -> None:
        """Begin to ask whether it is time."""
        self._task = asyncio.get_running_loop().create_task(self._sweep_for_ever())

    async def stop(self) -> None:
        """In the middle, if need be: each chunk is a transaction, and another process goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _sweep_for_ever(self) -> None:
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(FIRST_SECONDS)
        while True:
            began = clock()
            try:
                report = await sweep_once(self._store, every_seconds=0.9 * EVERY_SECONDS, rests=True)
                if report is not None:
                    self._tell(report)
            except StorageError as error:
                log.warning("sweep_failed", extra={"error": str(error)})
            except Exception:  # whatever it is, a process that never sweeps again must not be silent about it
                log.exception("sweep_failed")
            await asyncio.sleep(max(1.0, began + EVERY_SECONDS - clock()))

    def _tell(self, report: Report) -> None:
        removed = {name: count for name, count in report.removed.items() if count}
        if removed:
            log.info("swept", extra={"removed": removed, "kept": report.kept})
        if Expiring.DEAD_ROWS in removed:
            self._on_outbox()
        if report.postponed:
            log.warning("events_kept: too much work has piled up to see what it may still receive")
        if report.lost:
            log.warning("sweep_lost: this process stood still, and another took over")
