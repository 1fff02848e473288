"""The demo's own processes: ``python -m edda.cli.demo.processes gateway|worker|sink ...``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from edda.app import EddaApp
from edda.cli.demo.workflows import fulfil_order
from edda.cli.serve import serve
from edda.cli.until import terminated
from outbox_relays.http import HttpPublisher

_HOST = "127.0.0.1"

#: Short leases, so that the take-over after the kill fits into a demo.
LEASE_SECONDS = 2.0


async def gateway(database_url: str) -> None:
    """Accepts events; has no user code, because triggers are rows."""
    app = EddaApp("demo", database_url, workflows=[], work=False)
    await app.initialize()
    await serve(app, _HOST, 0, _say_port)


async def worker(database_url: str, sink_url: str) -> None:
    """Runs the workflows, and relays the outbox to the sink."""
    app = EddaApp(
        "demo",
        database_url,
        workflows=[fulfil_order],
        relays=[HttpPublisher(sink_url, publish_timeout=LEASE_SECONDS / 2)],
        lease_seconds=LEASE_SECONDS,
    )
    async with app:
        print("ready", flush=True)
        await terminated()


async def sink(ledger: Path) -> None:
    """Writes down every event that it is sent; says 204 when the line is on disk."""
    with ledger.open("ab", buffering=0) as lines:

        async def take(request: Request) -> Response:
            headers = request.headers
            try:
                data = (await request.body()).decode()
            except ClientDisconnect:  # the relay was killed in the middle of its request
                return Response(status_code=400)
            lines.write(
                to_json(
                    {
                        "id": headers["ce-id"],
                        "source": headers["ce-source"],
                        "type": headers["ce-type"],
                        "sequence": headers["ce-sequence"],
                        "data": data,
                    }
                )
                + b"\n"
            )
            return Response(status_code=204)

        application = Starlette(routes=[Route("/", take, methods=["POST"])])
        await serve(application, _HOST, 0, _say_port)


def _say_port(port: int) -> None:
    print(f"listening {port}", flush=True)


def main() -> None:
    """Entry point of the demo's processes."""
    # A worker is killed and another takes over: warnings of that are what the table shows.
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["gateway", "worker", "sink"])
    parser.add_argument("--database-url", default="")
    parser.add_argument("--sink-url", default="")
    parser.add_argument("--ledger", type=Path, default=Path("sink.jsonl"))
    given = parser.parse_args()
    parts: dict[str, Callable[[], Awaitable[None]]] = {
        "gateway": lambda: gateway(given.database_url),
        "worker": lambda: worker(given.database_url, given.sink_url),
        "sink": lambda: sink(given.ledger),
    }
    asyncio.run(_run(parts[given.part]))


async def _run(part: Callable[[], Awaitable[None]]) -> None:
    await part()


if __name__ == "__main__":
    main()
