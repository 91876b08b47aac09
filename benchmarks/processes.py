"""A worker in a process of its own, and what processes use, as Linux tells it in /proc.

So that what the worker uses, what the server uses and what the client uses can be told apart.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import arrivals
from temporalio.client import Client
from temporalio.worker import Worker
from workflows import OURS, PLAIN

from stateful_workflow import Keyring, StatefulPlugin


class WorkerProcess:
    """Runs the workflows, without this library or with it.

    Attributes:
        pid: of the process.
    """

    def __init__(self, pid: int, connection: Connection) -> None:
        self.pid = pid
        self._connection = connection

    async def timed(self, names: Iterable[str], act: Callable[[], Awaitable[object]]) -> float:
        """Seconds from the call until the last of these has arrived."""
        self._connection.send(set(names))
        await self.answer()
        begun = time.perf_counter()
        acting = asyncio.ensure_future(act())
        await self.answer()
        seconds = time.perf_counter() - begun
        await acting
        return seconds

    async def answer(self) -> None:
        """Wait until it is ready, or the last one has arrived."""
        said = await asyncio.to_thread(self._connection.recv)
        if said is not None:
            raise RuntimeError(said)


@asynccontextmanager
async def start_worker(
    address: str, queue: str, keyring: Path | None, cached: int
) -> AsyncGenerator[WorkerProcess, None]:
    """Run a worker process for the length of an ``async with``.

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
    theirs.close()  # so that its end is seen here
    assert process.pid is not None  # noqa: S101 - it was started
    worker = WorkerProcess(process.pid, ours)
    try:
        await worker.answer()
        yield worker
    finally:
        ours.close()
        await asyncio.to_thread(process.join, 20)
        process.kill()


def _work(
    address: str, queue: str, keyring: Path | None, cached: int, connection: Connection
) -> None:
    asyncio.run(_serve(address, queue, keyring, cached, connection))


async def _serve(
    address: str, queue: str, keyring: Path | None, cached: int, connection: Connection
) -> None:
    plugins = [] if keyring is None else [StatefulPlugin(Keyring.load(keyring))]
    client = await Client.connect(address, plugins=plugins)
    workflows = PLAIN if keyring is None else OURS
    async with Worker(client, task_queue=queue, workflows=workflows, max_cached_workflows=cached):
        connection.send(None)
        while True:
            try:
                arrivals.expect(await asyncio.to_thread(connection.recv))
            except EOFError:
                return
            connection.send(None)
            try:
                await asyncio.to_thread(arrivals.wait)
            except TimeoutError as error:
                connection.send(str(error))
            else:
                connection.send(None)


def server_pid(address: str) -> int:
    """The process of this program's embedded server."""
    port = f"\0--port\0{address.rpartition(':')[2]}\0".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if port in command:
            return int(process.name)
    raise LookupError(f"no server of ours listens at {address}")


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU that a process has used so far."""
    _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Memory of a process that stands in RAM."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
