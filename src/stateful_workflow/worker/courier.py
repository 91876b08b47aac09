"""The small worker beside each worker with workflows, which runs their nodes' activities.

It polls a task queue of the library's own, so that a user's workflow tasks wait for no delivery and
the slots for a user's activities stay the user's (docs/decisions/11-courier.md).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Final

from temporalio.worker import Worker

from ..node.contract import courier_queue_of
from .activities import CourierActivities, OfPlugin
from .beside import Small, beside

_LAST_CALLS: Final = timedelta(seconds=5)
"""How long what is being told when the worker stops may still take."""


@asynccontextmanager
async def courier_beside(
    worker: Worker, plugin: OfPlugin, takes_part: Mapping[str, bool]
) -> AsyncGenerator[None, None]:
    """Run a courier while the block runs; workers of one connection and task queue share one.

    `takes_part` says for each workflow type of the worker's whether it takes part in a tree.
    """
    queue = courier_queue_of(worker.task_queue)

    def activities(courier: Small) -> list[Callable[..., Any]]:
        said = partial(_said, courier)
        return CourierActivities(plugin, lambda: courier.client, said).all()

    async with beside("courier", worker, queue, activities, grace=_LAST_CALLS, knows=takes_part):
        yield


def _said(courier: Small, workflow_type: str) -> bool | None:
    """Whether a type takes part: of two versions of a program, one may have made it do so."""
    said = {known.get(workflow_type) for known in courier.known()} - {None}
    return any(said) if said else None
