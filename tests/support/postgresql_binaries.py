"""A PostgreSQL server from the programs on this machine, where there are no containers.

PostgreSQL refuses to run as root, so that root hands it to an unprivileged user, in a directory of its own.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support import run

_PREFIX = "edda-postgresql-"


class NotInstalledError(Exception):
    """There is no initdb and pg_ctl on this machine."""


def start() -> str:
    """Start a server that lives until the run ends; returns its URL as soon as it serves.

    Raises:
        NotInstalledError: no server programs in PATH nor where Linux distributions and Homebrew put them.
        subprocess.CalledProcessError: a program failed; its output says why.
    """
    programs = _programs()
    _stop_abandoned()
    home = Path(tempfile.mkdtemp(prefix=_PREFIX))
    (home / "owner").write_text(run.owner())
    (home / "password").write_text("edda")
    if user := _unprivileged_user():
        account = pwd.getpwnam(user)
        for path in (home, home / "password"):
            os.chown(path, account.pw_uid, account.pw_gid)
    port = _free_port()
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c max_connections=500 -k {home}"
    _call(
        [
            *(programs / "initdb", "-D", home / "data", "-U", "edda", "--pwfile", home / "password"),
            *("-A", "scram-sha-256", "-E", "UTF8", "--locale=C"),
        ],
        user,
    )
    _call([programs / "pg_ctl", "-D", home / "data", "-l", home / "log", "-o", options, "-w", "start"], user)
    return f"postgresql://edda:edda@127.0.0.1:{port}/postgres"


def stop_all() -> None:
    """Stop the servers of this run and remove their directories."""
    for home in _homes():
        if _owner(home) == run.owner():
            _stop(home)


def _stop_abandoned() -> None:
    for home in _homes():
        if run.is_gone(_owner(home)):
            _stop(home)


def _homes() -> list[Path]:
    return [home for home in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*") if (home / "owner").exists()]


def _owner(home: Path) -> str:
    return (home / "owner").read_text()


def _stop(home: Path) -> None:
    # SIGQUIT is "immediate shutdown": the data is about to be removed.
    try:
        first_line = (home / "data" / "postmaster.pid").read_text().splitlines()[0]
        os.kill(int(first_line), signal.SIGQUIT)
    except (FileNotFoundError, ProcessLookupError, IndexError):
        pass
    shutil.rmtree(home, ignore_errors=True)


def _programs() -> Path:
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    homes = [
        *Path("/usr/lib/postgresql").glob("*/bin"),
        *Path("/usr").glob("pgsql-*/bin"),
        *Path("/opt/homebrew/opt").glob("postgresql*/bin"),
    ]
    usable = [home for home in homes if (home / "initdb").exists() and (home / "pg_ctl").exists()]
    if not usable:
        msg = "no PostgreSQL server programs (initdb, pg_ctl) on this machine"
        raise NotInstalledError(msg)
    return max(usable, key=lambda home: [int(number) for number in re.findall(r"\d+", str(home))])


def _unprivileged_user() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {account.pw_name for account in pwd.getpwall()}
    return next((user for user in ("postgres", "nobody") if user in known), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _call(command: Sequence[str | Path], user: str | None) -> None:
    # The server inherits its starter's standard streams: a pipe here would never end.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            command, cwd="/", user=user, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        )
        if done.returncode != 0:
            output.seek(0)
            raise subprocess.CalledProcessError(done.returncode, command, output.read())
