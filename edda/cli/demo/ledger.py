"""The ledger: what went in, what came out, checked against the sink's file and the database."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from edda.storage.rows import State

if TYPE_CHECKING:
    from edda.storage.contract import Storage


@dataclass
class Ledger:
    """Counts, as they stand."""

    sent_orders: int = 0
    sent_payments: int = 0
    duplicates_refused: int = 0
    started: int = 0
    completed: int = 0
    waiting: int = 0
    running: int = 0
    outbox: int = 0
    out: int = 0
    repeats_at_sink: int = 0
    killed_after: int | None = None
    seconds: float = 0.0
    by_type: dict[str, int] = field(default_factory=dict)

    def sent(self, kind: str, verdict: str) -> None:
        """A delivery was answered with 202."""
        if verdict == "duplicate":
            self.duplicates_refused += 1
        elif kind == "order.created":
            self.sent_orders += 1
        else:
            self.sent_payments += 1

    def look(self, counts: Mapping[str, int], sink: Path) -> None:
        """Read the database's counts and the sink's file."""
        self.started = counts["instances"]
        self.completed = counts.get(f"instances.{State.COMPLETED}", 0)
        self.waiting = counts.get(f"instances.{State.WAITING}", 0)
        self.running = counts.get(f"instances.{State.RUNNING}", 0) + counts.get(
            f"instances.{State.RUNNABLE}", 0
        )
        self.outbox = counts["outbox"]
        seen = Counter((event["source"], event["id"], event["type"]) for event in read_sink(sink))
        self.out = len(seen)
        self.repeats_at_sink = sum(seen.values()) - len(seen)
        self.by_type = dict(Counter(kind for _, _, kind in seen))

    def finished(self, orders: int) -> bool:
        """Whether nothing more is to be expected."""
        return self.completed == orders and self.outbox == 0 and self.killed_after is not None

    def as_dict(self, orders: int, faults: list[str]) -> dict[str, Any]:
        """For programs."""
        lost = max(0, 2 * orders - self.out)
        return {"orders": orders, **asdict(self), "lost": lost, "faults": faults, "adds_up": not faults}


def read_sink(sink: Path) -> list[dict[str, str]]:
    """Every whole line of the sink's file."""
    if not sink.exists():
        return []
    return [json.loads(line) for line in sink.read_text().split("\n")[:-1]]


async def check(ledger: Ledger, orders: int, store: Storage, sink: Path) -> list[str]:
    """What does not add up; empty if all does."""
    faults: list[str] = []

    def expect(what: str, got: object, wanted: object) -> None:
        if got != wanted:
            faults.append(f"{what}: {got}, expected {wanted}")

    expect("orders accepted", ledger.sent_orders, orders)
    expect("payments accepted", ledger.sent_payments, orders)
    expect("workflows started", ledger.started, orders)
    expect("workflows completed", ledger.completed, orders)
    expect("outbox rows left", ledger.outbox, 0)
    if ledger.killed_after is None:
        faults.append("the worker was never killed")
    if ledger.duplicates_refused == 0:
        faults.append("no duplicate was refused, so none was sent")
    events = read_sink(sink)
    for kind in ("order.paid", "order.shipped"):
        told = Counter(
            json.loads(event["data"])["order_id"]
            for event in {
                (event["source"], event["id"]): event for event in events if event["type"] == kind
            }.values()
        )
        expect(f"{kind} at the sink", len(told), orders)
        expect(f"{kind} said twice under different ids", sum(1 for number in told.values() if number > 1), 0)
    page: tuple[int, str] | None = None
    while rows := await store.find_instances(limit=500, before=page):
        for row in rows:
            history = [record.kind for record in await store.get_history(row.id)]
            if history != ["activity", "event", "activity", "timer", "activity"]:
                faults.append(f"history of {row.id}: {history}")
        page = (rows[-1].created_at, rows[-1].id)
    return faults


def show_progress(ledger: Ledger, orders: int, seconds: float) -> Table:
    """The live table."""
    table = Table(title=f"edda demo, {seconds:4.1f} s", title_justify="left", min_width=60)
    table.add_column("in")
    table.add_column("workflows")
    table.add_column("out")
    killed = "" if ledger.killed_after is None else "\n[red]worker killed with -9,[/red]\nanother took over"
    table.add_row(
        f"orders    {ledger.sent_orders:>5} / {orders}\npayments  {ledger.sent_payments:>5} / {orders}\n"
        f"twice     {ledger.duplicates_refused:>5}",
        f"started   {ledger.started:>5}\nwaiting   {ledger.waiting:>5}\nrunning   {ledger.running:>5}\n"
        f"completed [green]{ledger.completed:>5}[/green]",
        f"order.paid    {ledger.by_type.get('order.paid', 0):>5}\norder.shipped {ledger.by_type.get('order.shipped', 0):>5}\n"
        f"in the outbox {ledger.outbox:>5}{killed}",
    )
    return table


def show_result(console: Console, ledger: Ledger, orders: int, faults: list[str]) -> None:
    """The ledger at the end."""
    table = Table(title="ledger", title_justify="left", min_width=60)
    table.add_column("entry")
    table.add_column("count", justify="right")
    for entry, count in (
        ("events in (orders + payments)", ledger.sent_orders + ledger.sent_payments),
        ("duplicates refused", ledger.duplicates_refused),
        ("workflows started", ledger.started),
        ("workflows completed", ledger.completed),
        ("events out (order.paid + order.shipped)", ledger.out),
        ("repeats at the sink (same id)", ledger.repeats_at_sink),
        ("worker killed with -9 after ... events out", ledger.killed_after),
        ("lost", max(0, 2 * orders - ledger.out)),
    ):
        table.add_row(entry, str(count))
    console.print(table)
    for fault in faults[:20]:
        console.print(f"[red]does not add up[/red] {fault}", highlight=False)
    if not faults:
        console.print(
            f"[green]It adds up.[/green] {ledger.seconds:.1f} s, checked against the sink and the database."
        )
