"""``python -m tests.benchmarks``."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar, get_args

import typer
from rich.console import Console
from rich.markup import escape

from tests.benchmarks import document, machine, report, runner
from tests.benchmarks.figures import Figure
from tests.benchmarks.peers.compare import compare
from tests.benchmarks.plan import GROUPS, MEASUREMENTS
from tests.support import servers
from tests.support.databases import KINDS, Kind
from tests.support.servers import ServerKind, UnavailableError

T = TypeVar("T", bound=str)


def main(
    only: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(GROUPS)}.")] = "",
    databases: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(KINDS)}.")] = "",
    seconds: Annotated[float, typer.Option(help="How long to measure throughput, each time.")] = 3.0,
    count: Annotated[
        int | None, typer.Option(help="How many events or instances, where they are counted.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
    write_docs: Annotated[bool, typer.Option("--write-docs", help="Write docs/benchmarks.md.")] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also run other engines, which are installed for it from PyPI.")
    ] = False,
) -> None:
    """Measure Edda on this machine. Every figure is checked by SQL; a failed check fails the run."""
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=None if sys.stdout.isatty() else 160)
    chosen = [one for one in MEASUREMENTS if one.group in _choice(only, GROUPS, "--only")]
    wanted = _choice(databases, KINDS, "--databases")
    began = time.monotonic()
    with runner.harness():
        kinds, urls = _available(wanted, console)
        about, versions = machine.describe(), machine.server_versions(urls.items())
        with console.status("") as status:

            def progress(title: str, kind: str) -> None:
                at = f"{time.monotonic() - began:4.0f} s"
                status.update(f"{at}  {title} on {kind}")
                if not console.is_terminal:
                    console.print(f"{at}  {title} on {kind}", highlight=False)

            outcome = runner.measure(
                chosen, kinds, seconds=seconds, count=count, progress=progress, report=_show_at_once(console)
            )
            others = compare(kinds, seconds, progress) if peers else runner.Outcome()
    report.show(console, outcome.figures, about, versions)
    if others.figures:
        report.show_peers(console, others.figures)
    if json is not None:
        report.write_json(json, outcome.figures, others.figures, about, versions)
    if write_docs:
        document.write(outcome.figures, others.figures, about, versions)
    for title, kind, reason in others.failed:
        console.print(f"without {title} on {kind}: {escape(reason)}", highlight=False, soft_wrap=True)
    for title, kind, reason in outcome.failed:
        text = f"[red]not measured[/red] {title} on {kind}: {escape(reason)}"
        console.print(text, highlight=False, soft_wrap=True)
    raise typer.Exit(1 if outcome.failed else 0)


def _choice(given: str, known: tuple[T, ...], option: str) -> list[T]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(known)):
        msg = f"{option}: unknown {', '.join(unknown)}; known are {', '.join(known)}"
        raise typer.BadParameter(msg)
    return [one for one in known if not names or one in names]


def _available(wanted: list[Kind], console: Console) -> tuple[list[Kind], dict[Kind, str]]:
    """Those databases that can be had here; the others are named."""
    servers_of: tuple[ServerKind, ...] = get_args(ServerKind)
    urls: dict[Kind, str] = {}
    for kind in wanted:
        try:
            urls[kind] = servers.admin_url(kind) if kind in servers_of else "sqlite://"
        except UnavailableError as error:
            console.print(f"[yellow]without {kind}[/yellow]: {error}", soft_wrap=True)
    return list(urls), urls


def _show_at_once(console: Console) -> Callable[[list[Figure]], None]:
    def show(figures: list[Figure]) -> None:
        for one in figures:
            ratio = "" if one.ratio is None else f", {one.ratio:.2f} of the budget"
            console.print(
                f"        {one.workload}: {report.number(one.value)} {one.unit}{ratio}", highlight=False
            )

    return show


if __name__ == "__main__":
    typer.run(main)
