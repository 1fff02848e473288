"""One measurement to make, as handed to the process that makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from edda.app import EddaApp
from tests.benchmarks.budgets import budget
from tests.benchmarks.figures import Figure
from tests.benchmarks.meter import Meter
from tests.benchmarks.program import APP, five_steps, paid
from tests.benchmarks.server_cpu import ServerCPU
from tests.benchmarks.truth import Truth, truth
from tests.support.databases import Kind

#: Seconds after which a measurement has failed, whatever it waits for.
_LIMIT = 120.0


@dataclass(frozen=True, slots=True)
class Job:
    """``seconds``: how long, for what is measured by time. ``count``: how many, for what is measured by number."""

    workload: str
    database: Kind
    url: str
    seconds: float
    count: int
    in_flight: int = 1

    def app(self, **settings: Any) -> EddaApp:
        """An app on the job's database, not initialised yet."""
        settings.setdefault("workflows", [five_steps, paid])
        return EddaApp(APP, self.url, **settings)

    def meter(self, app: EddaApp) -> Meter:
        """A meter of this app and its database server."""
        return Meter(app.store, ServerCPU(self.url))

    def truth(self) -> AbstractAsyncContextManager[Truth]:
        """A look into the database."""
        return truth(self.url)

    def figure(self, workload: str, value: float, unit: str, **more: Any) -> Figure:
        """A figure of this job, with its budget."""
        return Figure(workload, self.database, value, unit, budget=budget(workload, self.database), **more)


def run(work: Callable[[Job], Awaitable[list[Figure]]], job: Job) -> list[Figure]:
    """What the measuring process runs."""

    async def main() -> list[Figure]:
        try:
            async with asyncio.timeout(_LIMIT):
                return await work(job)
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"it took longer than {_LIMIT:g} s") from error

    return asyncio.run(main())
