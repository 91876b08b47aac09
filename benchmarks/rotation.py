"""How long a rotation takes to reach a tree, against what the engine needs at least.

Everything runs in this process. In every repetition:

- *limit*: a plain client signals as many unrelated plain workflows, as many at once as our
  telling, until the last handler has run;
- *by hand*: a tree of plain workflows of the same shape, each signalling its children from
  workflow code with ``asyncio.gather``, unsealed;
- *set*: `TokenClient.set` at the root, until the last node holds the version, with everything on:
  sealed, verified at every node, sandbox as users run it;
- *signal*: how long a user's signal at the root waits meanwhile;
- *rotate*: `TokenClient.rotate`, from the call to "converged".
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterable

import arrivals
from arrivals import timed
from temporalio.client import Client
from temporalio.worker import Worker
from trees import MESSAGE, Results, Server, ids, levels, medians, say, say_found, start_server
from workflows import ByHand, Node, Plain, at_most

from stateful_workflow.worker.activities import MAX_CONCURRENT_SIGNALS

QUEUE = "bench"
MANY = 1500
"""By hand, each message adds 3,800 events to the history of 1+1900's root; with some 17,000 it was
seen to take longer to replay than the SDK lets a task run. So it runs in one repetition there.
"""


async def measure(args: argparse.Namespace) -> Results:
    results: Results = {}
    for shape in args.shape:
        bench = Bench(levels(shape))
        async with start_server(args.database) as server, bench.worker(server):
            say(f"{shape}: starting {len(bench.nodes)} plain workflows and two such trees …")
            await bench.start(server)
            gc.freeze()  # a full collection over thousands of workflows takes a second or more
            runs: list[dict[str, float]] = []
            for n in range(args.repetitions + 1):
                runs.append(await bench.run(server, n))
                say_found(shape, n, runs[-1])
        gc.unfreeze()
        results[shape] = medians(runs[1:])
    return results


class Bench:
    """The trees of one shape: children of a node, by level."""

    def __init__(self, shape: list[int]) -> None:
        self._shape = shape
        self.nodes = list(ids("ours", shape))
        self._hand = list(ids("hand", shape))
        self._plain = [f"plain-{n}" for n in range(len(self.nodes))]

    def worker(self, server: Server) -> Worker:
        return Worker(
            server.ours,
            task_queue=QUEUE,
            workflows=[Plain, ByHand, Node],
            max_cached_workflows=4 * len(self.nodes) + 100,
        )

    async def start(self, server: Server) -> None:
        """Start the plain workflows and both trees."""
        client = server.ours
        await each(
            self._plain, lambda id: client.start_workflow(Plain.run, id=id, task_queue=QUEUE)
        )
        await timed(
            [f"{node} started" for node in self.nodes],
            lambda: server.start_ours(Node.run, [self._shape], self.nodes[0], QUEUE),
        )
        await timed(
            [f"{node} started" for node in self._hand],
            lambda: client.start_workflow(
                ByHand.run, self._shape, id=self._hand[0], task_queue=QUEUE
            ),
        )

    async def run(self, server: Server, number: int) -> dict[str, float]:
        """One repetition, with times in seconds; 0 is the one that is left out."""
        client, tokens, root = server.ours, server.tokens, self.nodes[0]

        async def tell(workflow_id: str) -> None:
            await client.get_workflow_handle(workflow_id).signal("tell", MESSAGE)

        async def rotate() -> None:
            tree = await tokens.rotate(root, f"r-{number}", timeout=arrivals.PATIENCE_SECONDS)
            if len(tree.nodes) != len(self.nodes):
                raise RuntimeError(f"{len(tree.nodes)} nodes were seen, not {len(self.nodes)}")

        found = {"limit": await timed(self._plain, lambda: each(self._plain, tell))}
        if number == 1 or len(self.nodes) <= MANY:
            found["by hand"] = await timed(self._hand, lambda: tell(self._hand[0]))
        found["set"], found["signal"] = await asyncio.gather(
            timed(self.nodes, lambda: tokens.set(root, f"t-{number}")),
            signal_meanwhile(client, root),
        )
        begun = time.perf_counter()
        await rotate()
        found["rotate"] = time.perf_counter() - begun
        kinds = [kind for kind in ("by hand", "set", "rotate") if kind in found]
        return found | {f"{kind} / limit": found[kind] / found["limit"] for kind in kinds}


async def each(workflow_ids: Iterable[str], act: Callable[[str], Awaitable[object]]) -> None:
    """Act on each, as many at once as our telling does."""
    await at_most(MAX_CONCURRENT_SIGNALS, map(act, workflow_ids))


async def signal_meanwhile(client: Client, root: str) -> float:
    """Seconds in which a user's signal to the root is handled while children are told."""
    await asyncio.sleep(0.1)
    begun = time.time()
    await client.get_workflow_handle(root).signal(Node.note)
    while (handled := arrivals.last(f"{root} noted")) < begun:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return handled - begun
