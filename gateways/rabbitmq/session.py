"""One connection's consumer: what has arrived when a transaction ends is accepted in the next, and then acknowledged.

What is not acknowledged is held, not requeued: the prefetch limits how much, and whatever ends the connection gives it
back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from edda.errors import StorageDataError
from edda.inbox.accept import MAX_BYTES, MAX_EVENTS, Inbox, Positioned
from edda.storage.rows import NewDeadLetter
from gateways.delivery import Mapping, Poison, bind, letter
from gateways.gateway import accept_until_stored
from gateways.rabbitmq.acks import Acks
from gateways.rabbitmq.connection import Link, Pauses, is_of_broker, told
from gateways.rabbitmq.reading import delivery_of, reader
from gateways.rabbitmq.topology import ANSWER, Declaration, message_count

if TYPE_CHECKING:
    from aiormq import Channel
    from aiormq.abc import DeliveredMessage
    from pamqp import commands

log = logging.getLogger("edda.gateway")

#: Seconds that a batch under way gets when its connection is over or the gateway stops.
_GRACE = 10.0

#: Seconds between two looks at the queue from outside.
_LOOK = 5.0

#: A watchdog that has rebuilt in vain waits so many times as long at most: another consumer may well be the active one.
_LONGEST_STUCK = 16


@dataclass(frozen=True, slots=True)
class Settings:
    """What all queues of a gateway share."""

    url: str
    name: str
    mapping: Mapping | None
    prefetch: int
    max_bytes: int
    declaration: Declaration | None
    single_active: bool
    connect_timeout: float
    stuck_after: float


@dataclass(slots=True)
class State:
    """How one queue's consumer does, from one connection to the next.

    Attributes:
        trouble: What keeps it from consuming; None: it consumes.
        link: Its connection, if it has one.
        waiting: Messages that were ready in the queue when it was looked at last, less what came since.
        held: Deliveries in hand.
        unstorable: Messages that the database does not even take as dead letters; they stay where they are.
        accepting_since: When the batch in hand was handed in; None: there is none.
        last_accepted: When the last batch was stored (or this began).
        patience: Seconds that messages may wait while none is delivered.
    """

    last_accepted: float
    patience: float
    trouble: str | None = "not connected yet"
    link: Link | None = None
    waiting: int | None = None
    held: int = 0
    unstorable: int = 0
    accepting_since: float | None = None
    pauses: Pauses = field(default_factory=Pauses)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


class Session:
    """One connection's consumer."""

    def __init__(
        self, settings: Settings, queue: str, inbox: Inbox, state: State, link: Link, channel: Channel
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._inbox = inbox
        self._state = state
        self._link = link
        self._channel = channel
        self._acks = Acks(channel)
        self._arrived: deque[DeliveredMessage] = deque()
        self._news = asyncio.Event()
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._ending = False
        self._tag = ""
        self._last_delivery = _now()

    async def consume(self) -> None:
        """Ask for deliveries."""
        self._channel.on_consumer_cancel_callbacks.add(self._on_cancelled)
        consuming = await self._channel.basic_consume(self._queue, self._on_message, timeout=ANSWER)
        self._tag = consuming.consumer_tag or ""

    async def run(self) -> str:
        """Until something ends it; why."""
        work = asyncio.create_task(self._work())
        watch = asyncio.create_task(self._watch())
        stopped = asyncio.create_task(self._state.stopping.wait())
        closed = self._channel.closing
        try:
            ends = {work, watch, stopped, closed, self._link.lost, self._over}
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if stopped in done:
                await self._cancel()
            return self._why(work, watch)
        finally:
            self._ending = True
            self._news.set()
            _, unfinished = await asyncio.wait({work}, timeout=_GRACE)
            for task in (*unfinished, watch, stopped):
                task.cancel()
            await asyncio.gather(work, watch, stopped, return_exceptions=True)
            self._over.cancel()

    def _why(self, work: asyncio.Task[None], watch: asyncio.Task[str]) -> str:
        if work.done():
            work.result()  # raises: it does not end by itself
        if self._over.done():
            return self._over.result()
        if watch.done():
            return watch.result()
        if self._link.lost.done():
            return self._link.why
        closing = self._channel.closing
        if closing.done() and not closing.cancelled() and (error := closing.exception()) is not None:
            return told(error)
        return "the channel was closed"

    async def _cancel(self) -> None:
        """No more deliveries; those on their way are not taken up."""
        try:
            await self._channel.basic_cancel(self._tag, timeout=ANSWER)
        except Exception as error:
            if not (isinstance(error, TimeoutError) or is_of_broker(error)):
                raise

    # ------------------------------------------------------------------ deliveries

    async def _on_message(self, message: DeliveredMessage) -> None:
        self._arrived.append(message)
        self._state.held += 1
        self._state.waiting = max(0, (self._state.waiting or 0) - 1)
        self._last_delivery = _now()
        self._news.set()

    async def _on_cancelled(self, _: commands.Basic.Cancel | commands.Basic.CancelOk) -> None:
        if not self._over.done():
            self._over.set_result("the broker cancelled the consumer: the queue was deleted, or has moved")

    async def _work(self) -> None:
        while True:
            await self._news.wait()
            if self._ending:
                return
            self._news.clear()
            while self._arrived and not self._ending:
                await self._settle(self._take())

    def _take(self) -> list[DeliveredMessage]:
        """As many as one transaction may hold."""
        batch: list[DeliveredMessage] = []
        size = 0
        while self._arrived and len(batch) < MAX_EVENTS:
            size += len(self._arrived[0].body)
            if batch and size > MAX_BYTES:
                break
            batch.append(self._arrived.popleft())
        return batch

    async def _settle(self, batch: list[DeliveredMessage]) -> None:
        stored: list[tuple[int, Positioned | NewDeadLetter]] = []
        for message in batch:
            delivery = delivery_of(self._queue, message)
            found = bind(delivery, reader(message), self._settings.mapping, self._settings.max_bytes)
            tag = message.delivery_tag or 0
            if isinstance(found, Poison):
                kept = letter(delivery, found.reason)
                extra = {"gateway": self._settings.name, "queue": self._queue, "reason": kept.reason}
                log.warning("gateway_dead_letter", extra=extra)
                stored.append((tag, kept))
            elif found is not None:
                stored.append((tag, Positioned(found, dead_letter=partial(letter, delivery))))
        refused = await self._store(stored)
        self._state.last_accepted = _now()
        self._state.unstorable += len(refused)
        self._state.held -= len(batch) - len(refused)
        tags = [message.delivery_tag or 0 for message in batch]
        await self._acknowledge([tag for tag in tags if tag not in refused])

    async def _store(self, members: Sequence[tuple[int, Positioned | NewDeadLetter]]) -> set[int]:
        """All in one transaction; the tags of what the database takes in no form at all."""
        self._state.accepting_since = _now()
        try:
            if members:
                await self._accept(members)
        except StorageDataError:
            # A dead letter that is larger than the database takes, for example: each on its own, then.
            refused: set[int] = set()
            for tag, member in members:
                try:
                    await self._accept([(tag, member)])
                except StorageDataError as error:
                    extra = {"gateway": self._settings.name, "queue": self._queue, "error": str(error)}
                    log.error("gateway_cannot_keep_message", extra=extra)  # noqa: TRY400, it says all there is to say
                    refused.add(tag)
            return refused
        finally:
            self._state.accepting_since = None
        return set()

    async def _accept(self, members: Sequence[tuple[int, Positioned | NewDeadLetter]]) -> None:
        items = [member for _, member in members if isinstance(member, Positioned)]
        letters = [member for _, member in members if isinstance(member, NewDeadLetter)]
        await accept_until_stored(self._inbox, items, (), letters, who=self._settings.name)

    async def _acknowledge(self, tags: list[int]) -> None:
        self._state.pauses.succeeded()
        self._state.patience = self._settings.stuck_after
        try:
            await self._acks.acknowledge(tags)
        except Exception as error:
            if not is_of_broker(error):
                raise
            # Stored, and delivered once more: the identity refuses the copy.
            extra = {"gateway": self._settings.name, "queue": self._queue, "error": told(error)}
            log.info("gateway_acknowledges_in_vain", extra=extra)

    # ------------------------------------------------------------------ from outside

    async def _watch(self) -> str:
        """Look at the queue as a stranger would; returns when the consumer is connected, but gets nothing."""
        state = self._state
        channel = await self._link.channel()
        since = _now()  # since when messages wait and none comes
        while True:
            await asyncio.sleep(min(_LOOK, state.patience / 2))
            try:
                state.waiting = await message_count(channel, self._queue)
            except TimeoutError:
                return "the broker does not answer"
            except Exception as error:
                if not is_of_broker(error):
                    raise
                return f"queue {self._queue!r} cannot be looked at: {told(error)}"
            if not state.waiting or state.held > state.unstorable or self._settings.single_active:
                since = _now()
                state.pauses.succeeded()
            since = max(since, self._last_delivery)
            if _now() - since > state.patience:
                state.patience = min(2 * state.patience, _LONGEST_STUCK * self._settings.stuck_after)
                return f"{state.waiting} messages wait, and none was delivered for {_now() - since:.0f} s"


def _now() -> float:
    return asyncio.get_running_loop().time()
