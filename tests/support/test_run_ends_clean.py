"""A run that is interrupted leaves no server behind."""

import os
import signal
import tempfile
from contextlib import closing
from pathlib import Path

import docker
import docker.errors
import pytest

from tests.support import containers, run
from tests.support.eventually import eventually
from tests.support.processes import Process, spawn

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _engine() -> None:
    try:
        with closing(docker.from_env()) as client:
            client.ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no container engine: {error}")


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_run_removes_its_containers(number: signal.Signals, workers: str) -> None:
    with spawn("tests.support.interrupted:run_pytest", workers) as process:
        directory, owner = await _stuck_run_of(process)
        assert _containers_of(owner)
        # Ctrl-C reaches every process of the terminal; `kill` reaches one.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        process.wait(60)
    assert not _containers_of(owner)
    assert not directory.exists()


async def test_what_a_killed_run_left_is_removed_by_the_next() -> None:
    with spawn("tests.support.interrupted:run_pytest", "0") as process:
        _, owner = await _stuck_run_of(process)
        process.kill()
    assert _containers_of(owner)
    assert run.is_gone(owner)
    containers.remove_abandoned()
    assert not _containers_of(owner)


async def _stuck_run_of(process: Process) -> tuple[Path, str]:
    def find() -> tuple[Path, str] | None:
        assert process.returncode is None, process.output
        for file in Path(tempfile.gettempdir()).glob("edda-tests-*/owner"):
            if f":{process.pid}:" in file.read_text() and list(file.parent.glob("stuck-*")):
                return file.parent, file.read_text()
        return None

    found = await eventually(find, 120)
    assert found is not None
    return found


def _containers_of(owner: str) -> list[str]:
    with closing(docker.from_env()) as client:
        found = client.containers.list(all=True, filters={"label": f"edda.tests.owner={owner}"})
        return [str(container.name) for container in found]
