"""What one rotation costs for each node: processor time, calls, time, events and bytes.

On one embedded server with its database in a file, with one worker in a process of its own.
Each figure is the median of some rotations, divided by the nodes; the first rotation is left
out. What the processes use while idle is taken off. What one signal costs by itself is measured
with workflows that no worker runs.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from processes import SETTLE_SECONDS, Meter, WorkerProcess, server_pid, start_worker
from report import arguments, publish, say, table
from rich.table import Table
from shapes import QUICK_SHAPES, SHAPES, SHAPES_OF_THE_BARS, ids
from temporalio.client import Client
from trees import history, start_plain, start_tree, tell_plain

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine

ROOT, QUEUE = "r", "costs"
A_SIGNAL = "a signal"


async def of_signals(client: Client, server: int, number: int) -> dict[str, float]:
    """Milliseconds of one signal to a workflow that no worker runs, many at once."""
    plain = [f"plain-{n}" for n in range(number)]

    async def tell() -> float:
        begun = time.perf_counter()
        await tell_plain(client, plain)
        return time.perf_counter() - begun

    await start_plain(client, plain, "nobody")
    await asyncio.sleep(SETTLE_SECONDS)
    meter = Meter({"client": [os.getpid()], "server": [server]})
    await meter.rest()
    seconds, used = await meter.busy(tell)
    return {"ms": round(1000 * seconds / number, 2)} | {
        f"{name}_cpu_ms": round(1000 * busy / number, 2) for name, busy in used.items()
    }


async def of_rotations(
    tokens: TokenClient, client: Client, worker: WorkerProcess, server: int, name: str, number: int
) -> dict[str, float]:
    """What a rotation of a tree costs for each node."""
    nodes = list(ids(ROOT, SHAPES[name]))
    looked_at = {"root": nodes[0], "leaf": nodes[-1]}
    await worker.timed(
        [f"{node} started" for node in nodes],
        lambda: start_tree(tokens, SHAPES[name], ROOT, QUEUE),
    )
    await asyncio.sleep(SETTLE_SECONDS)
    meter = Meter({"worker": [worker.pid], "server": [server]})
    await meter.rest()
    runs: list[dict[str, float]] = []
    for n in range(number + 1):
        before = {where: await history(client, at) for where, at in looked_at.items()}
        await worker.calls()
        seconds, used = await meter.busy(
            lambda: worker.timed(nodes, lambda: tokens.set(ROOT, f"t-{n}"))  # noqa: B023
        )
        calls = await worker.calls()
        run = {
            "s": seconds,
            "ms": 1000 * seconds / len(nodes),
            **{f"{whose}_cpu_ms": 1000 * busy / len(nodes) for whose, busy in used.items()},
            **{f"calls_{call}": made / len(nodes) for call, made in calls.items()},
        }
        for where, at in looked_at.items():
            events, size = await history(client, at)
            run[f"{where}_events"] = events - before[where][0]
            run[f"{where}_bytes"] = size - before[where][1]
        say(f"  {name}, {n} of {number}: {seconds:.2f} s")
        if n > 0:
            runs.append(run)
    figures = sorted({figure for run in runs for figure in run})
    return {"nodes": len(nodes)} | {
        figure: round(statistics.median(run.get(figure, 0) for run in runs), 3)
        for figure in figures
    }


async def measure(
    shapes: list[str], rotations: int, signals: int, folder: Path
) -> dict[str, dict[str, float]]:
    keyring = Keyring.generate()
    file = folder / "keyring.json"
    keyring.save(file)
    results: dict[str, dict[str, float]] = {}
    for name in [A_SIGNAL, *shapes]:
        async with start_engine(db=folder / f"{name}.db", ui=False) as engine:
            client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
            server = server_pid(engine.address)
            if name == A_SIGNAL:
                results[name] = await of_signals(client, server, signals)
                continue
            tokens = TokenClient(client, keyring)
            async with start_worker(engine.address, QUEUE, file, counts_calls=True) as worker:
                results[name] = await of_rotations(tokens, client, worker, server, name, rotations)
    return results


def found(results: dict[str, dict[str, float]]) -> Table:
    """A column a shape, a line a figure."""
    figures = list(dict.fromkeys(figure for result in results.values() for figure in result))
    return table(
        "One rotation; what is not of the root or the leaf is for each node",
        ["", *results],
        [
            [
                figure,
                *(f"{result[figure]:g}" if figure in result else "" for result in results.values()),
            ]
            for figure in figures
        ],
    )


async def main() -> None:
    parser = arguments(__doc__, repetitions=5)
    parser.add_argument(
        "--shape", choices=SHAPES, action="append", help="repeatable; else the four of the bars"
    )
    args = parser.parse_args()
    shapes = args.shape or (QUICK_SHAPES if args.quick else SHAPES_OF_THE_BARS)
    rotations, signals = (1, 50) if args.quick else (args.repetitions, 1000)
    with tempfile.TemporaryDirectory() as folder:
        results = await measure(shapes, rotations, signals, Path(folder))
    publish("costs", results, [], [found(results)], args)


if __name__ == "__main__":
    asyncio.run(main())
