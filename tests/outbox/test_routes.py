"""From a commit to the other side, through real apps: every way of publishing reaches the same destinations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from edda import outbox
from edda.activity import activity
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.errors import ConfigurationError
from edda.transactional import send_event_transactional
from edda.workflow import workflow
from outbox_relays.http import HttpPublisher
from tests.outbox_relays.sink import Sink, open_sink
from tests.support.databases import Database
from tests.support.eventually import eventually

OpenApp = Callable[..., Awaitable[EddaApp]]


@pytest.fixture
async def open_app(database: Database) -> AsyncIterator[OpenApp]:
    apps: list[EddaApp] = []

    async def make(**settings: Any) -> EddaApp:
        app = EddaApp(settings.pop("name", "shop"), database.url, **{"workflows": [paying]} | settings)
        apps.append(app)
        await app.initialize()
        return app

    yield make
    for app in reversed(apps):
        await app.shutdown()


@pytest.fixture
async def bank() -> AsyncIterator[Sink]:
    async with open_sink() as sink:
        yield sink


@pytest.fixture
async def audit() -> AsyncIterator[Sink]:
    async with open_sink() as sink:
        yield sink


@activity
async def pay(ctx: WorkflowContext, order_id: str) -> None:
    await send_event_transactional(
        ctx, "invoice.paid", "/shop", {"from": "activity"}, event_id=f"act-{order_id}"
    )


@workflow(name="paying")
async def paying(ctx: WorkflowContext, order_id: str) -> None:
    await pay(ctx, order_id)
    await send_event_transactional(
        ctx, "order.done", "/shop", {"from": "workflow"}, event_id=f"wf-{order_id}"
    )


def routes(bank: Sink, audit: Sink) -> list[HttpPublisher]:
    return [
        HttpPublisher(bank.url, destination="bank", types=["invoice.*"]),
        HttpPublisher(audit.url, destination="audit"),
    ]


async def plain(app: EddaApp, event_type: str, event_id: str, **settings: Any) -> None:
    async with AsyncSession(app.storage.engine) as session, session.begin():
        await outbox.publish(session, event_type, "/shop", {"from": "plain code"}, id=event_id, **settings)


async def test_workflows_and_plain_code_reach_the_same_destinations(
    open_app: OpenApp, bank: Sink, audit: Sink
) -> None:
    app = await open_app(relays=routes(bank, audit))
    await paying.start(order_id="1")
    await plain(app, "invoice.paid", "plain-1")
    await plain(app, "order.done", "plain-2")
    await eventually(lambda: set(bank.ids) == {"act-1", "plain-1"})
    await eventually(lambda: set(audit.ids) == {"act-1", "wf-1", "plain-1", "plain-2"})
    await app.shutdown()
    assert len(bank.ids) == 2
    assert len(audit.ids) == 4


async def test_plain_code_may_say_the_destination(open_app: OpenApp, bank: Sink, audit: Sink) -> None:
    app = await open_app(relays=routes(bank, audit))
    await plain(app, "order.done", "a", destination="bank")
    await eventually(lambda: bank.ids == ["a"])
    assert audit.ids == []


async def test_a_relay_in_a_process_that_does_not_work_hears_of_another_processs_rows(
    open_app: OpenApp, bank: Sink, audit: Sink
) -> None:
    await open_app(work=False, workflows=[], relays=[HttpPublisher(audit.url)])
    worker = await open_app(name="shop")
    for number in range(3):  # each finds the relay idle
        await worker.start(paying, order_id=str(number))
        await eventually(lambda number=number: len(audit.ids) == 2 * (number + 1), 20)  # type: ignore[misc]
    assert audit.ids == ["act-0", "wf-0", "act-1", "wf-1", "act-2", "wf-2"]


async def test_a_relay_elsewhere_hears_of_rows_though_the_worker_has_a_relay_of_its_own(
    open_app: OpenApp, bank: Sink, audit: Sink
) -> None:
    await open_app(
        name="elsewhere", work=False, workflows=[], relays=[HttpPublisher(audit.url, destination="audit")]
    )
    app = await open_app(relays=[HttpPublisher(bank.url, destination="bank")])
    for number in range(3):  # each finds that relay idle
        await plain(app, "order.done", str(number), destination="audit")
        await eventually(lambda number=number: len(audit.ids) == number + 1, 5)  # type: ignore[misc]
    assert bank.ids == []


async def test_two_relays_of_one_destination_are_refused(open_app: OpenApp, bank: Sink) -> None:
    with pytest.raises(ConfigurationError, match=r"destination='default'.*destination='default-2'"):
        await open_app(relays=[HttpPublisher(bank.url), HttpPublisher(bank.url, types=["a.*"])])


async def test_an_event_that_no_relay_takes_stays_in_the_outbox_and_goes_to_nobody(
    open_app: OpenApp, bank: Sink
) -> None:
    app = await open_app(relays=[HttpPublisher(bank.url, types=["invoice.*"])])
    await plain(app, "order.done", "a")
    await plain(app, "invoice.paid", "b")
    await eventually(lambda: bank.ids == ["b"])

    async def one_is_left() -> bool:
        return (await app.store.counts())["outbox"] == 1

    await eventually(one_is_left)
    assert bank.ids == ["b"]
