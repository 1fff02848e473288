"""Five durable steps a workflow, so many in flight at a time."""

from __future__ import annotations

import asyncio
import time
from itertools import count

from edda.app import EddaApp
from tests.benchmarks.figures import Figure
from tests.benchmarks.job import Job
from tests.benchmarks.program import STEPS, five_steps


async def measure(job: Job) -> list[Figure]:
    """Workflows per second, from the first start to the last completion."""
    async with job.app() as app:
        warm = await _load(app, job.in_flight, min(0.5, job.seconds))
        meter = job.meter(app)
        with meter:
            measured = await _load(app, job.in_flight, job.seconds)
        cost = meter.cost.per_item(measured)
    async with job.truth() as truth:
        ended = "workflow = 'bench_five_steps' AND state = 'completed' AND owner IS NULL"
        await truth.expect("completed workflows", "instances", ended, warm + measured)
        await truth.expect("all workflows", "instances", "1 = 1", warm + measured)
        await truth.expect("history rows", "history", "kind = 'activity'", STEPS * (warm + measured))
    name = f"five steps, {job.in_flight} in flight"
    figures = [job.figure(name, measured / meter.cost.seconds, "workflows/s", items=measured, **cost)]
    for part, value, unit in (
        ("client CPU", cost["client_ms"], "ms/workflow"),
        ("flushes", cost["flushes"], "per workflow"),
    ):
        figure = job.figure(f"{name}: {part}", value or 0.0, unit, items=measured, lower_is_better=True)
        if figure.budget is not None:
            figures.append(figure)
    return figures


async def _load(app: EddaApp, in_flight: int, seconds: float) -> int:
    """Keep so many in flight, start none after ``seconds``, and wait for the last; how many there were."""
    until = time.perf_counter() + seconds
    numbers = count()

    async def one_after_the_other() -> int:
        started = 0
        while time.perf_counter() < until:
            await app.start(five_steps, number=next(numbers))
            started += 1
        return started

    return sum(await asyncio.gather(*(one_after_the_other() for _ in range(in_flight))))
