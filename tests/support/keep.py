"""Servers that outlive a run, for a developer who runs tests all day.

``eval "$(python -m tests.support.keep)"`` starts those that are not running and prints the variables that
make the tests use them; ``python -m tests.support.keep stop`` removes them.
"""

import os
import sys
from typing import get_args

from tests.support import kafka, rabbitmq, run, servers
from tests.support.servers import ServerKind


def _main() -> None:
    kinds: tuple[ServerKind, ...] = get_args(ServerKind)
    for kind in kinds:
        os.environ.pop(servers.variable(kind), None)
    os.environ.pop(rabbitmq.VARIABLE, None)
    os.environ.pop(kafka.VARIABLE, None)
    run.join_kept()
    if sys.argv[1:] == ["stop"]:
        _stop()
        return
    if not (
        all(servers.serves(servers.admin_url(kind)) for kind in kinds if _was_started(kind))
        and (not _was_started("rabbitmq") or rabbitmq.serves(rabbitmq.server_url()))
        and (not _was_started("kafka") or kafka.serves(kafka.bootstrap()))
    ):
        _stop()  # the machine or the container engine was restarted
        run.join_kept()
    for kind in kinds:
        try:
            print(f"export {servers.variable(kind)}={servers.admin_url(kind)}")
        except servers.UnavailableError as error:
            print(error, file=sys.stderr)
    try:
        print(f"export {rabbitmq.VARIABLE}={rabbitmq.server_url()}")
    except servers.UnavailableError as error:
        print(error, file=sys.stderr)
    try:
        print(f"export {kafka.VARIABLE}={kafka.bootstrap()}")
    except servers.UnavailableError as error:
        print(error, file=sys.stderr)


def _was_started(kind: str) -> bool:
    return (run.directory() / f"{kind}.json").exists()


def _stop() -> None:
    servers.stop_all()
    run.end()


if __name__ == "__main__":
    _main()
