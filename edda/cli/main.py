"""The commands. Each is a few lines over the library; errors end with what to type next."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table

from edda.cli.demo.command import run_demo
from edda.errors import EddaError
from edda.queries import Instances
from edda.storage.connect import open_store

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Edda: durable workflows and an event gateway."
)

Database = Annotated[
    str,
    typer.Option(
        "--database-url", envvar="EDDA_DB_URL", help="sqlite:///file.db, postgresql://... or mysql://..."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for programs.")]


@app.command()
def demo(
    orders: Annotated[int, typer.Option(help="How many orders to send.", min=1)] = 120,
    database_url: Annotated[str | None, typer.Option(help="Default: a fresh SQLite file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Orders and payments over HTTP, a worker killed with -9 in the middle, and a ledger that must add up."""
    raise typer.Exit(asyncio.run(run_demo(orders, database_url, as_json=as_json)))


@app.command()
def migrate(
    database_url: Database,
    sql: Annotated[bool, typer.Option("--sql", help="Print the statements instead of running them.")] = False,
) -> None:
    """Bring a database's schema up to date."""
    if sql:
        from edda.storage.migrations import migration_sql

        typer.echo(migration_sql(database_url))
        return
    asyncio.run(_migrate(database_url))
    typer.echo("The schema is up to date.")


async def _migrate(url: str) -> None:
    store = open_store(url)
    try:
        await store.open()
        await store.migrate()
    finally:
        await store.close()


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
        typer.echo(to_json(found).decode())
        return
    table = Table("instance", "workflow", "status", "started", "owner")
    for row in found["instances"]:
        table.add_row(
            row["instance_id"], row["workflow_name"], row["status"], row["started_at"], row["locked_by"] or ""
        )
    Console().print(table)


async def _instances(url: str, status: str | None, workflow: str | None, limit: int) -> dict[str, Any]:
    store = open_store(url)
    try:
        await store.open()
        return await Instances(store).find_instances(status=status, workflow_name=workflow, limit=limit)
    finally:
        await store.close()


def main() -> None:
    """The ``edda`` command."""
    try:
        app()
    except EddaError as error:
        Console(stderr=True).print(f"[red]error[/red] {error}", highlight=False)
        sys.exit(1)
