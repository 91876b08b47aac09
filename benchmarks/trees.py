"""Trees of `Node` that the benchmarks start in a worker process."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from processes import QUEUE
from workflows import Node

from stateful_workflow import NoWorkerAnswers, TokenClient

PATIENCE_SECONDS = 300.0


def count(shape: Sequence[int]) -> int:
    """How many nodes a tree of this shape has: children of a node, by level."""
    return 1 + sum(math.prod(shape[:level]) for level in range(1, len(shape) + 1))


async def start_tree(tokens: TokenClient, root: str, shape: list[int]) -> None:
    """Start a root, which starts the nodes below it."""
    await tokens.start_workflow(
        Node.run,
        shape,
        id=root,
        task_queue=QUEUE,
        api_token="t",
        api_url="https://api.example.com",
    )


async def until_all_answer(tokens: TokenClient, root: str, nodes: int) -> float:
    """Seconds until every node answers: it was started, or found by a new worker."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < PATIENCE_SECONDS:
        try:
            tree = await tokens.tree(root)
        except NoWorkerAnswers:
            continue
        if len(tree.nodes) == nodes and all(node.problem is None for node in tree.nodes):
            return time.perf_counter() - begun
        await asyncio.sleep(1)
    raise TimeoutError(f"the {nodes} nodes did not all answer in {PATIENCE_SECONDS:g} s")
