"""Counts, in the worker's process, which workflows a message has reached.

Workflow code calls `arrived` through the sandbox; a benchmark may keep state where a
workflow must not.
"""

from __future__ import annotations

import threading
import time

_lock = threading.Lock()
_missing: set[str] = set()
_all_here = threading.Event()


def expect(workflow_ids: set[str]) -> None:
    """Begin to wait for these workflows."""
    with _lock:
        _missing.clear()
        _missing.update(workflow_ids)
        _all_here.clear()


def arrived(workflow_id: str) -> None:
    """Note that a workflow's handler has run."""
    with _lock:
        _missing.discard(workflow_id)
        if not _missing:
            _all_here.set()


def wait(seconds: float) -> None:
    """Wait until the last one has arrived."""
    if not _all_here.wait(seconds):
        raise TimeoutError(f"{len(_missing)} workflows were not reached in {seconds} s")


_last: dict[str, float] = {}


def note(what: str) -> None:
    """Note when something happened."""
    _last[what] = time.time()


def last(what: str) -> float:
    """When it happened last, in Unix seconds; 0 for never."""
    return _last.get(what, 0.0)
