"""The commands. Each is a few lines over the library; errors end with what to type next."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table

from edda.cli import outbox, positions, retention, run
from edda.cli.lint import command as lint
from edda.cli.output import AsJson, Database, opened, print_json, print_table
from edda.errors import EddaError, MissingExtraError
from edda.queries import Instances
from edda.status import iso
from edda.storage.rows import LiveVersion

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Edda: durable workflows and an event gateway."
)
app.add_typer(outbox.app, name="outbox")
app.add_typer(positions.app, name="positions")
app.add_typer(retention.app, name="retention")
app.add_typer(run.app)
app.add_typer(lint.app)


@app.command()
def demo(
    orders: Annotated[int, typer.Option(help="How many orders to send.", min=8)] = 120,
    database_url: Annotated[str | None, typer.Option(help="Default: a fresh SQLite file.")] = None,
    kafka: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A Kafka to play on; default: an embedded one.")
    ] = None,
    rabbitmq: Annotated[
        str | None,
        typer.Option(metavar="AMQP-URL", help="order.paid goes there (and orders come from there)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Orders over Kafka, payments over HTTP; every part is killed with -9 once, and a ledger must add up."""
    try:
        from edda.cli.demo.command import World, run_demo
    except ModuleNotFoundError as error:
        what = "edda demo"
        raise MissingExtraError(what, "demo") from error
    world = World(database_url, kafka, rabbitmq)
    raise typer.Exit(asyncio.run(run_demo(orders, world, as_json=as_json)))


@app.command()
def migrate(
    database_url: Database,
    sql: Annotated[bool, typer.Option("--sql", help="Print the statements instead of running them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a database's schema up to date."""
    if sql:
        from edda.storage.migrations import migration_sql

        statements = migration_sql(database_url)
        typer.echo(to_json({"sql": statements}).decode() if as_json else statements)
        return
    asyncio.run(_migrate(database_url))
    if as_json:
        print_json({"migrated": True})
    else:
        typer.echo("The schema is up to date.")


async def _migrate(url: str) -> None:
    async with opened(url) as store:
        await store.migrate()


@app.command()
def instances(
    database_url: Database,
    status: Annotated[str | None, typer.Option(help="running, waiting_for_message, failed, ...")] = None,
    workflow: Annotated[str | None, typer.Option(help="Part of the workflow's name.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: AsJson = False,
) -> None:
    """List instances, newest first."""
    found = asyncio.run(_instances(database_url, status, workflow, limit))
    if as_json:
        print_json(found)
        return
    table = Table("instance", "workflow", "status", "started", "owner")
    for row in found["instances"]:
        table.add_row(
            row["instance_id"], row["workflow_name"], row["status"], row["started_at"], row["locked_by"] or ""
        )
    print_table(table, empty="No instances.")
    if found["has_more"]:
        typer.echo(f"There are more than these {limit}: --limit, --status and --workflow choose.", err=True)


async def _instances(url: str, status: str | None, workflow: str | None, limit: int) -> dict[str, Any]:
    async with opened(url) as store:
        return await Instances(store).find_instances(status=status, workflow_name=workflow, limit=limit)


@app.command()
def versions(database_url: Database, as_json: AsJson = False) -> None:
    """Count what has not ended by workflow and version: which old code is still needed, and since when."""
    live = asyncio.run(_versions(database_url))
    if as_json:
        print_json(
            [asdict(one) | {"version": one.version or None, "oldest_at": iso(one.oldest_at)} for one in live]
        )
        return
    table = Table("app", "workflow", "version", "instances", "of them paused", "oldest")
    for one in live:
        table.add_row(
            one.app,
            one.workflow,
            one.version or "-",
            str(one.instances),
            str(one.paused),
            str(iso(one.oldest_at)),
        )
    print_table(table, empty="No instance is alive: no old code is needed.")


async def _versions(url: str) -> list[LiveVersion]:
    async with opened(url) as store:
        return await store.live_versions()


def main() -> None:
    """The ``edda`` command."""
    try:
        app()
    except EddaError as error:
        # Not wrapped and not marked up: a message may hold paths, URLs and brackets.
        Console(stderr=True, soft_wrap=True).print(
            "error", str(error), style=None, markup=False, highlight=False
        )
        sys.exit(1)
