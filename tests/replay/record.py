"""Record the histories that the replay tests keep: ``python -m tests.replay.record [--new]``.

Runs every scenario on the embedded engine, and writes each run's history to
``histories/<scenario>.<workflow>.<run>.json``. A scenario that has files is left alone,
unless ``--new`` is given: what was recorded once has to replay from then on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

from temporalio.client import Client
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine
from stateful_workflow.messages import parse

from ..server.support import eventually, nodes_run, sealed_at, status_of
from .workflows import ACTIVITIES, WORKFLOWS, Branch, Trunk

HERE: Final = Path(__file__).parent
HISTORIES: Final = HERE / "histories"
KEYRING: Final = HERE / "keyring.json"
URL: Final = "https://api.example.com"
SECRETS: Final = tuple(f"replay-canary-{n}" for n in range(1, 4))


class Scene:
    """A running tree, and what is done to it."""

    def __init__(self, client: Client, first: Keyring, second: Keyring, name: str) -> None:
        self.client = client
        self.tokens = TokenClient(client, first)
        self.keyring = first
        self.second = second
        self.root = name

    async def start(self, branch: Branch, **options: Any) -> None:
        await self.tokens.start_workflow(
            Trunk.run,
            branch,
            id=self.root,
            task_queue="replay",
            api_token=SECRETS[0],
            api_url=URL,
            **options,
        )
        nodes = 1 + sum(kind != "Plain" for kind in branch.children.values())
        await nodes_run(self.tokens, self.root, nodes)

    async def rotate(self, secret: str, at: str = "") -> None:
        await self.tokens.rotate(self.root + at, secret, timeout=30, origins=[URL])

    async def tell(self, at: str, signal: str, *args: Any) -> None:
        await self.client.get_workflow_handle(self.root + at).signal(signal, args=args)

    async def holds(self, at: str, state: str) -> None:
        async def is_so() -> bool:
            status = await self.tokens.status(self.root + at)
            return status is not None and status.state == state

        await eventually(is_so)


async def rotations(scene: Scene) -> None:
    await scene.start(Branch({"a": "Leaf", "w": "Watcher", "x": "Withheld", "p": "Plain"}))
    await scene.rotate(SECRETS[1])
    await scene.tokens.revoke(f"{scene.root}-a")
    await scene.holds("-a", "revoked")
    await scene.tokens.revoke(scene.root)
    await scene.holds("-w", "revoked")
    await scene.rotate(SECRETS[2])
    await scene.tokens.inherit(f"{scene.root}-a")
    await scene.holds("-a", "held")


async def sharing(scene: Scene) -> None:
    await scene.start(Branch({"hard": "Leaf", "soft": "Leaf"}, hard=["hard"]))
    await scene.tell("", "keep_from", "soft")
    await scene.rotate(SECRETS[1])
    await scene.tell("", "give_to", "soft")
    await scene.rotate(SECRETS[1])
    await scene.tokens.set(f"{scene.root}-hard", SECRETS[2], origins=[URL])


async def uses(scene: Scene) -> None:
    await scene.start(Branch({"a": "Leaf"}))
    for at in ("", "-a"):
        await scene.client.get_workflow_handle(scene.root + at).execute_update("use_both_ways")
    await scene.client.get_workflow_handle(scene.root).execute_update("fetch", SECRETS[1][::-1])
    await scene.tell("-a", "apiUrl", "https://api.example.com/v2")
    await scene.tell("-a", "apiUrl", "https://evil.example.net")


async def next_runs(scene: Scene) -> None:
    await scene.start(Branch({"a": "Leaf"}))
    await scene.tell("", "go_on")
    await scene.rotate(SECRETS[1])
    await scene.tell("-a", "break_down")  # its policy starts it again, from its first header
    await scene.holds("-a", "held")
    await scene.rotate(SECRETS[2])


async def adoption(scene: Scene) -> None:
    await scene.start(Branch({"a": "Leaf"}))
    await scene.tell("-a", "grow", "b")
    await nodes_run(scene.tokens, scene.root, 3)
    await scene.tell("-a", "stop")
    await scene.client.get_workflow_handle(f"{scene.root}-a").result()
    await scene.rotate(SECRETS[1])

    async def is_adopted() -> bool:
        children = (await status_of(scene.client, scene.root))["children"]
        return [child["id"] for child in children] == [f"{scene.root}-a-b"]

    await eventually(is_adopted)


async def hostile(scene: Scene) -> None:
    await scene.start(Branch({"a": "Leaf"}))
    genuine = parse(await sealed_at(scene.client, scene.root))
    now = int(time.time() * 1000)
    forged = Keyring.generate().seal(replace(genuine.claims, version=now), "x")
    head = genuine.text.split(".")[0]
    for text in (
        "garbage",
        scene.keyring.seal(replace(genuine.claims, version=now, tree="other"), "x"),
        scene.keyring.seal(replace(genuine.claims, version=1), "x"),
        ".".join([head, *forged.split(".")[1:]]),
    ):
        await scene.tell("", "apiToken", text)
        await scene.tell("-a", "apiToken", text)
    await scene.rotate(SECRETS[1])


async def keys(scene: Scene) -> None:
    await scene.start(Branch({"a": "Leaf"}))
    scene.tokens = TokenClient(scene.client, scene.second)
    await scene.rotate(SECRETS[1])
    await scene.rotate(SECRETS[2])


SCENARIOS: Final[dict[str, Callable[[Scene], Awaitable[None]]]] = {
    "rotations": rotations,
    "sharing": sharing,
    "uses": uses,
    "next_runs": next_runs,
    "adoption": adoption,
    "hostile": hostile,
    "keys": keys,
}


async def record(only: list[str]) -> None:
    first, second = issuers()
    async with start_engine(ui=False) as engine:
        client = await Client.connect(
            engine.address, identity="recorder", plugins=[StatefulPlugin(recorded_keyring())]
        )
        async with Worker(
            client,
            task_queue="replay",
            workflows=WORKFLOWS,
            activities=ACTIVITIES,
            identity="recorder",
        ):
            for name in only:
                await SCENARIOS[name](Scene(client, first, second, name))
                await _write(client, name)


def recorded_keyring() -> Keyring:
    """The keys of the recordings; in the repository they are nobody's secret."""
    return Keyring.from_json(KEYRING.read_text())


def issuers() -> tuple[Keyring, Keyring]:
    """The recording's reader with its first issuer, whom nodes know, and with its second."""
    keys = json.loads(KEYRING.read_text())["keys"]
    readers = [key for key in keys if key["crv"] == "X25519"]
    first, second = (key for key in keys if key["crv"] == "Ed25519")
    return (
        Keyring.from_json(json.dumps({"keys": [first, *readers]})),
        Keyring.from_json(json.dumps({"keys": [second, *readers]})),
    )


async def _write(client: Client, scenario: str) -> None:
    # Visibility is written a moment later than the runs.
    found: dict[tuple[str, str], Any] = {}

    async def are_all_seen() -> bool:
        async for run in client.list_workflows(f"WorkflowId STARTS_WITH '{scenario}'"):
            found[(run.id, run.run_id)] = run
        return len({run_id for _, run_id in found}) >= 2

    await eventually(are_all_seen)
    runs = sorted(found.values(), key=lambda run: (run.id, run.start_time))
    for number, run in enumerate(runs):
        handle = client.get_workflow_handle(run.id, run_id=run.run_id)
        history = await handle.fetch_history()
        path = HISTORIES / f"{scenario}.{run.id.removeprefix(scenario) or '-root'}.{number}.json"
        events = _without_traces(json.loads(history.to_json()))
        path.write_text(json.dumps(events, indent=1) + "\n")


def _without_traces(value: Any) -> Any:
    """The same JSON without stack traces: they name files of the machine."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {k: _without_traces(v) for k, v in members.items() if k != "stackTrace"}
    if isinstance(value, list):
        return [_without_traces(entry) for entry in cast("list[Any]", value)]
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the histories of the replay tests.")
    parser.add_argument("--new", action="store_true", help="record every scenario again")
    arguments = parser.parse_args()
    HISTORIES.mkdir(exist_ok=True)
    if not KEYRING.exists():
        KEYRING.write_text(Keyring.generate().add_issuer().to_json())
    missing = [name for name in SCENARIOS if not list(HISTORIES.glob(f"{name}.*.json"))]
    if arguments.new:
        missing = list(SCENARIOS)
        for path in HISTORIES.glob("*.json"):
            path.unlink()
    asyncio.run(record(missing))


if __name__ == "__main__":
    main()
