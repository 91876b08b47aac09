"""What a storm of rotations does to a tree: one every 50 ms, whether the last has arrived or not.

On one embedded server with its database in a file, with a worker in a process of its own.
Each version is signalled to the root. What is looked for: the versions coalesce, so that
there are fewer fan-outs than versions and fewer at each level down; the tree converges to
the last one; and what the storm leaves in the histories of the root, a child and a leaf.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from processes import cpu_seconds, megabytes, server_pid, start_worker
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from trees import count, start_tree, until_all_answer

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine

ROOT = "storm"
FANOUT = (EventType.EVENT_TYPE_MARKER_RECORDED, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)


async def measure(
    shape: list[int], every: float, seconds: float, cached: int, folder: Path
) -> dict[str, Any]:
    nodes = count(shape)
    keyring = Keyring.generate()
    keyring.save(folder / "keyring.json")
    async with start_engine(db=folder / "temporal.db", ui=False) as engine:
        client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        tokens = TokenClient(client, keyring)
        async with start_worker(engine.address, folder / "keyring.json", cached) as worker:
            await start_tree(tokens, ROOT, shape)
            await until_all_answer(tokens, ROOT, nodes)
            looked_at = {"root": ROOT, "child": f"{ROOT}-0", "leaf": f"{ROOT}-0-0"}
            before = {name: await history(client, at) for name, at in looked_at.items()}
            cpu = {"worker": cpu_seconds(worker), "server": cpu_seconds(server_pid())}
            memory = megabytes(worker)
            print(f"a rotation every {1000 * every:g} ms …", file=sys.stderr, flush=True)
            rotations = round(seconds / every)
            blown = await storm(client, tokens, keyring, every, rotations)
            begun = time.perf_counter()
            tree = await tokens.rotate(ROOT, "the last", timeout=120)
            settled = time.perf_counter() - begun
            after = {name: await history(client, at) for name, at in looked_at.items()}
            return {
                "nodes": len(tree.nodes),
                "rotations": rotations + 1,
                "storm_s": round(blown, 2),
                "last_rotation_s": round(settled, 2),
                "fanouts": {name: after[name][2] - before[name][2] for name in looked_at},
                "events": {name: after[name][0] - before[name][0] for name in looked_at},
                "bytes": {name: after[name][1] - before[name][1] for name in looked_at},
                "worker_cpu_s": round(cpu_seconds(worker) - cpu["worker"], 1),
                "server_cpu_s": round(cpu_seconds(server_pid()) - cpu["server"], 1),
                "worker_mb_more": round(megabytes(worker) - memory),
            }


async def storm(
    client: Client, tokens: TokenClient, keyring: Keyring, every: float, rotations: int
) -> float:
    """Signal the root so many new versions, waiting for no node; the seconds it took."""
    held = await tokens.get(ROOT)
    handle = client.get_workflow_handle(ROOT)
    sent: list[asyncio.Task[None]] = []
    begun = time.perf_counter()
    for number in range(rotations):
        await asyncio.sleep(begun + number * every - time.perf_counter())
        claims = replace(held.message.claims, version=held.version + 2 * (number + 1))
        message = keyring.seal(claims, f"t-{number}")
        sent.append(asyncio.create_task(handle.signal("apiToken", message)))
    await asyncio.gather(*sent)
    return time.perf_counter() - begun


async def history(client: Client, workflow_id: str) -> tuple[int, int, int]:
    """Events, bytes and fan-outs of a workflow."""
    handle = client.get_workflow_handle(workflow_id)
    info = (await handle.describe()).raw_description.workflow_execution_info
    events = (await handle.fetch_history()).events
    fanouts = sum(event.event_type in FANOUT for event in events)
    return info.history_length, info.history_size_bytes, fanouts


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", type=int, nargs="+", default=[10, 10])
    parser.add_argument("--every", type=float, default=0.05, help="seconds")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--cached", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = await measure(args.shape, args.every, args.seconds, args.cached, Path(folder))
    if args.json:
        print(json.dumps(result))
        return
    print(
        f"{result['nodes']} nodes, {result['rotations']} rotations, "
        f"signalled in {result['storm_s']} s; "
        f"the last one took {result['last_rotation_s']} s to converge"
    )
    print(
        f"CPU: worker {result['worker_cpu_s']} s, server {result['server_cpu_s']} s; "
        f"the worker has {result['worker_mb_more']} MB more"
    )
    for name, fanouts in result["fanouts"].items():
        print(
            f"{name:6} {fanouts:5} fan-outs  +{result['events'][name]} events "
            f"({result['events'][name] / result['rotations']:.1f} a rotation)"
            f"  +{result['bytes'][name]} bytes"
        )


if __name__ == "__main__":
    asyncio.run(main())
