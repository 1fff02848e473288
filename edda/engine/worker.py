"""Who runs what in this process: claims, owned runs, leases, timers, and the news that make it look again.

Nothing polls on the hot path: commits of this process hand over in memory, other processes' commits come as hints where
the database has them (PostgreSQL), by an adaptive poll elsewhere; the housekeeping statement is the safety net.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic_core import from_json

from edda.attributes import is_json_type
from edda.cloudevent import CloudEvent
from edda.engine.definitions import Definitions
from edda.engine.host import Released
from edda.engine.journal import Journal
from edda.engine.lease import Lease
from edda.engine.news import News
from edda.engine.run import Run
from edda.engine.tasks import Tasks
from edda.engine.telling import Telling
from edda.engine.timers import Timers
from edda.errors import (
    EddaError,
    InstanceExistsError,
    OwnershipLostError,
    StorageError,
    StorageUnavailableError,
)
from edda.retry import DEFAULT_RETRY_POLICY, RetryPolicy
from edda.storage.contract import Storage
from edda.storage.rows import (
    ENDED,
    Beat,
    ClaimedInstance,
    EventResult,
    NewInstance,
    OutboxMessage,
    Shape,
    Turn,
)

log = logging.getLogger("edda.engine")

_CLAIM_BATCH = 100


class Shapes(Protocol):
    """Shapes as the inbox registers them."""

    def cached(self, pattern: str, paths: tuple[str, ...]) -> Shape | None:
        """A shape that is registered already."""
        ...

    async def ensure(self, pattern: str, paths: tuple[str, ...]) -> Shape:
        """Register it."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker works. Durations are seconds."""

    lease_seconds: float = 30.0
    max_loop_block: float = 60.0
    max_runs: int = 1_000
    max_threads: int = 32
    max_recoveries: int = 20
    retry_park_after: float = 10.0
    strict_arguments: bool = False
    shutdown_timeout: float = 20.0
    default_policy: RetryPolicy = DEFAULT_RETRY_POLICY
    hooks: object | None = None  # see edda/hooks.py


class TooManyRecoveriesError(EddaError):
    """The instance's worker died again and again while it ran; it is dead-lettered."""

    code = "EDDA232"


class Worker:
    """Owns and runs instances of one app. One that is not started claims nothing: it serves clients and relays."""

    def __init__(
        self,
        store: Storage,
        app: str,
        definitions: Definitions,
        shapes: Shapes,
        options: WorkerOptions,
        news: News,
        deliver: Callable[[Sequence[CloudEvent]], Awaitable[list[EventResult]]],
        on_outbox: Callable[[frozenset[str] | None], None] = lambda _: None,
        destinations: Callable[[str], list[str]] = lambda _: ["default"],
    ) -> None:
        self.store = store
        self.app = app
        self.options = options
        self.loop = asyncio.get_running_loop()
        self.journal = Journal(store)
        self.default_policy = options.default_policy
        self.strict_arguments = options.strict_arguments
        self.retry_park_after = options.retry_park_after
        self.stopping = False
        self.hooks = options.hooks
        self._hook_tasks: set[asyncio.Task[None]] = set()
        self._telling = self.telling()
        self.owner = self._new_owner()
        self.runs: dict[str, Run] = {}

        self._definitions = definitions
        self._shapes = shapes
        self._on_outbox = on_outbox
        self.destinations = destinations
        self.deliver = deliver
        self._starters: dict[str, asyncio.Future[Released]] = {}
        self._watchers: dict[str, list[asyncio.Future[None]]] = {}
        self._timers = Timers(self.now_us, lambda: self._tasks.spawn(self._fire_timers()))
        self._threads = ThreadPoolExecutor(options.max_threads, thread_name_prefix="edda-activity")
        self._lease: Lease | None = None
        self._tasks = Tasks()
        self._news = news
        news.on_runnable = self.kick
        news.on_cancel = self.look_for_cancels
        news.on_beat = self._look
        self._wake = asyncio.Event()
        self._saturated = False
        self._others = False  # other workers were alive at the last beat
        self._to_load: dict[Run, None] = {}
        self._now = (0, 0.0)
        self._expiry_look: asyncio.TimerHandle | None = None
        self._looks_for_orphans = False
        self._late_looks = 0
        self._marking = False
        self._cancels_looked_for = False
        self._empty = asyncio.Event()

    def _new_owner(self) -> str:
        # New per process start (and after being declared dead): an old id must never come back to life.
        return f"{self.app[:32]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Register, and begin to claim."""
        self.saw_now(await self.store.now())
        await self._take_office()
        self._tasks.spawn(self._claim_for_ever())
        self.kick()

    async def _take_office(self) -> None:
        await self.store.register_worker(self.owner, self.app, int(self.options.lease_seconds * 1_000_000))
        self._lease = Lease(
            self.store,
            self.owner,
            self.app,
            self.options.lease_seconds,
            self.options.max_loop_block,
            self._on_beat,
        )
        self._lease.start()

    async def stop(self) -> None:
        """Clean shutdown: claim no more, let turns finish within the deadline, give the leases back at once."""
        self.stopping = True
        self._wake.set()
        for run in list(self.runs.values()):
            self.loop.call_soon(run.wake)
        deadline = self.loop.time() + self.options.shutdown_timeout
        while self.runs and self.loop.time() < deadline:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), deadline - self.loop.time())
            except TimeoutError:
                break
        if self.runs:
            log.warning("shutdown_deadline", extra={"runs": len(self.runs)})
        if self._hook_tasks:
            await asyncio.wait(self._hook_tasks, timeout=max(0.0, deadline - self.loop.time()))
            for task in list(self._hook_tasks):
                task.cancel()
        self.journal.close()
        for run in list(self.runs.values()):
            run.abandon()
        if self._lease is not None:
            await self._lease.stop()
        await self._tasks.cancel()
        self._timers.close()
        if self._expiry_look is not None:
            self._expiry_look.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        try:
            await self.store.retire_worker(self.owner)
            await self.store.notify([f"run:{self.app}"])
        except StorageError as error:
            log.warning("worker_not_retired", extra={"worker": self.owner, "error": str(error)})

    # ------------------------------------------------------------------ starting

    async def start_inline(self, new: NewInstance, *, wait: bool) -> Released | None:
        """Insert the instance as owned and run it here. With ``wait``: until it ends, parks or is lost."""
        if new.id in self.runs:
            # The database would take it for the same start, sent again.
            return Released(
                None, InstanceExistsError(f"instance {new.id!r} runs already; nothing was started")
            )
        run = Run(self, self._definitions.of(new.workflow, new.version), new.id, fence=1)
        released: asyncio.Future[Released] = self.loop.create_future()
        self._starters[new.id] = released
        self.runs[new.id] = run
        born = run.born(self.loop)
        self.loop.call_soon(run.begin_new, new)
        if not wait:
            waiting: list[asyncio.Future[Any]] = [released, born]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not released.done():
                self._starters.pop(new.id, None)
                return None
            return released.result()
        return await asyncio.shield(released)

    @property
    def full(self) -> bool:
        """Whether it owns as much as it may; then new work is left to whoever claims it."""
        return self.stopping or len(self.runs) >= self.options.max_runs

    def watch(self, instance_id: str) -> asyncio.Future[None]:
        """A future that ends when this process releases the instance (a hint to look at its row)."""
        future: asyncio.Future[None] = self.loop.create_future()
        self._watchers.setdefault(instance_id, []).append(future)
        return future

    def unwatch(self, instance_id: str, future: asyncio.Future[None]) -> None:
        """Forget a watcher."""
        watchers = self._watchers.get(instance_id, [])
        if future in watchers:
            watchers.remove(future)
        if not watchers:
            self._watchers.pop(instance_id, None)

    # ------------------------------------------------------------------ what a run asks of its host

    def now_us(self) -> int:
        """The database's clock as last seen, plus what has passed since. Never ahead of it but for drift."""
        seen, at = self._now
        return seen + int((time.monotonic() - at) * 1_000_000)

    def saw_now(self, now_us: int) -> None:
        """An answer carried the database's time."""
        if now_us >= self.now_us() - 50_000:
            self._now = (now_us, time.monotonic())
        elif now_us > 0 and self._now[0] - now_us > 5_000_000:
            self._now = (now_us, time.monotonic())  # the database's clock was set back

    def known_shape(self, pattern: str, paths: tuple[str, ...]) -> Shape | None:
        """A shape that is registered already."""
        return self._shapes.cached(pattern, paths)

    async def ensure_shape(self, pattern: str, paths: tuple[str, ...]) -> Shape:
        """Register a shape; waits for the database as long as it takes."""
        shape: Shape = await _persist(lambda: self._shapes.ensure(pattern, paths))
        return shape

    def load_soon(self, run: Run) -> None:
        """Read the run's waits with those of the others that ask in the same tick."""
        self._to_load[run] = None
        if len(self._to_load) == 1:
            self.loop.call_soon(lambda: self._tasks.spawn(self._load()))

    async def _load(self) -> None:
        runs, self._to_load = list(self._to_load), {}
        if not runs:
            return
        loaded = await _persist(lambda: self.store.load([run.id for run in runs], history=False))
        for run in runs:
            self.loop.call_soon(run.loaded, loaded.get(run.id))

    def timer(self, deadline_us: int) -> None:
        """A deadline that this process has registered."""
        self._timers.add(deadline_us)

    def committed(self, turn: Turn) -> None:
        """A turn is durable: pass on what it left for others."""
        if turn.outbox:
            if self._telling is not None:
                # One message per destination, and one event.
                for sent in {message.event_id: message for message in turn.outbox}.values():
                    self._telling.tell("on_event_sent", sent.type, sent.source, _data_of(sent))
            self._on_outbox(frozenset(message.destination for message in turn.outbox))
        if turn.children or turn.successor is not None:
            self.woken({self.app, *(child.app for child in turn.children)})

    def telling(self) -> Telling | None:
        """What calls the app's hooks for one run; None where the app has none."""
        return None if self.hooks is None else Telling(self.hooks, self.loop, self._hook_tasks)

    def current_version(self, workflow: str) -> str | None:
        """On which version a new run is started."""
        return self._definitions.current_version(workflow)

    def run_in_thread(self, func: Callable[[], Any]) -> asyncio.Future[Any]:
        """For sync activities."""
        return self.loop.run_in_executor(self._threads, func)

    def released(self, run: Run, how: Released) -> None:
        """A run has left memory."""
        if self.runs.get(run.id) is run:
            del self.runs[run.id]
        starter = self._starters.pop(run.id, None)
        if how.successor is not None and how.successor.owner == self.owner:
            self._go_on(how.successor, how.at_us, starter)
        elif starter is not None and not starter.done():
            starter.set_result(how)
        if how.state is None or how.state in ENDED:
            for watcher in self._watchers.pop(run.id, ()):
                if not watcher.done():
                    watcher.set_result(None)
        if isinstance(how.error, OwnershipLostError | InstanceExistsError):
            # Nearly always another worker's now. If the database says it is ours after all, it is run again from there
            # (a start that is refused: the instance may have been claimed here meanwhile, and passed over as running).
            self._expect_orphans()
        if self._saturated:
            self._wake.set()
        if not self.runs:
            self._empty.set()

    def _go_on(self, new: NewInstance, born_us: int, starter: asyncio.Future[Released] | None) -> None:
        definition = self._definitions.of(new.workflow, new.version)
        run = self.runs[new.id] = Run(self, definition, new.id, fence=1)
        if starter is not None:
            self._starters[new.id] = starter
        self.loop.call_soon(run.begin_successor, new, born_us)

    # ------------------------------------------------------------------ news

    def kick(self) -> None:
        """Something became runnable, or a wait of an owned run became due: look."""
        self._news.active()
        self._wake.set()

    def cancel_requested(self, app: str, instance_id: str) -> None:
        """A commit of this process asks whoever owns the instance to cancel it."""
        self.woken({app})
        run = self.runs.get(instance_id)
        if run is not None:
            run.load()
        else:
            self._news.cancel(app)

    def look_for_cancels(self) -> None:
        """Somebody wants an instance cancelled that may be running here."""
        if self.runs and not self._cancels_looked_for:
            self._cancels_looked_for = True
            self._tasks.spawn(self._look_for_cancels())

    async def _look_for_cancels(self) -> None:
        try:
            for instance_id in await self.store.cancelling(self.owner):
                if instance_id in self.runs:
                    self.runs[instance_id].load()
        except StorageUnavailableError as error:
            log.debug("cancels_not_looked_for", extra={"error": str(error)})  # the next beat asks again
        finally:
            self._cancels_looked_for = False

    def woken(self, apps: set[str] | frozenset[str]) -> None:
        """A commit of this process made instances of these apps runnable, or left news for whoever owns them."""
        if self.app in apps:
            self.kick()
        # Others of this app may have to work in our place, or own what has the news.
        alone = self._lease is not None and not self._saturated and not self._others
        for app in apps - {self.app} if alone else apps:
            self._news.runnable(app)

    def _on_beat(self, beat: Beat) -> None:
        if self.stopping:
            return
        if not beat.alive:
            self._tasks.spawn(self._declared_dead())
            return
        self._look(beat)
        self.look_for_cancels()
        if self._late_looks:
            self._late_looks -= 1
            self._looks_for_orphans = True
            self._wake.set()
        self._others = beat.foreign_expiry_us is not None
        if beat.outbox:
            self._news.on_outbox()
        if beat.unmarked and not self._marking:
            self._marking = True
            self._tasks.spawn(self._mark_what_is_left())
        if self._expiry_look is not None:
            self._expiry_look.cancel()
            self._expiry_look = None
        if beat.foreign_expiry_us is not None:
            # The one extra look: half a second behind the earliest lease of another worker.
            delay = max(0.0, (beat.foreign_expiry_us - beat.now_us) / 1_000_000) + 0.5
            self._expiry_look = self.loop.call_later(
                delay, lambda: self._tasks.spawn(self._requeue_expired())
            )

    def _look(self, beat: Beat) -> None:
        self.saw_now(beat.now_us)
        if beat.next_deadline_us is not None:
            self._timers.add(beat.next_deadline_us)
        if beat.next_available_us is not None:
            delay = max(0.0, (beat.next_available_us - beat.now_us) / 1_000_000)
            if delay <= self.options.lease_seconds:
                self.loop.call_later(delay + 0.001, self._wake.set)
        if beat.runnable or any(run.has_waits for run in self.runs.values()):
            self._wake.set()

    async def _declared_dead(self) -> None:
        log.error("worker_declared_dead", extra={"worker": self.owner, "runs": len(self.runs)})
        for run in list(self.runs.values()):
            run.lose()
        if self._lease is not None:
            await self._lease.stop()
        self.owner = self._new_owner()
        await _persist(self._take_office)
        self.kick()

    async def _requeue_expired(self) -> None:
        while True:
            apps, requeued = await _persist(self.store.requeue_expired)
            if requeued:
                log.warning("instances_requeued", extra={"count": requeued})
            self.woken(apps)
            if requeued < 1_000:
                return

    async def _fire_timers(self) -> None:
        while True:
            apps, fired = await _persist(self.store.fire_timers)
            self.woken(apps)
            if fired < 1_000:
                return

    async def _mark_what_is_left(self) -> None:
        """The waits beyond the first thousand of an event, of whatever app: who accepted it is gone, or slow."""
        try:
            while hashes := await _persist(self.store.left_unmarked):
                log.warning("waits_left_unmarked", extra={"hashes": len(hashes)})
                more = True
                while more:
                    apps, more = await _persist(functools.partial(self.store.mark_due, hashes))
                    self.woken(apps)
        finally:
            self._marking = False

    # ------------------------------------------------------------------ claiming

    async def _claim_for_ever(self) -> None:
        pause = 0.05
        while not self.stopping:
            await self._wake.wait()
            self._wake.clear()
            for run in list(self.runs.values()):
                if run.has_waits:
                    run.load()
            try:
                if self._looks_for_orphans:
                    self._looks_for_orphans = False
                    await self._adopt_orphans()
                await self._claim_while_there_is_work()
                pause = 0.05
            except StorageUnavailableError as error:
                log.warning("claim_waits_for_database", extra={"error": str(error)})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
                self._expect_orphans()
            except Exception:  # whatever it is, a worker that claims no more must not keep its lease
                log.exception("claim_failed", extra={"app": self.app})
                await asyncio.sleep(1.0)
                self._expect_orphans()

    def _expect_orphans(self) -> None:
        """An answer was lost: what it said may be found in the database, or come true there a little later."""
        self._looks_for_orphans = True
        self._late_looks = 2
        self._wake.set()

    async def _claim_while_there_is_work(self) -> None:
        names, versions = self._definitions.names, self._definitions.versions
        while not self.stopping and names:
            room = self.options.max_runs - len(self.runs)
            self._saturated = room <= 0
            if room <= 0:
                return
            limit = min(room, _CLAIM_BATCH)
            claimed = await self.store.claim(self.app, names, self.owner, limit, versions)
            if claimed:
                await self._take(claimed)
            if len(claimed) < limit:
                return

    async def _take(self, claimed: list[ClaimedInstance]) -> None:
        loaded = await _persist(lambda: self.store.load([instance.id for instance in claimed]))
        for instance in claimed:
            if instance.id not in self.runs and instance.id in loaded:
                self._begin(instance, loaded[instance.id])

    def _begin(self, instance: ClaimedInstance, loaded: Any) -> None:
        run = Run.of(self, self._definitions.of(instance.workflow, instance.version), instance)
        self.runs[instance.id] = run
        if instance.recoveries > self.options.max_recoveries:
            run.signals = loaded.signals
            reason = TooManyRecoveriesError(
                f"instance {instance.id!r}: its worker died {instance.recoveries} times while it ran, without one "
                "turn committed in between. It is dead-lettered; look at what its next activity does to the process."
            )
            self.loop.call_soon(run.doom, reason)
        else:
            self.loop.call_soon(run.begin_claimed, loaded)

    async def _adopt_orphans(self) -> None:
        """What the database says is ours and nobody here runs: a claim, or a commit, whose answer was lost.

        Asked twice, because a run may end between the database's answer and our look at it.
        """
        orphans: set[str] | None = None
        found: dict[str, ClaimedInstance] = {}
        for _ in range(2):
            running = set(self.runs)
            found = {instance.id: instance for instance in await self.store.owned(self.owner)}
            strangers = found.keys() - running - self.runs.keys()
            orphans = strangers if orphans is None else orphans & strangers
            if not orphans:
                return
        log.warning("orphans_adopted", extra={"count": len(orphans or ())})
        await self._take([found[one] for one in sorted(orphans or ())])


def _data_of(sent: OutboxMessage) -> Any:
    return from_json(sent.data) if sent.data is not None and is_json_type(sent.content_type) else sent.data


async def _persist(call: Callable[[], Awaitable[Any]]) -> Any:
    """Call until the database answers; every transaction may be sent again."""
    pause = 0.05
    while True:
        try:
            return await call()
        except StorageUnavailableError as error:
            log.warning("waiting_for_database", extra={"error": str(error)})
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)
