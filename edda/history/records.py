"""The kinds of records, and which command each one answers. One table."""

from __future__ import annotations

from typing import Final

ACTIVITY: Final = "activity"
ACTIVITY_FAILED: Final = "activity_failed"
EVENT: Final = "event"
EVENT_TIMEOUT: Final = "event_timeout"
TIMER: Final = "timer"
PUBLISH: Final = "publish"
PUBLISH_FAILED: Final = "publish_failed"
CHILD: Final = "child"
BLOCK: Final = "transaction"
BLOCK_FAILED: Final = "transaction_failed"
COMPENSATING: Final = "compensating"
COMPENSATION: Final = "compensation"
COMPENSATION_FAILED: Final = "compensation_failed"

#: The marker of a change (``ctx.patched``). It answers no command, and its number is below zero.
PATCH: Final = "patch"

#: Record kind -> command kind. The determinism check compares commands, so that success and failure are one.
COMMAND_OF: Final[dict[str, str]] = {
    ACTIVITY: "activity",
    ACTIVITY_FAILED: "activity",
    EVENT: "wait_event",
    EVENT_TIMEOUT: "wait_event",
    TIMER: "sleep",
    PUBLISH: "send_event",
    PUBLISH_FAILED: "send_event",
    CHILD: "child",
    BLOCK: "transaction",
    BLOCK_FAILED: "transaction",
    COMPENSATING: "stop",
    COMPENSATION: "activity",
    COMPENSATION_FAILED: "activity",
}

#: What a record becomes when the database refuses its payload: the command fails with that error.
FAILED_OF: Final[dict[str, str]] = {
    ACTIVITY: ACTIVITY_FAILED,
    ACTIVITY_FAILED: ACTIVITY_FAILED,
    COMPENSATION: COMPENSATION_FAILED,
    COMPENSATION_FAILED: COMPENSATION_FAILED,
    PUBLISH: PUBLISH_FAILED,
}
