"""The commands. Each is a few lines over the library; errors end with what to type next."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table

from edda.cli import outbox
from edda.cli.output import AsJson, Database, opened, print_json, print_table
from edda.errors import ConfigurationError, EddaError, MissingExtraError
from edda.queries import Instances

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Edda: durable workflows and an event gateway."
)
app.add_typer(outbox.app, name="outbox")


@app.command()
def demo(
    orders: Annotated[int, typer.Option(help="How many orders to send.", min=4)] = 120,
    database_url: Annotated[str | None, typer.Option(help="Default: a fresh SQLite file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Orders and payments over HTTP, a worker killed with -9 in the middle, and a ledger that must add up."""
    try:
        from edda.cli.demo.command import run_demo
    except ModuleNotFoundError as error:
        what = "edda demo"
        raise MissingExtraError(what, "http") from error
    raise typer.Exit(asyncio.run(run_demo(orders, database_url, as_json=as_json)))


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
def gateway(
    database_url: Database,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free port.", min=0, max=65535)] = 8000,
    token: Annotated[
        list[str] | None,
        typer.Option(envvar="EDDA_GATEWAY_TOKENS", help="Let in; give two while one replaces the other."),
    ] = None,
) -> None:
    """Take CloudEvents over HTTP until SIGTERM. Needs no code of yours: what events start is in the database."""
    from edda.app import EddaApp

    served = EddaApp("edda-gateway", database_url, workflows=[], work=False, gateway_tokens=token or ())
    try:
        from edda.cli.serve import serve
    except ModuleNotFoundError as error:
        what = "edda gateway"
        raise MissingExtraError(what, "http") from error
    asyncio.run(serve(served, host, port))


@app.command()
def relay(
    database_url: Database,
    url: Annotated[str, typer.Argument(help="Where to POST the events.")],
    destination: Annotated[str, typer.Option(help="Its name in the outbox.")] = "default",
    mode: Annotated[str, typer.Option(help="binary, structured or batch.")] = "binary",
    token: Annotated[
        str | None, typer.Option(envvar="EDDA_RELAY_TOKEN", help="Sent as a bearer token.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = 64,
) -> None:
    """Send the outbox's events of one destination to an HTTP endpoint until SIGTERM."""
    from edda.cli.until import relay_until_terminated
    from outbox_relays.http import HttpPublisher

    if mode not in {"binary", "structured", "batch"}:
        msg = f"--mode {mode}: use binary, structured or batch"
        raise ConfigurationError(msg)
    publisher = HttpPublisher(
        url,
        destination=destination,
        mode=mode,  # type: ignore[arg-type]  # one of the three
        token=token,
        concurrency=concurrency,
    )
    asyncio.run(relay_until_terminated(database_url, publisher))


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
