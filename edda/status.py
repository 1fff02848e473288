"""The status words that people and ``edda-framework 0.16`` know, and an instance as the dictionary it gave."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from edda.history.codec import decode
from edda.storage.rows import InstanceRow, State, WaitKind


def status_word(row: InstanceRow) -> str:
    """How an instance stands, in one word.

    ``running, waiting_for_message, waiting_for_timer, compensating, cancelling, completed, failed, cancelled, recurred,
    paused, dead``. A parked retry is ``running``: to its user nothing waits. ``cancelling``: somebody wants it
    cancelled, and no worker has begun to.
    """
    if row.ended_at is None and WaitKind.COMPENSATING in row.wait_kinds:
        return "compensating"
    if row.ended_at is None and WaitKind.CANCEL in row.wait_kinds:
        return "cancelling"
    if row.state in {State.RUNNABLE, State.RUNNING}:
        return "running"
    if row.state is State.WAITING:
        if WaitKind.EVENT in row.wait_kinds:
            return "waiting_for_message"
        return "waiting_for_timer" if WaitKind.TIMER in row.wait_kinds else "running"
    return str(row.state)


def iso(micros: int | None) -> str | None:
    """Microseconds as ISO 8601 in UTC."""
    return None if micros is None else datetime.fromtimestamp(micros / 1_000_000, UTC).isoformat()


def instance_dict(row: InstanceRow) -> dict[str, Any]:
    """An instance as queries return it to users."""
    output: dict[str, Any] | None = None
    if row.state in {State.CANCELLED, State.RECURRED}:
        output = from_json(row.output or b"{}")
    elif row.state is State.COMPLETED:
        output = {"result": decode(row.output or b"null", row.output_type)}
    elif row.error is not None:
        error = from_json(row.error)
        output = {
            "error_message": error.get("message"),
            "error_type": str(error.get("type", "")).rpartition(":")[2].rpartition(".")[2],
            "stack_trace": error.get("traceback"),
        }
    return {
        "instance_id": row.id,
        "workflow_name": row.workflow,
        "owner_service": row.app,
        "status": status_word(row),
        "started_at": iso(row.created_at),
        "updated_at": iso(row.updated_at),
        "input_data": from_json(row.input),
        "output_data": output,
        "locked_by": row.owner,
        "version": row.version,
        "priority": row.priority,
        "continued_from": from_json(row.carried)["previous"] if row.carried else None,
    }
