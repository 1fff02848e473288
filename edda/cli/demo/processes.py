"""The demo's own processes: ``python -m edda.cli.demo.processes broker|sink|gateway|worker|relay ...``.

Gateway, worker and relay are one app of which each runs a part.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic_core import from_json, to_json
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from edda.app import EddaApp
from edda.cli.demo.brokers import Broker, Embedded, broker_of
from edda.cli.demo.workflows import fulfil_order
from edda.cli.serve import serve
from edda.cli.until import terminated
from outbox_relays.http import HttpPublisher

_HOST = "127.0.0.1"

#: Short leases, so that the take-overs after the kills fit into a demo.
LEASE_SECONDS = 2.0


@dataclass(frozen=True)
class Places:
    """Where everything is; one JSON text for every process."""

    database_url: str
    orders_broker: str
    orders: str
    paid_broker: str
    paid: str
    sink_url: str = ""
    port: int = 0
    ledger: str = ""

    @classmethod
    def of(cls, text: str) -> Places:
        """As a process was told."""
        return cls(**from_json(text))


def shop(
    places: Places, *, work: bool = False, run_gateways: bool = False, run_relays: bool = False
) -> EddaApp:
    """The same app everywhere: orders come from the broker, payments over HTTP; two events go out to two places."""
    orders, paid = broker_of(places.orders_broker), broker_of(places.paid_broker)
    return EddaApp(
        "demo",
        places.database_url,
        workflows=[fulfil_order],
        gateways=[orders.gateway(places.orders)],
        relays=[
            paid.publisher(places.paid, publish_timeout=LEASE_SECONDS / 2),
            HttpPublisher(
                places.sink_url or "http://nowhere.invalid",
                types=["order.shipped"],
                destination="shipped",
                publish_timeout=LEASE_SECONDS / 2,
            ),
        ],
        work=work,
        run_gateways=run_gateways,
        run_relays=run_relays,
        lease_seconds=LEASE_SECONDS,
    )


async def broker(text: str) -> None:
    """An embedded Kafka."""
    places = Places.of(text)
    cluster = Embedded(places.orders, places.paid)
    _say(f"address {cluster.address}")
    await terminated()


async def gateway(text: str) -> None:
    """Accepts events."""
    places = Places.of(text)
    await serve(shop(places, run_gateways=True), _HOST, places.port, lambda port: _say(f"address {port}"))


async def worker(text: str) -> None:
    """Runs the workflows."""
    async with shop(Places.of(text), work=True):
        _say("ready")
        await terminated()


async def relay(text: str) -> None:
    """Publishes the outbox."""
    async with shop(Places.of(text), run_relays=True):
        _say("ready")
        await terminated()


async def sink(text: str) -> None:
    """Writes down every event that it is sent or hears; says 204 when the line is on disk."""
    places = Places.of(text)
    with Path(places.ledger).open("ab", buffering=0) as lines:  # noqa: ASYNC230, before anything else runs

        async def take(request: Request) -> Response:
            try:
                body = await request.body()
            except ClientDisconnect:  # the relay was killed in the middle of its request
                return Response(status_code=400)
            attributes = {name[3:]: text for name, text in request.headers.items() if name.startswith("ce-")}
            _write(lines, "http", attributes, body)
            return Response(status_code=204)

        @contextlib.asynccontextmanager
        async def listening(_: Starlette) -> AsyncIterator[None]:
            hearing = asyncio.create_task(_hear(lines, broker_of(places.paid_broker), places.paid))
            yield
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

        application = Starlette(routes=[Route("/", take, methods=["POST"])], lifespan=listening)
        await serve(application, _HOST, 0, lambda port: _say(f"address {port}"))


async def _hear(lines: IO[bytes], paid: Broker, place: str) -> None:
    async for attributes, body in paid.heard(place):
        _write(lines, "broker", attributes, body)


def _write(lines: IO[bytes], via: str, attributes: Mapping[str, str], body: bytes) -> None:
    wanted = {name: attributes[name] for name in ("id", "source", "type", "sequence")}
    lines.write(to_json({**wanted, "via": via, "data": body.decode()}) + b"\n")


def _say(line: str) -> None:
    print(line, flush=True)


PARTS = {"broker": broker, "gateway": gateway, "worker": worker, "relay": relay, "sink": sink}


def main() -> None:
    """Entry point of the demo's processes."""
    # They are killed and others take over: warnings of that are what the table shows.
    logging.basicConfig(level=logging.CRITICAL, stream=sys.stderr)
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("places")
    given = parser.parse_args()
    asyncio.run(PARTS[given.part](given.places))


if __name__ == "__main__":
    main()
