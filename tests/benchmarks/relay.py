"""Outbox rows to an HTTP endpoint."""

from __future__ import annotations

import asyncio

import httpx
from sqlalchemy.ext.asyncio import AsyncSession

from edda.app import EddaApp
from edda.outbox import enqueue as outbox
from outbox_relays.http import HttpPublisher
from outbox_relays.publisher import Publisher
from outbox_relays.relay import Relay
from tests.benchmarks.figures import Figure
from tests.benchmarks.job import Job
from tests.benchmarks.truth import Deadline
from tests.support.processes import spawn

_KEYS = 100


async def measure(job: Job) -> list[Figure]:
    """Events per second, from the relay's start until the outbox is empty; keyed, so that order is kept per key."""
    with spawn("tests.benchmarks.sink:serve") as sink:
        port = (await sink.line(r"listening on (\d+)"))[1]
        url = f"http://127.0.0.1:{port}/"
        figure = await drain(job, HttpPublisher(url), "outbox to HTTP")
        async with httpx.AsyncClient() as client:
            requests, different = map(int, (await client.get(url)).text.split())
    assert different == job.count, f"the sink has {different} different events of {job.count}"
    assert requests == job.count, f"the sink had {requests} requests for {job.count} events"
    return [figure]


async def drain(job: Job, publisher: Publisher, title: str, batch: int = 500) -> Figure:
    """Fill the outbox, and relay until it is empty."""
    async with job.app(work=False) as app, job.truth() as truth:
        await _fill(app, job.count)
        await truth.expect("outbox rows", "outbox", "state = 'pending'", job.count)
        relay = Relay(app.store, publisher, batch=batch)
        meter, deadline = job.meter(app), Deadline()
        with meter:
            await relay.start()
            while await truth.count("outbox"):
                deadline.check(title)
                await asyncio.sleep(0.005)
        await relay.stop()
        rate = job.count / meter.cost.seconds
        cost = meter.cost.per_item(job.count)
        return job.figure(title, rate, "events/s", items=job.count, **{**cost, "flushes": None})


async def _fill(app: EddaApp, count: int) -> None:
    for first in range(0, count, 1_000):
        async with AsyncSession(app.store.engine()) as session, session.begin():
            for number in range(first, min(first + 1_000, count)):
                data = {"number": number, "text": "x" * 100}
                await outbox.publish(session, "order.paid", "/bench", data, key=f"key-{number % _KEYS}")
