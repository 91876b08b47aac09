"""What this library costs beside a rotation, against plain workflows on the same server.

- *starts*: milliseconds from the parent's call to the first line of the child's `run`, one child
  after the other (a mean: on an idle embedded server a step takes either a few ms or 100), and
  all at once (until the last one, by their number);
- *activities*: milliseconds of one that opens its token, against a no-op, and the bytes that
  either adds to the history;
- *memory*: kilobytes by which a worker process grows for each idle workflow in its cache.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import arrivals
from arrivals import timed
from processes import resident_bytes, start_worker
from temporalio.client import WorkflowHandle
from temporalio.worker import Worker
from trees import Results, Server, history, ids, medians, say_found, start_server
from workflows import (
    ACTIVITIES_AT_ONCE,
    OURS,
    PLAIN,
    ByHand,
    Node,
    PlainCaller,
    PlainParent,
    StatefulCaller,
    StatefulParent,
    do_nothing,
    open_token,
)

WITHOUT, WITH = "without", "with"
FEW = 10
"""Workflows that are started before memory is read: the first bring what is needed once."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--section", choices=SECTIONS, action="append", help="repeatable; else all")
    parser.add_argument("--children", type=int, default=30)
    parser.add_argument("--activities", type=int, default=300)
    parser.add_argument("--idle", type=int, default=1000, help="workflows; default %(default)s")


async def measure(args: argparse.Namespace) -> Results:
    results: Results = {}
    options: dict[str, Any] = {
        "max_cached_workflows": 10_000,
        "max_concurrent_activities": ACTIVITIES_AT_ONCE,
    }
    async with (
        start_server(args.database) as server,
        Worker(
            server.plain,
            task_queue=WITHOUT,
            workflows=PLAIN,
            activities=[do_nothing],
            **options,
        ),
        Worker(server.ours, task_queue=WITH, workflows=OURS, activities=[open_token], **options),
    ):
        for section in args.section or SECTIONS:
            runs: dict[str, list[dict[str, float]]] = {}
            for n in range(args.repetitions + 1):
                found = {
                    kind: await SECTIONS[section](server, kind, n, args)
                    for kind in (WITHOUT, WITH)[:: 1 if n % 2 else -1]
                }
                for what, without in found[WITHOUT].items():
                    with_us = found[WITH][what]
                    run = {WITHOUT: without, WITH: with_us, "ratio": with_us / without}
                    say_found(what, n, run)
                    runs.setdefault(what, []).append(run)
            results |= {what: medians(of_one[1:]) for what, of_one in runs.items()}
    return results


async def start(
    server: Server, run: Any, args: Sequence[Any], id: str, queue: str
) -> WorkflowHandle[Any, Any]:
    """Start a workflow, with a token where it is one of ours."""
    if run in (StatefulParent.run, StatefulCaller.run, Node.run):
        await server.start_ours(run, args, id, queue)
    else:
        await server.plain.start_workflow(run, args=args, id=id, task_queue=queue)
    return server.plain.get_workflow_handle(id)


async def measure_starts(
    server: Server, kind: str, number: int, args: argparse.Namespace
) -> dict[str, float]:
    figures: dict[str, float] = {}
    run = PlainParent.run if kind == WITHOUT else StatefulParent.run
    for at_once in (1, args.children):
        root = f"starts-{kind}-{at_once}-{number}"
        children = [f"{root}-{n}" for n in range(args.children)]
        await timed(children, lambda: start(server, run, [args.children, at_once], root, kind))  # noqa: B023
        called = [arrivals.last(f"{child} called") for child in children]
        begun = [arrivals.last(child) for child in children]
        waits = [1000 * (b - c) for b, c in zip(begun, called, strict=True)]
        if at_once == 1:
            figures["start in turn, ms"] = statistics.mean(waits)
        else:
            figures["start at once, ms"] = 1000 * (max(begun) - min(called)) / args.children
    return figures


async def measure_activities(
    server: Server, kind: str, number: int, args: argparse.Namespace
) -> dict[str, float]:
    run = PlainCaller.run if kind == WITHOUT else StatefulCaller.run
    workflow_id = f"activities-{kind}-{number}"
    begun = time.perf_counter()
    handle = await start(server, run, [args.activities], workflow_id, kind)
    await asyncio.wait_for(handle.result(), arrivals.PATIENCE_SECONDS)
    seconds = time.perf_counter() - begun
    _, size = await history(server.plain, workflow_id)
    return {
        "activity, ms": 1000 * seconds / args.activities,
        "activity, bytes": size / args.activities,
    }


async def measure_memory(
    server: Server, kind: str, number: int, args: argparse.Namespace
) -> dict[str, float]:
    run, queue = ByHand.run if kind == WITHOUT else Node.run, f"{kind}-apart"
    keyring = server.keyring if kind == WITH else None
    sizes: list[int] = []
    async with start_worker(server.address, queue, keyring, 10_000) as worker:
        for children in (FEW, args.idle):
            root = f"idle-{kind}-{children}-{number}"
            started = [f"{node} started" for node in ids(root, [children])]
            await worker.timed(
                started,
                lambda: start(server, run, [[children]], root, queue),  # noqa: B023
            )
            sizes.append(resident_bytes(worker.pid))
    return {"idle workflow, kB": (sizes[1] - sizes[0]) / 1000 / (args.idle + 1)}


SECTIONS: dict[str, Callable[..., Awaitable[dict[str, float]]]] = {
    "starts": measure_starts,
    "activities": measure_activities,
    "memory": measure_memory,
}
