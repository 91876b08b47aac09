"""The small workers of the library's own, which run beside a user's and poll other task queues.

Workers of one connection share one: the SDK takes one worker of a connection and a task queue only.
They are not versioned: a versioned one would leave pinned workflows alone once its version is
drained (docs/decisions/11-courier.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol

from temporalio.client import Client
from temporalio.worker import Worker

from ..text.printable import printable

_log = logging.getLogger(__name__)

_MOST_AT_ONCE: Final = 200
_POLLERS: Final = 2
_LOOK_EVERY_SECONDS: Final = 1.0
_HEARTBEATS: Final = timedelta(seconds=2)


class HasClient(Protocol):
    """A worker, or whatever else has a client that may be replaced."""

    @property
    def client(self) -> Client:
        """The client as it is now."""
        ...


Activities = Callable[["Small"], Sequence[Callable[..., Any]]]


@dataclass
class _Owner:
    owner: HasClient
    followed: Client
    knows: Any


class Small:
    """One such worker.

    Attributes:
        kind: what it does, for the log.
        owners: those that it runs beside.
    """

    def __init__(
        self, kind: str, first: HasClient, queue: str, activities: Activities, grace: timedelta
    ) -> None:
        self.kind = kind
        self.owners: list[_Owner] = []
        self._queue = queue
        self._worker = Worker(
            _bare(first.client),
            task_queue=queue,
            activities=activities(self),
            max_concurrent_activities=_MOST_AT_ONCE,
            max_concurrent_activity_task_polls=_POLLERS,
            max_heartbeat_throttle_interval=_HEARTBEATS,
            graceful_shutdown_timeout=grace,
        )
        self._run = asyncio.create_task(self._worker.run())
        self._run.add_done_callback(self._say_why)
        self._follow = asyncio.create_task(self._follow_clients())

    @property
    def client(self) -> Client:
        """Its client: without plugins, on the connection of those beside which it runs."""
        return self._worker.client

    def known(self) -> list[Any]:
        """What each of its owners said that it knows."""
        return [one.knows for one in self.owners]

    def serves(self, owner: HasClient, queue: str) -> bool:
        """Whether it polls a task queue on the connection of an owner."""
        ours, theirs = self.client, owner.client
        return (
            queue == self._queue
            and theirs.namespace == ours.namespace
            and theirs.service_client is ours.service_client
        )

    async def _follow_clients(self) -> None:
        """Temporal has no hook for it: a worker's client is replaced to renew its certificate."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            for one in self.owners:
                client = one.owner.client
                if client is one.followed:
                    continue
                try:
                    self._worker.client = _bare(client)
                    one.followed = client
                except Exception as error:  # noqa: BLE001 - an interceptor's; it is tried again
                    said = printable(type(error).__name__)
                    _log.error("A %s cannot take a new client: %s", printable(self.kind), said)

    async def ended(self) -> None:
        """Wait until it ends by itself, which it does where it cannot poll."""
        await asyncio.wait([self._run])
        await self._run

    async def stop(self) -> None:
        """Begin nothing more, and wait for what is under way, within its grace."""
        self._follow.cancel()
        await self._worker.shutdown()
        await asyncio.wait([self._run])

    def _say_why(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error(
                "A %s stopped, and nobody does its work here: %s",
                printable(self.kind),
                printable(repr(error)),
            )


_running: Final[list[Small]] = []
"""Those of this process."""


@asynccontextmanager
async def beside(
    kind: str,
    owner: HasClient,
    queue: str,
    activities: Activities,
    *,
    grace: timedelta,
    knows: Any = None,
) -> AsyncGenerator[Small, None]:
    """Run such a worker while the block runs, or share the one that polls the queue already.

    It follows the owner's client, also when that is replaced.

    Args:
        kind: what it does, for the log.
        owner: the user's worker.
        queue: the task queue that it polls.
        activities: makes what it runs.
        grace: how long what is under way when it stops may still take.
        knows: what the activities are to know of this owner; see `Small.known`.
    """
    small = next((one for one in _running if one.serves(owner, queue)), None)
    if small is None:
        small = Small(kind, owner, queue, activities, grace)
        _running.append(small)
    one = _Owner(owner, owner.client, knows)
    small.owners.append(one)
    try:
        yield small
    finally:
        small.owners.remove(one)
        if not small.owners:
            _running.remove(small)
            await small.stop()


def _bare(client: Client) -> Client:
    """A client of the same connection without plugins, or its worker would have ones beside it."""
    config = client.config(active_config=True)
    config["plugins"] = []
    return Client(**config)
