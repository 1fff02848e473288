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


#: What dies, in this order.
KILLED = ("gateway", "worker", "relay")


@dataclass
class Ledger:
    """Counts, as they stand."""

    orders_via: str = ""
    sent_orders: int = 0
    sent_payments: int = 0
    duplicates_refused: int = 0
    identities: int = 0
    started: int = 0
    completed: int = 0
    waiting: int = 0
    running: int = 0
    outbox: int = 0
    out: int = 0
    repeats_at_sink: int = 0
    killed: dict[str, int | None] = field(default_factory=lambda: dict.fromkeys(KILLED))
    seconds: float = 0.0
    by_type: dict[str, int] = field(default_factory=dict)
    orders: Counter[str] = field(default_factory=Counter)
    answers: dict[str, list[str]] = field(default_factory=dict)

    @property
    def all_killed(self) -> bool:
        """Whether each part has died once."""
        return None not in self.killed.values()

    def ordered(self, order_id: str) -> None:
        """The broker has an order, once more perhaps."""
        self.orders[order_id] += 1
        self._count()

    def paid(self, order_id: str, verdict: str) -> None:
        """A payment was answered with 202.

        The first answer may be "duplicate" already: the one before was lost, or came later than that to its copy.
        """
        self.answers.setdefault(order_id, []).append(verdict)
        self._count()

    def _count(self) -> None:
        self.sent_orders, self.sent_payments = len(self.orders), len(self.answers)
        sent = self.orders.total() + sum(len(each) for each in self.answers.values())
        self.duplicates_refused = sent - self.sent_orders - self.sent_payments

    def look(self, counts: Mapping[str, int], sink: Path) -> None:
        """Read the database's counts and the sink's file."""
        self.identities = counts["identities"]
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
        return ((self.completed, self.outbox, self.out) == (orders, 0, 2 * orders)) and self.all_killed

    def as_dict(self, orders: int, faults: list[str]) -> dict[str, Any]:
        """For programs."""
        told = asdict(self)
        del told["answers"], told["orders"]
        lost = max(0, 2 * orders - self.out)
        return {"orders": orders, **told, "lost": lost, "faults": faults, "adds_up": not faults}


def read_sink(sink: Path) -> list[dict[str, str]]:
    """Every whole line of the sink's file."""
    if not sink.exists():
        return []
    return [json.loads(line) for line in sink.read_text().split("\n")[:-1]]


async def check(ledger: Ledger, orders: int, store: Storage, sink: Path) -> list[str]:
    """What does not add up; empty if all does."""
    faults = _faults_of_counts(ledger, orders)
    faults += _faults_at_sink(read_sink(sink), orders)
    page: tuple[int, str] | None = None
    while rows := await store.find_instances(limit=500, before=page):
        for row in rows:
            history = [record.kind for record in await store.get_history(row.id)]
            if history != ["activity", "event", "activity", "timer", "activity"]:
                faults.append(f"history of {row.id}: {history}")
        page = (rows[-1].created_at, rows[-1].id)
    return faults


def _faults_of_counts(ledger: Ledger, orders: int) -> list[str]:
    faults = [
        f"{what}: {got}, expected {wanted}"
        for what, got, wanted in (
            ("orders sent", ledger.sent_orders, orders),
            ("payments accepted", ledger.sent_payments, orders),
            ("events accepted", ledger.identities, 2 * orders),
            ("workflows started", ledger.started, orders),
            ("workflows completed", ledger.completed, orders),
            ("outbox rows left", ledger.outbox, 0),
        )
        if got != wanted
    ]
    for part, after in ledger.killed.items():
        if after is None:
            faults.append(f"the {part} was never killed")
        elif after >= 2 * orders:
            faults.append(f"the {part} was killed when all was done")
    if ledger.duplicates_refused == 0:
        faults.append("no duplicate was refused, so none was sent")
    twice = [
        order_id
        for order_id, verdicts in ledger.answers.items()
        if len(verdicts) - verdicts.count("duplicate") > 1
    ]
    return [*faults, *(f"the payment of {order_id} was accepted twice" for order_id in twice)]


def _faults_at_sink(events: list[dict[str, str]], orders: int) -> list[str]:
    """Each event once, but for repeats under the same id; at each place each customer's in the order of writing."""
    first: dict[tuple[str, str], dict[str, str]] = {}
    for event in events:
        first.setdefault((event["source"], event["id"]), event)
    faults = []
    last: dict[tuple[str, str], str] = {}
    told: dict[str, Counter[str]] = {"order.paid": Counter(), "order.shipped": Counter()}
    for event in first.values():
        order_id = json.loads(event["data"])["order_id"]
        told[event["type"]][order_id] += 1
        customer = customer_of(order_id)
        if event["sequence"] <= last.get((event["via"], customer), ""):
            faults.append(f"{event['type']} of {order_id} came behind a later event of {customer}")
        last[event["via"], customer] = event["sequence"]
    for kind, counted in told.items():
        if len(counted) != orders:
            faults.append(f"{kind} at the sink: {len(counted)}, expected {orders}")
        twice = sorted(order_id for order_id, number in counted.items() if number > 1)
        if twice:
            faults.append(f"{kind} said twice under different ids: {', '.join(twice)}")
    return faults


def customer_of(order_id: str) -> str:
    """The ordering key of an order's events."""
    return f"customer-{int(order_id.rpartition('-')[2]) % 10}"


def show_progress(ledger: Ledger, orders: int, seconds: float) -> Table:
    """The live table."""
    table = Table(title=f"edda demo, {seconds:4.1f} s", title_justify="left", min_width=60)
    table.add_column("in")
    table.add_column("workflows")
    table.add_column("out")
    dead = [part for part, after in ledger.killed.items() if after is not None]
    killed = "".join(f"\n[red]{part} killed with -9[/red]" for part in dead)
    table.add_row(
        f"orders    {ledger.sent_orders:>5} / {orders}\npayments  {ledger.sent_payments:>5} / {orders}\n"
        f"twice     {ledger.duplicates_refused:>5}",
        f"started   {ledger.started:>5}\nwaiting   {ledger.waiting:>5}\nrunning   {ledger.running:>5}\n"
        f"completed [green]{ledger.completed:>5}[/green]",
        f"order.paid    {ledger.by_type.get('order.paid', 0):>5}\n"
        f"order.shipped {ledger.by_type.get('order.shipped', 0):>5}\n"
        f"in the outbox {ledger.outbox:>5}{killed}",
    )
    return table


def show_result(console: Console, ledger: Ledger, orders: int, faults: list[str]) -> None:
    """The ledger at the end."""
    table = Table(title="ledger", title_justify="left", min_width=60)
    table.add_column("entry")
    table.add_column("count", justify="right")
    for entry, count in (
        (f"orders in ({ledger.orders_via})", ledger.sent_orders),
        ("payments in (HTTP)", ledger.sent_payments),
        ("duplicates refused", ledger.duplicates_refused),
        ("workflows started", ledger.started),
        ("workflows completed", ledger.completed),
        ("events out (order.paid to the broker, order.shipped by HTTP)", ledger.out),
        ("repeats at the sink (same id)", ledger.repeats_at_sink),
        *((f"{part} killed with -9 after ... events out", after) for part, after in ledger.killed.items()),
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
