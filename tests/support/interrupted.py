"""A run of pytest that gets stuck while it holds a server, for ``test_run_ends_clean.py``.

Its name keeps it out of ordinary runs; its tests wait to be interrupted.
"""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support import run
from tests.support.databases import Database


def run_pytest(workers: str) -> None:
    """Begin a run of its own, in a process group of its own."""
    os.setpgid(0, 0)
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    os.environ.pop("EDDA_TEST_POSTGRES_URL", None)
    run.leave()
    arguments = [str(Path(__file__)), "-n", workers, "-p", "no:cacheprovider", "-m", "", "-s"]
    # A shell's background jobs ignore Ctrl-C, and so does all that they start.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A fresh interpreter in the same process: this one has imported what pytest would rewrite.
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])


@pytest.mark.parametrize("number", [1, 2])
def test_that_waits_for_a_signal(postgresql_database: Database, number: int) -> None:
    (run.directory() / f"stuck-{number}").touch()
    while True:
        signal.pause()
