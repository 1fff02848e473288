"""What a user would write: an order is reserved, waits for its payment, is paid, and is shipped."""

from __future__ import annotations

from edda.activity import activity
from edda.context import WorkflowContext
from edda.transactional import send_event_transactional
from edda.waits import sleep, wait_event
from edda.workflow import workflow

SOURCE = "/demo/shop"


@activity
async def reserve(ctx: WorkflowContext, order_id: str) -> str:  # noqa: ARG001, every activity is given it
    """Set the goods aside."""
    return f"shelf-{int(order_id.rpartition('-')[2]) % 7}"


@activity
async def confirm_payment(ctx: WorkflowContext, order_id: str, customer: str, payment_id: str) -> None:
    """Tell the world, in the activity's own transaction."""
    data = {"order_id": order_id, "payment_id": payment_id}
    await send_event_transactional(ctx, "order.paid", SOURCE, data, key=customer)


@activity
async def ship(ctx: WorkflowContext, order_id: str, customer: str, shelf: str) -> None:
    """Tell the world again; the same key keeps the order of both."""
    await send_event_transactional(
        ctx, "order.shipped", SOURCE, {"order_id": order_id, "shelf": shelf}, key=customer
    )


@workflow(on="order.created", name="fulfil_order")
async def fulfil_order(ctx: WorkflowContext, order_id: str, customer: str) -> str:
    """One run per ``order.created`` event."""
    shelf = await reserve(ctx, order_id)
    payment = await wait_event(
        ctx, "payment.completed", match={"data.order_id": order_id}, timeout_seconds=600
    )
    await confirm_payment(ctx, order_id, customer, payment.data["payment_id"])
    await sleep(ctx, seconds=0.5)
    await ship(ctx, order_id, customer, shelf)
    return shelf
