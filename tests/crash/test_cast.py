"""Who plays a part in the chaos: a death that nobody ordered is told, and one that was ordered disturbs nobody."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.crash.cast import Role
from tests.support.eventually import eventually
from tests.support.processes import Process, spawn


async def test_a_part_that_is_killed_while_it_is_frozen_is_not_woken() -> None:
    started: list[Process] = []
    woken = threading.Event()

    def start() -> Process:
        started.append(spawn("tests.crash.test_cast:play"))
        return started[-1]

    role = Role("worker", start)
    await role.start()
    first = started[0]
    with first:
        freezing = asyncio.create_task(role.stop_for(0.2))
        await eventually(lambda: role._stopped)
        kill = first.kill

        def kill_slowly() -> None:
            kill()
            woken.wait(20)  # the freeze ends before whoever kills has heard of its success

        first.kill = kill_slowly  # type: ignore[method-assign]
        killing = asyncio.create_task(role.kill())
        await asyncio.wait([freezing])
        woken.set()
        await killing
        first.kill = kill  # type: ignore[method-assign]
        await freezing
    with started[1]:
        await role.heal()


@pytest.mark.parametrize("harm", ["kill", "stop_for", "heal"])
async def test_a_part_that_has_ended_by_itself_is_told_with_what_it_said(harm: str) -> None:
    with spawn("tests.crash.test_cast:play_badly") as process:
        role = Role("relay", lambda: process)
        await role.start()
        process.wait()
        with pytest.raises(AssertionError, match=r"ended with 3(.*\n)*the database is gone"):
            await (role.stop_for(0) if harm == "stop_for" else getattr(role, harm)())


def play() -> None:
    """A process that works."""
    print("ready", flush=True)
    threading.Event().wait()


def play_badly() -> None:
    """A process that ends with an error."""
    print("ready", flush=True)
    print("the database is gone", flush=True)
    raise SystemExit(3)
