"""What a parked workflow costs in memory, and what many of them cost a restart."""

from __future__ import annotations

import asyncio
import gc
import time
import types
from collections.abc import Iterable

from edda.app import EddaApp
from tests.benchmarks.figures import Figure
from tests.benchmarks.job import Job
from tests.benchmarks.meter import resident_mib
from tests.benchmarks.program import paid

#: Started before the first look, so that pools, caches and the allocator have what they keep anyway.
_WARM = 2_000
_IN_FLIGHT = 100


async def measure(job: Job) -> list[Figure]:
    """Resident memory and coroutines that remain per parked instance; then seconds until a new app is ready."""
    async with job.app() as app:
        await _park(app, (f"warm-{number}" for number in range(_WARM)))
        before, coroutines_before = _resident(), _coroutines()
        meter = job.meter(app)
        with meter:
            await _park(app, (f"order-{number}" for number in range(job.count)))
        kept = max(0.0, _resident() - before) * 1024**2 / job.count
        coroutines = (_coroutines() - coroutines_before) / job.count
        runs = len(app.worker.runs)
        cost = meter.cost.per_item(job.count)
    async with job.truth() as truth:
        parked = "workflow = 'bench_paid' AND state = 'waiting' AND owner IS NULL"
        await truth.expect("parked workflows", "instances", parked, _WARM + job.count)
    assert runs == 0, f"{runs} parked workflows are still in the worker's memory"
    began = time.perf_counter()
    async with job.app():
        ready = time.perf_counter() - began
    less = {"items": job.count, "lower_is_better": True}
    rate = job.count / meter.cost.seconds
    return [
        job.figure("workflows started and parked", rate, "workflows/s", items=job.count, **cost),
        job.figure("memory of a parked instance", kept, "bytes", **less),
        job.figure("coroutines of a parked instance", coroutines, "coroutines", **less),
        job.figure("restart over parked instances", ready, "s", **less),
    ]


async def _park(app: EddaApp, orders: Iterable[str]) -> None:
    left = iter(orders)

    async def one_after_the_other() -> None:
        for order_id in left:
            await app.start(paid, order_id=order_id)

    await asyncio.gather(*(one_after_the_other() for _ in range(_IN_FLIGHT)))


def _resident() -> float:
    gc.collect()
    return resident_mib()


def _coroutines() -> int:
    return sum(isinstance(thing, types.CoroutineType) for thing in gc.get_objects())
