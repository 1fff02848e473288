"""Events out of workflows and activities: through the outbox, committed with their cause."""

from __future__ import annotations

from typing import Any

from uuid_utils import uuid7

from edda.context import WorkflowContext, attempt_of, run_of
from edda.outbox.message import message


async def send_event_transactional(
    ctx: WorkflowContext,
    event_type: str,
    event_source: str,
    event_data: Any,
    content_type: str | None = None,
    *,
    key: object = None,
    subject: str | None = None,
    event_id: str | None = None,
) -> str:
    """Publish an event if, and only if, the activity (or the workflow's turn) is committed; its id.

    Inside an activity the event goes with the activity's record, also with what ``ctx.session`` wrote. Directly in a
    workflow it is a command of its own and not repeated on replay. It leaves at least once, always with the same
    (source, id), to every relay of the app that takes its type. ``key`` keeps the order of events with the same key.

    Raises PayloadError (nothing written) naming what cannot be sent.
    """
    run = run_of(ctx)
    attempt = attempt_of(ctx)
    event_id = event_id or str(uuid7())
    built = [
        message(
            event_type,
            event_source,
            event_data,
            id=event_id,
            key=key,
            subject=subject,
            content_type=content_type,
            destination=destination,
            instance_id=run.id,
        )
        for destination in run.host.destinations(event_type)
    ]
    if attempt is not None:
        attempt.outbox.extend(built)
        return event_id
    return await run.publish(built)  # type: ignore[no-any-return]
