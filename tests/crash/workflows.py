"""What a user would write, and a diary of which bodies ran.

An order does everything that a process can die in: plain activities, several at once, one that fails until its retries
are spent, a wait for an event, an activity that writes a row of the user's own through ``ctx.session`` and publishes,
a timer, an event published by the workflow itself, and a last activity that is tried twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edda.activity import activity
from edda.cloudevent import CloudEvent
from edda.context import WorkflowContext
from edda.history import records
from edda.retry import RetryExhaustedError, RetryPolicy
from edda.transactional import send_event_transactional
from edda.waits import sleep, wait_event
from edda.workflow import Workflow, workflow
from tests.crash import killpoints
from tests.support.eventually import eventually

SOURCE = "/shop"

#: The user's own table. No key: a row that is written twice must show.
metadata = sa.MetaData()
bookings = sa.Table(
    "crash_bookings",
    metadata,
    sa.Column("order_id", sa.String(64), nullable=False),
    sa.Column("amount", sa.Integer, nullable=False),
)

#: What the history of an order must be, by command number.
HISTORY = (
    (records.ACTIVITY, "reserve"),
    (records.ACTIVITY, "weigh"),
    (records.ACTIVITY, "measure"),
    (records.ACTIVITY_FAILED, "stubborn"),
    (records.EVENT, "payment"),
    (records.ACTIVITY, "book"),
    (records.TIMER, "pause"),
    (records.PUBLISH, "order.packed"),
    (records.ACTIVITY, "ship"),
)

#: What an order must have published, in this order.
EVENTS = ("order.booked", "order.packed", "order.shipped")

#: How often each body runs if nobody dies.
BODIES = {"reserve": 1, "weigh": 1, "measure": 1, "stubborn": 3, "book": 1, "ship": 2}

_RETRY = RetryPolicy(initial_interval=0.03, backoff_coefficient=1.0, max_attempts=3)


def payment_type(order_id: str) -> str:
    """Each shop has event types of its own, so that its shapes are registered by itself."""
    return f"paid.{order_id.partition('/')[0]}"


@contextmanager
def body(name: str, order_id: str) -> Iterator[int]:
    """Note in the diary that this body runs; gives how often it did, over all processes."""
    killpoints.here.reach(f"body.{name}", "before")
    yield note(name, order_id)
    killpoints.here.reach(f"body.{name}", "after")


def note(name: str, order_id: str) -> int:
    """Add to the diary (the directory in the variable ``CRASH_DIARY``); gives how many such notes there are now."""
    if "CRASH_DIARY" not in os.environ:
        return 0
    page = Path(os.environ["CRASH_DIARY"]) / _page(name, order_id)
    descriptor = os.open(page, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, b"%d\n" % os.getpid())
    finally:
        os.close(descriptor)
    return noted(page.parent, name, order_id)


def noted(diary: Path, name: str, order_id: str) -> int:
    """How often the body has run."""
    page = diary / _page(name, order_id)
    return page.read_bytes().count(b"\n") if page.exists() else 0


def _page(name: str, order_id: str) -> str:
    return f"{order_id.replace('/', '_')}.{name}"


@activity
async def reserve(ctx: WorkflowContext, order_id: str) -> str:
    with body("reserve", order_id):
        return f"shelf of {order_id}"


@activity
async def weigh(ctx: WorkflowContext, order_id: str) -> int:
    with body("weigh", order_id):
        return 3


@activity
def measure(ctx: WorkflowContext, order_id: str) -> int:
    with body("measure", order_id):
        return 4


@activity(retry_policy=_RETRY)
async def stubborn(ctx: WorkflowContext, order_id: str) -> None:
    with body("stubborn", order_id):
        pass
    raise ValueError("no")


@activity
async def book(ctx: WorkflowContext, order_id: str, customer: str, amount: int) -> None:
    with body("book", order_id):
        await ctx.session.execute(sa.insert(bookings).values(order_id=order_id, amount=amount))
        await publish(ctx, "order.booked", order_id, customer)


@activity(retry_policy=_RETRY)
async def ship(ctx: WorkflowContext, order_id: str, customer: str) -> str:
    with body("ship", order_id) as times:
        await publish(ctx, "order.shipped", order_id, customer)
    if times == 1:
        raise ConnectionError("the carrier does not answer")
    return "shipped"


async def publish(ctx: WorkflowContext, event_type: str, order_id: str, customer: str) -> None:
    await send_event_transactional(ctx, event_type, SOURCE, {"order_id": order_id}, key=customer)


async def fulfil(ctx: WorkflowContext, order_id: str, customer: str) -> dict[str, Any]:
    shelf = await reserve(ctx, order_id)
    sizes = await asyncio.gather(weigh(ctx, order_id), measure(ctx, order_id))
    try:
        await stubborn(ctx, order_id)
    except RetryExhaustedError:
        persuaded = False
    else:
        persuaded = True
    payment = await wait_event(
        ctx,
        payment_type(order_id),
        match={"data.order_id": order_id},
        timeout_seconds=3600,
        event_id="payment",
    )
    await book(ctx, order_id, customer, payment.data["amount"])
    await sleep(ctx, 0.1, timer_id="pause")
    await publish(ctx, "order.packed", order_id, customer)
    shipped = await ship(ctx, order_id, customer)
    return {
        "order_id": order_id,
        "shelf": shelf,
        "size": sizes,
        "persuaded": persuaded,
        "amount": payment.data["amount"],
        "shipped": shipped,
    }


async def fulfil_shortly(ctx: WorkflowContext, order_id: str, customer: str) -> dict[str, Any]:
    """The least that an order can be: for thousands of them."""
    await reserve(ctx, order_id)
    payment = await wait_event(
        ctx,
        payment_type(order_id),
        match={"data.order_id": order_id},
        timeout_seconds=3600,
        event_id="payment",
    )
    await book(ctx, order_id, customer, payment.data["amount"])
    await publish(ctx, "order.packed", order_id, customer)
    await publish(ctx, "order.shipped", order_id, customer)
    return {"order_id": order_id, "amount": payment.data["amount"]}


#: Started by events, and started by hand.
triggered_order = workflow(on="order.created", name="order")(fulfil)
order = workflow(name="order")(fulfil)
short_order = workflow(on="order.created", name="order")(fulfil_shortly)


@activity
async def wait_for_the_gate(ctx: WorkflowContext, order_id: str) -> None:
    """Ends when the file that the variable ``CRASH_GATE`` names is there."""
    note("slow", order_id)
    print(f"begins {order_id}", flush=True)
    gate = Path(os.environ["CRASH_GATE"])
    await eventually(gate.exists, timeout=3600, pause=0.02)
    print(f"ends {order_id}", flush=True)


@activity
async def go_on(ctx: WorkflowContext, order_id: str) -> None:
    print(f"begins after {order_id}", flush=True)


@workflow(name="slow")
async def slow(ctx: WorkflowContext, order_id: str) -> None:
    await wait_for_the_gate(ctx, order_id)
    await go_on(ctx, order_id)


@workflow(name="small")
async def small(ctx: WorkflowContext) -> str:
    await reserve(ctx, "small")
    return "done"


@workflow(name="waiter")
async def waiter(ctx: WorkflowContext, number: int) -> int:
    """Waits for an event of its own: every second one for ever, the others for a day."""
    timeout = None if number % 2 else 86_400
    event = await wait_event(ctx, "go", match={"data.number": number}, timeout_seconds=timeout)
    return event.data["number"]  # type: ignore[no-any-return]


@activity
async def kill_this_process(ctx: WorkflowContext) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@workflow(name="poison")
async def poison(ctx: WorkflowContext) -> None:
    await reserve(ctx, "poison")
    await kill_this_process(ctx)


@activity
async def block_the_loop(ctx: WorkflowContext, order_id: str, seconds: float) -> None:
    """What no activity should do: nothing else of the process runs meanwhile."""
    with body("block", order_id):
        print(f"blocks {order_id}", flush=True)
        time.sleep(seconds)  # noqa: ASYNC251, the fault that is tested


@workflow(name="blocking")
async def blocking(ctx: WorkflowContext, order_id: str, seconds: float) -> None:
    await block_the_loop(ctx, order_id, seconds)


def go(number: int) -> CloudEvent:
    """What a waiter waits for."""
    return CloudEvent(f"go {number}", "/test", "go", b'{"number": %d}' % number, "application/json")


def result_of(order_id: str, amount: int) -> dict[str, Any]:
    """What an order gives, whoever dies."""
    return {
        "order_id": order_id,
        "shelf": f"shelf of {order_id}",
        "size": [3, 4],
        "persuaded": False,
        "amount": amount,
        "shipped": "shipped",
    }


@dataclass(frozen=True, slots=True)
class Course:
    """How an order goes: what runs it, what its history must be, and what it gives. All publish ``EVENTS``."""

    workflow: Workflow[Any, Any]
    history: tuple[tuple[str, str], ...]
    result: Callable[[str, int], dict[str, Any]]


courses = {
    "full": Course(triggered_order, HISTORY, result_of),
    "short": Course(
        short_order,
        (
            (records.ACTIVITY, "reserve"),
            (records.EVENT, "payment"),
            (records.ACTIVITY, "book"),
            (records.PUBLISH, "order.packed"),
            (records.PUBLISH, "order.shipped"),
        ),
        lambda order_id, amount: {"order_id": order_id, "amount": amount},
    ),
}
