"""CPU that the database server has used, for whomever: of its container, or of its processes on this machine."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import docker
import docker.errors
import psutil
import sqlalchemy as sa

if TYPE_CHECKING:
    from docker.models.containers import Container

_LOCAL = {"localhost", "127.0.0.1", "::1", None}


class ServerCPU:
    """The server behind a URL; ``seconds()`` is None where its CPU cannot be read (or there is no server: SQLite)."""

    def __init__(self, url: str) -> None:
        self._container: Container | None = None
        self._process: psutil.Process | None = None
        parsed = sa.make_url(url)
        if parsed.drivername == "sqlite" or parsed.host not in _LOCAL:
            return
        with suppress(docker.errors.DockerException, OSError):
            self._container = _container_of(parsed.port)
        if self._container is None:
            with suppress(psutil.Error):
                self._process = _process_of(parsed.port)

    def seconds(self) -> float | None:
        """CPU seconds so far."""
        if self._container is not None:
            stats: Any = self._container.stats(stream=False, one_shot=True)
            return float(stats["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9
        if self._process is not None:
            with suppress(psutil.Error):
                return _with_children(self._process)
        return None


def _container_of(port: int | None) -> Container | None:
    for container in docker.from_env(timeout=5).containers.list():
        for published in (container.ports or {}).values():
            if any(int(binding["HostPort"]) == port for binding in published or ()):
                return container
    return None


def _process_of(port: int | None) -> psutil.Process | None:
    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN
        if listens and connection.laddr and connection.laddr.port == port and connection.pid:
            return psutil.Process(connection.pid)
    return None


def _with_children(process: psutil.Process) -> float:
    seconds = 0.0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            # What ended children have used is counted at their parent.
            seconds += times.user + times.system + getattr(times, "children_user", 0.0)
            seconds += getattr(times, "children_system", 0.0)
    return seconds
