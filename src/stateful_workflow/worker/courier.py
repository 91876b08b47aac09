"""The small worker beside each worker with workflows, which runs their nodes' activities.

It polls a task queue of the library's own, so that a user's workflow tasks wait for no delivery and
the slots for a user's activities stay the user's. It is not versioned: a versioned one would leave
pinned workflows alone once its version is drained (docs/decisions/11-courier.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from temporalio.client import Client
from temporalio.worker import Worker

from ..node.contract import courier_queue_of
from ..text.printable import printable
from .activities import CourierActivities, OfPlugin

_log = logging.getLogger(__name__)

_MOST_AT_ONCE: Final = 200
_POLLERS: Final = 2
_LOOK_EVERY_SECONDS: Final = 1.0
_HEARTBEATS: Final = timedelta(seconds=2)
_LAST_CALLS: Final = timedelta(seconds=5)
"""How long what is being told when the worker stops may still take."""


@asynccontextmanager
async def courier_beside(
    worker: Worker, plugin: OfPlugin, takes_part: Mapping[str, bool]
) -> AsyncGenerator[None, None]:
    """Run a courier while the block runs; workers of one connection and task queue share one.

    It follows the worker's client, also when that is replaced. `takes_part` says for each workflow
    type of the worker's whether it takes part in a tree.
    """
    courier = next((known for known in _couriers if known.serves(worker)), None)
    if courier is None:
        courier = _Courier(worker, plugin)
        _couriers.append(courier)
    beside = _Beside(worker, takes_part, worker.client)
    courier.workers.append(beside)
    try:
        yield
    finally:
        courier.workers.remove(beside)
        if not courier.workers:
            _couriers.remove(courier)
            await courier.stop()


@dataclass
class _Beside:
    worker: Worker
    takes_part: Mapping[str, bool]
    followed: Client


class _Courier:
    def __init__(self, first: Worker, plugin: OfPlugin) -> None:
        self.workers: list[_Beside] = []
        self._queue = courier_queue_of(first.task_queue)
        activities = CourierActivities(plugin, lambda: self._worker.client, self._takes_part)
        self._worker = Worker(
            _bare(first.client),
            task_queue=self._queue,
            activities=activities.all(),
            max_concurrent_activities=_MOST_AT_ONCE,
            max_concurrent_activity_task_polls=_POLLERS,
            max_heartbeat_throttle_interval=_HEARTBEATS,
            graceful_shutdown_timeout=_LAST_CALLS,
        )
        self._run = asyncio.create_task(self._worker.run())
        self._run.add_done_callback(_say_why)
        self._follow = asyncio.create_task(self._follow_clients())

    def serves(self, worker: Worker) -> bool:
        """Whether it runs for the task queue of a worker, on that one's connection."""
        ours, theirs = self._worker.client, worker.client
        return (
            courier_queue_of(worker.task_queue) == self._queue
            and theirs.namespace == ours.namespace
            and theirs.service_client is ours.service_client
        )

    def _takes_part(self, workflow_type: str) -> bool | None:
        """Of two versions of a program, one may have made a workflow type take part."""
        said = {beside.takes_part.get(workflow_type) for beside in self.workers} - {None}
        return any(said) if said else None

    async def _follow_clients(self) -> None:
        """Temporal has no hook for it: a worker's client is replaced to renew its certificate."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            for beside in self.workers:
                client = beside.worker.client
                if client is beside.followed:
                    continue
                try:
                    self._worker.client = _bare(client)
                    beside.followed = client
                except Exception as error:  # noqa: BLE001 - an interceptor's; it is tried again
                    said = printable(type(error).__name__)
                    _log.error("A courier cannot take a new client: %s", said)

    async def stop(self) -> None:
        self._follow.cancel()
        await self._worker.shutdown()
        await asyncio.wait([self._run])


_couriers: Final[list[_Courier]] = []
"""Those of this process: the SDK takes one worker of a connection and a task queue only."""


def _bare(client: Client) -> Client:
    """A client of the same connection without plugins, or its worker would start a courier too."""
    config = client.config(active_config=True)
    config["plugins"] = []
    return Client(**config)


def _say_why(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        said = printable(repr(error))
        _log.error("A courier stopped, and children are told nothing from here: %s", said)
