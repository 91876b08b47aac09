"""Notes, in the worker's process, what workflows say has happened.

Workflow code reaches it through the sandbox; a benchmark may keep state where a workflow must not.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable

PATIENCE_SECONDS = 600.0

_lock = threading.Lock()
_missing: set[str] = set()
_all_here = threading.Event()
_last: dict[str, float] = {}


def expect(names: Iterable[str]) -> None:
    """Begin to wait for these."""
    with _lock:
        _missing.clear()
        _missing.update(names)
        _all_here.clear()


def arrived(name: str) -> None:
    """Note that something happened."""
    _last[name] = time.time()
    with _lock:
        _missing.discard(name)
        if not _missing:
            _all_here.set()


def last(name: str) -> float:
    """When it happened last, in Unix seconds; 0 for never."""
    return _last.get(name, 0.0)


def wait() -> None:
    """Wait until the last one has arrived."""
    if not _all_here.wait(PATIENCE_SECONDS):
        raise TimeoutError(f"{len(_missing)} have not arrived in {PATIENCE_SECONDS} s")


async def timed(names: Iterable[str], act: Callable[[], Awaitable[object]]) -> float:
    """Seconds from the call until the last of these has arrived."""
    expect(names)
    begun = time.perf_counter()
    acting = asyncio.ensure_future(act())
    await asyncio.to_thread(wait)
    seconds = time.perf_counter() - begun
    await acting
    return seconds
