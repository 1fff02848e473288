"""The lease of a worker process.

Renewed from a thread, so that busy code does not lose it, but only while the event loop turns, so that a deadlocked
process does not keep it for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from edda.storage.contract import Storage
from edda.storage.rows import Beat

log = logging.getLogger("edda.engine")

_RETRY_PAUSE = 0.5


class Lease:
    """Renews one worker's row every third of its lease. ``on_beat`` is called in the worker's event loop."""

    def __init__(
        self,
        store: Storage,
        worker: str,
        app: str,
        lease_seconds: float,
        max_loop_block: float,
        on_beat: Callable[[Beat], None],
    ) -> None:
        self._store = store
        self._worker = worker
        self._app = app
        self._lease_us = int(lease_seconds * 1_000_000)
        self._interval = lease_seconds / 3
        self._max_loop_block = max_loop_block
        self._on_beat = on_beat
        self._loop = asyncio.get_running_loop()
        self._last_tick = time.monotonic()
        self._stop = threading.Event()
        self._inner: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name=f"edda-lease-{worker}", daemon=True)

    def start(self) -> None:
        """Begin renewing; the first beat is at once."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop renewing; the lease then runs out unless the worker is retired."""
        self._stop.set()
        inner, stopped = self._inner, self._stopped
        if inner is not None and stopped is not None:
            with contextlib.suppress(RuntimeError):  # the thread has ended by itself
                inner.call_soon_threadsafe(stopped.set)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, 5.0)

    def _run(self) -> None:
        try:
            asyncio.run(self._beat_for_ever())
        except Exception:
            log.exception("lease_thread_failed", extra={"worker": self._worker})

    async def _beat_for_ever(self) -> None:
        self._inner, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        heart = self._store.heart()
        try:
            while not self._stop.is_set():
                pause = self._interval
                if self._loop_turns():
                    try:
                        beat = await heart.beat(self._worker, self._app, self._lease_us)
                    except Exception as error:  # noqa: BLE001, without this thread the worker would never hear that it is dead
                        log.warning("lease_not_renewed", extra={"worker": self._worker, "error": str(error)})
                        pause = min(_RETRY_PAUSE, self._interval)
                    else:
                        self._tell(self._on_beat, beat)
                        if not beat.alive:
                            return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), pause)
        finally:
            await heart.close()

    def _loop_turns(self) -> bool:
        self._tell(self._tick)
        blocked = time.monotonic() - self._last_tick
        if blocked > self._max_loop_block:
            log.critical(
                "event_loop_blocked: the lease is not renewed any more; another worker will take over",
                extra={"worker": self._worker, "blocked_seconds": round(blocked, 1)},
            )
            return False
        return True

    def _tick(self) -> None:
        self._last_tick = time.monotonic()

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            self._stop.set()  # the worker's loop is closed
