"""What the audit trail costs: activities that open a token, with the file sink and without.

In one run on one embedded server, interleaved: the same workflow runs as many activities on
a worker that keeps no record and on one that writes every event to a file, under the rule
that nothing is opened without its record. Each activity opens its token and does nothing
else, so that what is seen is the most that the record can cost.

The ratio is the median of the repetitions' own ratios; the first repetition is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from activities import Opening, open_token
from temporalio.client import Client
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.audit import AuditFile
from stateful_workflow.engine import EmbeddedEngine, start_engine

URL = "https://api.example.com"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--activities", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = await measure(args.activities, args.repetitions, Path(folder))
    if args.json:
        print(json.dumps(result))
        return
    median = result["median_s"]
    print(f"{args.activities} activities that open a token, medians")
    print(f"  without a record  {median['without']:8.3f} s")
    print(
        f"  with the file     {median['recorded']:8.3f} s"
        f"   {result['recorded_to_without']:.3f} × ({result['lowest']} to {result['highest']})"
    )


if __name__ == "__main__":
    asyncio.run(main())
