"""Lifecycle hooks: what an app may be told of, for tracing, metrics and alarms.

Each method is optional. Calls for one instance come one after the other, beside its work: a hook that is slow delays
the hooks behind it and the start of an activity, a hook that raises is logged, and neither fails a workflow. After a
crash a call may come twice, or (in the moment of the crash) never: hooks tell, they do not record.
"""

from __future__ import annotations

from typing import Any


class WorkflowHooks:
    """All there are, and none does anything: derive from it and override, or write a class with some of these names."""

    async def on_workflow_start(
        self, instance_id: str, workflow_name: str, input_data: dict[str, Any]
    ) -> None:
        """Its code begins for the first time."""

    async def on_workflow_complete(self, instance_id: str, workflow_name: str, result: Any) -> None:
        """It has ended well, and that is stored."""

    async def on_workflow_failed(self, instance_id: str, workflow_name: str, error: BaseException) -> None:
        """It has failed (its compensations have run) or was given up, and that is stored."""

    async def on_workflow_cancelled(self, instance_id: str, workflow_name: str) -> None:
        """It was cancelled (its compensations have run), and that is stored."""

    async def on_activity_start(
        self, instance_id: str, activity_id: str, activity_name: str, is_replaying: bool
    ) -> None:
        """Its first attempt begins; with ``is_replaying`` its recorded result is about to be given."""

    async def on_activity_complete(
        self, instance_id: str, activity_id: str, activity_name: str, result: Any, cache_hit: bool
    ) -> None:
        """Its result is stored; with ``cache_hit`` it was stored before, and is given again."""

    async def on_activity_failed(
        self, instance_id: str, activity_id: str, activity_name: str, error: BaseException
    ) -> None:
        """It has failed for good, and that is stored."""

    async def on_activity_retry(
        self,
        instance_id: str,
        activity_id: str,
        activity_name: str,
        error: BaseException,
        attempt: int,
        delay: float,
    ) -> None:
        """Attempt number ``attempt`` failed; the next one comes in ``delay`` seconds."""

    async def on_event_sent(self, event_type: str, event_source: str, event_data: Any) -> None:
        """A workflow's event is in the outbox, and that is stored."""

    async def on_event_received(self, instance_id: str, event_type: str, event_data: Any) -> None:
        """A wait was given its event."""


#: The name of the base class in ``edda-framework 0.16``.
HooksBase = WorkflowHooks


__all__ = ["HooksBase", "WorkflowHooks"]
