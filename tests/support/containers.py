"""Containers for one run of the tests.

A label names the run's owner, so that one request removes all containers of a run, also those whose start was
interrupted, and so that the next run finds what a killed one left behind. testcontainers' own reaper is off:
it removes a container when the process that started it ends, and here that is one xdist worker of several.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import docker
import docker.errors
from docker.models.containers import Container
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from tests.support import run

_LABEL = "edda.tests.owner"
_MARK = "containers"


@dataclass(frozen=True, slots=True)
class Started:
    """A running container and where this machine reaches its port."""

    id: str
    host: str
    port: int


def start(
    image: str,
    port: int,
    *,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = (),
    tmpfs: Sequence[str] = (),
    host_ports: Mapping[int, int] | None = None,
) -> Started:
    """Start a container that lives until the run ends. It may not be ready to serve yet.

    Args:
        image: its name; pulled when the machine does not have it.
        port: the port inside, published on a free port outside.
        environment: variables for the image's entry point.
        command: arguments for the image's entry point.
        tmpfs: directories kept in memory: faster, and gone when the container stops.
        host_ports: port inside -> port outside, for a server that must know the address it is reached at.

    Raises:
        docker.errors.DockerException: no engine, or no such image.
    """
    testcontainers_config.ryuk_disabled = True
    remove_abandoned()
    (run.directory() / _MARK).touch()
    fixed = host_ports or {}
    free = [] if port in fixed else [port]
    container = DockerContainer(image, env=dict(environment or {}), ports=free, labels={_LABEL: run.owner()})
    try:
        for inside, outside in fixed.items():
            container.with_bind_ports(inside, outside)
        if command:
            container.with_command(list(command))
        for path in tmpfs:
            container.with_tmpfs_mount(path)
        container.start()
        return Started(
            container.get_container_id(), container.get_container_host_ip(), container.get_exposed_port(port)
        )
    finally:
        container.get_docker_client().client.close()


def logs_if_stopped(id: str) -> str | None:
    """The end of a container's log if it is no longer running, else None."""
    with closing(docker.from_env()) as client:
        container = client.containers.get(id)
        return None if container.status in {"created", "running"} else container.logs(tail=20).decode()


def restart(id: str) -> None:
    """Stop a container and start it again; what it keeps in memory is gone."""
    with closing(docker.from_env()) as client:
        client.containers.get(id).restart(timeout=10)


def remove(id: str) -> None:
    """Remove one container of this run."""
    with closing(docker.from_env()) as client:
        _remove(client.containers.get(id))


def remove_all() -> None:
    """Remove all containers of this run; costs nothing when none was started."""
    if (run.directory() / _MARK).exists():
        with closing(docker.from_env()) as client:
            for container in client.containers.list(all=True, filters={"label": f"{_LABEL}={run.owner()}"}):
                _remove(container)


def remove_abandoned() -> None:
    """Remove what runs left behind whose owner was killed."""
    with closing(docker.from_env()) as client:
        for container in client.containers.list(all=True, filters={"label": _LABEL}, ignore_removed=True):
            if run.is_gone(container.labels[_LABEL]):
                _remove(container)


def _remove(container: Container) -> None:
    try:
        container.remove(force=True, v=True)
    except docker.errors.NotFound:
        pass  # somebody else did
    except docker.errors.APIError as error:
        if error.status_code != 409:  # its removal is in progress already
            raise
