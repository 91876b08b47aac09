"""What a node does follows from its history alone, whatever has become of the keys."""

from __future__ import annotations

import json
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHistory
from temporalio.worker import Replayer, Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient

from .support import eventually, nodes_run
from .workflows import WORKFLOWS, Brancher, Plan

URL = "https://api.example.com"


@pytest.fixture
async def histories(
    client: Client, tokens: TokenClient, queue: str, worker: Worker
) -> list[WorkflowHistory]:
    """A tree that branched on every state of its token, with a continue-as-new above it."""
    await tokens.start_workflow(
        Brancher.run,
        Plan({"a": Plan(type="Brancher"), "b": Plan(), "clean": Plan(type="Cleanup")}),
        id=queue,
        task_queue=queue,
        api_token="first",
        api_url=URL,
    )
    await nodes_run(tokens, queue, 4)
    await tokens.rotate(queue, "second", timeout=20)
    await tokens.revoke(f"{queue}-a")
    await client.get_workflow_handle(queue).signal("apiToken", "garbage")
    await tokens.rotate(queue, "third", timeout=20)
    await tokens.inherit(f"{queue}-a")

    async def held_again() -> bool:
        status = await tokens.status(f"{queue}-a")
        return status is not None and status.state == "held"

    await eventually(held_again)
    ids = [queue, f"{queue}-a", f"{queue}-b", f"{queue}-clean"]
    for workflow_id in ids:
        await client.get_workflow_handle(workflow_id).signal("stop")
        await client.get_workflow_handle(workflow_id).result()
    return [await client.get_workflow_handle(i).fetch_history() for i in ids]


def revoked(keyring: Keyring) -> Keyring:
    keys = json.loads(keyring.to_json())
    for key in keys["keys"]:
        if key["crv"] == "Ed25519":
            key["stateful"] = {"revoked": True}
    return Keyring.from_json(json.dumps(keys))


async def test_histories_replay_under_any_keyring(
    client: Client, keyring: Keyring, histories: list[WorkflowHistory]
) -> None:
    keyrings: dict[str, Keyring] = {
        "as it was": keyring,
        "issuer revoked": revoked(keyring),
        "issuer replaced": Keyring.generate(),
        "empty": Keyring(),
    }
    for what, other in keyrings.items():
        replayer = Replayer(
            workflows=WORKFLOWS, plugins=[StatefulPlugin(other)], namespace=client.namespace
        )
        for history in histories:
            result: Any = await replayer.replay_workflow(history, raise_on_replay_failure=False)
            assert result.replay_failure is None, f"{what}: {history.workflow_id}"


async def test_a_history_that_was_changed_does_not_replay(
    client: Client, keyring: Keyring, histories: list[WorkflowHistory]
) -> None:
    """The control: without the rotation's signal the child would have done something else."""
    child = histories[1]
    signaled = "workflow_execution_signaled_event_attributes"
    events = [event for event in child.events if not event.HasField(signaled)]
    assert len(events) < len(child.events)
    replayer = Replayer(
        workflows=WORKFLOWS, plugins=[StatefulPlugin(keyring)], namespace=client.namespace
    )
    result: Any = await replayer.replay_workflow(
        WorkflowHistory(child.workflow_id, events), raise_on_replay_failure=False
    )
    assert result.replay_failure is not None
