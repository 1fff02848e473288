"""What the figures were measured on. Neither a host name nor a path: they are nobody's business and change nothing."""

from __future__ import annotations

import platform
import re
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import sqlalchemy as sa

from tests.support import servers

_PACKAGES = ("edda-framework", "sqlalchemy", "asyncpg", "aiomysql", "pymysql", "pydantic", "httpx")


def describe() -> dict[str, str]:
    """Machine and versions, in reading order."""
    return {
        "CPU": f"{_cpu_model()}, {psutil.cpu_count() or 1} cores",
        "memory": f"{psutil.virtual_memory().total / 1024**3:.0f} GiB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
    }


def server_versions(urls: Iterable[tuple[str, str]]) -> dict[str, str]:
    """(kind, URL) -> what each server calls itself."""
    return {kind: _server_version(url) for kind, url in urls}


def _server_version(url: str) -> str:
    if url.startswith("sqlite"):
        return sqlite3.sqlite_version

    async def ask() -> str:
        async with servers.engine(url).connect() as connection:
            query = "SHOW server_version" if connection.dialect.name == "postgresql" else "SELECT version()"
            return str((await connection.execute(sa.text(query))).scalar_one())

    return servers.run_apart(ask).partition(" ")[0]


def _cpu_model() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or "unknown CPU"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
