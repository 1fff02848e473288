"""One queue, until stopped: a connection of its own, and another whenever that ends, for whatever reason.

Nothing of another queue stands before its deliveries, and nothing that happens to it disturbs them.
"""

from __future__ import annotations

import asyncio
import logging

from edda.inbox.accept import Inbox
from gateways.rabbitmq.connection import (
    BrokerError,
    Link,
    client_name,
    connect,
    is_cancelled,
    is_of_broker,
    told,
)
from gateways.rabbitmq.session import Session, Settings, State
from gateways.rabbitmq.topology import ANSWER, declare_queue, message_count, refuse_unfit

log = logging.getLogger("edda.gateway")


class Consumer:
    """Consumes one queue until it is stopped; whatever happens is told and tried again."""

    def __init__(self, settings: Settings, queue: str, inbox: Inbox) -> None:
        self.queue = queue
        self.state = State(asyncio.get_running_loop().time(), settings.stuck_after)
        self._settings = settings
        self._inbox = inbox

    def stop(self) -> None:
        """Fetch no more; ``run`` returns when what is accepted is settled."""
        self.state.stopping.set()

    async def run(self) -> None:
        """Consume."""
        state = self.state
        while not state.stopping.is_set():
            try:
                reason = await self._session()
            except BrokerError as error:
                reason = str(error)
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                reason = "the connection was lost"
            except Exception as error:  # whatever it is, the messages are still there
                log.exception("gateway_failed", extra={"gateway": self._settings.name, "queue": self.queue})
                reason = told(error)
            if state.stopping.is_set():
                break
            state.trouble, state.waiting = reason, None
            pause = state.pauses.next()
            extra = {"gateway": self._settings.name, "queue": self.queue, "reason": reason, "seconds": pause}
            log.warning("gateway_consumes_again", extra=extra)
            await _within(pause, state.stopping)
        state.trouble = "stopped"

    async def _session(self) -> str:
        """From connecting to the end of the connection, and why it ended."""
        link = await connect(
            self._settings.url, client_name(self._settings.name), self._settings.connect_timeout
        )
        try:
            self.state.link = link
            async with asyncio.timeout(4 * ANSWER):
                session = await self._prepare(link)
            return await session.run()
        except TimeoutError:
            return "the broker does not answer"
        except Exception as error:
            if not is_of_broker(error):
                raise
            return told(error)
        finally:
            self.state.held = self.state.unstorable = 0
            self.state.link = None
            await link.close()

    async def _prepare(self, link: Link) -> Session:
        from aiormq.exceptions import ChannelLockedResource, ChannelNotFoundEntity

        declaration = self._settings.declaration
        if declaration is not None:
            await declare_queue(link, self.queue, declaration)
        channel = await link.channel()
        try:
            self.state.waiting = await message_count(channel, self.queue)
        except ChannelNotFoundEntity as error:
            msg = (
                f"there is no queue {self.queue!r}. It is looked for again; create it, or let the gateway do so: "
                "declare='quorum'"
            )
            raise BrokerError(msg) from error
        except ChannelLockedResource as error:
            msg = (
                f"queue {self.queue!r} is exclusive to another connection and ends with it; use a durable one"
            )
            raise BrokerError(msg) from error
        if declaration is None:
            await refuse_unfit(link, self.queue)
        # Before the consumer: without a limit the broker sends the whole queue.
        await channel.basic_qos(prefetch_count=self._settings.prefetch, timeout=ANSWER)
        session = Session(self._settings, self.queue, self._inbox, self.state, link, channel)
        await session.consume()
        self.state.trouble = None
        log.info("gateway_consumes", extra={"gateway": self._settings.name, "queue": self.queue})
        return session


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Wait for the event, at most so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
