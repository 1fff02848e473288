"""Moving the clock: the store's time is the database's plus an offset, so that no test waits for a deadline."""

from __future__ import annotations

from edda.app import EddaApp


async def advance(app: EddaApp, seconds: float) -> None:
    """It is ``seconds`` later, and this process looks for what that has made due."""
    app.store.clock_offset_us += int(seconds * 1_000_000)
    app.worker.saw_now(await app.store.now())
    apps, _ = await app.store.fire_timers()
    app.worker.woken(apps)
