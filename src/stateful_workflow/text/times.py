"""Times as people and other programs read them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone


def in_seconds(time: timedelta | float) -> float:
    """A time that is given as a timedelta or in seconds."""
    return time.total_seconds() if isinstance(time, timedelta) else time


def utc(seconds: float, timespec: str = "seconds") -> str | None:
    """As `rfc3339`, or None where the time is after the year 9999."""
    try:
        return rfc3339(seconds, timespec)
    except (ValueError, OverflowError, OSError):
        return None


def rfc3339(seconds: float, timespec: str) -> str:
    """A time in UTC as RFC 3339 writes it.

    Args:
        seconds: Unix seconds.
        timespec: how exact, as `datetime.isoformat` takes it.

    Raises:
        ValueError, OverflowError, OSError: it is after the year 9999.
    """
    time = datetime.fromtimestamp(seconds, timezone.utc)
    return time.isoformat(timespec=timespec).replace("+00:00", "Z")
