"""One HTTP exchange with a provider, whose failures are the errors of sources."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from ..errors import ProviderUnreachable, RateLimited, ReplyLost, SourceError
from .clock import now as unix_now

TIMEOUT: Final = 8.0
"""Seconds for all of one mint: the activity that mints has about ten."""

_NEVER_SENT: Final = (
    *(httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout),
    *(httpx.UnsupportedProtocol, httpx.ProxyError, httpx.InvalidURL, httpx.LocalProtocolError),
)


async def exchanged(
    sending: Awaitable[httpx.Response], seconds: float, provider: str, *, changes: bool
) -> httpx.Response:
    """The provider's answer, whatever its status says of the request itself.

    Args:
        sending: the request; it follows no redirects.
        seconds: to wait for the answer.
        provider: its name, for messages.
        changes: whether something has changed at the provider once it did as it was asked.

    Raises:
        ProviderUnreachable: it could not be asked, or has answered with a redirect or a 5xx.
        RateLimited: it has answered 429, or 503 and when to ask again.
        ReplyLost: it `changes` something and no answer came.
    """
    failure: SourceError
    try:
        response = await asyncio.wait_for(sending, seconds)
    except _NEVER_SENT as error:
        failure = ProviderUnreachable(f"{provider} cannot be reached ({type(error).__name__})")
    except (httpx.HTTPError, TimeoutError, asyncio.TimeoutError) as error:
        # The time-out of httpx is for one step of many; both may have come before all was sent.
        problem = f"no answer came from {provider} ({type(error).__name__})"
        failure = ReplyLost(problem) if changes else ProviderUnreachable(problem)
    else:
        status = response.status_code
        after = retry_after(response.headers.get("Retry-After"), unix_now())
        if status == 429 or (status == 503 and after is not None):
            failure = RateLimited(f"{provider} asks for patience ({status})", after)
        elif status >= 500 or 300 <= status < 400:
            reached = changes and status in {500, 502, 504}
            failure = ProviderUnreachable(f"{provider} answered {status}", reached=reached)
        else:
            return response
    raise failure  # here, where no error of httpx, which has the request, is its context


def retry_after(value: str | None, now: float) -> float | None:
    """The seconds, a day at most, that a ``Retry-After`` asks for (RFC 9110 section 10.2.3).

    Args:
        value: of the header, a number of seconds or a date.
        now: Unix seconds.
    """
    if value is None:
        return None
    try:
        if value.isascii() and value.strip().isdigit():
            seconds = float(value)
        else:
            moment = parsedate_to_datetime(value)
            zoned = moment.replace(tzinfo=moment.tzinfo or timezone.utc)
            seconds = max(zoned.timestamp() - now, 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
    return min(seconds, 86_400.0)
