"""Run the workers of a plugin's sources: beside a user's worker, or in a process of their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Final

from ..node.contract import source_queue_of
from .beside import HasClient, Small, beside
from .minting import OfSources, SourceActivities
from .narrowing import Narrower

_LAST_EXCHANGES: Final = timedelta(seconds=15)
"""How long an exchange that is under way when the worker stops may still take."""


@asynccontextmanager
async def sources_beside(owner: HasClient, plugin: OfSources) -> AsyncGenerator[list[Small], None]:
    """Poll the task queue of each of a plugin's sources while the block runs.

    The queues are the namespace's: whoever has a source of that name serves every home of it.

    Raises:
        ValueError: another source of that name runs on the same connection.
    """
    async with AsyncExitStack() as running:
        smalls: list[Small] = []
        for name, source in plugin.sources.items():
            worker = beside(
                f"worker of source {name}",
                owner,
                source_queue_of(name),
                lambda small, name=name: [
                    *SourceActivities(name, plugin, lambda: small.client).all(),
                    Narrower(name, plugin, lambda: small.client).narrow,
                ],
                grace=_LAST_EXCHANGES,
                knows=source,
            )
            small = await running.enter_async_context(worker)
            if any(one is not source for one in small.known()):
                raise ValueError(
                    f"two StatefulPlugins of this process have a source {name} on one connection: "
                    "give both the same object, or the sources different names"
                )
            smalls.append(small)
        yield smalls
