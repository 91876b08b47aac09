"""What time it is for a source: the server's, where its worker's clock may be off."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

_clock: ContextVar[Callable[[], float]] = ContextVar("stateful-source-clock")


def now() -> float:
    """Unix seconds, in an exchange by the Temporal server's clock, as tokens are judged."""
    return _clock.get(time.time)()


@contextmanager
def going_by(clock: Callable[[], float]) -> Generator[None, None, None]:
    """Let `now` go by a clock, in this context."""
    reset = _clock.set(clock)
    try:
        yield
    finally:
        _clock.reset(reset)
