"""Each measurement in a process of its own, on a database of its own."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
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
    progress: Callable[[str, str], None],
    report: Callable[[list[Figure]], None],
) -> Outcome:
    """Measure one after the other; a measurement that fails is reported and harms no other."""
    outcome = Outcome()

    def note(one: Measurement, kind: Kind, future: Future[list[Figure]]) -> None:
        try:
            figures = future.result()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            outcome.failed.append((one.title, kind, reason))
            progress(f"[red]not measured[/red]: {reason}", kind)
        else:
            outcome.figures += figures
            report(figures)

    with tempfile.TemporaryDirectory(prefix="edda-bench-") as folder:
        for one in measurements:
            together = [[*databases]] if one.side_by_side else [[kind] for kind in databases]
            for kinds in together:
                progress(one.title, ", ".join(kinds))
                # A thread for each only holds the database and waits for the process.
                with ThreadPoolExecutor(len(kinds)) as threads:
                    begun = [
                        (kind, threads.submit(measure_one, one, kind, Path(folder), seconds, count))
                        for kind in kinds
                    ]
                for kind, future in begun:
                    note(one, kind, future)
    return outcome


def measure_one(
    one: Measurement, kind: Kind, folder: Path, seconds: float, count: int | None
) -> list[Figure]:
    """One measurement on one database, in a process of its own."""
    with temporary_database(kind, folder) as database:
        job = Job(one.title, kind, database.url, seconds, count or one.count, one.in_flight)
        # Spawned: nothing of the last measurement is in its memory, its CPU time or its event loop.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(jobs.run, one.work, job).result()
