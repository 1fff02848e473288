"""Channels: every message reaches whom it is for, in order, once, and none is lost between the look and the wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edda import (
    ChannelMessage,
    CloudEvent,
    RetryPolicy,
    WorkflowContext,
    activity,
    publish,
    receive,
    send_to,
    sleep,
    subscribe,
    unsubscribe,
    workflow,
)
from edda.channels import ChannelModeConflictError, MessageTimeoutError, NotSubscribedError
from tests.engine.conftest import MakeApp
from tests.support.eventually import eventually


@workflow
async def listener(ctx: WorkflowContext, channel: str, mode: str, count: int) -> list[Any]:
    await subscribe(ctx, channel, mode=mode)  # type: ignore[arg-type]  # wrong ones are among the tests
    await subscribe(ctx, channel, mode=mode)  # type: ignore[arg-type]  # again is nothing
    got = []
    for _ in range(count):
        got.append((await receive(ctx, channel)).data)
    return got


async def test_every_subscriber_of_a_broadcast_channel_gets_what_comes_after_it_has_subscribed(
    make_app: MakeApp,
) -> None:
    app = await make_app(listener)
    await publish(app, "news", "too early")
    handles = [app.handle(await listener.start(channel="news", mode="broadcast", count=20)) for _ in range(3)]
    for number in range(20):
        await publish(app if number % 2 else app.storage, "news", number)
    for handle in handles:
        assert await handle.result(timeout=30) == list(range(20))


async def test_a_burst_between_two_receives_is_received_whole(make_app: MakeApp) -> None:
    """The predecessor looked, then parked, and lost what came in between."""
    app = await make_app(listener)
    handle = app.handle(await listener.start(channel="burst", mode="broadcast", count=60))
    await asyncio.gather(*(publish(app, "burst", number) for number in range(60)))
    assert sorted(await handle.result(timeout=30)) == list(range(60))


async def test_each_message_of_a_competing_channel_is_taken_by_one(make_app: MakeApp) -> None:
    app, other = await make_app(listener), await make_app(listener)
    for number in range(15):
        await publish(app, "jobs", number)  # before anybody listens
    job = {"channel": "jobs", "mode": "competing", "count": 5}
    handles = [one.handle(await one.start(listener, **job)) for one in (app, other) for _ in range(3)]
    for number in range(15, 30):
        await publish(app, "jobs", number)
    results = [await handle.result(timeout=40) for handle in handles]
    assert sorted(number for taken in results for number in taken) == list(range(30))
    for taken in results:
        assert taken == sorted(taken)


@workflow
async def inbox(ctx: WorkflowContext, count: int) -> list[Any]:
    await subscribe(ctx, "__direct__", mode="direct")
    got: list[ChannelMessage] = []
    for _ in range(count):
        got.append(await receive(ctx, "__direct__"))
    return [[message.data, message.metadata["source_instance_id"]] for message in got]


@workflow
async def sender(ctx: WorkflowContext, to: str) -> list[bool]:
    return [await send_to(ctx, to, {"number": number}) for number in range(3)]


async def test_a_direct_message_reaches_its_instance_alone(make_app: MakeApp) -> None:
    app = await make_app(inbox, sender)
    one, two = await inbox.start(count=3), await inbox.start(count=1)
    sending = await sender.start(to=one)
    woken = await app.handle(sending).result(timeout=20)
    assert woken[0] is True
    assert await app.handle(one).result(timeout=20) == [[{"number": n}, sending] for n in range(3)]
    assert await app.handle(two).status() == "waiting_for_message"
    assert await send_to(app, two, "for two") is True
    await eventually(lambda: two not in app.worker.runs)


@workflow
async def publisher(ctx: WorkflowContext, channel: str) -> str:
    message_id = await publish(ctx, channel, "from a workflow", {"color": "red"})
    await sleep(ctx, 0.01)  # parks: what is above is replayed
    return message_id


@workflow
async def curious(ctx: WorkflowContext, channel: str) -> list[Any]:
    await subscribe(ctx, channel)
    message = await receive(ctx, channel, message_id="the one")
    return [
        message.id,
        message.channel,
        message.data,
        dict(message.metadata),
        str(message.published_at)[:2],
    ]


async def test_a_message_published_by_a_workflow_is_published_once(make_app: MakeApp) -> None:
    app = await make_app(publisher, curious)
    reading = app.handle(await curious.start(channel="paint"))
    sending = await publisher.submit(channel="paint")
    message_id = await sending.result(timeout=20)
    got = await reading.result(timeout=20)
    assert got[:3] == [message_id, "paint", "from a workflow"]
    assert got[3]["color"] == "red"
    assert got[3]["source_instance_id"] == sending.id
    assert got[3]["published_at"]
    assert got[4] == "20"
    assert (await app.store.counts())["events"] == 1


async def test_a_cloudevent_is_a_message_on_the_channel_named_like_its_type(make_app: MakeApp) -> None:
    app = await make_app(curious)
    reading = app.handle(await curious.start(channel="order.created"))
    await app.deliver(
        CloudEvent("7", "/shop", "order.created", b'{"order": 1}', subject="s", extensions={"tenant": "t"})
    )
    _, _, data, metadata, _ = await reading.result(timeout=20)
    assert data == {"order": 1}
    assert metadata == {
        "ce_type": "order.created",
        "ce_source": "/shop",
        "ce_id": "7",
        "ce_time": None,
        "ce_datacontenttype": None,
        "ce_subject": "s",
        "ce_extensions": {"tenant": "t"},
    }


@pytest.mark.parametrize("data", [[1, 2, 3], "text", 7, None, True, {"a": {"b": []}}, 1.5], ids=repr)
async def test_a_payload_of_any_json_shape_arrives_as_it_was(make_app: MakeApp, data: Any) -> None:
    app = await make_app(curious)
    reading = app.handle(await curious.start(channel="shapes"))
    await publish(app, "shapes", data)
    assert (await reading.result(timeout=20))[2] == data


@workflow
async def binary(ctx: WorkflowContext) -> list[Any]:
    await subscribe(ctx, "binary")
    message = await receive(ctx, "binary")
    return [type(message.data).__name__, list(message.data), message.channel, dict(message.metadata)["k"]]


async def test_bytes_arrive_as_bytes_with_everything_else(make_app: MakeApp) -> None:
    app = await make_app(binary)
    reading = app.handle(await binary.start())
    await publish(app, "binary", b"\x00\xff", {"k": "v"})
    assert await reading.result(timeout=20) == ["bytes", [0, 255], "binary", "v"]


@activity(retry_policy=RetryPolicy(0.01, 1, 0.01, max_attempts=3))
async def publish_and_fail_first(ctx: WorkflowContext, fail: bool) -> None:
    await publish(ctx, "atomic", "it")
    tries.append(1)
    if fail or len(tries) < 2:
        raise ConnectionError


tries: list[int] = []


@workflow
async def publishing_activity(ctx: WorkflowContext, fail: bool) -> None:
    await publish_and_fail_first(ctx, fail)


async def test_what_an_activity_publishes_is_published_if_it_is_committed(make_app: MakeApp) -> None:
    tries.clear()
    app = await make_app(publishing_activity, curious)
    reading = app.handle(await curious.start(channel="atomic"))
    with pytest.raises(Exception, match="attempts are spent"):
        await publishing_activity.start(fail=True)
    assert (await app.store.counts())["events"] == 0
    await publishing_activity.start(fail=False)
    assert (await reading.result(timeout=20))[2] == "it"
    await eventually(lambda: True)
    assert (await app.store.counts())["events"] == 1


@workflow
async def impatient(ctx: WorkflowContext, mode: str) -> str:
    await subscribe(ctx, f"quiet.{mode}", mode=mode)  # type: ignore[arg-type]  # one of three
    try:
        await receive(ctx, f"quiet.{mode}", timeout_seconds=0.05)
    except TimeoutError as error:
        return type(error).__name__
    return "got one"


@pytest.mark.parametrize("mode", ["broadcast", "competing", "direct"])
async def test_nothing_comes_in_time(make_app: MakeApp, mode: str) -> None:
    app = await make_app(impatient)
    handle = app.handle(await impatient.start(mode=mode))
    assert await handle.result(timeout=20) == MessageTimeoutError.__name__


async def test_a_channel_has_one_mode(make_app: MakeApp) -> None:
    app = await make_app(listener)
    await listener.start(channel="one", mode="competing", count=1)
    with pytest.raises(ChannelModeConflictError) as raised:
        await listener.start(channel="one", mode="broadcast", count=1)
    error = raised.value
    assert (error.channel, error.existing_mode, error.requested_mode) == ("one", "competing", "broadcast")
    with pytest.raises(ValueError, match="'broadcast', 'competing' or 'direct'"):
        await listener.start(channel="two", mode="loud", count=1)
    del app


@workflow
async def deaf(ctx: WorkflowContext, first: bool) -> None:
    if first:
        await subscribe(ctx, "c")
        await unsubscribe(ctx, "c")
    await receive(ctx, "c")


@pytest.mark.parametrize("first", [True, False])
async def test_receiving_without_a_subscription_is_refused(make_app: MakeApp, first: bool) -> None:
    await make_app(deaf)
    with pytest.raises(NotSubscribedError, match="call 'await subscribe"):
        await deaf.start(first=first)


@workflow
async def chained(ctx: WorkflowContext, got: list[int], mode: str) -> list[int]:
    if not got:
        await subscribe(ctx, f"chain.{mode}", mode=mode)  # type: ignore[arg-type]  # one of two
    got = [*got, (await receive(ctx, f"chain.{mode}")).data]
    if len(got) < 6:
        await ctx.recur(got=got, mode=mode)
    return got


@pytest.mark.parametrize("mode", ["broadcast", "competing"])
async def test_a_chain_of_runs_misses_nothing(make_app: MakeApp, mode: str) -> None:
    app = await make_app(chained)
    handle = app.handle(await chained.start(got=[], mode=mode))
    for number in range(6):
        await publish(app, f"chain.{mode}", number)
    assert await handle.result(timeout=30) == list(range(6))


async def test_workers_that_die_lose_no_job_and_do_none_twice(make_app: MakeApp) -> None:
    app = await make_app(listener, name="first")
    handles = [await listener.submit(channel="crash", mode="competing", count=4) for _ in range(4)]
    for number in range(16):
        await publish(app, "crash", number)
        if number % 3 == 1:
            # As a crash would: dropped from memory, whatever they are doing.
            for run in list(app.worker.runs.values()):
                run.restart()
    results = [await handle.result(timeout=40) for handle in handles]
    assert sorted(number for taken in results for number in taken) == list(range(16))


async def test_a_subscriber_of_a_drained_channel_does_not_walk_what_is_taken(make_app: MakeApp) -> None:
    app = await make_app(listener)
    for number in range(40):
        await publish(app, "drained", number)
    first = app.handle(await app.start(listener, channel="drained", mode="competing", count=40))
    assert await first.result(timeout=30) == list(range(40))
    flushes = app.store.flushes
    second = app.handle(await app.start(listener, channel="drained", mode="competing", count=1))
    assert app.store.flushes - flushes < 10
    await publish(app, "drained", "fresh")
    assert await second.result(timeout=20) == ["fresh"]


async def test_a_message_for_one_subscriber_of_a_competing_channel_reaches_it(make_app: MakeApp) -> None:
    app = await make_app(listener)
    one, two = [await app.start(listener, channel="shared", mode="competing", count=1) for _ in range(2)]
    await publish(app, "shared", "for two", target_instance_id=two)
    assert await app.handle(two).result(timeout=20) == ["for two"]
    await publish(app, "shared", "for anybody")
    assert await app.handle(one).result(timeout=20) == ["for anybody"]
