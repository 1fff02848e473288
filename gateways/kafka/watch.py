"""A look at a member from outside its client library, which may be connected and yet hand out nothing, for ever.

(aiokafka's issues 625 and 1037: a consumer that has left its group, or lost its fetcher, and does not say so.)
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateways.kafka.batch import Place
    from gateways.kafka.member import Member

#: Seconds between two looks, at most, and for one.
_LOOK = 5.0


class StalledError(Exception):
    """There is something to read, and nothing is read: the consumer is made anew."""


class Changed(Exception):  # noqa: N818, no error
    """The member must join again, because what it reads has changed."""


async def watch(member: Member, stall_after: float, rebalance: float) -> None:
    """Until there is a reason to make the consumer anew: raises StalledError or Changed.

    Tells the member its lag. A member that waits for the database does not stall, nor does one whose group agrees anew
    (for at most ``rebalance`` seconds) on who reads what.
    """
    from aiokafka.errors import KafkaError

    still: dict[Place, tuple[int, float]] = {}  # position, and since when it is there while there are records
    answered = time.monotonic()
    while True:
        await asyncio.sleep(min(_LOOK, stall_after / 4))
        now = time.monotonic()
        if member.waits_since is not None:
            still.clear()
            answered = now
            continue
        if now - member.polled_at > stall_after + rebalance:
            raise StalledError(f"the client library has not answered for {now - member.polled_at:.0f} s")
        try:
            async with asyncio.timeout(min(_LOOK, stall_after)):
                lags = await member.look()
        except (KafkaError, TimeoutError) as error:
            member.trouble = f"Kafka does not answer: {type(error).__name__}: {error}"
            if time.monotonic() - answered > stall_after:
                raise StalledError(member.trouble) from error
            continue
        answered = time.monotonic()
        member.trouble = None
        still = {
            place: still[place] if still.get(place, (None,))[0] == position else (position, now)
            for place, (position, lag) in lags.items()
            if lag > 0
        }
        stuck = [place for place, (_, since) in still.items() if now - since > stall_after]
        if stuck:
            topic, partition = stuck[0]
            raise StalledError(
                f"{topic}/{partition} has {lags[stuck[0]][1]} records, and none was handed out for {stall_after:g} s"
            )
        if await member.missing_appeared():
            raise Changed("a topic that was missing is there")
