"""``edda retention``: what is kept for how long, what has been removed, and removing it now."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.table import Table

from edda.cli.output import AsJson, Database, opened, print_json, print_table
from edda.errors import ConfigurationError
from edda.inbox.retention import Report, in_force, sweep_once
from edda.status import iso
from edda.storage.rows import Keeps, SweepRow

app = typer.Typer(no_args_is_help=True, help="What is over and how long it is kept: show, run, forget.")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count what would be removed.")]
App = Annotated[str, typer.Argument(help="The app's service_name.")]

#: As people call them.
_NAMES = {
    "events": "events",
    "identities": "identities",
    "instances": "finished instances",
    "letters": "dead letters (in)",
    "dead_rows": "dead letters (out)",
}


@app.command()
def show(
    database_url: Database,
    limit: Annotated[int, typer.Option(help="So many sweeps.", min=1, max=1000)] = 10,
    as_json: AsJson = False,
) -> None:
    """What each app keeps for how long, what follows for all, and the last sweeps."""
    keeps, sweeps = asyncio.run(_read(database_url, limit))
    all_keep = in_force(keeps)
    if as_json:
        print_json(
            {
                "apps": {name: _seconds(one) for name, one in keeps.items()},
                "in_force": {name: time for name, time in _seconds(all_keep).items() if name != "instances"},
                "sweeps": [_plain(row) for row in sweeps],
            }
        )
        return
    table = Table("app", "events", "identities", "finished instances", "dead letters")
    for name, one in keeps.items():
        table.add_row(name, *map(_told, asdict(one).values()))
    if len(keeps) > 1:
        events, identities, _, dead_letters = map(_told, asdict(all_keep).values())
        table.add_row("(all together)", events, identities, "each its own", dead_letters)
    print_table(table, empty="No app has said what it keeps: nothing is ever removed.")
    table = Table("sweep", "began", "ended", "events", "identities", "instances", "dead letters")
    for row in sweeps:
        counts = (row.events, row.identities, row.instances, row.dead_letters)
        table.add_row(str(row.id), iso(row.began_at) or "", iso(row.ended_at) or "", *map(str, counts))
    print_table(table, empty="Nothing has been swept yet.")
    typer.echo("See what would be removed now: edda retention run --dry-run", err=True)


async def _read(url: str, limit: int) -> tuple[dict[str, Keeps], list[SweepRow]]:
    async with opened(url) as store:
        return await store.retention(), await store.sweeps(limit)


@app.command()
def run(database_url: Database, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Remove what is older than the apps keep it, now and without pauses."""
    report = asyncio.run(_run(database_url, dry_run))
    if as_json:
        print_json({"dry_run": dry_run, **asdict(report)})
    else:
        table = Table("what", "would be removed" if dry_run else "removed", "kept for what lives")
        for name, title in _NAMES.items():
            table.add_row(title, str(report.removed[name]), str(report.kept[name]))
        print_table(table, empty="")
        if report.postponed:
            typer.echo(
                "Events wait: so much work has piled up that all of them may still be received.", err=True
            )
    if report.lost:
        msg = (
            "this command stood still for so long that another process took over; what it removed is removed"
        )
        raise ConfigurationError(msg)


async def _run(url: str, dry_run: bool) -> Report:
    async with opened(url) as store:
        if not await store.retention():
            msg = (
                "no app has said what it keeps in this database, so nothing was removed. Apps say it when they start: "
                "EddaApp(..., retention=Retention(events=timedelta(days=7)))."
            )
            raise ConfigurationError(msg)
        report = await sweep_once(store, dry_run=dry_run)
    if report is None:
        msg = "another process is sweeping this database; nothing was removed by this one. See: edda retention show"
        raise ConfigurationError(msg)
    return report


@app.command()
def forget(database_url: Database, name: App, as_json: AsJson = False) -> None:
    """An app is gone for good: what it wanted kept counts no longer. Its instances stay."""
    asyncio.run(_forget(database_url, name))
    if as_json:
        print_json({"app": name, "done": "forget"})
    else:
        typer.echo(f"App {name}: forgotten.")


async def _forget(url: str, name: str) -> None:
    async with opened(url) as store:
        known = await store.retention()
        if name not in known:
            msg = f"no app {name!r} has said what it keeps; nothing was changed. Those that have: {sorted(known)}"
            raise ConfigurationError(msg)
        await store.declare_retention(name, None)


def _seconds(keeps: Keeps) -> dict[str, float | None]:
    return {name: None if time is None else time / 1_000_000 for name, time in asdict(keeps).items()}


def _told(time: int | None) -> str:
    return "for ever" if time is None else str(timedelta(microseconds=time)).removesuffix(", 0:00:00")


def _plain(row: SweepRow) -> dict[str, Any]:
    return {
        **asdict(row),
        **{name: iso(getattr(row, name)) for name in ("began_at", "expires_at", "ended_at")},
    }
