"""A worker in a process of its own, and what processes cost, read from Linux's /proc."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from temporalio.client import Client
from temporalio.worker import Worker
from workflows import Node

from stateful_workflow import Keyring, StatefulPlugin

QUEUE = "bench"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Done:
    """A command that has ended: its status, what it printed, and what it took.

    Attributes:
        megabytes: the most memory it had resident.
    """

    status: int
    output: str
    seconds: float
    megabytes: float


@asynccontextmanager
async def start_worker(address: str, keyring: Path, cached: int) -> AsyncGenerator[int, None]:
    """Run a worker of `Node` for the length of a block; gives its process id."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, address, str(keyring), str(cached)
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        await process.wait()


def run(command: list[str], environment: dict[str, str], folder: Path) -> Done:
    """Run a command to its end; what it prints goes through a file in the folder."""
    with (folder / "output").open("w+b") as output:
        begun = time.perf_counter()
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode()
    return Done(process.returncode, text, seconds, usage.ru_maxrss / 1024)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def megabytes(pid: int, which: str = "VmRSS") -> float:
    """Memory that a process has resident; `VmHWM` for the most it has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no {which}")


def server_pid() -> int:
    """The embedded server that this process has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        if name == "temporal" and int(rest.split()[1]) == os.getpid():
            return int(stat.parent.name)
    raise RuntimeError("no embedded server was started by this process")


async def _work(address: str, keyring: str, cached: int) -> None:
    plugin = StatefulPlugin(Keyring.load(keyring))
    client = await Client.connect(address, plugins=[plugin])
    async with Worker(client, task_queue=QUEUE, workflows=[Node], max_cached_workflows=cached):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1], sys.argv[2], int(sys.argv[3])))
