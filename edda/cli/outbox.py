"""``edda outbox``: what could not be delivered, and what becomes of it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.table import Table

from edda.cli.output import AsJson, Database, opened, print_json, print_table
from edda.errors import ConfigurationError
from edda.outbox import dead_letters

app = typer.Typer(no_args_is_help=True, help="Events on their way out: counts, dead rows, replay, discard.")

Row = Annotated[int, typer.Argument(help="The row's number, as 'edda outbox dead' shows it.")]


@app.command()
def status(database_url: Database, as_json: AsJson = False) -> None:
    """How many rows are pending, retrying, parked behind a failed one of their key, or dead."""
    counts = asyncio.run(_counts(database_url))
    if as_json:
        print_json(counts)
        return
    table = Table("state", "rows")
    for state, number in counts.items():
        table.add_row(state, str(number))
    print_table(table, empty="The outbox is empty.")
    if counts.get("dead"):
        typer.echo("See why: edda outbox dead", err=True)


async def _counts(url: str) -> dict[str, int]:
    async with opened(url) as store:
        counts = await store.counts()
    return {
        name.removeprefix("outbox."): number
        for name, number in counts.items()
        if name.startswith("outbox.") and number
    }


@app.command()
def dead(
    database_url: Database,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    as_json: AsJson = False,
) -> None:
    """Rows that were given up, the oldest first, with the reason."""
    rows = asyncio.run(_dead(database_url, limit))
    if as_json:
        print_json(rows)
        return
    table = Table("row", "destination", "type", "source", "event", "key", "attempts", "reason")
    for row in rows:
        table.add_row(
            str(row.id),
            row.destination,
            row.type,
            row.source,
            row.event_id,
            row.ordering_key or "",
            str(row.attempts),
            row.reason,
        )
    print_table(table, empty="No dead rows.")
    if rows:
        typer.echo("Try one again: edda outbox replay ROW. Give it up: edda outbox discard ROW.", err=True)


async def _dead(url: str, limit: int) -> list[dead_letters.DeadOutboxRow]:
    async with opened(url) as store:
        return await dead_letters.dead_rows(store.engine(), limit)


@app.command()
def replay(database_url: Database, row: Row, as_json: AsJson = False) -> None:
    """Try a dead row again, in front of those of its key."""
    _report(asyncio.run(_move(database_url, row, "replay")), as_json=as_json)


@app.command()
def discard(database_url: Database, row: Row, as_json: AsJson = False) -> None:
    """Give a dead row up for good and let those of its key go on."""
    _report(asyncio.run(_move(database_url, row, "discard")), as_json=as_json)


async def _move(url: str, row: int, what: str) -> dict[str, Any]:
    async with opened(url) as store:
        move = dead_letters.replay if what == "replay" else dead_letters.discard
        if not await move(store.engine(), row):
            msg = (
                f"row {row} is not a dead row of the outbox; nothing was changed. List them: edda outbox dead"
            )
            raise ConfigurationError(msg)
        await store.notify(["outbox"])
    return {"row": row, "done": what}


def _report(done: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(done)
    else:
        typer.echo(f"Row {done['row']}: {done['done']} done.")
