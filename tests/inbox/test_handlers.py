"""Events as user code receives them: parsed, by a model, or as bytes; by handlers that are durable."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from edda.app import EddaApp
from edda.cloudevent import CloudEvent
from edda.context import WorkflowContext
from edda.errors import ConfigurationError
from edda.event_handlers import handler_workflow
from edda.received import ReceivedEvent, received
from edda.retry import RetryPolicy
from edda.workflow import Workflow, workflow
from tests.inbox.given import event
from tests.support.databases import Database
from tests.support.eventually import eventually

OpenApp = Callable[..., Awaitable[EddaApp]]


@pytest.fixture
async def open_app(database: Database) -> AsyncIterator[OpenApp]:
    apps: list[EddaApp] = []

    async def make(
        *workflows: Workflow[Any, Any], prepare: Callable[[EddaApp], None] | None = None
    ) -> EddaApp:
        quick = RetryPolicy(initial_interval=0.01, max_attempts=3)
        app = EddaApp("shop", database.url, workflows=workflows, default_retry_policy=quick)
        apps.append(app)
        if prepare is not None:
            prepare(app)
        await app.initialize()
        return app

    yield make
    for app in apps:
        await app.shutdown()


class Payment(BaseModel, strict=True):
    amount: Decimal
    at: dt.date


# ---------------------------------------------------------------------------------------------- received


def test_data_is_the_json_or_the_model_or_the_bytes() -> None:
    assert received(event(data=b'{"n": [1]}')).data == {"n": [1]}
    assert received(event(data=None)).data is None
    assert received(event(data=b"null")).data is None
    assert received(event(data=b"text", datacontenttype="text/plain")).data == b"text"
    assert received(event(data=b"not json")).data == b"not json"
    assert received(event(data=b"1e999")).data == b"1e999"


def test_a_strict_model_reads_dates_and_decimals_as_json_has_them() -> None:
    got = received(event(data=b'{"amount": "1.10", "at": "2024-01-02"}'), Payment).data
    assert got == Payment(amount=Decimal("1.10"), at=dt.date(2024, 1, 2))


@pytest.mark.parametrize("data", [b"{}", b"not json", None, b"null"])
def test_data_that_the_model_refuses_is_a_validation_error(data: bytes | None) -> None:
    with pytest.raises(ValidationError):
        received(event(data=data), Payment)


def test_attributes_are_found_by_name() -> None:
    got = received(event(subject="s", time="2024-01-02T00:00:00Z", extensions={"myext": 7}))
    assert [got[name] for name in ("id", "source", "type", "subject", "time", "myext")] == [
        "a-1",
        "/shop",
        "order.created",
        "s",
        "2024-01-02T00:00:00Z",
        7,
    ]
    with pytest.raises(KeyError):
        got["nope"]


# ---------------------------------------------------------------------------------------------- handlers


async def test_every_handler_of_a_type_gets_each_event_once(open_app: OpenApp) -> None:
    got: list[tuple[str, ReceivedEvent]] = []

    def prepare(app: EddaApp) -> None:
        @app.on_event("order.created")
        async def first(received: ReceivedEvent) -> None:
            got.append(("first", received))

        @app.on_event("order.*")
        async def second(received: ReceivedEvent) -> None:
            got.append(("second", received))

    app = await open_app(prepare=prepare)
    await app.deliver([event(data=b'{"n": 1}'), event(data=b'{"n": 1}'), event("b", type="payment.made")])
    await eventually(lambda: len(got) == 2)
    assert sorted(name for name, _ in got) == ["first", "second"]
    assert all((each.id, each.data) == ("a-1", {"n": 1}) for _, each in got)


async def test_a_handler_that_fails_is_called_again(open_app: OpenApp) -> None:
    calls: list[str] = []

    def prepare(app: EddaApp) -> None:
        @app.on_event("order.created")
        async def flaky(received: ReceivedEvent) -> None:
            calls.append(received.id)
            if len(calls) < 3:
                raise ConnectionError("not yet")

    app = await open_app(prepare=prepare)
    await app.deliver(event())
    await eventually(lambda: calls == ["a-1"] * 3)


async def test_a_handler_that_keeps_failing_leaves_a_failed_instance_with_the_reason(
    open_app: OpenApp,
) -> None:
    def prepare(app: EddaApp) -> None:
        @app.on_event("order.created")
        async def broken(received: ReceivedEvent) -> None:
            raise LookupError("no such order")

    app = await open_app(prepare=prepare)
    await app.deliver(event())

    async def failed() -> list[dict[str, Any]]:
        return list((await app.find_instances(status="failed"))["instances"])

    [found] = await eventually(failed)
    assert "no such order" in str(found["output_data"])
    assert found["workflow_name"].startswith("on_event:order.created:")


async def test_two_handlers_of_one_name_are_two(open_app: OpenApp) -> None:
    got: list[str] = []

    def one() -> Any:
        async def handle(received: ReceivedEvent) -> None:
            got.append("one")

        return handle

    def other() -> Any:
        async def handle(received: ReceivedEvent) -> None:
            got.append("other")

        return handle

    def prepare(app: EddaApp) -> None:
        app.on_event("order.created")(one())
        app.on_event("order.created")(other())

    app = await open_app(prepare=prepare)
    await app.deliver(event())
    await eventually(lambda: sorted(got) == ["one", "other"])


def test_a_handler_that_is_not_async_is_refused_when_it_is_registered() -> None:
    def sync(received: ReceivedEvent) -> None: ...

    with pytest.raises(TypeError, match="async def"):
        handler_workflow("order.created", sync)  # type: ignore[arg-type]


@pytest.mark.parametrize("event_type", ["", "order*", "*.created"])
def test_a_handler_of_a_type_that_is_none_is_refused(event_type: str) -> None:
    async def handle(received: ReceivedEvent) -> None: ...

    with pytest.raises(ConfigurationError, match="payment"):
        handler_workflow(event_type, handle)


def test_a_handlers_stored_name_fits_its_column_and_differs_by_type() -> None:
    async def handle(received: ReceivedEvent) -> None: ...

    names = [handler_workflow(kind * 50, handle).workflow.name for kind in ("a.bc", "a.bd", "é.bc")]
    assert len(set(names)) == 3
    assert all(len(name.encode()) <= 255 for name in names)


# ---------------------------------------------------------------------------------------------- triggered workflows


async def test_a_triggered_workflow_gets_bytes_where_the_data_is_no_json(open_app: OpenApp) -> None:
    got: asyncio.Queue[object] = asyncio.Queue()

    @workflow(on="photo.taken")
    async def develop(ctx: WorkflowContext, raw: bytes) -> None:
        got.put_nowait(raw)

    app = await open_app(develop)
    await app.deliver(CloudEvent("p-1", "/shop", "photo.taken", b"\x00\xff", "image/png"))
    assert await asyncio.wait_for(got.get(), 10) == b"\x00\xff"


@pytest.mark.parametrize("settings", [{"on": "order*"}, {"on": ""}, {"on": "order.*", "key": "order_id"}])
def test_a_trigger_that_could_never_work_is_refused_where_it_is_declared(settings: dict[str, str]) -> None:
    async def never(ctx: WorkflowContext) -> None: ...

    with pytest.raises(ConfigurationError):
        workflow(**settings)(never)  # type: ignore[call-overload]
