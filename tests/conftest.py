"""Which tests are slow: `./run test` leaves them out, `./run test --all` does not."""

from __future__ import annotations

from pathlib import Path

import pytest

SLOW_SECONDS = 100
"""A test that is given more than this many is slow."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)


def is_slow(item: pytest.Item) -> bool:
    """Whether it is given long, or kills processes."""
    timeout = item.get_closest_marker("timeout")
    is_given_long = timeout is not None and timeout.args[0] > SLOW_SECONDS
    return is_given_long or "faults" in Path(item.path).parts
