"""A relay in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import sys

from edda.storage.connect import open_store
from outbox_relays.http import HttpPublisher
from outbox_relays.relay import Relay
from tests.outbox_relays.conftest import QUICK


async def relay(database_url: str, sink_url: str, lease_seconds: str, concurrency: str) -> None:
    """Relays until it is killed; its log goes to standard output."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    store = open_store(database_url)
    await store.open()
    publisher = HttpPublisher(
        sink_url,
        headers={"x-relay": "process"},
        publish_timeout=float(lease_seconds) / 2,
        concurrency=int(concurrency),
    )
    relay = Relay(store, publisher, owner="process", lease_seconds=float(lease_seconds), backoff=QUICK)
    await relay.start()
    print("relaying", flush=True)
    while True:  # as a poll would do it: rows of other processes
        await asyncio.sleep(0.1)
        relay.kick()
