"""Processes that go on until they are told to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import typer

from edda.app import EddaApp


async def until_terminated(app: EddaApp, said: str) -> None:
    """The app, without a server; says when it has begun."""
    async with app:
        typer.echo(said)
        await terminated()


async def terminated() -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    await stop.wait()
