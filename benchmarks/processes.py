"""A worker in a process of its own, and what processes use.

So that what the worker uses, what the server uses and what the client uses can be told apart.
"""

# pyright: reportMissingModuleSource=false, reportMissingImports=false

from __future__ import annotations

import asyncio
import collections
import multiprocessing
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import arrivals
from temporalio.client import Client
from temporalio.runtime import MetricBuffer, Runtime, TelemetryConfig
from temporalio.worker import Worker
from workflows import ByHand, Node, Plain

from stateful_workflow import Keyring, StatefulPlugin

PATIENCE_SECONDS = 600.0


IDLE_SECONDS = 4.0
SETTLE_SECONDS = 2.0
"""What was under way ends within."""

Result = TypeVar("Result")


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

    async def calls(self) -> dict[str, int]:
        """How many calls of each kind it has made since it was last asked, where they count."""
        self._connection.send(None)
        return await asyncio.to_thread(self._connection.recv)

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
    address: str,
    queue: str,
    keyring: Path | None,
    cached: int = 10_000,
    *,
    counts_calls: bool = False,
) -> AsyncGenerator[WorkerProcess, None]:
    """Start a worker process.

    Args:
        keyring: its file; with one the worker has the plugin.
        cached: how many workflows it keeps in memory.
        counts_calls: for `WorkerProcess.calls`.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(address, queue, keyring, cached, counts_calls, theirs), daemon=True
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
    address: str,
    queue: str,
    keyring: Path | None,
    cached: int,
    counts_calls: bool,
    connection: Connection,
) -> None:
    plugins = [] if keyring is None else [StatefulPlugin(Keyring.load(keyring))]
    metrics = MetricBuffer(1_000_000)
    runtime = Runtime(telemetry=TelemetryConfig(metrics=metrics)) if counts_calls else None
    client = await Client.connect(address, plugins=plugins, runtime=runtime)
    async with Worker(
        client,
        task_queue=queue,
        workflows=[Plain, ByHand] if keyring is None else [Node],
        max_cached_workflows=cached,
    ):
        connection.send(None)
        while True:
            try:
                expected: set[str] | None = await asyncio.to_thread(connection.recv)
            except EOFError:
                return
            if expected is None:
                connection.send(_calls(metrics))
                continue
            arrivals.expect(expected)
            connection.send(None)
            try:
                await asyncio.to_thread(arrivals.wait, PATIENCE_SECONDS - 10)
            except TimeoutError as error:
                connection.send(str(error))
            else:
                connection.send(None)


def _calls(metrics: MetricBuffer) -> dict[str, int]:
    made: collections.Counter[str] = collections.Counter()
    for update in metrics.retrieve_updates():
        if update.metric.name in ("temporal_request", "temporal_long_request"):
            made[str(update.attributes["operation"])] += int(update.value)
    return dict(made)


class Meter:
    """What processes use of the CPU, beyond what they use while idle.

    Args:
        pids: of the processes, by a name for what is added up.
    """

    def __init__(self, pids: Mapping[str, Sequence[int]]) -> None:
        self._pids = pids
        self._idle = dict.fromkeys(pids, 0.0)

    async def rest(self) -> None:
        """Look at what they use while there is nothing to do."""
        before = self._used()
        await asyncio.sleep(IDLE_SECONDS)
        self._idle = {name: s / IDLE_SECONDS for name, s in self._since(before).items()}

    async def busy(self, act: Callable[[], Awaitable[Result]]) -> tuple[Result, dict[str, float]]:
        """What an act gave, and the seconds of CPU it used until all was settled."""
        before, begun = self._used(), time.monotonic()
        result = await act()
        await asyncio.sleep(SETTLE_SECONDS)
        passed = time.monotonic() - begun
        used = self._since(before)
        return result, {name: max(0.0, s - self._idle[name] * passed) for name, s in used.items()}

    def _used(self) -> dict[str, float]:
        return {name: sum(map(cpu_seconds, pids)) for name, pids in self._pids.items()}

    def _since(self, before: dict[str, float]) -> dict[str, float]:
        return {name: used - before[name] for name, used in self._used().items()}


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
