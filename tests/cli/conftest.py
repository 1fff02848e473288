"""The ``edda`` command as a user runs it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from edda.cli.main import main


@dataclass
class Ran:
    """What a command has left."""

    code: int
    out: str
    err: str


Run = Callable[..., Awaitable[Ran]]

#: The entry point in a process of its own, for what serves.
EDDA = (sys.executable, "-c", "from edda.cli.main import main; main()")


@pytest.fixture
def edda(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command to its end: the entry point itself, in this process, in a thread without an event loop."""

    async def run(*arguments: str, **environment: str) -> Ran:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["edda", *arguments])
            for name, value in {"COLUMNS": "120", **environment}.items():
                patched.setenv(name, value)
            return await asyncio.to_thread(_run)

    return run


def _run() -> Ran:
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return Ran(code if isinstance(code, int) else 0 if code is None else 1, out.getvalue(), err.getvalue())
