"""CloudEvents by POST: a 2xx is the confirm.

408, 425, 429 and 5xx, and whatever happens to the connection, are tried again (Retry-After is obeyed); other 4xx and redirects are permanent:
the same request would get the same answer.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError, MissingExtraError
from edda.inbox.shapes import patterns_of, validate_pattern
from edda.wire.http import to_batch, to_binary, to_structured
from outbox_relays.publisher import Confirm, Confirmed, Permanent, Retry

if TYPE_CHECKING:
    import httpx

_AGAIN = frozenset({408, 425, 429})
_LONGEST_RETRY_AFTER = 3_600.0


class HttpPublisher:
    """One endpoint. Only this URL is ever called; redirects are not followed.

    Args:
        url: Where to POST.
        types: Patterns of the event types that go there; default all.
        destination: Its name in the outbox; several endpoints need different ones.
        mode: ``binary`` (default), ``structured``, or ``batch`` (arrays of one; only for receivers that ask for it).
        token: Sent as ``Authorization: Bearer``.
        headers: More headers.
        publish_timeout: Seconds for one request, answer included.
        concurrency: Requests in flight at once.
    """

    def __init__(
        self,
        url: str,
        *,
        types: Sequence[str] = ("*",),
        destination: str = "default",
        mode: Literal["binary", "structured", "batch"] = "binary",
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        publish_timeout: float = 10.0,
        concurrency: int = 64,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            msg = "HttpPublisher: the URL must begin with http:// or https://, for example 'https://example.com/events'"
            raise ConfigurationError(msg)
        for pattern in types:
            validate_pattern(pattern)
        self.destination = destination
        self.publish_timeout = publish_timeout
        self.concurrency = concurrency
        self._url = url
        self._types = frozenset(types)
        self._mode = mode
        self._headers = {**(headers or {}), **({"authorization": f"Bearer {token}"} if token else {})}
        self._client: httpx.AsyncClient | None = None

    def __repr__(self) -> str:
        """Without the URL, which may hold a secret."""
        return f"<HttpPublisher {self.destination}>"

    def takes(self, event_type: str) -> bool:
        """See the contract."""
        return not self._types.isdisjoint(patterns_of(event_type))

    async def open(self) -> None:
        """See the contract."""
        try:
            import httpx
        except ImportError as error:
            what = "HttpPublisher"
            raise MissingExtraError(what, "http") from error
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        self._client = httpx.AsyncClient(
            limits=limits,
            timeout=self.publish_timeout,
            follow_redirects=False,
            headers=self._headers,
            trust_env=False,
        )

    async def publish(self, event: CloudEvent) -> Confirm:
        """See the contract."""
        import httpx

        assert self._client is not None, "open() first"  # noqa: S101
        if self._mode == "binary":
            headers, body = to_binary(event)
        else:
            headers, body = to_structured(event) if self._mode == "structured" else to_batch([event])
        try:
            response = await self._client.post(self._url, headers=headers, content=body)
        except httpx.InvalidURL as error:
            return Permanent(f"the destination's URL is not one: {error}")
        except httpx.HTTPError as error:
            return Retry(f"{type(error).__name__}: {error}")
        if response.is_success:
            return Confirmed()
        reason = f"HTTP {response.status_code}: {response.text[:500]}"
        if response.status_code in _AGAIN or response.is_server_error:
            return Retry(reason, _retry_after(response.headers.get("retry-after")))
        return Permanent(reason)

    async def close(self) -> None:
        """See the contract."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _retry_after(value: str | None) -> float | None:
    """Seconds, from RFC 9110's delay-seconds or HTTP-date."""
    if value is None:
        return None
    if value.strip().isdigit():
        return min(float(value), _LONGEST_RETRY_AFTER)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return min(max(0.0, moment.timestamp() - time.time()), _LONGEST_RETRY_AFTER)
