"""CloudEvents by POST: a 2xx is the confirm.

408, 425, 429, 5xx, refused credentials (they are the relay's, not the event's) and whatever happens to the connection
are tried again, Retry-After is obeyed. Other 4xx and redirects are permanent: the same request would get the same
answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from edda.cloudevent import CloudEvent
from edda.errors import ConfigurationError, MissingExtraError
from edda.wire.http import to_batch, to_binary, to_structured
from outbox_relays.publisher import Confirm, Confirmed, Outgoing, Permanent, Retry
from outbox_relays.route import Route

if TYPE_CHECKING:
    import aiohttp

_AGAIN = frozenset({401, 407, 408, 425, 429})
_LONGEST_RETRY_AFTER = 3_600.0

#: As much of an answer is read: it confirms by its status, and explains a refusal.
_ANSWER_BYTES = 65_536
_SHOWN_CHARACTERS = 500
_DRAIN_SECONDS = 1.0


class HttpPublisher(Route):
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

    lane_batch = 1

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
        if mode not in {"binary", "structured", "batch"}:
            msg = f"HttpPublisher: mode={mode!r} is not one of 'binary', 'structured' and 'batch'"
            raise ConfigurationError(msg)
        super().__init__("HttpPublisher", destination, types, publish_timeout, concurrency)
        self._url = url
        self._mode = mode
        self._headers = dict(headers or {})
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """See the contract."""
        try:
            import aiohttp
            from yarl import URL
        except ImportError as error:
            what = "HttpPublisher"
            raise MissingExtraError(what, "http") from error
        try:
            readable = URL(self._url).host is not None
        except ValueError:
            readable = False
        if not readable:
            msg = f"HttpPublisher {self.destination!r}: its URL cannot be read (it is not shown, it may hold a secret)"
            raise ConfigurationError(msg)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self.concurrency),
            # The relay counts the whole. A connection that takes half of it will not be made: nobody is there.
            timeout=aiohttp.ClientTimeout(total=self.publish_timeout, sock_connect=self.publish_timeout / 2),
            headers=self._headers,
            skip_auto_headers=("Content-Type",),  # an event without data has none
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def publish(self, messages: Sequence[Outgoing]) -> Sequence[Confirm]:
        """See the contract."""
        return [await self._post(message.event) for message in messages]

    async def _post(self, event: CloudEvent) -> Confirm:
        import aiohttp

        if self._session is None:
            msg = f"HttpPublisher {self.destination!r} is not open"
            raise RuntimeError(msg)
        if self._mode == "binary":
            headers, body = to_binary(event)
        else:
            headers, body = to_structured(event) if self._mode == "structured" else to_batch([event])
        try:
            sent = self._session.post(self._url, headers=headers, data=body, allow_redirects=False)
            async with sent as response:
                if 200 <= response.status < 300:
                    await _drain(response)
                    return Confirmed()
                text = await _beginning(response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return Retry(f"{type(error).__name__}: {error}", everything=True)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Retry(f"{type(error).__name__}: {error}")  # unknown: it may have arrived
        reason = f"HTTP {response.status}: {text}"
        if response.status not in _AGAIN and response.status < 500:
            return Permanent(reason)
        after = _retry_after(response.headers.get("retry-after"))
        # "Too many" and "not now, but then" are said of the service, not of this event.
        everything = response.status == 429 or (response.status == 503 and after is not None)
        return Retry(reason, after, everything=everything)

    async def close(self) -> None:
        """See the contract."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read the rest of a confirm, so that its connection can be used again; the status has said all there is to say."""
    import aiohttp

    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            await _beginning(response)


async def _beginning(response: aiohttp.ClientResponse) -> str:
    """Read an answer to its end, unless it has none."""
    text = b""
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        text += chunk[: 4 * _SHOWN_CHARACTERS - len(text)]
        if size > _ANSWER_BYTES:
            break
    return text.decode("utf-8", "replace")[:_SHOWN_CHARACTERS]


def _retry_after(value: str | None) -> float | None:
    """Seconds, from RFC 9110's delay-seconds or HTTP-date."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return min(float(value[:20]), _LONGEST_RETRY_AFTER)
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, moment - time.time()), _LONGEST_RETRY_AFTER)
