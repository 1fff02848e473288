"""``docs/benchmarks.md``: the same figures for readers, with how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.figures import Figure
from tests.benchmarks.report import COSTS, cost, number

PATH = Path(__file__).parents[2] / "docs" / "benchmarks.md"

_INTRODUCTION = """\
# Benchmarks

How fast Edda is and what it costs, measured by `make bench` on the machine below. This page is written by
`make bench ARGS=--write-docs`; run it on your own machine before you compare. Without a container engine,
`ARGS="--databases sqlite"` works; `ARGS="--only five-steps,wake --seconds 1"` is quick; `--json PATH` keeps the
figures for programs; `--peers` runs other engines in turns with Edda.

Each measurement runs in a process of its own on a database of its own. What it has done is then counted by SQL
(completed instances, history rows, events, empty outbox) or at the receiver; a count that is not exact fails the run.

- **Ratio** compares a figure with its budget: 1 or more is within it.
- **CPU** is milliseconds per workflow or event: *client* of the measuring process with all its threads, *server* of the
  whole database server, whoever else uses it. On SQLite the database is part of the client.
- **Statements** are what the store has sent (SQLite: transactions of its threads; MySQL and MariaDB: round trips),
  **flushes** its group commits, both per workflow or event.
- **MiB** is the resident memory of the measuring process at the end.

Servers that the run starts itself keep their data in memory: a commit is forced as in production, but no disk makes
it wait. SQLite's file is on disk.
"""

_WORKLOADS = """\
## What is measured

- **Five steps**: `start()` of a workflow with five activities, one after the other, so many callers at a time.
- **Parked workflows woken**: workflows wait for an event each (`match=`); all events are handed in at once, one
  delivery each; it ends when all workflows have completed.
- **Event to completed**: one parked workflow, one event, an app with nothing else to do, from `app.deliver()` to the
  return of `handle.result()`. **Elsewhere**: the worker is another process, and the end is seen by SQL.
- **Outbox to HTTP**: rows of 100 ordering keys to an endpoint in another process, from the relay's start until the
  outbox is empty.
- **Outbox to Kafka**, **to RabbitMQ**: the same to a topic of four partitions, or to a quorum queue.
- **Kafka to accepted**, **RabbitMQ to accepted**: from the gateway's start until all events are accepted.
- **Alone**: the same messages by a plain client of that broker that does nothing else, in the same run.
- **Workflows started and parked**: started until they wait for an event. What then remains in memory is the parked
  instances'; **restart** is how long a new app takes to be ready with all of them in the database.
- **Idle worker**: an app with a relay and nothing to do; statements per second, heartbeat included.
"""


def write(
    figures: Sequence[Figure], peers: Sequence[Figure], machine: dict[str, str], versions: dict[str, str]
) -> None:
    """Write the page."""
    about = [f"| {name} | {value} |" for name, value in {**machine, **versions}.items()]
    parts = [
        _INTRODUCTION,
        "\n".join(["## Machine and versions", "", "| | |", "|---|---|", *about, ""]),
        "\n".join(["## Figures", "", *_table(figures), ""]),
    ]
    if peers:
        parts.append("\n".join(["## Other engines", "", *_peers(peers), ""]))
    parts.append(_WORKLOADS)
    PATH.write_text("\n".join(parts))


def _table(figures: Sequence[Figure]) -> list[str]:
    lines = [
        "| what | database | figure | budget | ratio | client CPU | server CPU | statements | flushes | MiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in figures:
        sign = "≤" if one.lower_is_better else "≥"
        wanted = "" if one.budget is None else f"{sign} {number(one.budget)}"
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        costs = " | ".join(cost(one, name) for name in COSTS)
        figure = f"{number(one.value)} {one.unit}"
        lines.append(f"| {one.workload} | {one.database} | {figure} | {wanted} | {ratio} | {costs} |")
    return lines


def _peers(figures: Sequence[Figure]) -> list[str]:
    ours = figures[0]
    lines = [
        f"The same five-step workflow ({ours.workload}, {ours.database}), in turns with Edda in one run.",
        "",
        "| engine | workflows/s | Edda is | client CPU, ms per workflow |",
        "|---|--:|--:|--:|",
    ]
    for one in figures:
        times = "" if one is ours else f"{number(ours.value / one.value)} times as fast"
        lines.append(f"| {one.engine} | {number(one.value)} | {times} | {cost(one, 'client_ms')} |")
    return lines
