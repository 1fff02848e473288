"""Figures as tables for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.figures import Figure

COSTS = ("client_ms", "server_ms", "statements", "flushes", "resident_mib")


def table(figures: Sequence[Figure], title: str = "") -> Table:
    """All figures, one row each."""
    out = Table(title=title or None, header_style="bold", title_justify="left")
    for heading in ("what", "database"):
        out.add_column(heading)
    for heading in (
        "figure",
        "budget",
        "ratio",
        "client ms",
        "server ms",
        "statements",
        "flushes",
        "MiB",
    ):
        out.add_column(heading, justify="right")
    for one in figures:
        ratio = one.ratio
        style = "" if ratio is None or ratio >= 1 else "yellow"
        wanted = "" if one.budget is None else f"{'≤' if one.lower_is_better else '≥'} {number(one.budget)}"
        out.add_row(
            one.workload if one.engine == "edda" else f"{one.workload} ({one.engine})",
            one.database,
            f"{number(one.value)} {one.unit}",
            wanted,
            "" if ratio is None else f"[{style or 'green'}]{ratio:.2f}[/]",
            *(cost(one, name) for name in COSTS),
        )
    return out


def cost(figure: Figure, name: str) -> str:
    """A cost for people; empty where it was not read."""
    value = getattr(figure, name)
    return "" if value is None else number(value)


def number(value: float) -> str:
    """Three significant digits, and no decimals that mean nothing."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def write_json(
    path: Path,
    figures: Sequence[Figure],
    peers: Sequence[Figure],
    machine: dict[str, str],
    versions: dict[str, str],
) -> None:
    """Everything, for programs."""
    rows, others = ([{**asdict(one), "ratio": one.ratio} for one in many] for many in (figures, peers))
    everything = {"machine": machine, "databases": versions, "figures": rows, "peers": others}
    path.write_text(json.dumps(everything, indent=2) + "\n")


def show(
    console: Console, figures: Sequence[Figure], machine: dict[str, str], versions: dict[str, str]
) -> None:
    """Print the machine and all figures."""
    for name, value in {**machine, **versions}.items():
        console.print(f"[bold]{name}[/bold] {value}", highlight=False, soft_wrap=True)
    console.print(table(figures))
    console.print(
        "Ratio: 1 or more is within the budget. Costs are per workflow or event; server CPU is the whole server's.",
        highlight=False,
    )


def show_peers(console: Console, figures: Sequence[Figure]) -> None:
    """Print the other engines beside ours."""
    out = Table(title="Other engines, in turns with ours", header_style="bold", title_justify="left")
    for heading in ("engine", "workflows/s", "edda is", "client ms"):
        out.add_column(heading, justify="left" if heading == "engine" else "right")
    ours = figures[0]
    for one in figures:
        times = "" if one is ours else f"{number(ours.value / one.value)} times as fast"
        out.add_row(one.engine, number(one.value), times, cost(one, "client_ms"))
    console.print(out)
