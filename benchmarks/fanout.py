"""How long a rotation takes to reach 1+500 workflows, against what the engine needs at least.

In one run on one embedded server, interleaved, each of several times:

- *limit*: a plain client signals as many unrelated plain workflows, as many at once as our
  fan-out, until the last handler has run;
- *set*: `TokenClient.set` at the root, until the last node holds the version, counted in the
  worker, with everything on: sealed, verified at every node, sandbox as users run it;
- *rotate*: `TokenClient.rotate`, from the call to "converged".

Ratios are medians of the repetitions' own ratios; the first repetition is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import arrivals
from temporalio.client import Client
from temporalio.worker import Worker
from workflows import Leaf, Plain, Root

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine
from stateful_workflow.forwarding import MAX_CONCURRENT_SIGNALS

QUEUE = "bench"
URL = "https://api.example.com"
PATIENCE_SECONDS = 120.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def timed(reached: set[str], act: Callable[[], Awaitable[object]]) -> float:
    """Seconds from the call until the last of these workflows has run its handler."""
    arrivals.expect(reached)
    begun = time.perf_counter()
    acting = asyncio.create_task(_run(act))
    await asyncio.to_thread(arrivals.wait, PATIENCE_SECONDS)
    seconds = time.perf_counter() - begun
    await acting
    return seconds


async def _run(act: Callable[[], Awaitable[object]]) -> object:
    return await act()


async def measure(children: int, repetitions: int, db: Path | None) -> dict[str, Any]:
    keyring = Keyring.generate()
    async with start_engine(db=db, ui=False) as engine:
        client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        tokens = TokenClient(client, keyring)
        async with Worker(
            client,
            task_queue=QUEUE,
            workflows=[Plain, Root, Leaf],
            max_cached_workflows=4 * children + 100,
        ):
            plain = [f"plain-{n}" for n in range(children + 1)]
            nodes = {"root", *(f"root-{n}" for n in range(children))}
            say(f"starting {len(plain)} plain workflows and a tree of {len(nodes)} …")
            for workflow_id in plain:
                await client.start_workflow(Plain.run, id=workflow_id, task_queue=QUEUE)
            arrivals.expect({"root-started"})
            await tokens.start_workflow(
                Root.run, children, id="root", task_queue=QUEUE, api_token="t-0", api_url=URL
            )
            await asyncio.to_thread(arrivals.wait, PATIENCE_SECONDS)

            slots = asyncio.Semaphore(MAX_CONCURRENT_SIGNALS)
            message = "x" * 1200  # about what a sealed token weighs

            async def tell(workflow_id: str) -> None:
                async with slots:
                    await client.get_workflow_handle(workflow_id).signal(Plain.tell, message)

            async def tell_all() -> None:
                await asyncio.gather(*[tell(workflow_id) for workflow_id in plain])

            runs: list[dict[str, float]] = []
            for n in range(repetitions + 1):
                limit = await timed(set(plain), tell_all)
                ours = await timed(nodes, lambda n=n: tokens.set("root", f"t-{n}-set"))
                begun = time.perf_counter()
                tree = await tokens.rotate("root", f"t-{n}-rotate", timeout=PATIENCE_SECONDS)
                rotate = time.perf_counter() - begun
                if len(tree.nodes) != len(nodes):
                    raise RuntimeError(f"{len(tree.nodes)} nodes were seen, not {len(nodes)}")
                say(f"  {n}: limit {limit:.3f} s, set {ours:.3f} s, rotate {rotate:.3f} s")
                if n > 0:
                    runs.append({"limit": limit, "set": ours, "rotate": rotate})
    return {
        "database": "memory" if db is None else "file",
        "nodes": children + 1,
        "repetitions": repetitions,
        "median_s": {
            name: round(statistics.median(run[name] for run in runs), 4)
            for name in ("limit", "set", "rotate")
        },
        "set_to_limit": round(statistics.median(r["set"] / r["limit"] for r in runs), 3),
        "rotate_to_limit": round(statistics.median(r["rotate"] / r["limit"] for r in runs), 3),
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--children", type=int, default=500)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--memory", action="store_true", help="no database file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        db = None if args.memory else Path(folder) / "temporal.db"
        result = await measure(args.children, args.repetitions, db)
    if args.json:
        print(json.dumps(result))
        return
    median = result["median_s"]
    print(f"1+{args.children} workflows, database in {result['database']}, medians")
    print(f"  signal as many plain workflows  {median['limit']:8.3f} s")
    print(
        f"  set, until the last node holds  {median['set']:8.3f} s"
        f"   {result['set_to_limit']:.2f} × the limit"
    )
    print(
        f"  rotate, until converged         {median['rotate']:8.3f} s"
        f"   {result['rotate_to_limit']:.2f} × the limit"
    )


if __name__ == "__main__":
    asyncio.run(main())
