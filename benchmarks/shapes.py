"""Trees of workflows by their shape: children of each node, by level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

SHAPES: dict[str, list[int]] = {
    "1+500": [500],
    "10×10×10": [10, 10, 10],
    "chain of 50": [1] * 49,
    "1+1900": [1900],
    "1+20": [20],
    "chain of 5": [1] * 4,
}
SHAPES_OF_THE_BARS = ["1+500", "10×10×10", "chain of 50", "1+1900"]
QUICK_SHAPES = ["1+20", "chain of 5"]


def count(shape: Sequence[int]) -> int:
    """The nodes of a tree."""
    return 1 + sum(math.prod(shape[:level]) for level in range(1, len(shape) + 1))


def ids(root: str, shape: Sequence[int]) -> Iterator[str]:
    """The workflow ids of a tree, each node followed by those below it."""
    yield root
    if shape:
        for n in range(shape[0]):
            yield from ids(f"{root}-{n}", shape[1:])
