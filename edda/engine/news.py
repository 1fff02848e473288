"""What other processes have committed, and telling them what we have: by hints where there are such, else by polls.

A hint only says "look"; one that is lost costs the time to the next safety net. Hints are sent after the commit,
coalesced: one statement for all of a tick.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from edda.engine.tasks import Tasks
from edda.errors import StorageError
from edda.storage.contract import Storage
from edda.storage.rows import Beat

log = logging.getLogger("edda.engine")

#: Seconds between two polls: short while there is work, long when idle. With hints the poll is the safety net only.
_FIRST_POLL, _LONGEST_POLL, _SAFETY_NET = 0.05, 1.25, 10.0

#: Seconds between two looks for requests to cancel what runs here, where nobody tells.
_CANCEL_PAUSE = 1.0


class News:
    """One per app. The callbacks are set before ``start``."""

    def __init__(self, store: Storage, app: str) -> None:
        self._store = store
        self._app = app
        self._tasks = Tasks()
        self._hints: set[str] = set()
        self._notifying = False
        self._active_until = 0.0
        self.on_runnable: Callable[[], None] = lambda: None
        self.on_outbox: Callable[[], None] = lambda: None
        self.on_cancel: Callable[[], None] = lambda: None
        self.on_beat: Callable[[Beat], None] = lambda _: None

    def start(self, *, beats: bool) -> None:
        """Begin to hear. ``beats``: somebody else asks the database every few seconds anyway (a worker's lease)."""
        if self._store.has_hints:
            self._tasks.spawn(self._hear())
        if not self._store.has_hints or not beats:
            self._tasks.spawn(self._poll_for_ever())

    async def stop(self) -> None:
        """Hear no more."""
        await self._tasks.cancel()

    def active(self) -> None:
        """There is work: for a second, poll fast."""
        self._active_until = time.monotonic() + 1.0

    # ------------------------------------------------------------------ telling others

    def runnable(self, app: str) -> None:
        """Instances of that app became runnable, or have news."""
        self._hint(f"run:{app}")

    def cancel(self, app: str) -> None:
        """An instance of that app is to be cancelled, and may be running somewhere."""
        self._hint(f"cancel:{app}")

    def outbox(self) -> None:
        """The outbox has rows."""
        self._hint("outbox")

    def _hint(self, hint: str) -> None:
        if not self._store.has_hints:
            return
        self._hints.add(hint)
        if not self._notifying:
            self._notifying = True
            self._tasks.spawn(self._notify())

    async def _notify(self) -> None:
        try:
            while self._hints:
                hints, self._hints = sorted(self._hints), set()
                await self._store.notify(hints)
        except StorageError as error:
            log.debug("hint_not_sent", extra={"error": str(error)})  # the safety net finds it
        finally:
            self._notifying = False

    # ------------------------------------------------------------------ hearing from others

    async def _hear(self) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._store.listen(self._heard))
            await asyncio.Event().wait()

    def _heard(self, hint: str) -> None:
        if hint in {f"run:{self._app}", "run:*"}:
            self.on_runnable()
        if hint in {"outbox", "run:*"}:
            self.on_outbox()
        if hint in {f"cancel:{self._app}", "run:*"}:
            self.on_cancel()

    async def _poll_for_ever(self) -> None:
        shortest, longest = (_SAFETY_NET,) * 2 if self._store.has_hints else (_FIRST_POLL, _LONGEST_POLL)
        pause = shortest
        asked = 0.0
        while True:
            await asyncio.sleep(pause)
            try:
                beat = await self._store.poll(self._app)
            except StorageError as error:
                log.debug("poll_failed", extra={"error": str(error)})
                pause = longest
                continue
            self.on_beat(beat)
            if not self._store.has_hints and time.monotonic() - asked >= _CANCEL_PAUSE:
                asked = time.monotonic()
                self.on_cancel()
            if beat.outbox:
                self.on_outbox()
            # Rows of the outbox alone are no reason to hurry: their relay may be elsewhere, or resting.
            busy = beat.runnable or time.monotonic() < self._active_until
            pause = shortest if busy else min(pause * 1.5, longest)
