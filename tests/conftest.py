"""Which tests are slow: `./run test` leaves them out, `./run test --all` does not."""

from __future__ import annotations

from pathlib import Path

import pytest

SLOW_SECONDS = 100
"""A test that is given more than this many is slow."""

STORIES = {
    "test_benchmarks.py",
    "test_demo.py",
    "test_formats.py",
    "test_monitoring.py",
    "test_operations.py",
    "test_pace.py",
    "test_storm.py",
    "test_web_ui.py",
}
"""Files whose tests tell long stories, most of them with programs of their own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)


def is_slow(item: pytest.Item) -> bool:
    """Whether it is given long, tells a story, or kills processes."""
    timeout = item.get_closest_marker("timeout")
    is_given_long = timeout is not None and timeout.args[0] > SLOW_SECONDS
    path = Path(item.path)
    is_story = path.name in STORIES and path.parent.name != "unit"
    return is_given_long or is_story or "faults" in path.parts
