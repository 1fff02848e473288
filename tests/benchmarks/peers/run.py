"""Measure the other engines, each in a virtual environment that is made for it and in a database of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from tests.benchmarks.figures import Figure
from tests.support import servers
from tests.support.databases import Database, Kind

#: Seconds for an engine that never finishes what it has begun.
_PATIENCE = 90.0


@dataclass(frozen=True, slots=True)
class Peer:
    """``workflows`` and ``steps``: queries that count what is durable."""

    name: str
    requirements: tuple[str, ...]
    script: str
    drivers: dict[Kind, str]
    workflows: str
    steps: str


PEERS = (
    Peer(
        "edda-framework 0.16",
        ("edda-framework==0.16.*", "asyncpg", "aiosqlite"),
        "edda_0_16.py",
        {"postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"},
        "SELECT count(*) FROM workflow_instances WHERE status = 'completed'",
        "SELECT count(*) FROM workflow_history WHERE event_type = 'ActivityCompleted'",
    ),
    Peer(
        "DBOS 3",
        ("dbos>=3,<4",),
        "dbos_3.py",
        {"postgresql": "postgresql"},
        "SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'",
        "SELECT count(*) FROM dbos.operation_outputs",
    ),
)


def install(peer: Peer, folder: Path) -> Path:
    """Its interpreter. Raises RuntimeError with the installer's last words."""
    home = folder / peer.script.removesuffix(".py")
    python = home / "bin" / "python"
    if python.exists():
        return python
    if uv := shutil.which("uv"):
        commands = [
            [uv, "venv", "--quiet", "--python", sys.executable, str(home)],
            [uv, "pip", "install", "--quiet", "--python", str(python), *peer.requirements],
        ]
    else:
        venv.create(home, with_pip=True)
        commands = [[str(python), "-m", "pip", "install", "--quiet", *peer.requirements]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(home, ignore_errors=True)
            raise RuntimeError(f"it cannot be installed: {done.stderr.strip()[-300:]}")
    return python


def measure(peer: Peer, python: Path, database: Database, in_flight: int, seconds: float) -> Figure:
    """Five-step workflows per second. Raises RuntimeError when it fails, AssertionError when its database disagrees."""
    driver = peer.drivers[database.kind]
    url = sa.make_url(database.url).set(drivername=driver).render_as_string(hide_password=False)
    script = Path(__file__).with_name(peer.script)
    done = subprocess.run(
        [str(python), str(script), url, str(in_flight), str(seconds)],
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE,
    )
    if done.returncode:
        raise RuntimeError(f"it failed: {_error_of(done.stderr)}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    completed, all_of_them = said["completed"], said["completed"] + said["before"]
    for query, wanted in ((peer.workflows, all_of_them), (peer.steps, 5 * all_of_them)):
        found = _count(database.url, query)
        assert found == wanted, f"{peer.name}: {query} gives {found}, {wanted} were expected"
    return Figure(
        f"five steps, {in_flight} in flight",
        database.kind,
        completed / said["seconds"],
        "workflows/s",
        items=completed,
        client_ms=said["cpu"] * 1_000 / completed,
        engine=peer.name,
    )


def _error_of(stderr: str) -> str:
    """The line that names the exception, of the last traceback."""
    lines = [line for line in stderr.splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (lines or stderr.strip().splitlines() or ["without a word"])[-1][:300]


def _count(url: str, query: str) -> int:
    async def ask() -> int:
        async with servers.engine(url).connect() as connection:
            return int((await connection.execute(sa.text(query))).scalar_one())

    return servers.run_apart(ask)
