"""Waiting for events: which one a wait gets, in which order, and what a timeout loses against."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from edda import errors
from edda.activity import activity
from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.retry import RetryPolicy
from edda.storage.rows import Verdict
from edda.waits import EventTimeoutError, wait_event
from edda.workflow import workflow
from tests.engine.clock import advance
from tests.engine.conftest import MakeApp
from tests.engine.events import event
from tests.support.eventually import eventually


async def parked(app: EddaApp, instance_id: str, status: str = "waiting_for_message") -> None:
    async def is_parked() -> bool:
        return await app.handle(instance_id).status() == status and instance_id not in app.worker.runs

    await eventually(is_parked)


@workflow
async def one_payment(ctx: WorkflowContext, order_id: str) -> Any:
    received = await wait_event(ctx, "payment.completed", match={"data.order_id": order_id})
    return received.data


async def test_event_accepted_before_its_wait_wakes_it_when_registered(make_app: MakeApp) -> None:
    release = asyncio.Event()

    @activity
    async def slow(ctx: WorkflowContext) -> None:
        await release.wait()

    @workflow
    async def late(ctx: WorkflowContext, order_id: str) -> Any:
        await slow(ctx)
        return (await wait_event(ctx, "payment.completed", match={"data.order_id": order_id})).data

    app = await make_app(late)
    handle = await late.submit(order_id="o-1")
    await app.deliver(event("payment.completed", {"order_id": "o-1", "n": 1}))
    release.set()
    assert await handle.result() == {"order_id": "o-1", "n": 1}


async def test_event_accepted_shortly_before_the_instance_starts_is_within_the_grace(
    make_app: MakeApp,
) -> None:
    app = await make_app(one_payment)
    [told] = await app.deliver(event("payment.completed", {"order_id": "o-1"}))
    assert told.verdict is Verdict.UNMATCHED
    assert await app.handle(await one_payment.start(order_id="o-1")).result() == {"order_id": "o-1"}


async def test_an_older_event_is_seen_with_lookback_only(make_app: MakeApp) -> None:
    @workflow
    async def looks_back(ctx: WorkflowContext, order_id: str) -> Any:
        match = {"data.order_id": order_id}
        return (await wait_event(ctx, "payment.completed", match=match, lookback=timedelta(hours=2))).data

    app = await make_app(one_payment, looks_back)
    await app.deliver(event("payment.completed", {"order_id": "o-1", "n": "old"}))
    await advance(app, 3600)
    instance_id = await one_payment.start(order_id="o-1")
    await parked(app, instance_id)
    assert await app.handle(await looks_back.start(order_id="o-1")).result() == {
        "order_id": "o-1",
        "n": "old",
    }
    await app.deliver(event("payment.completed", {"order_id": "o-1", "n": "new"}))
    assert await app.handle(instance_id).result() == {"order_id": "o-1", "n": "new"}


async def test_event_for_a_parked_wait_wakes_that_instance_and_no_other(make_app: MakeApp) -> None:
    app = await make_app(one_payment)
    mine, other = await one_payment.start(order_id="o-1"), await one_payment.start(order_id="o-2")
    await parked(app, mine)
    await parked(app, other)
    [told] = await app.deliver(event("payment.completed", {"order_id": "o-1"}))
    assert (told.verdict, told.waits) == (Verdict.ACCEPTED, 1)
    assert await app.handle(mine).result() == {"order_id": "o-1"}
    assert await app.handle(other).status() == "waiting_for_message"


async def test_a_value_matches_by_type_too(make_app: MakeApp) -> None:
    @workflow
    async def numbered(ctx: WorkflowContext) -> str:
        return (await wait_event(ctx, "n", match={"data.n": 42})).id

    app = await make_app(numbered)
    instance_id = await numbered.start()
    await app.deliver([event("n", {"n": "42"}), event("n", {"n": None}), event("n", {})])
    assert await app.handle(instance_id).status() == "waiting_for_message"
    await app.deliver(event("n", {"n": 42.0}, id="right"))
    assert await app.handle(instance_id).result() == "right"


async def test_bursts_between_consecutive_waits_are_received_once_each_and_in_order(
    make_app: MakeApp,
) -> None:
    @workflow
    async def collecting(ctx: WorkflowContext, count: int) -> list[int]:
        return [(await wait_event(ctx, "tick")).data["n"] for _ in range(count)]

    app = await make_app(collecting)
    handle = await collecting.submit(count=30)
    for burst in (range(1), range(1, 11), range(11, 12), range(12, 30)):
        await app.deliver([event("tick", {"n": n}) for n in burst])
    assert await handle.result() == list(range(30))


async def test_since_wait_sees_only_what_comes_after_the_wait_was_reached(make_app: MakeApp) -> None:
    reached = asyncio.Event()
    release = asyncio.Event()

    @activity
    async def slow(ctx: WorkflowContext) -> None:
        reached.set()
        await release.wait()

    @workflow
    async def from_now(ctx: WorkflowContext) -> str:
        await slow(ctx)
        return (await wait_event(ctx, "tick", since="wait")).id

    app = await make_app(from_now)
    handle = await from_now.submit()
    await reached.wait()
    await app.deliver(event("tick", id="early"))
    release.set()
    await parked(app, handle.id)
    await app.deliver(event("tick", id="late"))
    assert await handle.result() == "late"


async def test_two_waits_for_one_type_at_once_get_different_events_in_order(make_app: MakeApp) -> None:
    @workflow
    async def both(ctx: WorkflowContext) -> list[str]:
        first, second = await asyncio.gather(wait_event(ctx, "tick"), wait_event(ctx, "tick"))
        return [first.id, second.id]

    app = await make_app(both)
    instance_id = await both.start()
    await app.deliver([event("tick", id="a"), event("tick", id="b")])
    assert await app.handle(instance_id).result() == ["a", "b"]


async def test_two_waits_from_now_on_get_two_events_of_one_burst(make_app: MakeApp) -> None:
    @workflow
    async def both(ctx: WorkflowContext) -> list[str]:
        first, second = await asyncio.gather(
            wait_event(ctx, "tick", since="wait"), wait_event(ctx, "tick", since="wait")
        )
        return [first.id, second.id]

    app = await make_app(both)
    instance_id = await both.start()
    await parked(app, instance_id)
    await app.deliver([event("tick", id="a"), event("tick", id="b")])
    assert await app.handle(instance_id).result() == ["a", "b"]


async def test_a_wildcard_wait_takes_any_type_below_it(make_app: MakeApp) -> None:
    @workflow
    async def any_payment(ctx: WorkflowContext) -> str:
        return (await wait_event(ctx, "payment.*")).type

    app = await make_app(any_payment)
    instance_id = await any_payment.start()
    await app.deliver([event("payments.completed"), event("payment"), event("payment.failed.late")])
    assert await app.handle(instance_id).result() == "payment.failed.late"


async def test_an_addressed_event_reaches_its_instance_alone(make_app: MakeApp) -> None:
    @workflow
    async def ticking(ctx: WorkflowContext) -> str:
        return (await wait_event(ctx, "tick")).id

    app = await make_app(ticking)
    mine, other = await ticking.start(), await ticking.start()
    await parked(app, mine)
    await parked(app, other)
    await app.deliver(event("tick", id="for one", eddainstanceid=mine))
    assert await app.handle(mine).result() == "for one"
    assert await app.handle(other).status() == "waiting_for_message"


async def test_a_timeout_is_raised_when_nothing_came(make_app: MakeApp) -> None:
    @workflow
    async def impatient(ctx: WorkflowContext) -> str:
        try:
            await wait_event(ctx, "tick", timeout_seconds=60)
        except EventTimeoutError as error:
            return f"{error.event_type} {error.timeout_seconds} {isinstance(error, TimeoutError)}"
        return "came"

    app = await make_app(impatient)
    instance_id = await impatient.start()
    await parked(app, instance_id)
    await advance(app, 61)
    assert await app.handle(instance_id).result() == "tick 60 True"


async def test_an_event_accepted_before_the_deadline_wins_however_late_the_worker_looks(
    make_app: MakeApp,
) -> None:
    release = asyncio.Event()

    @activity
    async def slow(ctx: WorkflowContext) -> None:
        await release.wait()

    @workflow
    async def busy(ctx: WorkflowContext) -> list[str]:
        async def waits() -> str:
            try:
                return (await wait_event(ctx, "tick", timeout_seconds=60)).id
            except EventTimeoutError:
                return "timeout"

        return [str(one) for one in await asyncio.gather(waits(), slow(ctx))]

    app = await make_app(busy)
    handle = await busy.submit()

    async def registered() -> bool:
        return (await app.store.counts())["waits"] == 1

    await eventually(registered)
    await app.deliver(event("tick", id="in time"))
    app.store.clock_offset_us += 3_600_000_000
    await app.deliver(event("tick", id="too late"))
    release.set()
    assert await handle.result() == ["in time", "None"]


async def test_an_event_accepted_after_the_deadline_loses_against_the_timeout(make_app: MakeApp) -> None:
    @workflow
    async def impatient(ctx: WorkflowContext) -> str:
        try:
            return (await wait_event(ctx, "tick", timeout_seconds=60)).id
        except EventTimeoutError:
            return "timeout"

    app = await make_app(impatient)
    instance_id = await impatient.start()
    await parked(app, instance_id)
    app.store.clock_offset_us += 61_000_000  # nobody has looked yet
    app.worker.saw_now(await app.store.now())
    await app.deliver(event("tick", id="too late"))
    assert await app.handle(instance_id).result() == "timeout"


async def test_a_wait_given_up_by_asyncio_timeout_leaves_no_wait_behind(make_app: MakeApp) -> None:
    @workflow
    async def gives_up(ctx: WorkflowContext) -> str:
        waiting = asyncio.ensure_future(wait_event(ctx, "never"))  # noqa: TID251, gather keeps it
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return (await wait_event(ctx, "tick")).id

    app = await make_app(gives_up)
    instance_id = await gives_up.start()
    await parked(app, instance_id)
    assert (await app.store.counts())["waits"] == 1
    await app.deliver(event("tick", id="came"))
    assert await app.handle(instance_id).result() == "came"


async def test_a_wait_inside_an_activity_is_refused(make_app: MakeApp) -> None:
    @activity
    async def waits(ctx: WorkflowContext) -> None:
        await wait_event(ctx, "tick")

    @workflow
    async def wrong(ctx: WorkflowContext) -> None:
        await waits(ctx)

    await make_app(wrong, default_retry_policy=RetryPolicy(max_attempts=1))
    with pytest.raises(Exception, match="an activity must not"):
        await wrong.start()


@pytest.mark.parametrize(
    ("type", "match"),
    [
        ("", None),
        ("pay*ment", None),
        ("*.payment", None),
        ("tick", {"order_id": 1}),
        ("tick", {"data..x": 1}),
    ],
)
async def test_a_wait_for_what_cannot_be_matched_is_refused_with_the_form_to_use(
    make_app: MakeApp, type: str, match: dict[str, Any] | None
) -> None:
    @workflow
    async def wrong(ctx: WorkflowContext) -> None:
        await wait_event(ctx, type, match=match)

    await make_app(wrong)
    with pytest.raises(errors.ConfigurationError, match="use"):
        await wrong.start()
