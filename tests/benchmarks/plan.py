"""Which measurements there are, and on which databases they are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.benchmarks import five_steps
from tests.benchmarks.figures import Figure
from tests.benchmarks.job import Job
from tests.support.databases import KINDS, Kind


@dataclass(frozen=True, slots=True)
class Measurement:
    """``group``: what ``--only`` names. ``count``: how many by default."""

    group: str
    title: str
    work: Callable[[Job], Awaitable[list[Figure]]]
    in_flight: int = 1
    count: int = 0
    databases: tuple[Kind, ...] = KINDS


MEASUREMENTS: tuple[Measurement, ...] = (
    *(
        Measurement("five-steps", f"five steps, {n} in flight", five_steps.measure, in_flight=n)
        for n in (1, 50, 200)
    ),
)

GROUPS = tuple(dict.fromkeys(one.group for one in MEASUREMENTS))
