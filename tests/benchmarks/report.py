"""Figures as tables for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.figures import Figure

_COSTS = ("client_ms", "server_ms", "statements", "flushes", "resident_mib")


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
            *(cost(one, name) for name in _COSTS),
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


def as_json(figures: Sequence[Figure], machine: dict[str, str], versions: dict[str, str]) -> str:
    """Everything, for programs."""
    rows = [{**asdict(one), "ratio": one.ratio} for one in figures]
    return json.dumps({"machine": machine, "databases": versions, "figures": rows}, indent=2) + "\n"


def write_json(
    path: Path, figures: Sequence[Figure], machine: dict[str, str], versions: dict[str, str]
) -> None:
    """Write the JSON file."""
    path.write_text(as_json(figures, machine, versions))


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
