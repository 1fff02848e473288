"""Parked workflows, woken by one event each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from edda.app import EddaApp
from tests.benchmarks.figures import Figure
from tests.benchmarks.job import Job
from tests.benchmarks.program import PAID, paid, payment
from tests.benchmarks.truth import Deadline, Truth

#: How often the database is asked whether all have ended: short beside a round, long beside a query.
_PAUSE = 0.005


async def measure(job: Job) -> list[Figure]:
    """Events per second: from the first event handed in until the database shows every workflow completed."""
    rounds = done = 0
    async with job.app() as app, job.truth() as truth:
        await _round(app, truth, [f"warm-{number}" for number in range(20)], 0)
        done += 20
        meter = job.meter(app)
        while meter.cost.seconds < job.seconds:
            orders = [f"order-{rounds}-{number}" for number in range(job.count)]
            await _park(app, truth, orders)
            with meter:
                await _wake(app, truth, orders, done)
            rounds += 1
            done += job.count
        woken = rounds * job.count
        cost = meter.cost.per_item(woken)
    async with job.truth() as truth:
        ended = "workflow = 'bench_paid' AND state = 'completed' AND owner IS NULL"
        await truth.expect("completed workflows", "instances", ended, done)
        await truth.expect("events", "events", f"type = '{PAID}'", done)
        await truth.expect("events received", "history", "kind = 'event'", done)
        await truth.expect("waits left behind", "waits", "1 = 1", 0)
    rate = woken / meter.cost.seconds
    return [job.figure("parked workflows woken", rate, "events/s", items=woken, **cost)]


async def _round(app: EddaApp, truth: Truth, orders: list[str], done: int) -> None:
    await _park(app, truth, orders)
    await _wake(app, truth, orders, done)


async def _park(app: EddaApp, truth: Truth, orders: Iterable[str]) -> None:
    started = await asyncio.gather(*(app.start(paid, order_id=order_id) for order_id in orders))
    waiting = await truth.in_state("bench_paid", "waiting")
    assert waiting == len(started), f"{len(started)} were started, {waiting} are parked"


async def _wake(app: EddaApp, truth: Truth, orders: list[str], done: int) -> None:
    """Hand in every event as a delivery of its own, all at once."""
    deadline = Deadline()
    await asyncio.gather(*(app.deliver(payment(order_id)) for order_id in orders))
    while await truth.in_state("bench_paid", "completed") < done + len(orders):
        deadline.check("parked workflows woken")
        await asyncio.sleep(_PAUSE)
