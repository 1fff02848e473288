"""Queries as users make them: dictionaries in, dictionaries out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from edda.errors import ConfigurationError
from edda.status import instance_dict, iso, status_word
from edda.storage.rows import State

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from edda.cloudevent import CloudEvent
    from edda.storage.contract import Storage
    from edda.storage.rows import EventResult

_LIVE = (State.RUNNABLE, State.RUNNING, State.WAITING, State.PAUSED)

#: The status words that are no states, and the states of instances that may have them.
_STATES = {
    "running": (State.RUNNABLE, State.RUNNING, State.WAITING),
    "waiting_for_message": (State.WAITING,),
    "waiting_for_timer": (State.WAITING,),
    "compensating": _LIVE,
    "cancelling": _LIVE,
}

#: Words of ``edda-framework 0.16`` that mean the same as another one.
_SAME = {"waiting_for_event": "waiting_for_message"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Instances:
    """``app.storage``: what may be asked of the database."""

    def __init__(
        self,
        store: Storage,
        deliver: Callable[[Sequence[CloudEvent]], Awaitable[list[EventResult]]] | None = None,
    ) -> None:
        self._store = store
        self._deliver = deliver

    async def deliver_events(self, events: Sequence[CloudEvent]) -> list[EventResult]:
        """Accept events, for ``publish(app.storage, ...)``."""
        if self._deliver is None:
            msg = "these queries belong to no app: publish with the app itself, 'await publish(app, ...)'"
            raise ConfigurationError(msg)
        return await self._deliver(events)

    @property
    def engine(self) -> AsyncEngine:
        """The SQLAlchemy engine on Edda's database, for your own statements."""
        return self._store.engine()

    async def get_instance(self, instance_id: str) -> dict[str, Any] | None:
        """One instance, or None."""
        row = await self._store.get_instance(instance_id)
        return None if row is None else instance_dict(row)

    async def get_history(self, instance_id: str) -> list[dict[str, Any]]:
        """Its records in the order observed: ``seq, kind, name, payload (bytes), recorded_at``."""
        return [
            {
                "seq": r.seq,
                "kind": r.kind,
                "name": r.name,
                "payload": r.payload,
                "recorded_at": iso(r.recorded_at),
            }
            for r in await self._store.get_history(instance_id)
        ]

    async def find_instances(
        self,
        *,
        input_filters: Mapping[str, object] | None = None,
        status: str | None = None,
        workflow_name: str | None = None,
        instance_id: str | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        limit: int = 50,
        page_token: str | None = None,
    ) -> dict[str, Any]:
        """``{"instances": [...], "next_page_token": str | None, "has_more": bool}``, newest first.

        ``workflow_name`` and ``instance_id`` are case-insensitive partial matches. ``input_filters={"a.b":
        value}``: equal at that path of the input. Raises ConfigurationError for an unknown status, path or page
        token.
        """
        states: tuple[State, ...] = ()
        if status is not None:
            status = _SAME.get(status, status)
            try:
                states = _STATES.get(status) or (State(status),)
            except ValueError:
                known = sorted({*_STATES, *_SAME, *map(str, State)})
                msg = f"find_instances: status={status!r} is not a status; use one of {', '.join(known)}"
                raise ConfigurationError(msg) from None
        rows = await self._store.find_instances(
            states=states,
            workflow_contains=workflow_name,
            id_contains=instance_id,
            started_after=_micros(started_after),
            started_before=_micros(started_before),
            input_filters=input_filters,
            where=(lambda row: status_word(row) == status) if status in _STATES else None,
            limit=limit + 1,
            before=_parse_token(page_token),
        )
        page = rows[:limit]
        more = len(rows) > limit
        return {
            "instances": [instance_dict(row) for row in page],
            "next_page_token": f"{iso(page[-1].created_at)}||{page[-1].id}" if more else None,
            "has_more": more,
        }


def _micros(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _parse_token(token: str | None) -> tuple[int, str] | None:
    if token is None:
        return None
    moment, separator, instance_id = token.partition("||")
    try:
        micros = _micros(datetime.fromisoformat(moment))
    except ValueError:
        micros = None
    if not separator or micros is None:
        msg = f"find_instances: page_token={token!r} is not one; use next_page_token of the page before, as it is"
        raise ConfigurationError(msg)
    return micros, instance_id
