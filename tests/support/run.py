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
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_VARIABLE = "EDDA_TEST_RUN_DIRECTORY"
_PREFIX = "edda-tests-"


def begin() -> bool:
    """Make the run's directory, unless this process belongs to a run already; true if it was made."""
    if _VARIABLE in os.environ:
        return False
    _forget_killed_runs()
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    (path / "owner").write_text(_own_identity())
    os.environ[_VARIABLE] = str(path)
    return True


def join_kept() -> None:
    """Take part in the run that never ends by itself: servers that a developer keeps (``keep.py``)."""
    path = Path(tempfile.gettempdir()) / "edda-tests-kept"
    path.mkdir(exist_ok=True)
    (path / "owner").write_text("kept")
    os.environ[_VARIABLE] = str(path)


def leave() -> None:
    """Forget the run that this process has inherited, so that it begins one of its own."""
    os.environ.pop(_VARIABLE, None)


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
    host, pid, started = identity.rsplit(":", 2) if identity.count(":") >= 2 else ("", "", "")
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


def _forget_killed_runs() -> None:
    for owner_file in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/owner"):
        with suppress(OSError):  # another process is faster, or it is another user's
            if is_gone(owner_file.read_text()):
                shutil.rmtree(owner_file.parent, ignore_errors=True)


def _own_identity() -> str:
    process = psutil.Process()
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"
