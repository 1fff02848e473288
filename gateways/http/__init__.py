"""CloudEvents over HTTP: an ASGI application."""

from gateways.http.app import http_gateway

__all__ = ["http_gateway"]
