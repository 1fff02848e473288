"""Waiting for something to become true. The only place where tests sleep."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(
    predicate: Callable[[], Awaitable[T]], timeout: float = 10, *, pause: float = 0.01
) -> T: ...
@overload
async def eventually(predicate: Callable[[], T], timeout: float = 10, *, pause: float = 0.01) -> T: ...
async def eventually(
    predicate: Callable[[], Awaitable[T] | T],
    timeout: float = 10,
    *,
    pause: float = 0.01,
) -> T:
    """Call ``predicate`` until it returns something true, and return that.

    Args:
        predicate: a function, async or not. It may also state what it wants with ``assert``: an
            ``AssertionError`` means "not yet". Any other exception goes through at once.
        timeout: seconds until this gives up.
        pause: seconds between two calls.

    Raises:
        AssertionError: not true in time; says what the last call returned or asserted.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            outcome = predicate()
            value: T = await outcome if isinstance(outcome, Awaitable) else outcome
            if value:
                return value
            last = f"the last call returned {value!r}"
        except AssertionError as error:
            last = f"the last call asserted: {error}"
        if time.monotonic() >= deadline:
            msg = (
                f"{getattr(predicate, '__name__', predicate)} did not come true within {timeout:g} s; {last}"
            )
            raise AssertionError(msg)
        await asyncio.sleep(pause)
