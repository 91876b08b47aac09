"""What a storm of rotations does to a tree: one every 50 ms, whether the last has arrived or not.

On one embedded server with its database in a file, with a worker in a process of its own.
Each version is signalled to the root. What is looked for: the versions coalesce, so that
there are fewer fan-outs than versions and fewer at each level down; the tree converges to
the last one; and what the storm leaves in the histories of the root, a child and a leaf.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from processes import cpu_seconds, resident_bytes, server_pid, start_worker
from report import arguments, publish, say, table
from shapes import ids
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from trees import history, start_tree

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine

ROOT, QUEUE = "storm", "storm"
SHAPE, QUICK_SHAPE = [10, 10], [3, 3]
FANOUT = (EventType.EVENT_TYPE_MARKER_RECORDED, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)


async def measure(shape: list[int], every: float, seconds: float, folder: Path) -> dict[str, Any]:
    keyring = Keyring.generate()
    keyring.save(folder / "keyring.json")
    async with start_engine(db=folder / "temporal.db", ui=False) as engine:
        client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        tokens = TokenClient(client, keyring)
        async with start_worker(engine.address, QUEUE, folder / "keyring.json") as worker:
            await worker.timed(
                [f"{node} started" for node in ids(ROOT, shape)],
                lambda: start_tree(tokens, shape, ROOT, QUEUE),
            )
            looked_at = {"root": ROOT, "child": f"{ROOT}-0", "leaf": f"{ROOT}-0-0"}
            pids = {"worker": worker.pid, "server": server_pid(engine.address)}
            before = {name: await look(client, at) for name, at in looked_at.items()}
            cpu = {name: cpu_seconds(pid) for name, pid in pids.items()}
            memory = resident_bytes(worker.pid)
            say(f"a rotation every {1000 * every:g} ms …")
            rotations = round(seconds / every)
            blown = await storm(client, tokens, keyring, every, rotations)
            begun = time.perf_counter()
            tree = await tokens.rotate(ROOT, "the last", timeout=120)
            settled = time.perf_counter() - begun
            after = {name: await look(client, at) for name, at in looked_at.items()}
            grown = {
                name: [new - old for new, old in zip(after[name], before[name], strict=True)]
                for name in looked_at
            }
            return {
                "nodes": len(tree.nodes),
                "rotations": rotations + 1,
                "storm_s": round(blown, 2),
                "last_rotation_s": round(settled, 2),
                "grown": {
                    name: dict(zip(("events", "bytes", "fanouts"), figures, strict=True))
                    for name, figures in grown.items()
                },
                "cpu_s": {
                    name: round(cpu_seconds(pid) - cpu[name], 1) for name, pid in pids.items()
                },
                "worker_mb_more": round((resident_bytes(worker.pid) - memory) / 1e6, 1),
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


async def look(client: Client, workflow_id: str) -> tuple[int, int, int]:
    """Events, bytes and fan-outs of a workflow."""
    events = (await client.get_workflow_handle(workflow_id).fetch_history()).events
    fanouts = sum(event.event_type in FANOUT for event in events)
    return *await history(client, workflow_id), fanouts


async def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--every", type=float, default=0.05, help="seconds; default %(default)s")
    parser.add_argument("--seconds", type=float, default=30.0, help="default %(default)s")
    args = parser.parse_args()
    shape, seconds = (QUICK_SHAPE, 1.0) if args.quick else (SHAPE, args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        result = await measure(shape, args.every, seconds, Path(folder))
    rotations = result["rotations"]
    cpu = ", ".join(f"{name} {used} s" for name, used in result["cpu_s"].items())
    found = table(
        f"{rotations} rotations of {result['nodes']} nodes, signalled in {result['storm_s']} s; "
        f"the last converged in {result['last_rotation_s']} s\n"
        f"(CPU: {cpu}; the worker has {result['worker_mb_more']} MB more)",
        ["", "fan-outs", "events", "bytes", "events a rotation"],
        [
            [
                name,
                *(str(grown[figure]) for figure in ("fanouts", "events", "bytes")),
                f"{grown['events'] / rotations:.1f}",
            ]
            for name, grown in result["grown"].items()
        ],
    )
    publish("storm", result, [], [found], args)


if __name__ == "__main__":
    asyncio.run(main())
