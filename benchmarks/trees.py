"""What several benchmarks do with trees from outside: start them, tell them, look at them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from temporalio.client import Client
from workflows import Node, Plain

from stateful_workflow import TokenClient
from stateful_workflow.worker.activities import MAX_CONCURRENT_SIGNALS

URL = "https://api.example.com"
MESSAGE = "x" * 1200  # about what a sealed token weighs


async def start_tree(tokens: TokenClient, shape: Sequence[int], root: str, queue: str) -> None:
    """Start a root that starts its children, which start theirs."""
    await tokens.start_workflow(
        Node.run, list(shape), id=root, task_queue=queue, api_token="t", api_url=URL
    )


async def start_plain(client: Client, workflow_ids: Iterable[str], queue: str) -> None:
    """Start unrelated workflows without this library."""

    async def start(workflow_id: str) -> None:
        await client.start_workflow(Plain.run, id=workflow_id, task_queue=queue)

    await _each(workflow_ids, start)


async def tell_plain(client: Client, workflow_ids: Iterable[str]) -> None:
    """Signal them."""

    async def tell(workflow_id: str) -> None:
        await client.get_workflow_handle(workflow_id).signal(Plain.tell, MESSAGE)

    await _each(workflow_ids, tell)


async def _each(workflow_ids: Iterable[str], act: Callable[[str], Awaitable[None]]) -> None:
    """Act on each, as many at once as our telling does."""
    slots = asyncio.Semaphore(MAX_CONCURRENT_SIGNALS)

    async def one(workflow_id: str) -> None:
        async with slots:
            await act(workflow_id)

    await asyncio.gather(*map(one, workflow_ids))


async def history(client: Client, workflow_id: str) -> tuple[int, int]:
    """Events and bytes of a workflow."""
    described = await client.get_workflow_handle(workflow_id).describe()
    info = described.raw_description.workflow_execution_info
    return info.history_length, info.history_size_bytes
