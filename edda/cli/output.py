"""What commands share: their common options, an open store, tables for people, JSON for programs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table

from edda.storage.connect import open_store
from edda.storage.contract import Storage

Database = Annotated[
    str,
    typer.Option(
        "--database-url", envvar="EDDA_DB_URL", help="sqlite:///file.db, postgresql://... or mysql://..."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for programs.")]

#: Wide enough for every column where no terminal says how wide it is.
_WITHOUT_TERMINAL = 240


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Storage]:
    """The database, for one command."""
    store = open_store(url)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def print_json(value: Any) -> None:
    """One document; bytes in it as base64."""
    typer.echo(to_json(value, bytes_mode="base64").decode())


def print_table(table: Table, *, empty: str) -> None:
    """The table, or that there is nothing in it."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WITHOUT_TERMINAL)
    if table.row_count:
        console.print(table)
    else:
        console.print(empty)
