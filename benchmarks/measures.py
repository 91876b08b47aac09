"""One repetition of what `overhead.py` measures, on one server.

Every `measure_…` gives figures, named by what was measured.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arrivals
from activities import (
    AT_ONCE,
    Calling,
    Opening,
    Resolving,
    Using,
    do_nothing,
    open_token,
    use_token,
)
from processes import (
    SETTLE_SECONDS,
    Meter,
    WorkerProcess,
    resident_bytes,
    server_pid,
    start_worker,
)
from secret_manager import SecretManager
from shapes import ids
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker
from trees import MESSAGE, URL, start_plain, tell_plain
from workflows import ByHand, Node, PlainChild, PlainParent, StatefulChild, StatefulParent

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine

PATIENCE_SECONDS = 120.0
REFRESH_SECONDS = 2
PLAIN, OURS = "plain", "ours"
WAYS = ("token", "uncached", "cached")
TREE = 20  # children, where staleness is measured
REFERENCE = "customer/api-token"


@dataclass(frozen=True)
class Size:
    """How much of everything is measured.

    Attributes:
        children, activities: of one repetition.
        told: workflows below the root, for the CPU.
        idle: workflows, for the memory.
        slow: repetitions of what takes long: staleness, CPU and memory.
        warm_up: whether a repetition that is not counted goes before.
    """

    children: int = 30
    activities: int = 300
    told: int = 500
    idle: int = 1000
    slow: int = 3
    warm_up: bool = True


QUICK = Size(children=5, activities=30, told=20, idle=50, slow=1, warm_up=False)


@dataclass(frozen=True)
class Server:
    """One server, with a worker of each kind in this process and one in another.

    Attributes:
        name: of its database.
        address: host:port.
        plain: a client without the plugin.
        tokens: sets tokens, with the plugin.
        manager: the secret manager, as this server's plain worker asks it.
        keyring: the file for other processes.
    """

    name: str
    address: str
    plain: Client
    tokens: TokenClient
    manager: SecretManager
    keyring: Path

    async def start(
        self, kind: str, run: Any, args: Sequence[Any], workflow_id: str
    ) -> WorkflowHandle[Any, Any]:
        """Start a workflow on the queue of its kind, with a token where it has the plugin."""
        queue = f"{kind}-apart" if run in (ByHand.run, Node.run) else kind
        if kind == PLAIN:
            return await self.plain.start_workflow(run, args=args, id=workflow_id, task_queue=queue)
        return await self.tokens.start_workflow(
            run, args=args, id=workflow_id, task_queue=queue, api_token="t", api_url=URL
        )


@asynccontextmanager
async def prepared(name: str, folder: Path, moto: str) -> AsyncGenerator[Server, None]:
    """A server, its clients and the workers in this process."""
    keyring = Keyring.generate()
    keyring.save(folder / f"{name}.json")
    db = folder / "temporal.db" if name == "file" else None
    manager = SecretManager(moto, REFRESH_SECONDS)
    async with start_engine(db=db, ui=False) as engine, AsyncExitStack() as stack:
        plain = await Client.connect(engine.address)
        ours = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        threads = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        await stack.enter_async_context(
            Worker(
                plain,
                task_queue=PLAIN,
                workflows=[PlainParent, PlainChild, Calling, Resolving],
                activities=[do_nothing, *manager.activities()],
                activity_executor=threads,
                max_concurrent_activities=AT_ONCE,
                max_cached_workflows=10_000,
            )
        )
        await stack.enter_async_context(
            Worker(
                ours,
                task_queue=OURS,
                workflows=[StatefulParent, StatefulChild, Opening, Using],
                activities=[open_token, use_token],
                max_concurrent_activities=AT_ONCE,
                max_cached_workflows=10_000,
            )
        )
        yield Server(
            name,
            engine.address,
            plain,
            TokenClient(ours, keyring),
            manager,
            folder / f"{name}.json",
        )


async def measure_child_starts(server: Server, number: int, size: Size) -> dict[str, float]:
    """Milliseconds a child, for either kind and order."""
    figures: dict[str, float] = {}
    for order in ("in turn", "at once"):
        for kind in (PLAIN, OURS)[:: 1 if number % 2 else -1]:
            root = f"starts-{server.name}-{kind}-{order.replace(' ', '-')}-{number}"
            children = [f"{root}-{n}" for n in range(size.children)]
            arrivals.expect(set(children))
            run = PlainParent.run if kind == PLAIN else StatefulParent.run
            await server.start(kind, run, [size.children, order == "at once"], root)
            await asyncio.to_thread(arrivals.wait, PATIENCE_SECONDS)
            called = [arrivals.last(f"{child} called") for child in children]
            begun = [arrivals.last(f"{child} begun") for child in children]
            # Means: on an idle embedded server a step takes either a few ms or 100.
            seconds = (
                statistics.mean(b - c for b, c in zip(begun, called, strict=True))
                if order == "in turn"
                else (max(begun) - min(called)) / size.children
            )
            figures[f"{kind} {order}"] = 1000 * seconds
    return figures


async def measure_activities(server: Server, number: int, size: Size) -> dict[str, float]:
    """Milliseconds and bytes of history an activity."""
    figures: dict[str, float] = {}
    kinds = ("nothing", *WAYS)
    for kind in kinds[:: 1 if number % 2 else -1]:
        workflow_id = f"activities-{server.name}-{kind}-{number}"
        begun = time.perf_counter()
        if kind == "token":
            handle = await server.start(OURS, Opening.run, [size.activities], workflow_id)
        else:
            name, args = (
                ("do_nothing", []) if kind == "nothing" else (f"resolve_{kind}", [REFERENCE])
            )
            handle = await server.start(
                PLAIN, Calling.run, [size.activities, name, args], workflow_id
            )
        await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)
        figures[kind] = 1000 * (time.perf_counter() - begun) / size.activities
        info = (await handle.describe()).raw_description.workflow_execution_info
        figures[f"{kind} bytes"] = info.history_size_bytes / size.activities
    return figures


async def measure_staleness(server: Server, number: int, size: Size) -> dict[str, float]:
    """Seconds from the start of a rotation until the old secret was given out last."""
    figures: dict[str, float] = {}
    for way in WAYS:
        prefix = f"stale-{server.name}-{way}-{number}"
        old, new, reference = f"{prefix}-old", f"{prefix}-new", f"{prefix}-reference"
        if way == "token":
            handles = [await server.start(OURS, Using.run, [TREE], prefix)]
            await server.tokens.set(prefix, old)
        else:
            await asyncio.to_thread(server.manager.create, reference, old)
            handles = [
                await server.start(
                    PLAIN, Resolving.run, [f"resolve_{way}", reference], f"{prefix}-{n}"
                )
                for n in range(TREE + 1)
            ]
        await until(lambda old=old: arrivals.last(f"{old} given") > 0)
        await asyncio.sleep(1)  # so that all of them are at it
        begun = time.time()
        if way == "token":
            await server.tokens.set(prefix, new)
        else:
            await asyncio.to_thread(server.manager.rotate, reference, new)
        await asyncio.sleep(REFRESH_SECONDS + 1 if way == "cached" else 2)
        await until(lambda new=new: arrivals.last(f"{new} given") > 0)
        figures[way] = max(0.0, arrivals.last(f"{old} given") - begun)
        for handle in handles:
            await handle.signal("stop")
        await asyncio.wait_for(asyncio.gather(*[h.result() for h in handles]), PATIENCE_SECONDS)
    return figures


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what activities note."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"it did not come in {PATIENCE_SECONDS} s")
        await asyncio.sleep(0.02)


class Cpu:
    """What one signal to each workflow of a tree uses, by process.

    Args:
        server: on which they run.
        workers: the worker process of each kind.
        size: says how many.
    """

    def __init__(self, server: Server, workers: dict[str, WorkerProcess], size: Size) -> None:
        self._server = server
        self._workers = workers
        self._size = size
        self._meter = Meter(
            {
                "worker": [worker.pid for worker in workers.values()],
                "server": [server_pid(server.address)],
                "client": [os.getpid()],
            }
        )
        self._plain, self._hand, self._ours = (
            list(ids(f"cpu-{server.name}-{kind}", [size.told])) for kind in (PLAIN, "hand", OURS)
        )

    async def start(self) -> None:
        """Start the plain workflows and both trees."""
        await start_plain(self._server.plain, self._plain, f"{PLAIN}-apart")
        for kind, run, nodes in (
            (PLAIN, ByHand.run, self._hand),
            (OURS, Node.run, self._ours),
        ):
            await start_family(self._server, self._workers[kind], kind, run, nodes)

    async def run(self, number: int) -> dict[str, float]:
        """Milliseconds of CPU a workflow, by kind and process."""

        async def tell_root() -> None:
            await self._server.plain.get_workflow_handle(self._hand[0]).signal("tell", MESSAGE)

        async def set_token() -> None:
            await self._server.tokens.set(self._ours[0], f"t-{number}")

        figures: dict[str, float] = {}
        await self._meter.rest()
        for how, kind, nodes, act in (
            ("limit", PLAIN, self._plain, lambda: tell_plain(self._server.plain, self._plain)),
            ("by hand", PLAIN, self._hand, tell_root),
            ("set", OURS, self._ours, set_token),
        ):
            worker = self._workers[kind]
            _, used = await self._meter.busy(lambda: worker.timed(nodes, act))  # noqa: B023
            for name, seconds in used.items():
                figures[f"{how} {name}"] = 1000 * seconds / len(nodes)
        return figures


async def measure_memory(server: Server, number: int, size: Size) -> dict[str, float]:
    """Kilobytes an idle workflow, for either kind, each in a fresh worker process."""
    figures: dict[str, float] = {}
    for kind, run in ((PLAIN, ByHand.run), (OURS, Node.run)):
        async with worker_apart(server, kind) as worker:
            sizes: list[int] = []
            for children in (10, size.idle):  # the first few bring what is needed once
                root = f"idle-{server.name}-{kind}-{number}-{children}"
                await start_family(server, worker, kind, run, list(ids(root, [children])))
                await asyncio.sleep(SETTLE_SECONDS)
                sizes.append(resident_bytes(worker.pid))
            figures[kind] = (sizes[1] - sizes[0]) / 1000 / (size.idle + 1)
    return figures


async def start_family(
    server: Server, worker: WorkerProcess, kind: str, run: Any, nodes: Sequence[str]
) -> None:
    """Start a root that starts its children, until all run."""
    started = [f"{node} started" for node in nodes]
    await worker.timed(started, lambda: server.start(kind, run, [[len(nodes) - 1]], nodes[0]))


def worker_apart(server: Server, kind: str) -> AbstractAsyncContextManager[WorkerProcess]:
    """A worker of this kind in a process of its own."""
    keyring = server.keyring if kind == OURS else None
    return start_worker(server.address, f"{kind}-apart", keyring)
