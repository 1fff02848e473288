"""Channels: messages between workflows, and from anywhere to them.

A message is an event whose type is the channel, so that a CloudEvent is a message on the channel named like its type,
and everything that holds of events holds of messages: stored once per id, in one order for all, kept until retention,
not lost between the look and the wait.

Broadcast: every subscriber gets every message published after it has subscribed. Competing: every message is taken by
one of the subscribers, also those published before. Direct: only what is sent to this instance with ``send_to``.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from pydantic_core import from_json, to_json
from uuid_utils import uuid7

from edda.cloudevent import CloudEvent
from edda.context import WorkflowContext, attempt_of, run_of
from edda.engine.commands import ActivityCall, EventWait
from edda.errors import EddaError, PayloadError, TransactionError
from edda.history.arguments import args_hash
from edda.inbox.binding import ADDRESSEE
from edda.inbox.shapes import shape_hash, validate_pattern
from edda.outbox.message import message, message_of
from edda.received import received
from edda.retry import RetryPolicy, TerminalError
from edda.storage.rows import EventResult, Verdict
from outbox_relays.inbox import INBOX

if TYPE_CHECKING:
    from edda.app import EddaApp
    from edda.engine.attempt import Attempt
    from edda.engine.run import Run
    from edda.queries import Instances

Mode = Literal["broadcast", "competing", "direct"]

#: The channel of ``send_to`` where none is named.
DIRECT: Final = "__direct__"

#: The extension that carries a message's metadata, as JSON.
_METADATA = "eddametadata"

#: Until the database answers: a step of the engine's, not of the user's, has no attempts to spend.
_PATIENT = RetryPolicy(0.05, 2.0, 5.0, None, None)


class ChannelModeConflictError(EddaError, ValueError):
    """The channel is read in another mode already. Nothing was subscribed."""

    code = "EDDA320"

    def __init__(self, channel: str, existing_mode: str, requested_mode: str) -> None:
        self.channel, self.existing_mode, self.requested_mode = channel, existing_mode, requested_mode
        super().__init__(
            f"channel {channel!r} is read as {existing_mode!r}, and cannot be as {requested_mode!r}, too. Nothing was "
            f"subscribed; use mode={existing_mode!r}, or another channel."
        )


class NotSubscribedError(EddaError, RuntimeError):
    """``receive()`` on a channel that this run has not subscribed to."""

    code = "EDDA321"


class MessageTimeoutError(EddaError, TimeoutError):
    """No message came in time."""

    code = "EDDA322"


@dataclass(frozen=True, slots=True)
class ChannelMessage:
    """A message. ``data``: the JSON value, or bytes. ``metadata``: what the sender gave, and where it comes from."""

    id: str
    channel: str
    data: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)
    published_at: datetime | None = None


# ---------------------------------------------------------------------------------------------- receiving


async def subscribe(ctx: WorkflowContext, channel: str, mode: Mode = "broadcast") -> None:
    """Begin to listen. Again is nothing; after ``ctx.recur()`` the chain goes on where it was.

    Raises ChannelModeConflictError: others read the channel in another mode. ValueError: no such mode.
    """
    run = _run_of_workflow(ctx, "subscribe")
    _check(channel)
    if mode not in get_args(Mode):
        msg = f"subscribe({channel!r}): mode={mode!r} must be 'broadcast', 'competing' or 'direct'"
        raise ValueError(msg)
    if run.subscriptions.get(channel, (mode, 0))[0] != mode:
        raise ChannelModeConflictError(channel, run.subscriptions[channel][0], mode)
    if channel in run.subscriptions:
        return

    async def join(attempt: Attempt) -> list[object]:
        await attempt.run.host.ensure_shape(_type_of(channel, mode), ())
        return list(await attempt.run.host.store.join_channel(channel, mode))

    found, last = await _step(run, f"subscribe:{channel}", join, (channel, mode))
    if found != mode:
        raise ChannelModeConflictError(channel, str(found), mode)
    run.subscriptions[channel] = (mode, int(last))


async def unsubscribe(ctx: WorkflowContext, channel: str) -> None:
    """Listen no more; what comes then is missed. The end of a run ends its subscriptions by itself."""
    _run_of_workflow(ctx, "unsubscribe").subscriptions.pop(channel, None)


async def receive(
    ctx: WorkflowContext,
    channel: str,
    timeout_seconds: float | None = None,
    message_id: str | None = None,
) -> ChannelMessage:
    """The next message, in the order of acceptance; the instance is parked until there is one.

    ``message_id`` names this wait in the history. Raises MessageTimeoutError (a TimeoutError) after
    ``timeout_seconds``, counted from the first reach of the wait; NotSubscribedError without ``subscribe()``.
    """
    run = _run_of_workflow(ctx, "receive")
    wait = message_wait(run, channel, timeout_seconds)
    event = await run.wait_event(wait, message_id or f"receive:{channel}")
    if event is None:
        msg = f"Message on channel {channel!r} did not arrive within {timeout_seconds} seconds"
        raise MessageTimeoutError(msg)
    return message_of_event(event, channel)


def message_wait(run: Run, channel: str, timeout_seconds: float | None) -> EventWait:
    """What the engine is to wait for. Raises NotSubscribedError, and ValueError for a negative time."""
    if channel not in run.subscriptions:
        msg = (
            f"receive({channel!r}): workflow {run.definition.name!r} has not subscribed to it. Nothing was received; "
            f"call 'await subscribe(ctx, {channel!r})' first."
        )
        raise NotSubscribedError(msg)
    if timeout_seconds is not None and timeout_seconds < 0:
        msg = f"receive({channel!r}): timeout_seconds={timeout_seconds} must not be negative"
        raise ValueError(msg)
    mode, last = run.subscriptions[channel]
    event_type = _type_of(channel, mode)
    return EventWait(
        event_type,
        (),
        shape_hash(event_type, {}),
        None if timeout_seconds is None else int(timeout_seconds * 1_000_000),
        after=last if mode == "broadcast" else 0,
        competing=mode == "competing",
    )


# ---------------------------------------------------------------------------------------------- sending


async def publish(
    sender: WorkflowContext | EddaApp | Instances,
    channel: str,
    data: Any,
    metadata: Mapping[str, Any] | None = None,
    *,
    target_instance_id: str | None = None,
    worker_id: str | None = None,
) -> str:
    """Put a message on a channel; its id.

    From a workflow it is recorded, and not repeated on replay. From an activity it is published if, and only if, the
    activity is committed. From plain code ``sender`` is the app (or ``app.storage``), and it is stored when this
    returns. ``target_instance_id``: only that instance (and the runs that follow it) sees it. ``worker_id`` is accepted
    for ``edda-framework 0.16`` and not needed.
    """
    del worker_id
    _check(channel)
    message_id, _ = await _send(sender, channel, channel, data, metadata, target_instance_id)
    return message_id


async def send_to(
    ctx: WorkflowContext | EddaApp | Instances,
    instance_id: str,
    data: Any,
    channel: str = DIRECT,
    metadata: Mapping[str, Any] | None = None,
) -> bool:
    """Send a message to one instance, which reads it with ``subscribe(ctx, channel, mode="direct")`` and ``receive``.

    True: it waited for the message, and was woken. False: the message waits for it. (From an activity always False: it
    is sent when the activity is committed.)
    """
    _check(channel)
    _, woken = await _send(ctx, channel, _type_of(channel, "direct"), data, metadata, instance_id)
    return woken


async def _send(
    sender: WorkflowContext | EddaApp | Instances,
    channel: str,
    event_type: str,
    data: Any,
    metadata: Mapping[str, Any] | None,
    target: str | None,
) -> tuple[str, bool]:
    if not isinstance(sender, WorkflowContext):
        event = _event_of(str(uuid7()), "/edda", event_type, channel, data, metadata or {}, target)
        [result] = await sender.deliver_events([event])
        _need_stored(result, channel)
        return event.id, result.waits > 0
    run, attempt = run_of(sender), attempt_of(sender)
    source = f"/edda/instances/{run.id}"
    given = {"source_instance_id": run.id, **(metadata or {})}
    if attempt is not None:
        event = _event_of(str(uuid7()), source, event_type, channel, data, given, target)
        attempt.outbox.append(message_of(event, key=None, destination=INBOX, instance_id=run.id))
        return event.id, False

    # Made here, where bad data is refused; its id is known when the step has a number.
    unnamed = _event_of("0", source, event_type, channel, data, given, target)

    async def send(attempt: Attempt) -> list[object]:
        # By the step's number, so that it is one message however often the step is done.
        message_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{source}/{attempt.command.seq}"))
        event = replace(unnamed, id=message_id)
        [result] = await attempt.run.host.deliver([event])
        _need_stored(result, channel)
        return [message_id, result.waits > 0]

    message_id, woken = await _step(run, f"publish:{channel}", send, (channel, data, metadata, target))
    return str(message_id), bool(woken)


class MessageRefusedError(TerminalError):
    """The message cannot be stored; nothing was sent."""

    code = "EDDA323"


def _need_stored(result: EventResult, channel: str) -> None:
    if result.verdict is Verdict.REFUSED:
        msg = f"a message on channel {channel!r} was refused: {result.reason}. Nothing was sent."
        raise MessageRefusedError(msg)


# ---------------------------------------------------------------------------------------------- how


def _run_of_workflow(ctx: WorkflowContext, what: str) -> Run:
    if attempt_of(ctx) is not None:
        msg = f"{what}() is for workflows, and this is an activity: call it in the workflow {ctx.workflow_name!r}"
        raise TransactionError(msg)
    return run_of(ctx)


async def _step(run: Run, name: str, body: Any, arguments: tuple[Any, ...]) -> list[Any]:
    """A step of the engine's own, recorded as an activity is."""
    run.need_no_block(f"{name.partition(':')[0]}()")

    def invoke(attempt: Attempt) -> Awaitable[Any]:
        return cast("Awaitable[Any]", body(attempt))

    call = ActivityCall(name, invoke, _PATIENT, None)
    return cast("list[Any]", await run.activity(call, args_hash(arguments, {}, name)))


def _type_of(channel: str, mode: str) -> str:
    """The type of its messages' events: what is sent to one is apart from what is for all."""
    return f"edda.direct:{channel}" if mode == "direct" else channel


def _check(channel: str) -> None:
    if not channel or channel.endswith("*"):
        msg = f"channel={channel!r} must be a text, and no pattern, for example 'jobs'"
        raise ValueError(msg)
    validate_pattern(_type_of(channel, "direct"))


def _event_of(
    message_id: str,
    source: str,
    event_type: str,
    channel: str,
    data: Any,
    metadata: Mapping[str, Any],
    target: str | None,
) -> CloudEvent:
    try:
        described = to_json(dict(metadata)).decode()
    except ValueError as error:
        msg = f"metadata of a message on channel {channel!r} has no JSON form: {error}. Nothing was sent."
        raise PayloadError(msg) from error
    extensions = {_METADATA: described} if metadata else {}
    if target is not None:
        extensions[ADDRESSEE] = target
    built = message(event_type, source, data, id=message_id, extensions=extensions)
    return CloudEvent.from_parts(
        built.type, built.source, built.event_id, built.attributes, built.data, built.content_type
    )


def message_of_event(event: CloudEvent, channel: str) -> ChannelMessage:
    """The message that an event is."""
    extensions = dict(event.extensions)
    described = extensions.pop(_METADATA, None)
    if described is not None or event.source.startswith("/edda"):
        metadata = from_json(str(described)) if described is not None else {}
        if event.time is not None:
            metadata.setdefault("published_at", event.time)
    else:
        metadata = {
            "ce_type": event.type,
            "ce_source": event.source,
            "ce_id": event.id,
            "ce_time": event.time,
            "ce_datacontenttype": event.datacontenttype,
            "ce_subject": event.subject,
            "ce_extensions": extensions,
        }
    at = None if event.time is None else datetime.fromisoformat(event.time)
    return ChannelMessage(event.id, channel, received(event).data, metadata, at)
