"""Edda and the other engines in turns, so that whatever else the machine does slows all of them alike."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from tests.benchmarks.figures import Figure
from tests.benchmarks.peers import run
from tests.benchmarks.plan import MEASUREMENTS
from tests.benchmarks.runner import Outcome, measure_one
from tests.support.databases import Kind, temporary_database

_ROUNDS = 2
_IN_FLIGHT = 50


def compare(databases: Sequence[Kind], seconds: float, progress: Callable[[str, str], None]) -> Outcome:
    """The five-step workflow on PostgreSQL, or on SQLite where there is none; each figure is the mean of its rounds."""
    kind: Kind = "postgresql" if "postgresql" in databases else "sqlite"
    own = next(one for one in MEASUREMENTS if one.group == "five-steps" and one.in_flight == _IN_FLIGHT)
    outcome = Outcome()
    rounds: dict[str, list[Figure]] = {}
    with tempfile.TemporaryDirectory(prefix="edda-bench-peers-") as name:
        folder = Path(name)
        pythons: dict[str, Path] = {}
        for peer in run.PEERS:
            progress(f"installing {peer.name}", kind)
            try:
                pythons[peer.name] = run.install(peer, folder)
            except (RuntimeError, OSError) as error:
                outcome.failed.append((peer.name, kind, str(error)))
        for _ in range(_ROUNDS):
            progress(own.title, kind)
            rounds.setdefault("edda", []).append(measure_one(own, kind, folder, seconds, None)[0])
            for peer in run.PEERS:
                if peer.name not in pythons or kind not in peer.drivers:
                    continue
                progress(f"{own.title} ({peer.name})", kind)
                try:
                    with temporary_database(kind, folder) as database:
                        found = run.measure(peer, pythons[peer.name], database, _IN_FLIGHT, seconds)
                except Exception as error:
                    del pythons[peer.name]  # once is enough
                    outcome.failed.append((peer.name, kind, f"{type(error).__name__}: {error}"))
                else:
                    rounds.setdefault(peer.name, []).append(found)
    outcome.figures += [_mean(figures) for figures in rounds.values()]
    return outcome


def _mean(figures: Sequence[Figure]) -> Figure:
    cpu = [one.client_ms for one in figures if one.client_ms is not None]
    return replace(
        figures[0],
        value=fmean(one.value for one in figures),
        items=sum(one.items for one in figures),
        client_ms=fmean(cpu) if cpu else None,
    )
