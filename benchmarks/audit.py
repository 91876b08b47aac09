"""What the audit trail costs: activities that open a token, with the file sink and without.

In one run on one embedded server, interleaved: the same workflow runs as many activities on
a worker that keeps no record and on one that writes every event to a file, under the rule
that nothing is opened without its record. Each activity opens its token and does nothing
else, so that what is seen is the most that the record can cost.

The ratio is the median of the repetitions' own ratios; the first repetition is left out.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from activities import Opening, open_token
from report import arguments, publish, say, table
from temporalio.client import Client
from temporalio.worker import Worker
from trees import URL

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.audit import AuditFile
from stateful_workflow.engine import EmbeddedEngine, start_engine


async def measure(activities: int, repetitions: int, folder: Path) -> dict[str, Any]:
    keyring = Keyring.generate()
    with AuditFile(folder / "audit.jsonl") as record:
        async with start_engine(db=folder / "temporal.db", ui=False) as engine:
            without = await connect(engine, StatefulPlugin(keyring))
            recorded = await connect(engine, StatefulPlugin(keyring, audit=record))
            async with worker(without, "without"), worker(recorded, "recorded"):
                runs: list[dict[str, float]] = []
                for n in range(repetitions + 1):
                    seconds = {
                        queue: await timed(TokenClient(client, keyring), queue, n, activities)
                        for queue, client in (("without", without), ("recorded", recorded))[
                            :: 1 if n % 2 else -1
                        ]
                    }
                    say(
                        f"  {n}: without {seconds['without']:.3f} s, "
                        f"recorded {seconds['recorded']:.3f} s"
                    )
                    if n > 0:
                        runs.append(seconds)
    ratios = [run["recorded"] / run["without"] for run in runs]
    return {
        "activities": activities,
        "repetitions": repetitions,
        "median_s": {
            name: round(statistics.median(run[name] for run in runs), 4)
            for name in ("without", "recorded")
        },
        "recorded_to_without": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }


async def connect(engine: EmbeddedEngine, plugin: StatefulPlugin) -> Client:
    return await Client.connect(engine.address, plugins=[plugin])


def worker(client: Client, queue: str) -> Worker:
    return Worker(client, task_queue=queue, workflows=[Opening], activities=[open_token])


async def timed(tokens: TokenClient, queue: str, number: int, activities: int) -> float:
    """Seconds in which a workflow has all its activities run."""
    begun = time.perf_counter()
    handle = await tokens.start_workflow(
        Opening.run,
        activities,
        id=f"{queue}-{number}",
        task_queue=queue,
        api_token="t",
        api_url=URL,
    )
    await asyncio.wait_for(handle.result(), 300)
    return time.perf_counter() - begun


async def main() -> None:
    parser = arguments(__doc__, repetitions=5)
    parser.add_argument("--activities", type=int, default=1000)
    args = parser.parse_args()
    activities, repetitions = (50, 1) if args.quick else (args.activities, args.repetitions)
    with tempfile.TemporaryDirectory() as folder:
        result = await measure(activities, repetitions, Path(folder))
    median = result["median_s"]
    ratio = f"{result['recorded_to_without']:.2f} ({result['lowest']:.2f}–{result['highest']:.2f})"
    found = table(
        f"{activities} activities that open a token: s",
        ["", "without a record", "with the file", "ratio"],
        [["seconds", f"{median['without']:.3f}", f"{median['recorded']:.3f}", ratio]],
    )
    publish("audit", result, [], [found], args)


if __name__ == "__main__":
    asyncio.run(main())
