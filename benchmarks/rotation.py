"""How long a rotation takes to reach a tree, against what the engine needs at least.

With the database in a file and in memory, both servers up at once and taking turns, each of
these in every repetition:

- *limit*: a plain client signals as many unrelated plain workflows, as many at once as our
  telling, until the last handler has run;
- *by hand*: a tree of plain workflows of the same shape, each signalling its children from
  workflow code with ``asyncio.gather``, unsealed. Of a tree with more than `MANY` nodes it runs
  in the first counted repetition only;
- *loop*: the same, but each child awaited before the next. It is slow, so it runs in the
  first counted repetition, and in more only where the tree is small;
- *set*: `TokenClient.set` at the root, until the last node holds the version, counted in the
  worker, with everything on: sealed, verified at every node, sandbox as users run it;
- *rotate*: `TokenClient.rotate`, from the call to "converged".

Beside them: what one rotation adds to the root's history, and how long a user's signal at
the root waits while the tree is being told. Ratios are medians of the repetitions' own
ratios; the first repetition is left out.
"""

from __future__ import annotations

import asyncio
import gc
import math
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arrivals
import pictures
from report import Bar, Spread, add_databases, arguments, databases, publish, say, table
from rich.table import Table
from shapes import QUICK_SHAPES, SHAPES, SHAPES_OF_THE_BARS, count, ids
from temporalio.client import Client
from temporalio.worker import Worker
from trees import MESSAGE, history, start_plain, start_tree, tell_plain
from workflows import ByHand, Node, Plain

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine

QUEUE = "bench"
PATIENCE_SECONDS = 300.0

MOST_REPETITIONS = 8
MANY = 1500
"""By hand, each message adds 3,800 events to the history of 1+1900's root; with some 17,000 it was
seen to take longer to replay than the SDK lets a task run.
"""
LOOPED_NODES = 500
"""A loop takes about 0.1 s a child, so that one of 1+1900 takes minutes."""


@dataclass(frozen=True)
class Run:
    """Seconds of one repetition, and what its `rotate` added to the root's history.

    `by_hand` and `loop` are None in repetitions without them.
    """

    limit: float
    by_hand: float | None
    loop: float | None
    set: float
    rotate: float
    signal: float
    events: int
    bytes: int


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

    async def start(self) -> None:
        """Start the plain workflows and both trees."""
        await start_plain(self._client, self._plain, QUEUE)
        root, by_hand = self.nodes[0], self._hand[0]
        await timed(
            {f"{node} started" for node in self.nodes},
            lambda: start_tree(self._tokens, self._shape, root, QUEUE),
        )
        await timed(
            {f"{node} started" for node in self._hand},
            lambda: self._client.start_workflow(
                ByHand.run, self._shape, id=by_hand, task_queue=QUEUE
            ),
        )

    async def run(self, number: int) -> Run:
        """One repetition; 0 is the one that is left out."""
        limit = await timed(set(self._plain), lambda: tell_plain(self._client, self._plain))
        by_hand = loop = None
        if number == 1 or len(self.nodes) <= MANY:
            by_hand = await timed(set(self._hand), lambda: self._tell(ByHand.tell))
        if number == 1 or 1 < number <= LOOPED_NODES / len(self.nodes) + 1:
            loop = await timed(set(self._hand), lambda: self._tell(ByHand.tell_in_turn))
        ours, signal = await asyncio.gather(
            timed(set(self.nodes), lambda: self._tokens.set(self.nodes[0], f"t-{number}")),
            self._signal_meanwhile(),
        )
        before = await history(self._client, self.nodes[0])
        begun = time.perf_counter()
        tree = await self._tokens.rotate(self.nodes[0], f"r-{number}", timeout=PATIENCE_SECONDS)
        rotate = time.perf_counter() - begun
        after = await history(self._client, self.nodes[0])
        if len(tree.nodes) != len(self.nodes):
            raise RuntimeError(f"{len(tree.nodes)} nodes were seen, not {len(self.nodes)}")
        return Run(
            limit,
            by_hand,
            loop,
            ours,
            rotate,
            signal,
            after[0] - before[0],
            after[1] - before[1],
        )

    async def _tell(self, handler: Callable[[Any, str], Any]) -> None:
        await self._client.get_workflow_handle(self._hand[0]).signal(handler, MESSAGE)

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


async def timed(reached: set[str], act: Callable[[], Awaitable[object]]) -> float:
    """Seconds from the call until the last of these workflows has run its handler."""
    arrivals.expect(reached)
    begun = time.perf_counter()
    acting = asyncio.ensure_future(act())
    await asyncio.to_thread(arrivals.wait, PATIENCE_SECONDS)
    seconds = time.perf_counter() - begun
    await acting
    return seconds


@asynccontextmanager
async def prepared(
    shape: str, database: str, folder: Path, engine_args: Sequence[str]
) -> AsyncGenerator[Bench, None]:
    """A server with the trees of a shape on it, and their worker in this process."""
    keyring = Keyring.generate()
    db = folder / f"{shape}.db" if database == "file" else None
    async with start_engine(db=db, ui=False, extra_args=engine_args) as engine:
        client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        nodes = count(SHAPES[shape])
        async with Worker(
            client,
            task_queue=QUEUE,
            workflows=[Plain, ByHand, Node],
            max_cached_workflows=4 * nodes + 100,
        ):
            bench = Bench(client, TokenClient(client, keyring), SHAPES[shape], database)
            say(f"{shape}, {database}: starting {nodes} plain workflows and two such trees …")
            await bench.start()
            gc.freeze()  # a full collection over thousands of workflows takes a second or more
            yield bench


async def measure(
    shapes: list[str], repetitions: int, databases: list[str], engine_args: Sequence[str]
) -> list[dict[str, Any]]:
    """A summary for each shape and database."""
    results: list[dict[str, Any]] = []
    for shape in shapes:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            benches = {
                database: await stack.enter_async_context(
                    prepared(shape, database, folder, engine_args)
                )
                for database in databases
            }
            runs: dict[str, list[Run]] = {database: [] for database in databases}
            for n in range(repetitions + 1):
                for database in databases[:: 1 if n % 2 else -1]:
                    run = await benches[database].run(n)
                    by_hand = "" if run.by_hand is None else f"by hand {run.by_hand:.3f} s, "
                    loop = "" if run.loop is None else f"loop {run.loop:.3f} s, "
                    say(
                        f"  {n} of {repetitions}, {database}: limit {run.limit:.3f} s, "
                        f"{by_hand}{loop}set {run.set:.3f} s (a signal {run.signal:.2f} s), "
                        f"rotate {run.rotate:.3f} s, {run.events} events"
                    )
                    if n > 0:
                        runs[database].append(run)
        results += [summary(shape, database, runs[database]) for database in databases]
    return results


def summary(shape: str, database: str, runs: list[Run]) -> dict[str, Any]:
    """Medians of a shape's repetitions, each over those that have the figure."""

    def median(of: Callable[[Run], float | None]) -> float:
        figures = [figure for figure in map(of, runs) if figure is not None]
        return round(statistics.median(figures), 3)

    def ratio(figure: float | None, other: float | None) -> float | None:
        return None if figure is None or other is None else figure / other

    spread = Spread.of([run.set / run.limit for run in runs])
    return {
        "shape": shape,
        "nodes": count(SHAPES[shape]),
        "database": database,
        "repetitions": len(runs),
        "by_hand_repetitions": sum(run.by_hand is not None for run in runs),
        "loop_repetitions": sum(run.loop is not None for run in runs),
        "limit_s": median(lambda run: run.limit),
        "by_hand_s": median(lambda run: run.by_hand),
        "loop_s": median(lambda run: run.loop),
        "set_s": median(lambda run: run.set),
        "rotate_s": median(lambda run: run.rotate),
        "by_hand_to_limit": median(lambda run: ratio(run.by_hand, run.limit)),
        "loop_to_limit": median(lambda run: ratio(run.loop, run.limit)),
        "set_to_limit": median(lambda run: run.set / run.limit),
        "lowest_set_to_limit": round(spread.lowest, 3),
        "highest_set_to_limit": round(spread.highest, 3),
        "rotate_to_limit": median(lambda run: run.rotate / run.limit),
        "set_to_by_hand": median(lambda run: ratio(run.set, run.by_hand)),
        "signal_s": median(lambda run: run.signal),
        "slowest_signal_s": round(max(run.signal for run in runs), 3),
        "root_events": median(lambda run: run.events),
        "root_bytes": median(lambda run: run.bytes),
        "root_events_each_started_second": median(lambda run: run.events / math.ceil(run.set)),
    }


def bars(results: list[dict[str, Any]]) -> list[Bar]:
    """What is wanted of the four shapes."""
    found: list[Bar] = []
    for r in results:
        shape, in_file = r["shape"], r["database"] == "file"
        where = f"{shape}, {r['database']}"
        if shape in ("1+500", "10×10×10"):
            found.append(Bar(f"{where}: set / limit", r["set_to_limit"], 1.1 if in_file else 1.25))
            if in_file:
                found.append(Bar(f"{where}: rotate / limit", r["rotate_to_limit"], 1.8))
        if shape == "chain of 50" and in_file:
            found.append(Bar(f"{where}: set / by hand", r["set_to_by_hand"], 0.5))
        if shape in SHAPES_OF_THE_BARS:
            found.append(
                Bar(
                    f"{where}: root's events each started second",
                    r["root_events_each_started_second"],
                    6,
                )
            )
        if shape == "1+1900":
            found.append(Bar(f"{where}: slowest signal meanwhile, s", r["slowest_signal_s"], 1.5))
    return found


def tables(results: list[dict[str, Any]]) -> list[Table]:
    """Times with their ratios to the limit, and what else was seen."""
    kinds = ("by_hand", "loop", "set", "rotate")
    names = [f"{r['shape']}, {r['database']}" for r in results]
    return [
        table(
            "A rotation: seconds until the last workflow has it (times the limit)",
            ["shape, database", "limit", *(kind.replace("_", " ") for kind in kinds), "runs"],
            [
                [
                    name,
                    f"{r['limit_s']:.3f}",
                    *(f"{r[f'{kind}_s']:.3f} ({r[f'{kind}_to_limit']:.2f})" for kind in kinds),
                    f"{r['repetitions']} (by hand {r['by_hand_repetitions']}, loop "
                    f"{r['loop_repetitions']})",
                ]
                for name, r in zip(names, results, strict=True)
            ],
        ),
        table(
            "A `set`, a user's signal at the root meanwhile, and what `rotate` adds to its history",
            ["shape, database", "set / limit", "set / by hand", "signal, s", "events", "bytes"],
            [
                [
                    name,
                    f"{r['set_to_limit']:.2f} ({r['lowest_set_to_limit']:.2f}–"
                    f"{r['highest_set_to_limit']:.2f})",
                    f"{r['set_to_by_hand']:.2f}",
                    f"{r['signal_s']:.2f} (slowest {r['slowest_signal_s']:.2f})",
                    f"{r['root_events']:.0f}",
                    f"{r['root_bytes']:.0f}",
                ]
                for name, r in zip(names, results, strict=True)
            ],
        ),
    ]


async def main() -> None:
    parser = arguments(__doc__, repetitions=5)
    parser.add_argument(
        "--shape", choices=SHAPES, action="append", help="repeatable; else the four of the bars"
    )
    add_databases(parser)
    parser.add_argument(
        "--engine-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="of `temporal server start-dev`, as --engine-arg=--dynamic-config-value; repeatable",
    )
    args = parser.parse_args()
    if not 1 <= args.repetitions <= MOST_REPETITIONS:
        parser.error(f"--repetitions is 1 to {MOST_REPETITIONS}")
    shapes = args.shape or (QUICK_SHAPES if args.quick else SHAPES_OF_THE_BARS)
    repetitions = 1 if args.quick else args.repetitions
    results = await measure(shapes, repetitions, databases(args), args.engine_arg)
    publish(
        "rotation",
        {"shapes": results, "engine_args": args.engine_arg},
        bars(results),
        tables(results),
        args,
    )
    pictures.draw_rotation(results, args.out)


if __name__ == "__main__":
    asyncio.run(main())
