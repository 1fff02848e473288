"""One event to one parked workflow, on an idle system: how long until it has completed."""

from __future__ import annotations

import asyncio
import time

from edda.app import EddaApp
from tests.benchmarks.figures import Figure
from tests.benchmarks.job import Job
from tests.benchmarks.meter import percentile
from tests.benchmarks.program import APP, five_steps, paid, payment
from tests.benchmarks.truth import Deadline
from tests.support.processes import spawn

_WARM = 10
#: Seconds after which fewer samples must do.
_LONG_ENOUGH = 15.0


async def measure_here(job: Job) -> list[Figure]:
    """From handing the event in until ``handle.result()`` returns, in one process."""
    times: list[float] = []
    async with job.app() as app:
        began_all = time.monotonic()
        for number in range(_WARM + job.count):
            if number > 1 and time.monotonic() - began_all > _LONG_ENOUGH:
                break
            order_id = f"order-{number}"
            handle = app.handle(await app.start(paid, order_id=order_id))
            began = time.perf_counter()
            result = asyncio.create_task(handle.result(timeout=30))
            await app.deliver(payment(order_id))
            await result
            times.append((time.perf_counter() - began) * 1_000)
    await _check(job, len(times))
    return _figures(job, "event to completed", times[min(_WARM, len(times) // 2) :])


async def measure_elsewhere(job: Job) -> list[Figure]:
    """From handing the event in here until the database shows what a worker in another process made of it."""
    times: list[float] = []
    with spawn("tests.benchmarks.latency:work", job.url) as worker:
        await worker.line("working")
        async with job.app(work=False) as app, job.truth() as truth:
            began_all = time.monotonic()
            for number in range(_WARM + job.count):
                if number > 1 and time.monotonic() - began_all > _LONG_ENOUGH:
                    break
                order_id = f"order-{number}"
                handle = await app.submit(paid, order_id=order_id)
                row, deadline = f"id = '{handle.id}'", Deadline()
                while not await truth.count("instances", f"{row} AND state = 'waiting'"):
                    deadline.check("a workflow parks in the other process")
                    await asyncio.sleep(0.001)
                began = time.perf_counter()
                await app.deliver(payment(order_id))
                while not await truth.count("instances", f"{row} AND state = 'completed'"):
                    deadline.check("a workflow is woken in the other process")
                    await asyncio.sleep(0.0005)
                times.append((time.perf_counter() - began) * 1_000)
        worker.terminate()
        worker.wait()
    await _check(job, len(times))
    return _figures(job, "event to completed elsewhere", times[min(_WARM, len(times) // 2) :])


async def work(url: str) -> None:
    """The other process."""
    app = EddaApp(APP, url, workflows=[five_steps, paid])
    await app.initialize()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(15, stop.set)
    print("working")
    await stop.wait()
    await app.shutdown()


async def _check(job: Job, done: int) -> None:
    async with job.truth() as truth:
        ended = "workflow = 'bench_paid' AND state = 'completed' AND owner IS NULL"
        await truth.expect("completed workflows", "instances", ended, done)
        await truth.expect("events received", "history", "kind = 'event'", done)


def _figures(job: Job, name: str, times: list[float]) -> list[Figure]:
    more = {"items": len(times), "lower_is_better": True}
    return [
        job.figure(f"{name}, p50", percentile(times, 0.50), "ms", **more),
        job.figure(f"{name}, p99", percentile(times, 0.99), "ms", **more),
    ]
