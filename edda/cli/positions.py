"""``edda positions``: how far each source has been read, and an operator's word to go on elsewhere."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.table import Table

from edda.cli.output import AsJson, Database, opened, print_json, print_table
from edda.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True, help="How far Kafka's partitions have been read: show, seek.")

Group = Annotated[str, typer.Argument(help="The gateway's group_id.")]
Cluster = Annotated[str, typer.Option(help="The gateway's cluster.")]


@app.command()
def show(database_url: Database, group: Group, cluster: Cluster = "kafka", as_json: AsJson = False) -> None:
    """The next offset of every partition that this group has read."""
    found = asyncio.run(_positions(database_url, cluster, group))
    if as_json:
        print_json(
            [{"topic": topic, "partition": number, "next_offset": at} for (topic, number), at in found]
        )
        return
    table = Table("topic", "partition", "next offset")
    for (topic, number), at in found:
        table.add_row(topic, str(number), str(at))
    print_table(table, empty=f"Group {group!r} has read nothing of cluster {cluster!r}.")


async def _positions(url: str, cluster: str, group: str) -> list[tuple[tuple[str, int], int]]:
    async with opened(url) as store:
        return sorted((await store.source_positions(cluster, group)).items())


@app.command()
def seek(
    database_url: Database,
    group: Group,
    topic: str,
    partition: Annotated[int, typer.Argument(min=0)],
    offset: Annotated[int, typer.Argument(min=0, help="Of the next record to take.")],
    cluster: Cluster = "kafka",
    new: Annotated[
        bool, typer.Option("--new", help="Also where this group has not read the partition.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let a partition go on at this offset. Gateways that run find their batch stale, and go there.

    Back: records that come again are duplicates, and have no effect. Forward: what is skipped is never taken.
    """
    done = asyncio.run(_seek(database_url, cluster, group, topic, partition, offset, new=new))
    if as_json:
        print_json(done)
    else:
        was = "nowhere" if done["was"] is None else done["was"]
        typer.echo(f"{topic}/{partition} of group {group!r} goes on at {offset}; it was at {was}.")


async def _seek(
    url: str, cluster: str, group: str, topic: str, partition: int, offset: int, *, new: bool
) -> dict[str, Any]:
    async with opened(url) as store:
        known = await store.source_positions(cluster, group)
        was = known.get((topic, partition))
        if was is None and not new:
            places = ", ".join(f"{name}/{number}" for name, number in sorted(known)) or "nothing"
            msg = (
                f"group {group!r} has not read {topic}/{partition} of cluster {cluster!r}; it has read {places}. "
                "Nothing was changed. If it is to begin there: --new."
            )
            raise ConfigurationError(msg)
        await store.seek_source(cluster, group, topic, partition, offset)
    return {"topic": topic, "partition": partition, "was": was, "next_offset": offset}
