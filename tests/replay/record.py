"""Record the histories that the replay tests keep: ``python -m tests.replay.record [--new]``.

Runs every scenario on the embedded engine, and writes each run's history to
``histories/<scenario>.<workflow>.<run>.json``, which `PARTS` names. A scenario that has
files is left alone, unless ``--new`` is given: what was recorded once has to replay from then
on. Where only some of its files are missing they were lost, and are taken from Git.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, cast

from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowHandle,
)
from temporalio.common import RetryPolicy
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine
from stateful_workflow.sealed.message import parse
from tests.replay.workflows import (
    ACTIVITIES,
    ISSUED,
    WORKFLOWS,
    Branch,
    Choosing,
    GivingUp,
    Issuing,
    PlainAbove,
    Resettable,
    Retried,
    Trunk,
)
from tests.support.asking import (
    Silent,
    Unreachable,
    events_of,
    eventually,
    knows,
    nodes_run,
    reset,
    sealed_at,
    status_of,
    tasks_of,
)

HERE: Final = Path(__file__).parent
HISTORIES: Final = HERE / "histories"
KEYRING: Final = HERE / "keyring.json"
URL: Final = "https://api.example.com"
SECRETS: Final = (*(f"replay-canary-{n}" for n in range(1, 4)), ISSUED)
QUEUE: Final = "replay"


class Scene:
    """A running tree, and what is done to it."""

    def __init__(self, client: Client, first: Keyring, second: Keyring, name: str) -> None:
        self.client = client
        self.tokens = TokenClient(client, first)
        self.keyring = first
        self.second = second
        self.root = name
        self.unreachable = Unreachable()
        self.silent = Silent()
        self._worker: tuple[Worker, asyncio.Task[None]] | None = None

    async def work(self, keyring: Keyring | None = None, **options: Any) -> None:
        """Start a worker, with all keys where no others are given, in place of the last one."""
        await self.rest()
        client = await Client.connect(
            self.client.service_client.config.target_host,
            identity="recorder",
            plugins=[StatefulPlugin(keyring or recorded_keyring())],
            interceptors=[self.unreachable, self.silent],
        )
        settings: dict[str, Any] = {"activities": ACTIVITIES, **options}
        worker = Worker(
            client, task_queue=QUEUE, workflows=WORKFLOWS, identity="recorder", **settings
        )
        self._worker = worker, asyncio.create_task(worker.run())

    async def rest(self) -> None:
        """Stop the worker."""
        if self._worker is not None:
            worker, running = self._worker
            self._worker = None
            await worker.shutdown()
            await running

    async def start(self, branch: Branch, run: Any = Trunk.run, **options: Any) -> None:
        await self.tokens.start_workflow(
            run,
            branch,
            id=self.root,
            task_queue=QUEUE,
            api_token=SECRETS[0],
            api_url=URL,
            **options,
        )
        nodes = 1 + sum(kind != "Plain" for kind in branch.children.values())
        await nodes_run(self.tokens, self.root, nodes)

    async def rotate(self, secret: str, at: str = "") -> None:
        await self.tokens.rotate(self.root + at, secret, timeout=30, origins=[URL])

    def handle(self, at: str = "") -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(self.root + at)

    async def tell(self, at: str, signal: str, *args: Any) -> None:
        await self.handle(at).signal(signal, args=args)

    async def grow(self, at: str, suffix: str, nodes: int) -> None:
        """Let a workflow start a child, and wait until there are so many nodes."""
        await self.tell(at, "grow", suffix)
        await nodes_run(self.tokens, self.root, nodes)

    async def stop(self, at: str) -> None:
        await self.tell(at, "stop")
        await self.handle(at).result()

    async def holds(self, at: str, state: str) -> None:
        async def is_so() -> bool:
            status = await self.tokens.status(self.root + at)
            return status is not None and status.state == state

        await eventually(is_so)

    async def same_below(self, *at: str) -> None:
        """Wait until the root's token is in force there too."""

        async def is_so() -> bool:
            newest = await sealed_at(self.client, self.root)
            return all([await sealed_at(self.client, self.root + a) == newest for a in at])

        await eventually(is_so)

    async def knows(self, at: str) -> None:
        """Wait until this is the root's only child."""
        await knows(self.client, self.root, self.root + at)

    async def next_run(self, act: Callable[[], Awaitable[None]], at: str = "") -> None:
        """Do something that gives a workflow another run, and wait for it."""
        handle = self.handle(at)
        before = (await handle.describe()).run_id
        await act()

        async def has_begun() -> bool:
            now = await handle.describe()
            return now.run_id != before and now.status is WorkflowExecutionStatus.RUNNING

        await eventually(has_begun)

    async def seals(self, keyring: Keyring, *secrets: str) -> list[str]:
        """Messages for the root, each newer than the one before."""
        claims = parse(await sealed_at(self.client, self.root)).claims
        now = int(time.time() * 1000)
        return [
            keyring.seal(replace(claims, version=now + n), secret)
            for n, secret in enumerate(secrets)
        ]

    async def asked_for_keys(self, times: int) -> None:
        """Wait until the root's run has so many answers to an unknown issuer."""

        async def are_there() -> bool:
            asked = await events_of(self.handle(), "ACTIVITY_TASK_SCHEDULED")
            return sum(b"statefulTrust" in event.SerializeToString() for event in asked) >= times

        await eventually(are_there)


SCENARIOS: Final[dict[str, Callable[[Scene], Awaitable[None]]]] = {}
PARTS: Final[dict[str, Sequence[str]]] = {}
"""The files of each scenario: workflows by id, their runs by start."""

Scenario = Callable[[Scene], Awaitable[None]]


def scenario(*parts: str) -> Callable[[Scenario], Scenario]:
    """What is recorded, and the files that come of it."""

    def register(run: Scenario) -> Scenario:
        SCENARIOS[run.__name__], PARTS[run.__name__] = run, parts
        return run

    return register


@scenario("-root.0", "-a.1", "-p.2", "-w.3", "-x.4")
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


@scenario("-root.0", "-hard.1", "-soft.2")
async def sharing(scene: Scene) -> None:
    await scene.start(Branch({"hard": "Leaf", "soft": "Leaf"}, hard=["hard"]))
    await scene.tell("", "keep_from", "soft")
    await scene.rotate(SECRETS[1])
    await scene.tell("", "give_to", "soft")
    await scene.rotate(SECRETS[1])
    await scene.tokens.set(f"{scene.root}-hard", SECRETS[2], origins=[URL])


@scenario("-root.0", "-a.1")
async def uses(scene: Scene) -> None:
    await scene.start(Branch({"a": "Leaf"}))
    for at in ("", "-a"):
        await scene.handle(at).execute_update("use_both_ways")
    await scene.handle().execute_update("fetch", SECRETS[1][::-1])
    await scene.tell("-a", "apiUrl", "https://api.example.com/v2")
    await scene.tell("-a", "apiUrl", "https://evil.example.net")


@scenario("-root.0", "-root.1", "-a.2", "-a.3")
async def next_runs(scene: Scene) -> None:
    await scene.start(Branch({"a": "Leaf"}))
    await scene.tell("", "go_on")
    await scene.rotate(SECRETS[1])
    await scene.tell("-a", "break_down")  # its policy starts it again, from its first header
    await scene.holds("-a", "held")
    await scene.rotate(SECRETS[2])


@scenario("-root.0", "-a.1", "-a-b.2")
async def adoption(scene: Scene) -> None:
    await scene.start(Branch({"a": "Leaf"}))
    await scene.grow("-a", "b", 3)
    await scene.stop("-a")
    await scene.rotate(SECRETS[1])
    await scene.knows("-a-b")


async def garbage(scene: Scene) -> list[str]:
    """What no node takes: no message, another tree's, an old one, and a forged one."""
    genuine = parse(await sealed_at(scene.client, scene.root))
    now = int(time.time() * 1000)
    forged = Keyring.generate().seal(replace(genuine.claims, version=now), "x")
    return [
        "garbage",
        scene.keyring.seal(replace(genuine.claims, version=now, tree="other"), "x"),
        scene.keyring.seal(replace(genuine.claims, version=1), "x"),
        ".".join([genuine.text.split(".")[0], *forged.split(".")[1:]]),
        forged,
    ]


@scenario("-root.0", "-a.1")
async def hostile(scene: Scene) -> None:
    await scene.start(Branch({"a": "Leaf"}))
    for text in (await garbage(scene))[:-1]:
        await scene.tell("", "apiToken", text)
        await scene.tell("-a", "apiToken", text)
    await scene.rotate(SECRETS[1])


@scenario("-root.0", "-a.1")
async def keys(scene: Scene) -> None:
    await scene.start(Branch({"a": "Leaf"}))
    scene.tokens = TokenClient(scene.client, scene.second)
    await scene.rotate(SECRETS[1])
    await scene.rotate(SECRETS[2])


@scenario("-root.0", "-root.1", "-a.2")
async def retried_root(scene: Scene) -> None:
    policy = RetryPolicy(initial_interval=timedelta(milliseconds=50), maximum_attempts=2)
    await scene.start(Branch({"a": "Watcher"}), Retried.run, retry_policy=policy)
    await scene.rotate(SECRETS[1])
    await scene.next_run(lambda: scene.tell("", "break_down"))
    await scene.holds("", "held")
    await scene.rotate(SECRETS[2])


@scenario("-root.0", "-root.1", "-a.2")
async def uncached(scene: Scene) -> None:
    """Each task replays the whole history."""
    await scene.work(max_cached_workflows=0, max_concurrent_workflow_tasks=1)
    await retried_root(scene)


@scenario("-root.0", "-a.1", "-a.2", "-a-b.3")
async def restarted(scene: Scene) -> None:
    """A child's id is used again, and what the first one left is found all the same."""
    await scene.start(Branch({"a": "Leaf"}))
    await scene.grow("-a", "b", 3)
    await scene.stop("-a")
    await scene.next_run(lambda: scene.tell("", "grow", "a"), "-a")
    await nodes_run(scene.tokens, scene.root, 3)
    await scene.rotate(SECRETS[1])


@scenario("-root.0", "-a.1", "-b.2")
async def unreachable(scene: Scene) -> None:
    """A child that cannot be told is told again, and again."""
    await scene.start(Branch({"a": "Watcher", "b": "Leaf"}))
    scene.unreachable.ids.add(f"{scene.root}-a")
    await scene.tokens.set(scene.root, SECRETS[1], origins=[URL])
    await scene.same_below("-b")

    async def has_failed() -> bool:
        undelivered = (await status_of(scene.client, scene.root))["undelivered"]
        return [entry["reason"] for entry in undelivered] == ["UNAVAILABLE: made so"]

    await eventually(has_failed)
    scene.unreachable.ids.clear()
    await scene.same_below("-a", "-b")


@scenario("-root.0", "-root.1", "-a.2")
async def grouped(scene: Scene) -> None:
    """Two tokens and the run's end in one workflow task."""
    await scene.start(Branch({"a": "Watcher"}))
    messages = await scene.seals(scene.keyring, SECRETS[1], SECRETS[2])
    await scene.rest()

    async def all_at_once() -> None:
        for text in messages:
            await scene.tell("", "apiToken", text)
        await scene.tell("", "go_on")
        await scene.work()

    await scene.next_run(all_at_once)
    await scene.same_below("-a")


@scenario("-root.0", "-a.1", "-b.2", "-b-x.3", "-c.4")
async def crowded(scene: Scene) -> None:
    """Updates in one task with signals, with the end of a child and with the end of a telling."""
    await scene.start(Branch({"a": "Watcher", "b": "Leaf", "c": "Leaf"}))
    await scene.grow("-b", "x", 5)
    root = scene.handle()

    async def all_at_once(first: str, second: str, third: str, fourth: str) -> None:
        """Two of these by signal and two by update, which wait for a worker together."""
        messages = await scene.seals(scene.keyring, first, second, third, fourth)
        await scene.rest()
        await scene.tell("", "apiToken", messages[0])
        updates = [
            asyncio.create_task(root.execute_update("apiToken", text)) for text in messages[2:]
        ]
        await asyncio.sleep(0.5)
        await scene.tell("", "apiToken", messages[1])
        await scene.work()
        await asyncio.gather(*updates, return_exceptions=True)  # they may come in any order

    await all_at_once(*SECRETS[:2], *SECRETS[:2])
    scene.unreachable.ids.add(f"{scene.root}-a")
    await scene.tokens.set(scene.root, SECRETS[2], origins=[URL])
    await scene.handle("-b").terminate()
    await all_at_once(*SECRETS[:2], *SECRETS[:2])
    scene.unreachable.ids.clear()
    await scene.rotate(SECRETS[1])


@scenario("-root.0", "-a.1")
async def issued(scene: Scene) -> None:
    await scene.start(Branch({"a": "Watcher"}), Issuing.run)
    await scene.handle().execute_update("issue_and_set")
    await scene.same_below("-a")
    await scene.handle("-a").signal("apiUrl", f"{URL}/v2")


@scenario("-root.0", "-a.1")
async def revoked_key(scene: Scene) -> None:
    """The issuer of what is held is revoked; nodes learn it from its successor's message."""
    await scene.start(Branch({"a": "Watcher"}))
    first, *others = json.loads(KEYRING.read_text())["keys"]
    first["stateful"] = {"revoked": True}
    await scene.work(Keyring.from_json(json.dumps({"keys": [first, *others]})))
    scene.tokens = TokenClient(scene.client, scene.second)
    await scene.rotate(SECRETS[1])
    (late,) = await scene.seals(scene.keyring, SECRETS[2])
    for at in ("", "-a"):
        await scene.tell(at, "apiToken", late)
    await scene.rotate(SECRETS[2])


@scenario("-root.0", "-root.1", "-a.2")
async def waiting(scene: Scene) -> None:
    """A message whose issuer no keyring knows waits, also into the next run."""
    await scene.work(scene.keyring)
    await scene.start(Branch({"a": "Watcher"}))
    (unknown,) = await scene.seals(scene.second, SECRETS[1])
    await scene.tell("", "apiToken", unknown)
    await scene.asked_for_keys(1)
    await scene.next_run(lambda: scene.tell("", "go_on"))
    await scene.asked_for_keys(1)
    await scene.work()
    scene.tokens = TokenClient(scene.client, scene.second)
    await scene.rotate(SECRETS[2])


@scenario("-root.0", "-a.1", "-kept.2")
async def names(scene: Scene) -> None:
    """A second credential, with children that are kept from it hard and softly."""
    await scene.tokens.start_workflow(
        Choosing.run,
        Branch({"a": "Leaf"}),
        id=scene.root,
        task_queue=QUEUE,
        api_token=SECRETS[0],
        api_url=URL,
    )
    await nodes_run(scene.tokens, scene.root, 3)
    await scene.tell("", "keep_name_from", "a", "billing")
    for secret in SECRETS[1:3]:
        await scene.tokens.rotate(scene.root, secret, timeout=30, name="billing", origins=[URL])
        await scene.tell("", "give_name_to", "a", "billing")
    await scene.rotate(SECRETS[1])


@scenario("-root.0", "-node.1", "-node-a.2")
async def below_plain(scene: Scene) -> None:
    """A root under a plain workflow, started without any token."""
    await scene.client.start_workflow(
        PlainAbove.run, Branch({"a": "Watcher"}), id=scene.root, task_queue=QUEUE
    )
    at = f"{scene.root}-node"

    async def has_started() -> bool:
        handle = scene.handle()
        return len(await events_of(handle, "CHILD_WORKFLOW_EXECUTION_STARTED")) == 1

    await eventually(has_started)
    await nodes_run(scene.tokens, at, 2)
    await scene.rotate(SECRETS[0], "-node")
    await scene.tokens.revoke(at)
    await scene.holds("-node-a", "revoked")
    await scene.rotate(SECRETS[1], "-node")
    await scene.tell("-node-a", "stop")
    await scene.tell("-node", "stop")
    await scene.handle().result()


@scenario("-root.0", "-a.1")
async def hostile_child(scene: Scene) -> None:
    """As `hostile`, at a child whose commands follow from every change of its token."""
    await scene.start(Branch({"a": "Watcher"}))
    for text in (*await garbage(scene), 7):
        await scene.tell("-a", "apiToken", text)
    await scene.tell("-a", "apiToken")
    await scene.tell("-a", "apiUrl", "https://evil.example.net")
    await scene.tell("-a", "apiTokenReport", {"name": 1})
    await scene.rotate(SECRETS[1])


@scenario("-root.0", "-a.1", "-a-b.2")
async def unsettled(scene: Scene) -> None:
    """What a terminated child leaves alive is adopted at once."""
    await scene.start(Branch({"a": "Leaf"}))
    await scene.grow("-a", "b", 3)
    await scene.handle("-a").terminate()
    await scene.knows("-a-b")
    await scene.rotate(SECRETS[1])


@scenario("-root.0", "-root.1", "-a.2")
async def reset_run(scene: Scene) -> None:
    """A run that was reset to its first task takes its child back."""
    await scene.start(Branch({"a": "Leaf"}), Resettable.run)
    first_task, *_ = await tasks_of(scene.client, scene.root)
    await reset(scene.client, scene.root, first_task)
    await scene.knows("-a")
    await scene.rotate(SECRETS[1])


@scenario("-root.0", "-a.1", "-a-x.2", "-b.3")
async def silent(scene: Scene) -> None:
    """What a terminated child kept from whom it leaves is asked patiently, and another closes."""
    await scene.start(Branch({"a": "Leaf", "b": "Leaf"}))
    await scene.grow("-a", "x", 4)
    scene.silent.workflow_id = f"{scene.root}-a"
    await scene.handle("-a").terminate()

    async def is_asked_patiently() -> bool:
        root = scene.handle()
        return len(await events_of(root, "ACTIVITY_TASK_SCHEDULED")) == 2

    await eventually(is_asked_patiently, within=60)
    await scene.silent.is_asked()
    await scene.handle("-b").terminate()
    await scene.knows("-a")
    scene.silent.workflow_id = None
    await scene.knows("-a-x")
    await scene.rotate(SECRETS[1])


@scenario("-root.0", "-a.1")
async def given_up(scene: Scene) -> None:
    """A start that was never sent is forgotten; a child whose handle was given up is not."""
    await scene.rest()
    root = await scene.tokens.start_workflow(
        GivingUp.run,
        Branch(),
        id=scene.root,
        task_queue=QUEUE,
        api_token=SECRETS[0],
        api_url=URL,
    )
    await root.cancel()
    await scene.work()
    await scene.rotate(SECRETS[1])
    await scene.tell("", "start_and_give_up", "a")
    await scene.knows("-a")

    async def both_are_answered() -> bool:
        return len(await events_of(root, "ACTIVITY_TASK_COMPLETED")) >= 2

    await eventually(both_are_answered)
    await scene.rotate(SECRETS[2])


def files_of(scenario: str) -> list[Path]:
    """Where the histories of a scenario are."""
    return [HISTORIES / f"{scenario}.{part}.json" for part in PARTS[scenario]]


async def record(only: list[str]) -> None:
    first, second = issuers()
    async with start_engine(ui=False) as engine:
        client = await Client.connect(
            engine.address, identity="recorder", plugins=[StatefulPlugin(recorded_keyring())]
        )
        for name in only:
            scene = Scene(client, first, second, name)
            await scene.work()
            try:
                await asyncio.wait_for(SCENARIOS[name](scene), 120)
            finally:
                await scene.rest()
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
    found: dict[tuple[str, str], Any] = {}

    # Visibility is written a moment later than the runs.
    async def are_all_seen() -> None:
        async for run in client.list_workflows(f"WorkflowId STARTS_WITH '{scenario}'"):
            if run.id == scenario or run.id.startswith(f"{scenario}-"):
                found[(run.id, run.run_id)] = run
        assert len(found) >= len(PARTS[scenario]), sorted(found)

    await eventually(are_all_seen)
    runs = sorted(found.values(), key=lambda run: (run.id, run.start_time))
    parts = [
        f"{run.id.removeprefix(scenario) or '-root'}.{number}" for number, run in enumerate(runs)
    ]
    assert parts == list(PARTS[scenario]), parts
    for path, run in zip(files_of(scenario), runs, strict=True):
        handle = client.get_workflow_handle(run.id, run_id=run.run_id)
        history = await handle.fetch_history()
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
    missing: list[str] = []
    for name in SCENARIOS:
        there = [path.exists() for path in files_of(name)]
        if not any(there):
            missing.append(name)
        elif not all(there) and not arguments.new:
            raise SystemExit(f"{name}: some of its histories were lost; take them from Git")
    if arguments.new:
        missing = list(SCENARIOS)
        for path in HISTORIES.glob("*.json"):
            path.unlink()
    asyncio.run(record(missing))


if __name__ == "__main__":
    main()
