"""A Temporal server and workers as processes of their own, which can be killed and come back."""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from temporalio.client import Client
from temporalio.service import RPCError

from stateful_workflow import Keyring, OperationFailed, StatefulPlugin, TokenClient
from stateful_workflow.engine import find_temporal
from tests.faults.gate import Gate
from tests.faults.processes import Process
from tests.faults.proxy import Proxy
from tests.faults.worker import READY

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 60.0
"""Seconds in which anything awaited here happens on a busy machine, or it never does."""


async def until(
    probe: Callable[[], Awaitable[T | None]], what: str, *, within: float = WITHIN
) -> T:
    """Ask until the answer is true; a workflow or a server that does not answer yet is asked again.

    Raises:
        AssertionError: not within so many seconds.
    """
    give_up = time.monotonic() + within
    why = ""
    while time.monotonic() < give_up:
        try:
            answer = await probe()
        except (OperationFailed, RPCError) as error:
            why = f" ({type(error).__name__}: {error})"
        else:
            if answer:
                return answer
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {within:g} s: {what}{why}")


class Cluster:
    """A server, workers that reach it through a proxy, and a client that reaches it directly.

    Args:
        directory: holds everything that any of them writes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.db = directory / "temporal.db"
        self.gate = Gate.of(directory)
        self.keyring = Keyring.generate()
        self.keyring.save(directory / "keyring.json")
        self.queue = "faults"
        self.secret = secrets.token_hex(16)
        """Part of every token: to be found nowhere."""
        self.marker = secrets.token_hex(16)
        """Stands in clear where tokens would: to be found everywhere."""
        self.workers: dict[str, Process] = {}
        self.client: Client
        self.tokens: TokenClient
        self._started = 0
        self._port = _free_port()
        self.proxy = Proxy(self._port)
        self._server: Process | None = None

    async def start(self) -> None:
        """Start the server, the proxy and the client; no worker."""
        self._worker_port = await self.proxy.start()
        await self.start_server()

    async def stop(self) -> None:
        """End every process."""
        for name in list(self.workers):
            self.kill_worker(name)
        if self._server is not None:
            self._server.kill()
        await self.proxy.stop()

    async def mend(self, workers: int) -> None:
        """Bring back what a test that failed may have left broken."""
        self.gate.open()
        self.proxy.heal()
        if self._server is None or not self._server.is_running:
            await self.start_server()
        for name in [name for name, worker in self.workers.items() if not worker.is_running]:
            del self.workers[name]
        if len(self.workers) < workers:
            await self.start_workers(workers - len(self.workers))

    # --- the server ------------------------------------------------------------------------------

    async def start_server(self) -> None:
        """Start the server on its file, and wait until it answers."""
        options = ["--headless", "--ip", "127.0.0.1", "--log-level", "error"]
        files = ["--port", str(self._port), "--db-filename", str(self.db)]
        self._server = Process(
            [find_temporal(), "server", "start-dev", *options, *files],
            self.directory / "server.output",
        )

        async def answers() -> Client:
            assert self._server is not None
            assert self._server.is_running, self.tails()
            try:
                return await Client.connect(
                    f"127.0.0.1:{self._port}", plugins=[StatefulPlugin(self.keyring)]
                )
            except RuntimeError as error:
                raise OperationFailed(str(error)) from None

        self.client = await until(answers, "the server answers")
        self.tokens = TokenClient(self.client, self.keyring)

    def kill_server(self) -> None:
        assert self._server is not None
        self._server.kill()

    # --- workers ---------------------------------------------------------------------------------

    async def start_workers(self, count: int = 1) -> None:
        """Start workers and wait until they poll."""
        for name in [self._start_worker() for _ in range(count)]:
            await until(lambda name=name: self._is_ready(name), f"{name} runs")

    def _start_worker(self) -> str:
        self._started += 1
        name = f"worker-{self._started}"
        where = [f"127.0.0.1:{self._worker_port}", self.queue, name, str(self.directory)]
        self.workers[name] = Process(
            [sys.executable, "-m", "tests.faults.worker", *where, self.marker],
            self.directory / f"{name}.output",
            cwd=ROOT,
            environment={"PYTHONPATH": str(ROOT / "src")},
        )
        return name

    async def _is_ready(self, name: str) -> bool:
        worker = self.workers[name]
        assert worker.is_running, self.tails()
        return READY in worker.output.read_text(errors="replace")

    def kill_worker(self, name: str) -> None:
        self.workers.pop(name).kill()

    def tails(self) -> str:
        """The last lines of every process, for a failure's message."""
        outputs = sorted(self.directory.glob("*.output"))
        lines = [(path.name, path.read_text(errors="replace").splitlines()) for path in outputs]
        return "\n".join(f"--- {name}\n" + "\n".join(text[-15:]) for name, text in lines)


@asynccontextmanager
async def start_cluster(directory: Path, workers: int) -> AsyncGenerator[Cluster, None]:
    """A cluster for the length of an ``async with``."""
    cluster = Cluster(directory)
    try:
        await cluster.start()
        await cluster.start_workers(workers)
        yield cluster
    finally:
        await cluster.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
