"""What a worker with a relay asks of the database while there is nothing to do."""

from __future__ import annotations

import asyncio

from outbox_relays.http import HttpPublisher
from tests.benchmarks.figures import Figure
from tests.benchmarks.job import Job

#: Until polls have slowed down to their longest pause.
_SETTLE = 8.0
#: A multiple of the pause between two heartbeats (a third of the lease).
_WATCH = 20.0


async def measure(job: Job) -> list[Figure]:
    """Statements per second, heartbeat included."""
    relays = [HttpPublisher("http://127.0.0.1:9/")]
    async with job.app(relays=relays) as app:
        await asyncio.sleep(_SETTLE)
        meter = job.meter(app)
        with meter:
            await asyncio.sleep(_WATCH)
        rate = meter.cost.statements / meter.cost.seconds
        share = meter.cost.client_seconds * 1_000 / meter.cost.seconds
    less = {"lower_is_better": True}
    return [
        job.figure("idle worker", rate, "statements/s", **less),
        job.figure("idle worker: client CPU", share, "ms/s", **less),
    ]
