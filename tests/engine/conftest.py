"""Apps on the in-memory store and on SQLite: the engine's own semantics need no more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from edda.app import EddaApp
from edda.workflow import Workflow

MakeApp = Callable[..., Awaitable[EddaApp]]


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that is empty."""
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/engine.db"


@pytest.fixture
async def make_app(url: str) -> AsyncIterator[MakeApp]:
    """``await make_app(workflow, ..., **settings)``: an initialised app; all are shut down at the end."""
    apps: list[EddaApp] = []

    async def make(*workflows: Workflow[Any, Any], name: str = "engine", **settings: Any) -> EddaApp:
        settings.setdefault("lease_seconds", 3.0)
        settings.setdefault("strict_arguments", True)
        app = EddaApp(name, settings.pop("url", url), workflows=workflows, **settings)
        apps.append(app)
        await app.initialize()
        return app

    yield make
    for app in apps:
        await app.shutdown()
