"""The app behind a WSGI server: events in, and instances cancelled, by threads that know no event loop."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from edda import EddaApp, WorkflowContext, create_wsgi_app, wait_event, workflow


@workflow(on="order.created")
async def ordering(ctx: WorkflowContext) -> None:
    await wait_event(ctx, "never.comes")


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def served(app: EddaApp) -> Iterator[str]:
    with make_server("127.0.0.1", 0, create_wsgi_app(app), handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def post(url: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(
        url, body, {name.replace("_", "-"): value for name, value in headers.items()}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the thread's loop lives as long as the process
def test_the_first_request_starts_the_app(tmp_path: Path) -> None:
    app = EddaApp("wsgi", f"sqlite:///{tmp_path}/db", workflows=[ordering])
    with served(app) as url:
        status, answer = post(
            f"{url}/events",
            b"{}",
            content_type="application/json",
            ce_id="1",
            ce_source="/shop",
            ce_type="order.created",
            ce_specversion="1.0",
        )
        assert (status, answer["status"]) == (202, "accepted")
        status, answer = post(f"{url}/events", b"{}", content_type="application/json")
        assert status == 400
        assert answer["retryable"] is False
        assert post(f"{url}/cancel/nobody")[0] == 400
