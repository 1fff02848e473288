"""One run of the tests, and what its processes share.

The process that starts a run (with pytest-xdist the controller) owns it: it makes the run's directory, hands
its path down in the environment, and takes away at the end whatever any process of the run has started.
"""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_VARIABLE = "EDDA_TEST_RUN_DIRECTORY"


def begin() -> bool:
    """Make the run's directory, unless this process belongs to a run already; true if it was made."""
    if _VARIABLE in os.environ:
        return False
    path = Path(tempfile.mkdtemp(prefix="edda-tests-"))
    (path / "owner").write_text(_own_identity())
    os.environ[_VARIABLE] = str(path)
    return True


def end() -> None:
    """Remove the directory. What was started must have been stopped before."""
    shutil.rmtree(os.environ.pop(_VARIABLE), ignore_errors=True)


def directory() -> Path:
    """The directory that all processes of this run share."""
    return Path(os.environ[_VARIABLE])


def owner() -> str:
    """Who owns this run: a text that no other process, on no other machine, has had."""
    return (directory() / "owner").read_text()


def is_gone(identity: str) -> bool:
    """True if the owner with this identity lived on this machine and has died.

    What it has left behind may then be taken away by anybody: it was killed before it could.
    """
    host, pid, started = identity.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the run's lock of that name: one process at a time. A process that dies lets go."""
    with (directory() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _own_identity() -> str:
    process = psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"
