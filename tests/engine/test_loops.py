"""A workflow's own loop ends with the workflow: what its code sets off for the process must not end with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edda import WorkflowContext, workflow
from edda.engine.journal import Journal, Outcome
from edda.engine.runloop import RunLoop
from edda.engine.tasks import Tasks
from edda.engine.timers import Timers
from edda.storage.memory import MemoryStore
from edda.storage.rows import Turn, TurnResult
from tests.engine.conftest import MakeApp
from tests.interleavings import given


def run_in_a_workflow_that_ends(work: Callable[[], None]) -> None:
    """Call it as a workflow's code does, and end that workflow in the same step of its loop."""
    runloop = RunLoop(asyncio.get_running_loop(), lambda: None)  # type: ignore[abstract]  # the rest is delegated

    def work_and_end() -> None:
        work()
        runloop.close_run()

    runloop.call_soon(work_and_end)
    runloop.drain()


async def test_task_that_a_workflow_sets_off_outlives_it() -> None:
    tasks, done = Tasks(), asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0)
        done.set()

    run_in_a_workflow_that_ends(lambda: tasks.spawn(work()))
    await asyncio.wait_for(done.wait(), 5)
    await tasks.cancel()


async def test_timer_that_a_workflow_sets_off_outlives_it() -> None:
    fired = asyncio.Event()
    timers = Timers(lambda: 1_000, fired.set)
    run_in_a_workflow_that_ends(lambda: timers.add(500))
    await asyncio.wait_for(fired.wait(), 5)
    timers.close()


class _Writer:
    """One turn."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def take_turn(self) -> Turn | None:
        return given.start("first")

    def flushed(self, turn: Turn, outcome: Outcome, now_us: int) -> None:
        self.outcome.set_result(outcome)


async def test_journal_to_which_a_workflow_hands_a_turn_writes_it_and_those_that_follow() -> None:
    journal = Journal(MemoryStore())
    writer, second = _Writer(), _Writer()
    run_in_a_workflow_that_ends(lambda: journal.submit(writer))
    assert isinstance(await asyncio.wait_for(writer.outcome, 5), TurnResult)
    journal.submit(second)
    assert isinstance(await asyncio.wait_for(second.outcome, 5), TurnResult)


@workflow
async def talking(ctx: WorkflowContext, port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    line = await reader.readline()  # the reader's future is one of the run's own loop
    writer.close()
    return line.decode().strip()


async def test_code_that_waits_for_a_connection_of_its_own_is_not_taken_for_stuck(make_app: MakeApp) -> None:
    asked = asyncio.Event()

    async def answer_late(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked.wait()
        writer.write(b"late\n")
        await writer.drain()
        writer.close()

    app = await make_app(talking)
    async with await asyncio.start_server(answer_late, "127.0.0.1") as server:
        handle = await talking.submit(port=server.sockets[0].getsockname()[1])
        for _ in range(20):
            await asyncio.sleep(0.01)
            for run in list(app.worker.runs.values()):
                run.wake()  # whatever makes it look again
        asked.set()
        assert await handle.result(timeout=20) == "late"
