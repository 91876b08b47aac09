"""A worker in a process of its own, and what processes use.

So that what the worker uses, what the server uses and what the client uses can be told apart.
"""

# pyright: reportMissingModuleSource=false, reportMissingImports=false

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import arrivals
from temporalio.client import Client
from temporalio.worker import Worker
from workflows import ByHand, Node, Plain

from stateful_workflow import Keyring, StatefulPlugin

PATIENCE_SECONDS = 600.0


class WorkerProcess:
    """Runs the trees' workflows, without this library or with it.

    Attributes:
        pid: of the process.
    """

    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid = pid
        self._connection = connection

    async def timed(
        self, workflow_ids: Iterable[str], act: Callable[[], Awaitable[object]]
    ) -> float:
        """Seconds from the call until the last of these workflows has arrived."""
        self._connection.send(set(workflow_ids))
        await self.answer()
        begun = time.perf_counter()
        acting = asyncio.ensure_future(act())
        await self.answer()
        seconds = time.perf_counter() - begun
        await acting
        return seconds

    async def answer(self) -> None:
        """Wait until it is ready, or the last one has arrived."""
        await asyncio.to_thread(self._answer)

    def _answer(self) -> None:
        if not self._connection.poll(PATIENCE_SECONDS):
            raise TimeoutError("the worker process did not answer")
        said = self._connection.recv()
        if said is not None:
            raise RuntimeError(said)


@asynccontextmanager
async def start_worker(
    address: str, queue: str, keyring: Path | None, cached: int = 10_000
) -> AsyncGenerator[WorkerProcess, None]:
    """Start a worker process.

    Args:
        keyring: its file; with one the worker has the plugin.
        cached: how many workflows it keeps in memory.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(address, queue, keyring, cached, theirs), daemon=True
    )
    process.start()
    assert process.pid is not None  # noqa: S101 - it was started
    worker = WorkerProcess(process.pid, ours)
    try:
        await worker.answer()
        yield worker
    finally:
        ours.close()
        await asyncio.to_thread(process.join, 20)
        process.kill()


def _work(*args: Any) -> None:
    asyncio.run(_serve(*args))


async def _serve(
    address: str, queue: str, keyring: Path | None, cached: int, connection: Connection
) -> None:
    plugins = [] if keyring is None else [StatefulPlugin(Keyring.load(keyring))]
    client = await Client.connect(address, plugins=plugins)
    async with Worker(
        client,
        task_queue=queue,
        workflows=[Plain, ByHand] if keyring is None else [Node],
        max_cached_workflows=cached,
    ):
        connection.send(None)
        while True:
            try:
                expected: set[str] = await asyncio.to_thread(connection.recv)
            except EOFError:
                return
            arrivals.expect(expected)
            connection.send(None)
            try:
                await asyncio.to_thread(arrivals.wait, PATIENCE_SECONDS - 10)
            except TimeoutError as error:
                connection.send(str(error))
            else:
                connection.send(None)


def server_pid(address: str) -> int:
    """The process of this program's embedded server."""
    import psutil

    port = address.rpartition(":")[2]
    for process in psutil.Process().children(recursive=True):
        command = process.cmdline()
        if "--port" in command and command[command.index("--port") + 1] == port:
            return process.pid
    raise LookupError(f"no server of ours listens at {address}")


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU that a process has used so far."""
    import psutil

    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def resident_bytes(pid: int) -> int:
    """Memory of a process that stands in RAM."""
    import psutil

    return int(psutil.Process(pid).memory_info().rss)
