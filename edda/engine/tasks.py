"""Tasks that somebody holds: one that nobody holds may vanish, and its exception with it.

They run on the loop of whoever made the set: what a workflow's code sets off must not hang on that workflow's loop,
which is closed when the workflow leaves memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger("edda.engine")


class Tasks:
    """A set of running tasks of one loop. One that fails is logged and harms no other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coro: Coroutine[Any, Any, Any]) -> None:
        """Run it until it ends or ``cancel`` is called."""
        task = self._loop.create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("engine_task_failed", exc_info=task.exception())

    async def cancel(self) -> None:
        """Cancel all and wait for their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
