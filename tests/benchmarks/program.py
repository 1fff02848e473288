"""The workflows that are measured."""

from __future__ import annotations

from edda.activity import activity
from edda.cloudevent import CloudEvent
from edda.context import WorkflowContext
from edda.waits import wait_event
from edda.workflow import workflow

APP = "bench"
STEPS = 5
PAID = "payment.completed"


@activity
async def step(ctx: WorkflowContext, number: int) -> dict[str, int]:
    """As little as an activity can do."""
    return {"number": number + 1}


@workflow(name="bench_five_steps")
async def five_steps(ctx: WorkflowContext, number: int) -> int:
    """Five durable steps, one after the other."""
    for _ in range(STEPS):
        number = (await step(ctx, number))["number"]
    return number


@workflow(name="bench_paid")
async def paid(ctx: WorkflowContext, order_id: str) -> str:
    """Wait for one event of this order."""
    event = await wait_event(ctx, PAID, match={"data.order_id": order_id})
    return event.id


def payment(order_id: str) -> CloudEvent:
    """The event that ``paid`` waits for."""
    return CloudEvent(
        type=PAID, source="/bench", id=f"payment-of-{order_id}", data=b'{"order_id":"%s"}' % order_id.encode()
    )
