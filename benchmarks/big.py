"""How long a big tree takes to converge, with the worker's cache larger and smaller than it.

On one embedded server with its database in a file, a tree is started and rotated three
times, by a worker in a process of its own that keeps all its workflows in memory, and then
by one that keeps a tenth of them. Of each rotation: seconds until the last node held it,
counted in the worker, and until `rotate` has found every node converged. Then what
`stateful tree` needs to show it all, and workflow tasks of the parents that failed.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from processes import WorkerProcess, cpu_seconds, resident_bytes, server_pid, start_worker
from report import arguments, publish, say, table
from rich.table import Table
from shapes import count, ids
from temporalio.api.enums.v1 import TimeoutType, WorkflowTaskFailedCause
from temporalio.client import Client
from trees import start_tree

from stateful_workflow import Keyring, NotConverged, StatefulPlugin, TokenClient
from stateful_workflow.cli.tree import NOT_CONVERGED
from stateful_workflow.engine import EmbeddedEngine, start_engine

ROOT, QUEUE = "big", "big"
PATIENCE_SECONDS = 600.0


async def measure(
    shape: list[int], caches: list[int], rotations: int, folder: Path
) -> dict[str, Any]:
    nodes = list(ids(ROOT, shape))
    keyring = Keyring.generate()
    keyring.save(folder / "keyring.json")
    async with start_engine(db=folder / "temporal.db", ui=False) as engine:
        client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        tokens = TokenClient(client, keyring)
        started = 0.0
        results: list[dict[str, Any]] = []
        for cached in caches:
            async with start_worker(
                engine.address, QUEUE, folder / "keyring.json", cached
            ) as worker:
                if not results:
                    say(f"starting {len(nodes)} nodes …")
                    started = await start(tokens, worker, shape, nodes)
                    say(f"  started in {started:.1f} s")
                rotated = await rotate(tokens, engine, worker, nodes, cached, rotations)
                tree = look(engine, folder)
                say(f"  `stateful tree`: {tree['s']} s")
                failed = await failed_tasks(client)
                results.append({**rotated, "tree": tree, "failed_tasks_of_parents": failed})
    return {"nodes": len(nodes), "shape": shape, "started_s": started, "caches": results}


async def start(
    tokens: TokenClient, worker: WorkerProcess, shape: list[int], nodes: list[str]
) -> float:
    """Seconds until every node runs and has started its children."""
    return await worker.timed(
        [f"{node} started" for node in nodes],
        lambda: start_tree(tokens, shape, ROOT, QUEUE),
    )


async def rotate(
    tokens: TokenClient,
    engine: EmbeddedEngine,
    worker: WorkerProcess,
    nodes: list[str],
    cached: int,
    rotations: int,
) -> dict[str, Any]:
    """Rotate some times, and say what it took."""
    pids = {"worker": worker.pid, "server": server_pid(engine.address), "client": os.getpid()}
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    held: list[float] = []
    converged: list[float] = []
    behind: list[int] = []

    async def rotate_once(secret: str) -> None:
        begun = time.perf_counter()
        try:
            tree = await tokens.rotate(ROOT, secret, timeout=PATIENCE_SECONDS)
        except NotConverged as error:
            tree = error.tree
        converged.append(round(time.perf_counter() - begun, 2))
        behind.append(len(nodes) - len(tree.nodes) + len(tree.behind))

    for number in range(rotations):
        secret = f"t-{cached}-{number}"
        held.append(round(await worker.timed(nodes, lambda: rotate_once(secret)), 2))  # noqa: B023
        say(
            f"  cache {cached}: held by all after {held[-1]} s, converged after {converged[-1]} s,"
            f" {behind[-1]} behind"
        )
    told = len(nodes) * rotations
    return {
        "cached": cached,
        "held_s": held,
        "converged_s": converged,
        "behind": behind,
        "cpu_ms_a_node": {
            name: round(1000 * (cpu_seconds(pid) - before[name]) / told, 2)
            for name, pid in pids.items()
        },
        "worker_mb": round(resident_bytes(worker.pid) / 1e6),
        "server_mb": round(resident_bytes(pids["server"]) / 1e6),
    }


def look(engine: EmbeddedEngine, folder: Path) -> dict[str, Any]:
    """Look at the tree from the command line."""
    command = [sys.executable, "-m", "stateful_workflow.cli", "tree", ROOT]
    with (folder / "tree").open("w+b") as output:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, env={**os.environ, "TEMPORAL_ADDRESS": engine.address}, stdout=output
        )
        _, status, usage = os.wait4(process.pid, 0)  # with what it used, which Popen does not say
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = output.read().splitlines()
    if process.returncode not in (0, NOT_CONVERGED):
        raise RuntimeError(f"`stateful tree` ended with status {process.returncode}")
    return {
        "s": round(seconds, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "mb": round(usage.ru_maxrss / 1024),
        "lines": len(lines),
        "converged": process.returncode == 0,
    }


async def failed_tasks(client: Client) -> dict[str, int]:
    """Workflow tasks of the root and its children that came to nothing, by cause."""
    status: dict[str, Any] = await client.get_workflow_handle(ROOT).query("apiTokenStatus")
    causes: Counter[str] = Counter()
    for workflow_id in [ROOT, *[str(child["id"]) for child in status["children"]]]:
        history = await client.get_workflow_handle(workflow_id).fetch_history()
        for event in history.events:
            if event.HasField("workflow_task_failed_event_attributes"):
                cause = event.workflow_task_failed_event_attributes.cause
                causes[WorkflowTaskFailedCause.Name(cause)] += 1
            elif event.HasField("workflow_task_timed_out_event_attributes"):
                kind = event.workflow_task_timed_out_event_attributes.timeout_type
                causes[TimeoutType.Name(kind)] += 1
    return dict(causes)


def found(result: dict[str, Any]) -> Table:
    """Each cache with what it took."""
    return table(
        f"{result['nodes']} nodes, started in {result['started_s']:.0f} s; "
        "each rotation, the walk of `stateful tree`, CPU a node and rotation",
        ["cache", "held, s", "converged, s", "behind", "tree", "CPU, ms", "worker", "failed tasks"],
        [
            [
                str(r["cached"]),
                ", ".join(f"{seconds:.1f}" for seconds in r["held_s"]),
                ", ".join(f"{seconds:.1f}" for seconds in r["converged_s"]),
                str(sum(r["behind"])),
                f"{r['tree']['s']:.1f} s, {r['tree']['mb']} MB, {r['tree']['lines']} lines"
                + ("" if r["tree"]["converged"] else ", some did not answer"),
                ", ".join(f"{name} {ms:.1f}" for name, ms in r["cpu_ms_a_node"].items()),
                f"{r['worker_mb']} MB",
                ", ".join(f"{n} {cause}" for cause, n in r["failed_tasks_of_parents"].items()),
            ]
            for r in result["caches"]
        ],
    )


async def main() -> None:
    parser = arguments(__doc__, repetitions=3)
    parser.add_argument(
        "--level", type=int, nargs="+", default=[50, 99], help="children of a node, by level"
    )
    parser.add_argument(
        "--cached",
        type=int,
        nargs="+",
        default=None,
        help="workflows that a worker keeps; repeatable in one go",
    )
    args = parser.parse_args()
    shape, rotations = ([3, 5], 1) if args.quick else (args.level, args.repetitions)
    nodes = count(shape)
    caches = args.cached or [nodes * 6 // 5, nodes // 10]
    with tempfile.TemporaryDirectory() as folder:
        result = await measure(shape, caches, rotations, Path(folder))
    publish("big", result, [], [found(result)], args)


if __name__ == "__main__":
    asyncio.run(main())
