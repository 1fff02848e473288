"""Acknowledgements: many at once where that can hit nothing else, else one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiormq import Channel


class Acks:
    """Of one channel, whose delivery tags count from 1.

    "All up to this one" is only said where every tag up to there is settled: a delivery that is held, or was never seen
    here, ends it for this channel.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._settled = 0  # every tag up to here

    async def acknowledge(self, tags: Sequence[int]) -> None:
        """Tell the broker that these are stored; in the order of delivery."""
        if not tags:
            return
        if tags[0] == self._settled + 1 and tags[-1] == self._settled + len(tags):
            await self._channel.basic_ack(tags[-1], multiple=True)
            self._settled = tags[-1]
            return
        for tag in tags[:-1]:
            await self._channel.basic_ack(tag, wait=False)
        await self._channel.basic_ack(tags[-1])
