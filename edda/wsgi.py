"""The app for WSGI servers (gunicorn's sync workers, uWSGI, mod_wsgi)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from edda.app import EddaApp


def create_wsgi_app(app: EddaApp) -> WSGIApplication:
    """The same routes as a WSGI application. The app lives on an event loop of its own, in a thread.

    WSGI has no start: the app initialises with the first request.
    """
    from a2wsgi import ASGIMiddleware

    return cast("WSGIApplication", ASGIMiddleware(app))
