"""The small worker beside each worker with workflows, which runs their nodes' activities.

It polls a task queue of the library's own, so that a user's workflow tasks wait for no delivery and
the slots for a user's activities stay the user's. It is not versioned: a versioned one would leave
pinned workflows alone once its version is drained (docs/decisions/11-courier.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from temporalio.client import Client
from temporalio.worker import Worker

from ..node.contract import courier_queue_of
from ..record.recorder import Recorder
from ..sealed.keyring import Keyring
from ..text.printable import printable
from .activities import CourierActivities
from .pace import SignalPace

_log = logging.getLogger(__name__)

_MOST_AT_ONCE: Final = 200
_POLLERS: Final = 2
_LOOK_EVERY_SECONDS: Final = 1.0
_HEARTBEATS: Final = timedelta(seconds=2)
_LAST_CALLS: Final = timedelta(seconds=5)
"""How long what is being told when the worker stops may still take."""


@dataclass(frozen=True)
class Beside:
    """What a courier needs of the worker that it runs beside.

    Attributes:
        worker: its client is followed, also when it is replaced.
        keyring, recorder, pace: of the worker's plugin; see `CourierActivities`.
        stateful, plain: workflow types that the worker runs, which take part in a tree or not.
    """

    worker: Worker
    keyring: Callable[[], Keyring | None]
    recorder: Callable[[], Recorder]
    pace: Callable[[], SignalPace]
    stateful: Collection[str]
    plain: Collection[str]


@asynccontextmanager
async def courier_beside(beside: Beside) -> AsyncGenerator[None, None]:
    """Run a courier while the block runs; workers of one connection and task queue share one."""
    courier = next((known for known in _couriers if known.serves(beside.worker)), None)
    if courier is None:
        courier = _Courier(beside)
        _couriers.append(courier)
    courier.workers.append(beside)
    try:
        yield
    finally:
        courier.workers.remove(beside)
        if not courier.workers:
            _couriers.remove(courier)
            await courier.stop()


class _Courier:
    def __init__(self, first: Beside) -> None:
        self.workers: list[Beside] = []
        self._queue = courier_queue_of(first.worker.task_queue)
        activities = CourierActivities(
            lambda: self._worker.client, first.keyring, first.recorder, first.pace, self._is_plain
        )
        self._worker = Worker(
            _bare(first.worker.client),
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

    def _is_plain(self, workflow_type: str) -> bool:
        """Of two versions of a program, one may have made a workflow type take part."""
        if any(workflow_type in beside.stateful for beside in self.workers):
            return False
        return any(workflow_type in beside.plain for beside in self.workers)

    async def _follow_clients(self) -> None:
        """Temporal has no hook for it: a worker's client is replaced to renew its certificate."""
        known = {id(beside): beside.worker.client for beside in self.workers}
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            for beside in self.workers:
                client = beside.worker.client
                if known.setdefault(id(beside), client) is client:
                    continue
                try:
                    self._worker.client = _bare(client)
                except Exception as error:  # noqa: BLE001 - an interceptor's; the next look tries again
                    _log.error("A courier cannot take a client: %s", printable(repr(error)))
                else:
                    known[id(beside)] = client

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


def _say_why(run: asyncio.Task[None]) -> None:
    if not run.cancelled() and (error := run.exception()) is not None:
        said = printable(repr(error))
        _log.error("A courier stopped, and children are told nothing from here: %s", said)
