"""NOTIFY and LISTEN: hints to other processes, sent after the commit and never relied upon."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import asyncpg

from edda.storage.contract import HintListener
from edda.storage.postgresql.connection import Link, Row
from edda.storage.postgresql.errors import translate

log = logging.getLogger("edda.storage")

CHANNEL = "edda_hint"

#: What a listener is told when hints may have been missed: look at everything.
LOOK = ("run:*", "outbox")

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0

_NOTIFY = "SELECT pg_notify($1, h.hint) FROM unnest($2::text[]) AS h(hint)"


async def notify(link: Link, hints: Sequence[str]) -> None:
    """One statement, each hint once."""
    await link.fetch(_NOTIFY, CHANNEL, list(dict.fromkeys(hints)))


@contextlib.asynccontextmanager
async def listen(
    connect: Callable[[], Awaitable[asyncpg.Connection[Row]]], listener: HintListener
) -> AsyncIterator[None]:
    """Listen while the context is open, on a connection of its own that is made again whenever it is lost."""
    task = asyncio.get_running_loop().create_task(_listen_for_ever(connect, listener))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _listen_for_ever(
    connect: Callable[[], Awaitable[asyncpg.Connection[Row]]], listener: HintListener
) -> None:
    pause = _FIRST_PAUSE
    while True:
        connection = None
        try:
            connection = await connect()
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _, lost=lost: lost.set())
            await connection.add_listener(CHANNEL, lambda _c, _p, _ch, hint: listener(str(hint)))
            for hint in LOOK:  # what came while nobody listened
                listener(hint)
            pause = _FIRST_PAUSE
            await lost.wait()
            log.warning("hints_lost: the connection that listens was closed; a new one is made")
        except Exception as error:  # noqa: BLE001, hints are a courtesy: whatever it was, listen again
            log.warning("hints_not_heard", extra={"error": str(translate(error))})
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        finally:
            if connection is not None:
                connection.terminate()


__all__ = ["CHANNEL", "LOOK", "listen", "notify"]
