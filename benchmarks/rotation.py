"""How long a rotation takes to reach a tree, against what the engine needs at least.

In one run on one embedded server, interleaved, each of several times:

- *limit*: a plain client signals as many unrelated plain workflows, as many at once as our
  fan-out, until the last handler has run;
- *by hand*: a tree of plain workflows of the same shape, each signalling its children from
  workflow code with ``asyncio.gather``, unsealed;
- *set*: `TokenClient.set` at the root, until the last node holds the version, counted in the
  worker, with everything on: sealed, verified at every node, sandbox as users run it;
- *rotate*: `TokenClient.rotate`, from the call to "converged".

Beside them: what one rotation adds to the root's history, and how long a user's signal at
the root waits while the tree is being told. Ratios are medians of the repetitions' own
ratios; the first repetition is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arrivals
from temporalio.client import Client
from temporalio.worker import Worker
from workflows import ByHand, Node, Plain

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine
from stateful_workflow.forwarding import MAX_CONCURRENT_SIGNALS

QUEUE = "bench"
URL = "https://api.example.com"
PATIENCE_SECONDS = 300.0
MESSAGE = "x" * 1200  # about what a sealed token weighs

SHAPES: dict[str, list[int]] = {
    "1+500": [500],
    "10×10×10": [10, 10, 10],
    "chain of 50": [1] * 49,
    "1+1900": [1900],
}


@dataclass(frozen=True)
class Run:
    """Seconds of one repetition, and what its `set` added to the root's history."""

    limit: float
    by_hand: float
    set: float
    rotate: float
    signal: float
    events: int
    bytes: int


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ids(root: str, shape: list[int]) -> Iterator[str]:
    """The workflow ids of a tree, level by level below the root."""
    yield root
    if shape:
        for n in range(shape[0]):
            yield from ids(f"{root}-{n}", shape[1:])


class Bench:
    """One shape on one server.

    Args:
        client: with the plugin.
        tokens: sets the tree's token.
        shape: children of each node, by level.
        name: of the shape; workflow ids begin with it.
    """

    def __init__(self, client: Client, tokens: TokenClient, shape: list[int], name: str) -> None:
        self._client = client
        self._tokens = tokens
        self._shape = shape
        self.nodes = list(ids(f"{name}-ours", shape))
        self._hand = list(ids(f"{name}-hand", shape))
        self._plain = [f"{name}-plain-{n}" for n in range(len(self.nodes))]
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_SIGNALS)

    async def start(self) -> None:
        """Start the plain workflows and both trees."""
        await asyncio.gather(*[self._start_plain(workflow_id) for workflow_id in self._plain])
        for run, root in ((Node.run, self.nodes[0]), (ByHand.run, self._hand[0])):
            expected = self.nodes if run is Node.run else self._hand
            arrivals.expect({f"{node} started" for node in expected})
            if run is Node.run:
                await self._tokens.start_workflow(
                    run, self._shape, id=root, task_queue=QUEUE, api_token="t", api_url=URL
                )
            else:
                await self._client.start_workflow(run, self._shape, id=root, task_queue=QUEUE)
            await asyncio.to_thread(arrivals.wait, PATIENCE_SECONDS)

    async def _start_plain(self, workflow_id: str) -> None:
        async with self._slots:
            await self._client.start_workflow(Plain.run, id=workflow_id, task_queue=QUEUE)

    async def run(self, number: int) -> Run:
        """One repetition."""
        limit = await timed(set(self._plain), self._tell_plain)
        by_hand = await timed(set(self._hand), self._tell_hand)
        before = await self._history()
        ours, signal = await asyncio.gather(
            timed(set(self.nodes), lambda: self._tokens.set(self.nodes[0], f"t-{number}")),
            self._signal_meanwhile(),
        )
        after = await self._history()
        begun = time.perf_counter()
        tree = await self._tokens.rotate(self.nodes[0], f"r-{number}", timeout=PATIENCE_SECONDS)
        rotate = time.perf_counter() - begun
        if len(tree.nodes) != len(self.nodes):
            raise RuntimeError(f"{len(tree.nodes)} nodes were seen, not {len(self.nodes)}")
        return Run(limit, by_hand, ours, rotate, signal, after[0] - before[0], after[1] - before[1])

    async def _tell(self, workflow_id: str) -> None:
        async with self._slots:
            await self._client.get_workflow_handle(workflow_id).signal(Plain.tell, MESSAGE)

    async def _tell_plain(self) -> None:
        await asyncio.gather(*[self._tell(workflow_id) for workflow_id in self._plain])

    async def _tell_hand(self) -> None:
        await self._tell(self._hand[0])

    async def _signal_meanwhile(self) -> float:
        """Seconds in which a user's signal to the root is handled while children are told."""
        handle = self._client.get_workflow_handle(self.nodes[0])
        await asyncio.sleep(0.1)
        begun = time.time()
        await handle.signal(Node.note)
        give_up = begun + PATIENCE_SECONDS
        while (handled := arrivals.last(f"{self.nodes[0]} noted")) < begun:
            if time.time() > give_up:
                raise TimeoutError("the signal was not handled")
            await asyncio.sleep(0.01)
        return handled - begun

    async def _history(self) -> tuple[int, int]:
        described = await self._client.get_workflow_handle(self.nodes[0]).describe()
        info = described.raw_description.workflow_execution_info
        return info.history_length, info.history_size_bytes


async def timed(reached: set[str], act: Callable[[], Awaitable[object]]) -> float:
    """Seconds from the call until the last of these workflows has run its handler."""
    arrivals.expect(reached)
    begun = time.perf_counter()
    acting = asyncio.ensure_future(act())
    await asyncio.to_thread(arrivals.wait, PATIENCE_SECONDS)
    seconds = time.perf_counter() - begun
    await acting
    return seconds


async def measure(names: list[str], repetitions: int, db: Path | None) -> list[dict[str, Any]]:
    keyring = Keyring.generate()
    results: list[dict[str, Any]] = []
    for name in names:
        nodes = 1 + sum(math.prod(SHAPES[name][:n]) for n in range(1, len(SHAPES[name]) + 1))
        file = None if db is None else db.with_name(f"{len(results)}.db")
        async with start_engine(db=file, ui=False) as engine:
            client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
            async with Worker(
                client,
                task_queue=QUEUE,
                workflows=[Plain, ByHand, Node],
                max_cached_workflows=4 * nodes + 100,
            ):
                bench = Bench(
                    client, TokenClient(client, keyring), SHAPES[name], f"s{len(results)}"
                )
                say(f"{name}: starting {nodes} plain workflows and two trees of as many …")
                await bench.start()
                runs: list[Run] = []
                for n in range(repetitions + 1):
                    run = await bench.run(n)
                    say(
                        f"  {n}: limit {run.limit:.3f} s, by hand {run.by_hand:.3f} s, "
                        f"set {run.set:.3f} s, rotate {run.rotate:.3f} s"
                    )
                    if n > 0:
                        runs.append(run)
        results.append(summary(name, nodes, runs, "memory" if db is None else "file"))
    return results


def summary(name: str, nodes: int, runs: list[Run], database: str) -> dict[str, Any]:
    def median(of: Callable[[Run], float]) -> float:
        return round(statistics.median(of(run) for run in runs), 3)

    return {
        "shape": name,
        "nodes": nodes,
        "database": database,
        "repetitions": len(runs),
        "limit_s": median(lambda run: run.limit),
        "by_hand_s": median(lambda run: run.by_hand),
        "set_s": median(lambda run: run.set),
        "rotate_s": median(lambda run: run.rotate),
        "by_hand_to_limit": median(lambda run: run.by_hand / run.limit),
        "set_to_limit": median(lambda run: run.set / run.limit),
        "rotate_to_limit": median(lambda run: run.rotate / run.limit),
        "set_to_by_hand": median(lambda run: run.set / run.by_hand),
        "signal_s": median(lambda run: run.signal),
        "slowest_signal_s": round(max(run.signal for run in runs), 3),
        "root_events": median(lambda run: run.events),
        "root_bytes": median(lambda run: run.bytes),
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=SHAPES, action="append", help="repeatable; else all")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--memory", action="store_true", help="no database file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        db = None if args.memory else Path(folder) / "temporal.db"
        results = await measure(args.shape or list(SHAPES), args.repetitions, db)
    if args.json:
        print(json.dumps(results))
        return
    print(f"database in {results[0]['database']}; medians; ratios to the limit in brackets")
    for r in results:
        print(
            f"{r['shape']:12} limit {r['limit_s']:7.3f} s"
            f"  by hand {r['by_hand_s']:7.3f} s ({r['by_hand_to_limit']:.2f})"
            f"  set {r['set_s']:7.3f} s ({r['set_to_limit']:.2f})"
            f"  rotate {r['rotate_s']:7.3f} s ({r['rotate_to_limit']:.2f})"
            f"  set/by hand {r['set_to_by_hand']:.2f}"
            f"  root +{r['root_events']:.0f} events, +{r['root_bytes']:.0f} bytes"
            f"  a signal meanwhile {r['signal_s']:.2f} s"
        )


if __name__ == "__main__":
    asyncio.run(main())
