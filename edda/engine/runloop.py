"""The event loop that a workflow's code runs on: a ready queue of its own, everything else from the real loop.

Replay is exact only if the code runs until nothing more can run between two observed results, in the first run and in
every replay alike. asyncio's own loop cannot say "nothing more can run" for one workflow, so each run has its own
ready queue, drained to the end. Tasks, gather, TaskGroup, timeouts, locks and queues of asyncio work on it as they are.

Code that awaits something of the real loop (a driver's socket in ``async with ctx.transaction()``, a client's
request) is let through: such foreign futures are bridged, and counted, because a run that awaits one is not at rest.

Source of the idea: the workflow event loop of Temporal's Python SDK; the bridge is ours.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")
_Context = contextvars.Context

_set_running_loop: Callable[[asyncio.AbstractEventLoop | None], None] = events._set_running_loop  # noqa: SLF001
_get_running_loop: Callable[[], asyncio.AbstractEventLoop | None] = events._get_running_loop  # noqa: SLF001


class RunLoop(asyncio.AbstractEventLoop):
    """One run's loop. ``on_wake`` is called from the real loop when a callback arrives from outside a drain."""

    def __init__(self, real: asyncio.AbstractEventLoop, on_wake: Callable[[], None]) -> None:
        self._real = real
        self._on_wake = on_wake
        self._ready: deque[asyncio.Handle] = deque()
        self._draining = False
        self._woken = False
        self._closed = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.foreign = 0
        self.touched = False  # the code has asked the real loop for a socket or the like, which may wake ours
        self.timers = 0  # of those
        self._numbered = 0

    # ------------------------------------------------------------------ the ready queue

    def drain(self) -> None:
        """Run until nothing more can run."""
        if self._draining:
            return
        ready = self._ready
        previous = _get_running_loop()
        self._draining = True
        _set_running_loop(self)
        try:
            while ready:
                handle = ready.popleft()
                if not handle._cancelled:  # noqa: SLF001, as BaseEventLoop does
                    handle._run()  # noqa: SLF001
        finally:
            self._draining = False
            _set_running_loop(previous)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: _Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if self._closed:
            handle.cancel()
            return handle
        self._ready.append(handle)
        if not self._draining and not self._woken:
            self._woken = True
            self._real.call_soon(self._wake)
        return handle

    def _wake(self) -> None:
        self._woken = False
        if not self._closed:
            self._on_wake()

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: _Context | None = None
    ) -> asyncio.Handle:
        return self._real.call_soon_threadsafe(lambda: self.call_soon(callback, *args, context=context))

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: _Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._real.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: _Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        self.foreign += 1
        self.timers += 1
        timer.real = self._real.call_at(when, self._timer_due, timer)
        return timer

    def _timer_due(self, timer: _Timer) -> None:
        timer.settle()
        if not timer._cancelled and not self._closed:  # noqa: SLF001
            self._ready.append(timer)
            self._on_wake()

    def time(self) -> float:
        return self._real.time()

    # ------------------------------------------------------------------ futures and tasks

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: _Context | None = None
    ) -> asyncio.Task[T]:
        self._numbered += 1
        task = _Task(self._numbered, _Bridge(coro, self), self, name, context)
        self.tasks.append(task)
        if len(self.tasks) > 64:
            self.tasks = [task for task in self.tasks if not task.done()]
        return task

    def close_run(self) -> None:
        """Drop what still hangs here: the coroutines are closed where they stand, and nothing runs any more."""
        self._closed = True
        self._ready.clear()
        self._on_wake = _nothing  # the run holds this loop: without a cycle both are freed at once
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001
                coro = task.get_coro()
                try:
                    if coro is not None:
                        coro.close()
                except Exception:  # noqa: BLE001, S110, user code that awaits while it is being dropped
                    pass
        self.tasks.clear()

    # ------------------------------------------------------------------ foreign futures

    def adopt(self, future: asyncio.Future[Any]) -> asyncio.Future[Any]:
        """A future of this loop that ends when the real loop's future does; cancelling goes the other way."""
        proxy: asyncio.Future[Any] = asyncio.Future(loop=self)
        self.foreign += 1

        def ended(_: asyncio.Future[Any]) -> None:
            self.foreign -= 1
            if not proxy.done() and not self._closed:
                proxy.set_result(None)

        def cancelled(ended_proxy: asyncio.Future[Any]) -> None:
            if ended_proxy.cancelled() and not future.done():
                self._real.call_soon(future.cancel)

        future.add_done_callback(ended)
        proxy.add_done_callback(cancelled)
        return proxy

    # ------------------------------------------------------------------ the rest is the real loop's

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._real.call_exception_handler(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self._real.default_exception_handler(context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> Any:  # type: ignore[override]
        return self._real.run_in_executor(executor, func, *args)


def _nothing() -> None:
    pass


class _Task(asyncio.Task[Any]):
    """A task that has the same place in a set in every replay.

    asyncio keeps tasks in sets: a TaskGroup cancels in the order of one, ``asyncio.wait`` answers with two. By default
    that order follows from addresses in memory.
    """

    def __init__(
        self,
        number: int,
        coro: Coroutine[Any, Any, Any],
        loop: RunLoop,
        name: str | None,
        context: _Context | None,
    ) -> None:
        self._number = number  # first: a new task enters a set at once
        super().__init__(coro, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._number


class _Timer(asyncio.TimerHandle):
    """A timer handle that cancels its twin on the real loop."""

    real: asyncio.TimerHandle | None = None

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: Any,
        loop: RunLoop,
        context: _Context | None,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self._run_loop: RunLoop | None = loop

    def settle(self) -> None:
        """It no longer keeps the run from rest."""
        if self._run_loop is not None:
            self._run_loop.foreign -= 1
            self._run_loop.timers -= 1
            self._run_loop = None

    def cancel(self) -> None:
        if self.real is not None:
            self.real.cancel()
        self.settle()
        # Not TimerHandle.cancel: it tells the loop's own heap, and this loop has none.
        asyncio.Handle.cancel(self)


class _Bridge(Coroutine[Any, Any, Any]):
    """A coroutine whose awaits of foreign futures are awaits of adopted ones."""

    __slots__ = ("_coro", "_loop", "_send")

    def __init__(self, coro: Coroutine[Any, Any, Any], loop: RunLoop) -> None:
        self._coro = coro
        self._send = coro.send
        self._loop = loop

    def send(self, value: Any) -> Any:
        future = self._send(value)
        if future is None or getattr(future, "_loop", self._loop) is self._loop:
            return future
        return self._bridge(future)

    def throw(self, *args: Any) -> Any:
        future = self._coro.throw(*args)
        if future is None or getattr(future, "_loop", self._loop) is self._loop:
            return future
        return self._bridge(future)

    def _bridge(self, future: asyncio.Future[Any]) -> asyncio.Future[Any]:
        future._asyncio_future_blocking = False  # noqa: SLF001, the protocol between Future.__await__ and Task
        proxy = self._loop.adopt(future)
        proxy._asyncio_future_blocking = True  # noqa: SLF001
        return proxy

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coro.__await__()


def _delegate(name: str) -> Any:
    def call(self: RunLoop, *args: Any, **kwargs: Any) -> Any:
        self.touched = True
        return getattr(self._real, name)(*args, **kwargs)

    call.__name__ = name
    return call


# Sockets, name look-ups, subprocesses, signals: the real loop's. Their coroutines run inside our task and await
# futures of the real loop, which the bridge adopts.
for _name in [
    name for name in dir(asyncio.AbstractEventLoop) if not name.startswith("_") and name not in vars(RunLoop)
]:
    setattr(RunLoop, _name, _delegate(_name))
RunLoop.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
