"""Apps on every database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from edda.app import EddaApp
from edda.workflow import Workflow
from tests.support.databases import Database

MakeApp = Callable[..., Awaitable[EddaApp]]


@pytest.fixture
async def make_app(database: Database) -> AsyncIterator[MakeApp]:
    """Makes an initialised app of workflows and settings; all are shut down at the end."""
    apps: list[EddaApp] = []

    async def make(
        *workflows: Workflow[Any, Any], name: str = "engine", initialize: bool = True, **settings: Any
    ) -> EddaApp:
        settings.setdefault("lease_seconds", 3.0)
        settings.setdefault("strict_arguments", True)
        app = EddaApp(name, settings.pop("url", database.url), workflows=workflows, **settings)
        apps.append(app)
        if initialize:
            await app.initialize()
        return app

    yield make
    for app in apps:
        await app.shutdown()
