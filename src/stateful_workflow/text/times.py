"""Times as people and other programs read them."""

from __future__ import annotations

from datetime import datetime, timezone


def utc(seconds: float, timespec: str = "seconds") -> str | None:
    """A time in UTC as RFC 3339 writes it, or None where it is after the year 9999.

    Args:
        seconds: Unix seconds.
        timespec: how exact, as `datetime.isoformat` takes it.
    """
    try:
        time = datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None
    return time.isoformat(timespec=timespec).replace("+00:00", "Z")
