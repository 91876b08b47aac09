"""What one rotation costs: time, processor time for each node, events and bytes.

With one worker in a process of its own, whose cache may be smaller than the tree.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time

from arrivals import PATIENCE_SECONDS
from processes import WorkerProcess, cpu_seconds, resident_bytes, server_pid, start_worker
from trees import Results, Server, history, ids, levels, medians, say, say_found, start_server
from workflows import Node

ROOT, QUEUE = "root", "costs"
SETTLE_SECONDS = 2.0
"""What was under way ends within."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cached", type=int, default=10_000, help="workflows the worker keeps; default %(default)s"
    )


async def measure(args: argparse.Namespace) -> Results:
    results: Results = {}
    for shape in args.shape:
        nodes = list(ids(ROOT, levels(shape)))
        say(f"{shape}: starting {len(nodes)} nodes …")
        async with (
            start_server(args.database) as server,
            start_worker(server.address, QUEUE, server.keyring, args.cached) as worker,
        ):
            await worker.timed(
                [f"{node} started" for node in nodes],
                lambda: server.start_ours(Node.run, [levels(shape)], ROOT, QUEUE),  # noqa: B023
            )
            runs: list[dict[str, float]] = []
            for n in range(args.repetitions + 1):
                runs.append(await rotate(server, worker, nodes, n))
                say_found(shape, n, runs[-1])
            results[shape] = {"nodes": len(nodes), **medians(runs[1:])}
    return results


async def rotate(
    server: Server, worker: WorkerProcess, nodes: list[str], number: int
) -> dict[str, float]:
    """What one rotation of the tree costs."""
    pids = {"worker": worker.pid, "server": server_pid(server.address), "client": os.getpid()}
    looked_at = {"root": nodes[0], "leaf": nodes[-1]}
    used = {name: cpu_seconds(pid) for name, pid in pids.items()}
    before = {name: await history(server.ours, at) for name, at in looked_at.items()}
    begun = time.perf_counter()
    converged = 0.0

    async def until_converged() -> None:
        nonlocal converged
        await server.tokens.rotate(ROOT, f"t-{number}", timeout=PATIENCE_SECONDS)
        converged = time.perf_counter() - begun

    held = await worker.timed(nodes, until_converged)
    await asyncio.sleep(SETTLE_SECONDS)
    found: dict[str, float] = {"held by all, s": held, "converged, s": converged}
    for name, pid in pids.items():
        found[f"{name}, CPU ms a node"] = 1000 * (cpu_seconds(pid) - used[name]) / len(nodes)
    found["worker, MB"] = resident_bytes(worker.pid) / 1e6
    for name, at in looked_at.items():
        events, size = await history(server.ours, at)
        found[f"{name}, events"] = events - before[name][0]
        found[f"{name}, bytes"] = size - before[name][1]
    return found
