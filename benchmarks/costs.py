"""What one rotation costs for each node: processor time, calls, time, events and bytes.

On one embedded server with its database in a file, with one worker of one process. Each
figure is the median of some rotations, divided by the nodes; the first rotation is left out.
What one signal costs by itself is measured with workflows that no worker runs. The figures
are what `simulation.py` is fed with.
"""

from __future__ import annotations

import asyncio
import collections
import statistics
import tempfile
import time
from pathlib import Path

from processes import cpu_seconds, server_pid
from report import arguments, publish, say, table
from rich.table import Table
from rotation import MESSAGE, QUEUE, URL, timed
from shapes import QUICK_SHAPES, SHAPES, SHAPES_OF_THE_BARS, ids
from temporalio.client import Client
from temporalio.runtime import MetricBuffer, Runtime, TelemetryConfig
from temporalio.worker import Worker
from workflows import Node, Plain

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine
from stateful_workflow.forwarding import MAX_CONCURRENT_SIGNALS

REST_SECONDS = 1.0
"""What is left to do when the last node has the version is done in this time."""

ROOT = "r"
A_SIGNAL = "a signal"


async def of_signals(client: Client, server: int, number: int) -> dict[str, float]:
    """Milliseconds of one signal to a workflow that no worker runs, many at once."""
    slots = asyncio.Semaphore(MAX_CONCURRENT_SIGNALS)

    async def start(n: int) -> None:
        async with slots:
            await client.start_workflow(Plain.run, id=f"plain-{n}", task_queue="nobody")

    async def tell(n: int) -> None:
        async with slots:
            await client.get_workflow_handle(f"plain-{n}").signal(Plain.tell, MESSAGE)

    await asyncio.gather(*[start(n) for n in range(number)])
    await asyncio.sleep(REST_SECONDS)
    ours, servers, begun = time.process_time(), cpu_seconds(server), time.perf_counter()
    await asyncio.gather(*[tell(n) for n in range(number)])
    seconds = time.perf_counter() - begun
    return {
        "ms": round(1000 * seconds / number, 2),
        "client_cpu_ms": round(1000 * (time.process_time() - ours) / number, 2),
        "server_cpu_ms": round(1000 * (cpu_seconds(server) - servers) / number, 2),
    }


async def of_rotations(
    client: Client, tokens: TokenClient, server: int, name: str, rotations: int, calls: MetricBuffer
) -> dict[str, float]:
    """What a rotation of a tree costs for each node."""
    nodes = list(ids(ROOT, SHAPES[name]))
    looked_at = {"root": nodes[0], "leaf": nodes[-1]}
    await timed(
        {f"{node} started" for node in nodes},
        lambda: tokens.start_workflow(
            Node.run, SHAPES[name], id=ROOT, task_queue=QUEUE, api_token="t", api_url=URL
        ),
    )
    runs: list[dict[str, float]] = []
    for number in range(rotations + 1):
        await asyncio.sleep(REST_SECONDS)
        requests(calls)
        before = {where: await history(client, at) for where, at in looked_at.items()}
        ours, servers = time.process_time(), cpu_seconds(server)
        seconds = await timed(set(nodes), lambda: tokens.set(ROOT, f"t-{number}"))  # noqa: B023
        await asyncio.sleep(REST_SECONDS)
        run = {
            "s": seconds,
            "ms": 1000 * seconds / len(nodes),
            "worker_cpu_ms": 1000 * (time.process_time() - ours) / len(nodes),
            "server_cpu_ms": 1000 * (cpu_seconds(server) - servers) / len(nodes),
            **{call: made / len(nodes) for call, made in requests(calls).items()},
        }
        for where, at in looked_at.items():
            events, size = await history(client, at)
            run[f"{where}_events"] = events - before[where][0]
            run[f"{where}_bytes"] = size - before[where][1]
        say(f"  {name}, {number} of {rotations}: {run['s']:.2f} s")
        if number > 0:
            runs.append(run)
    figures = sorted({figure for run in runs for figure in run})
    return {"nodes": len(nodes)} | {
        figure: round(statistics.median(run.get(figure, 0) for run in runs), 3)
        for figure in figures
    }


def requests(calls: MetricBuffer) -> dict[str, int]:
    """How many calls of each kind the SDK has made since it was last asked."""
    made: collections.Counter[str] = collections.Counter()
    for update in calls.retrieve_updates():
        if update.metric.name in ("temporal_request", "temporal_long_request"):
            made[f"calls_{update.attributes['operation']}"] += int(update.value)
    return dict(made)


async def history(client: Client, workflow_id: str) -> tuple[int, int]:
    """Events and bytes of a workflow."""
    described = await client.get_workflow_handle(workflow_id).describe()
    info = described.raw_description.workflow_execution_info
    return info.history_length, info.history_size_bytes


async def measure(
    shapes: list[str], rotations: int, signals: int, folder: Path
) -> dict[str, dict[str, float]]:
    keyring = Keyring.generate()
    calls = MetricBuffer(1_000_000)
    runtime = Runtime(telemetry=TelemetryConfig(metrics=calls))
    results: dict[str, dict[str, float]] = {}
    for name in [A_SIGNAL, *shapes]:
        async with start_engine(db=folder / f"{name}.db", ui=False) as engine:
            client = await Client.connect(
                engine.address, plugins=[StatefulPlugin(keyring)], runtime=runtime
            )
            server = server_pid(engine.address)
            if name == A_SIGNAL:
                results[name] = await of_signals(client, server, signals)
                continue
            tokens = TokenClient(client, keyring)
            async with Worker(
                client, task_queue=QUEUE, workflows=[Node], max_cached_workflows=10_000
            ):
                results[name] = await of_rotations(client, tokens, server, name, rotations, calls)
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
