"""Python processes that a test starts, freezes and kills.

A test names a function of a module; it runs in a process of its own and speaks over standard output::

    with spawn("tests.crash.programs:work", database.url) as process:
        await process.line("step 3 begins")
        process.kill()

They are forked from a process that has imported everything and done nothing else, because importing takes longer than
most of what they do.
"""

import asyncio
import ctypes
import importlib
import inspect
import io
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.process
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.support.preload"])


class Process:
    """One running function. Leaving the ``with`` block kills it, whatever state it is in."""

    def __init__(self, target: str, arguments: tuple[str, ...], env: Mapping[str, str]) -> None:
        self.target = target
        self._lines: list[str] = []
        self._read = 0
        self._ended = False
        self._news = threading.Condition()
        reader, writer = _forks.Pipe(duplex=False)
        self._process = _forks.Process(
            target=_live, args=(writer, target, arguments, {**os.environ, **env}), daemon=True
        )
        self._process.start()
        writer.close()
        self._pid = self._process.pid or 0
        self._output = os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace")
        reader.close()
        self._reader = threading.Thread(target=self._pump, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._pid

    @property
    def output(self) -> str:
        """Everything it has written so far, standard error included."""
        with self._news:
            return "\n".join(self._lines)

    @property
    def returncode(self) -> int | None:
        """None while it lives, then its exit status; minus the signal's number when one killed it."""
        return self._process.exitcode

    def wait_for_line(self, pattern: str, timeout: float = 30) -> re.Match[str]:
        """Wait for a line in which the regular expression is found; looks at each line once, in order.

        Raises:
            AssertionError: it ended, or ``timeout`` seconds passed, without such a line. Carries the output.
        """
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                while self._read < len(self._lines):
                    line = self._lines[self._read]
                    self._read += 1
                    if found := re.search(pattern, line):
                        return found
                remaining = deadline - time.monotonic()
                if self._ended or remaining <= 0:
                    why = "ended" if self._ended else f"within {timeout:g} s wrote"
                    output = "\n".join(self._lines)
                    msg = f"{self.target} {why} without a line like {pattern!r}. Its output:\n{output}"
                    raise AssertionError(msg)
                self._news.wait(remaining)

    async def line(self, pattern: str, timeout: float = 30) -> re.Match[str]:
        """The same as ``wait_for_line``, while the event loop goes on."""
        return await asyncio.to_thread(self.wait_for_line, pattern, timeout)

    def kill(self) -> None:
        """SIGKILL it, and return when it is gone."""
        self._process.kill()
        self._process.join()

    def must_live(self) -> None:
        """Raises AssertionError, with its exit status and its output, if it has ended."""
        if self.returncode is not None:
            # What it said last is what one wants to know: all of it has been read when the pipe ends.
            self._reader.join(1)
            msg = f"{self.target} has ended with {self.returncode}. Its output:\n{self.output}"
            raise AssertionError(msg)

    def pause(self) -> None:
        """SIGSTOP it, and return when it stands still: it holds what it holds and does nothing.

        Raises:
            AssertionError: it has ended. Carries the output.
        """
        self._signal(signal.SIGSTOP)
        self._wait_until_still()

    def resume(self) -> None:
        """SIGCONT it.

        Raises:
            AssertionError: it has ended. Carries the output.
        """
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM it: the polite request that it end. Follow with ``wait``."""
        self._process.terminate()

    def wait(self, timeout: float = 30) -> int:
        """Wait for its end; returns the exit status.

        Raises:
            AssertionError: it still lives after ``timeout`` seconds. Carries the output.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            msg = f"{self.target} still runs after {timeout:g} s. Its output:\n{self.output}"
            raise AssertionError(msg)
        return self._process.exitcode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        # A grandchild may hold the pipe open: what it still writes is nobody's business.
        self._reader.join(1)
        if error is not None:
            error.add_note(f"output of {self.target}:\n{self.output}")

    def _signal(self, number: signal.Signals) -> None:
        self.must_live()
        try:
            os.kill(self._pid, number)
        except ProcessLookupError:  # it ended just now; its end has its status in a moment
            self._process.join(10)
            self.must_live()
            raise

    def _wait_until_still(self, timeout: float = 10) -> None:
        """The signal stops one thread after the other; on a busy machine some go on for a while."""
        deadline = time.monotonic() + timeout
        while sys.platform == "linux" and self.returncode is None:
            states = []
            for stat in Path(f"/proc/{self.pid}/task").glob("*/stat"):
                with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                    states.append(stat.read_text().rpartition(")")[2].split()[0])
            if set(states) <= set("TZX"):
                break
            assert time.monotonic() < deadline, f"{self.target} does not stop"
            time.sleep(0.001)
        self.must_live()

    def _pump(self) -> None:
        with self._output as stream:
            for line in stream:
                with self._news:
                    self._lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


def spawn(target: str, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
    """Start ``module:function`` in a new Python process; use it in a ``with`` block.

    Args:
        target: a function, async or not, in a module that can be imported without effects.
        arguments: handed to it as texts.
        env: variables on top of this process's.
    """
    return Process(target, arguments, env or {})


def _die_with_parent() -> None:
    """Ask Linux for SIGKILL when the parent dies: a killed run leaves no orphans, not even frozen ones."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _live(
    writer: multiprocessing.connection.Connection,
    target: str,
    arguments: tuple[str, ...],
    env: Mapping[str, str],
) -> None:
    """In the new process: what it writes goes to its starter, and it is nobody's child but for its end."""
    _die_with_parent()
    # Each child is given what keeps the common parent alive: that one must end when the starter does.
    alive = multiprocessing.forkserver._forkserver._forkserver_alive_fd  # type: ignore[attr-defined]
    if alive is not None:
        os.close(alive)
    multiprocessing.process.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # may start some, too
    for stream in (1, 2):
        os.dup2(writer.fileno(), stream)
    writer.close()
    for text in (sys.stdout, sys.stderr):
        assert isinstance(text, io.TextIOWrapper)
        text.reconfigure(line_buffering=True, write_through=True)
    os.environ.clear()
    os.environ.update(env)
    module, function = target.split(":")
    outcome = getattr(importlib.import_module(module), function)(*arguments)
    if inspect.iscoroutine(outcome):
        asyncio.run(outcome)
