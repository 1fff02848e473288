"""The app behind a real server: lifespan, health, events in."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from edda.app import EddaApp
from edda.context import WorkflowContext
from edda.errors import ConfigurationError
from edda.workflow import workflow
from tests.gateways.messages import binary
from tests.gateways.server import serving
from tests.support.databases import Database
from tests.support.eventually import eventually


def nowhere() -> str:
    """A PostgreSQL that is not there."""
    return "postgresql://nobody:s3cret@127.0.0.1:9/none"


async def test_an_event_over_http_starts_a_workflow(database: Database) -> None:
    @workflow(on="order.created", name="shipping")
    async def shipping(ctx: WorkflowContext, n: int) -> int:
        return n

    app = EddaApp("shop", database.url, workflows=[shipping])
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as http:
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["status"], ready.json()["app"]) == (200, "ready", "shop")
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        headers, body = binary(b'{"n": 7}', "application/json")
        answer = await http.post("/events", headers=headers, content=body)
        assert answer.status_code == 202
        assert answer.json()["results"] == [{"result": "accepted", "sequence": 1}]

        async def completed() -> bool:
            return bool((await app.find_instances(status="completed"))["instances"])

        await eventually(completed)
    assert not app.ready


async def test_tokens_guard_events_but_not_health(sqlite_database: Database) -> None:
    app = EddaApp("shop", sqlite_database.url, workflows=[], gateway_tokens=["right"])
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as http:
        headers, body = binary()
        assert (await http.post("/", headers=headers, content=body)).status_code == 401
        assert (await http.get("/readyz")).status_code == 200


async def test_a_server_answers_while_its_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edda.asgi._START_WATCHED", 0.1)
    app = EddaApp("shop", nowhere(), workflows=[])
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/healthz")).status_code == 200
        ready = await http.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["status"] == "waiting"
        assert "s3cret" not in ready.text
        headers, body = binary()
        refused = await http.post("/", headers=headers, content=body)
        assert refused.status_code == 503
        assert refused.json()["retryable"] is True
        assert refused.headers["retry-after"]


async def test_a_server_does_not_start_with_a_configuration_that_cannot_work(
    sqlite_database: Database,
) -> None:
    @workflow(name="twice")
    async def one(ctx: WorkflowContext) -> None: ...

    @workflow(name="twice")
    async def other(ctx: WorkflowContext) -> None: ...

    app = EddaApp("shop", sqlite_database.url, workflows=[one, other])
    told: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        told.append(message)

    with pytest.raises(ConfigurationError, match="two workflows"):
        await app({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in told] == ["lifespan.startup.failed"]


async def test_a_start_that_fails_later_is_told_by_readyz(
    monkeypatch: pytest.MonkeyPatch, sqlite_database: Database
) -> None:
    monkeypatch.setattr("edda.asgi._START_WATCHED", 0.0)
    app = EddaApp("shop", sqlite_database.url, workflows=[])

    async def initialize() -> None:
        await asyncio.sleep(0.01)
        raise RuntimeError("the schema is of tomorrow")

    monkeypatch.setattr(app, "initialize", initialize)
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as http:

        async def told() -> bool:
            return "the schema is of tomorrow" in (await http.get("/readyz")).text

        await eventually(told)


async def test_a_server_that_is_stopped_while_it_waits_for_its_database_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edda.asgi._START_WATCHED", 0.05)
    app = EddaApp("shop", nowhere(), workflows=[])
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/healthz")).status_code == 200
    assert not app.ready
