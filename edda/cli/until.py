"""Processes that go on until they are told to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import typer

from edda.app import EddaApp
from outbox_relays.publisher import Publisher


async def relay_until_terminated(database_url: str, publisher: Publisher) -> None:
    """One relay, and nothing else."""
    async with EddaApp("edda-relay", database_url, workflows=[], work=False, relays=[publisher]):
        typer.echo("relaying")
        await terminated()


async def terminated() -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    await stop.wait()
