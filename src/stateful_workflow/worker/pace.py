"""How fast one process signals: so many a second, evenly spaced. Pure but for its memory."""

from __future__ import annotations

import math
import threading


class SignalPace:
    """Gives each signal its time, no two closer than the rate allows.

    One is shared by all workers of a plugin, which may run in several threads.

    Args:
        per_second: signals a second; None for no limit.

    Raises:
        ValueError: where it is not a finite number of at least 1.
    """

    def __init__(self, per_second: float | None) -> None:
        if per_second is not None and not 1 <= per_second < math.inf:
            raise ValueError(f"max_signals_per_second is 1 or more, or None, not {per_second!r}")
        self._pause = 0.0 if per_second is None else 1 / per_second
        self._free_at = -math.inf
        self._lock = threading.Lock()

    def take(self, now: float, until: float) -> float | None:
        """The time of the next signal, or None where it is not before `until`: none is taken then.

        Args:
            now, until: seconds of one clock, such as `time.monotonic`.
        """
        with self._lock:
            at = max(now, self._free_at)
            if at >= until:
                return None
            self._free_at = at + self._pause
            return at
