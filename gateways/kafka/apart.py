"""Ending what belongs to a client library that may be ending badly."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger("edda.kafka")


async def ended(work: Coroutine[Any, Any, None], seconds: float) -> bool:
    """Whether the work was done within its time; else it is cancelled. Raises nothing.

    In a task of its own: aiokafka cancels its tasks and awaits them, and their CancelledError, met in ours, would end
    ours, too.
    """
    task = asyncio.get_running_loop().create_task(work)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        task.cancel()
    await asyncio.wait([task], timeout=seconds)
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        log.warning("kafka_client_ended_badly", extra={"error": f"{type(error).__name__}: {error}"})
        return False
    return task.done() and not task.cancelled()
