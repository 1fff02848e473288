"""Each measurement in a process of its own, on a database of its own."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks import job as jobs
from tests.benchmarks.figures import Figure
from tests.benchmarks.job import Job
from tests.benchmarks.plan import Measurement
from tests.support import run, servers
from tests.support.databases import Kind, temporary_database


@dataclass(slots=True)
class Outcome:
    """Figures, and what could not be measured: (measurement, database, reason)."""

    figures: list[Figure] = field(default_factory=list)
    failed: list[tuple[str, Kind, str]] = field(default_factory=list)


@contextmanager
def harness() -> Iterator[None]:
    """Servers of the tests' harness may be started inside, and are stopped at the end."""
    owns = run.begin()
    try:
        yield
    finally:
        if owns:
            servers.stop_all()
            run.end()


def measure(
    measurements: Sequence[Measurement],
    databases: Sequence[Kind],
    *,
    seconds: float,
    count: int | None,
    progress: Callable[[str, Kind], None],
    report: Callable[[list[Figure]], None],
) -> Outcome:
    """Measure one after the other; a measurement that fails is reported and harms no other."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="edda-bench-") as folder:
        for one in measurements:
            for kind in databases:
                if kind not in one.databases:
                    continue
                progress(one.title, kind)
                try:
                    figures = _measure(one, kind, Path(folder), seconds, count)
                except Exception as error:
                    outcome.failed.append((one.title, kind, f"{type(error).__name__}: {error}"))
                else:
                    outcome.figures += figures
                    report(figures)
    return outcome


def _measure(one: Measurement, kind: Kind, folder: Path, seconds: float, count: int | None) -> list[Figure]:
    with temporary_database(kind, folder) as database:
        job = Job(one.title, kind, database.url, seconds, count or one.count, one.in_flight)
        # Spawned: nothing of the last measurement is in its memory, its CPU time or its event loop.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(jobs.run, one.work, job).result()
