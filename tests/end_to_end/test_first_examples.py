"""The examples by which users meet Edda, word for word, with what they leave open supplied."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

import edda
from edda import CloudEvent, EddaApp, WorkflowContext, activity, send_event, wait_event, workflow
from edda.sending import EventNotSentError
from tests.outbox_relays.sink import open_sink
from tests.support.eventually import eventually

QUICK_START = """
from edda import EddaApp, workflow, activity, WorkflowContext

@activity
async def process_payment(ctx: WorkflowContext, amount: float):
    print(f"Processing payment: ${amount}")
    return {"status": "paid", "amount": amount}

@workflow
async def order_workflow(ctx: WorkflowContext, order_id: str, amount: float):
    result = await process_payment(ctx, amount)
    return {"order_id": order_id, **result}

async def main():
    app = EddaApp(service_name="demo-service", db_url="sqlite:///workflow.db")
    await app.initialize()
    try:
        instance_id = await order_workflow.start(order_id="ORD-123", amount=99.99)
        print(f"Started workflow: {instance_id}")
    finally:
        await app.shutdown()
"""

REMINDER = """
@workflow
async def onboarding_reminder(ctx: WorkflowContext, user_id: str):
    await sleep(ctx, seconds=3*24*60*60)  # Wait 3 days
    if not await check_completed(ctx, user_id):
        await send_reminder(ctx, user_id)
"""

JSON_MODE = """
from google.protobuf import json_format

# Send: Protobuf → JSON dict
msg = OrderCreated(order_id="123", amount=99.99)
await send_event("order.created", "orders", json_format.MessageToDict(msg))

# Receive: JSON dict → Protobuf
payment = json_format.ParseDict(event.data, PaymentCompleted())
"""

BINARY_MODE = """
# Send binary data (e.g., Protobuf)
msg = OrderCreated(order_id="123", amount=99.99)
await send_event("order.created", "orders", msg.SerializeToString())  # bytes → BLOB

# Receive binary data
payment = PaymentCompleted()
payment.ParseFromString(event.data)  # bytes from BLOB
"""


@pytest.fixture(autouse=True)
def _only_workflows_of_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    here: dict[Any, Any] = {}
    for module in ("edda.workflow", "edda.app"):  # by these names: "edda.workflow" is also a function
        monkeypatch.setattr(sys.modules[module], "declared", here)


def run_module(code: str, given: dict[str, Any]) -> dict[str, Any]:
    """The code as a module of its own."""
    names = {"__name__": "first_example", **given}
    exec(compile(code, "first_example.py", "exec"), names)
    return names


async def test_the_quick_start_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_module(QUICK_START, {})
    await names["main"]()
    out = capsys.readouterr().out
    assert "Processing payment: $99.99" in out
    instance_id = out.partition("Started workflow: ")[2].strip()

    app = EddaApp("demo-service", "sqlite:///workflow.db", workflows=[names["order_workflow"]])
    async with app:
        result = await app.handle(instance_id).result()
    assert result == {"order_id": "ORD-123", "status": "paid", "amount": 99.99}
    assert "Processing" not in capsys.readouterr().out


async def test_the_reminder_is_sent_after_three_days(tmp_path: Path) -> None:
    sent = []

    @activity
    async def check_completed(ctx: WorkflowContext, user_id: str) -> bool:
        return False

    @activity
    async def send_reminder(ctx: WorkflowContext, user_id: str) -> None:
        sent.append(user_id)

    given = {**vars(edda), "check_completed": check_completed, "send_reminder": send_reminder}
    names = run_module(REMINDER, given)
    app = EddaApp("crm", f"sqlite:///{tmp_path}/db", workflows=[names["onboarding_reminder"]])
    async with app:
        instance_id = await names["onboarding_reminder"].start(user_id="ann")
        assert await app.handle(instance_id).status() == "waiting_for_timer"
        app.store.clock_offset_us += (3 * 24 * 60 * 60 - 60) * 1_000_000
        await app.store.fire_timers()
        assert await app.handle(instance_id).status() == "waiting_for_timer"
        app.store.clock_offset_us += 120 * 1_000_000
        await app.store.fire_timers()
        app.worker.kick()
        await app.handle(instance_id).result(timeout=20)
    assert sent == ["ann"]


def protobuf_message(name: str) -> Any:
    """``message <name> { string order_id = 1; double amount = 2; }``."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="shop", syntax="proto3")
    message = file.message_type.add(name=name)
    kinds = descriptor_pb2.FieldDescriptorProto
    message.field.add(name="order_id", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    message.field.add(name="amount", number=2, type=kinds.TYPE_DOUBLE, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.{name}"))


@pytest.mark.parametrize("mode", ["json", "binary"])
async def test_both_modes_carry_a_protobuf_message_there_and_back(tmp_path: Path, mode: str) -> None:
    created, completed = protobuf_message("OrderCreated"), protobuf_message("PaymentCompleted")
    got: list[Any] = []

    @workflow
    async def paying(ctx: WorkflowContext) -> None:
        event = await wait_event(ctx, "payment.completed")
        got.append(event)

    async with (
        open_sink() as sink,
        EddaApp("shop", f"sqlite:///{tmp_path}/db", workflows=[paying]) as app,
    ):
        instance_id = await paying.start()
        paid = completed(order_id="123", amount=99.99)
        body, kind = (
            (b'{"orderId": "123", "amount": 99.99}', "application/json")
            if mode == "json"
            else (paid.SerializeToString(), "application/octet-stream")
        )
        await app.deliver(CloudEvent("1", "/bank", "payment.completed", body, kind))
        await app.handle(instance_id).result(timeout=20)

        async def to_the_sink(event_type: str, source: str, data: Any) -> str:
            return await send_event(event_type, source, data, broker_url=sink.url)

        code = "async def block():\n" + textwrap.indent(
            (JSON_MODE if mode == "json" else BINARY_MODE) + "\nreturn payment", "    "
        )
        given = {
            "OrderCreated": created,
            "PaymentCompleted": completed,
            "send_event": to_the_sink,
            "event": got[0],
        }
        payment = await run_module(code, given)["block"]()
        assert (payment.order_id, payment.amount) == ("123", 99.99)
        await eventually(lambda: len(sink.got) == 1)
        sent = sink.got[0].event
        assert (sent.type, sent.source) == ("order.created", "orders")
        arrived = created()
        if mode == "json":
            assert sent.json() == {"orderId": "123", "amount": 99.99}
        else:
            arrived.ParseFromString(sent.data)
            assert (arrived.order_id, arrived.amount) == ("123", 99.99)


async def test_an_event_that_nobody_takes_is_an_error() -> None:
    with pytest.raises(EventNotSentError, match=r"was not taken by http://127\.0\.0\.1:9"):
        await send_event("order.created", "orders", {}, broker_url="http://127.0.0.1:9/")
