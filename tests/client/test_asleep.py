"""Workflows that answer nothing now: between cron runs, in a backoff or start delay, or paused."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from temporalio.api.workflowservice.v1 import (
    PauseWorkflowExecutionRequest,
    UnpauseWorkflowExecutionRequest,
)
from temporalio.client import Client

from stateful_workflow import (
    Keyring,
    NotConverged,
    NoWorkerAnswers,
    StatefulPlugin,
    TokenClient,
    WorkflowAsleep,
)
from stateful_workflow.engine import EmbeddedEngine, start_engine
from tests.support.asking import (
    Unreachable,
    events_of,
    start_worker,
)
from tests.support.trees import Tree
from tests.support.workflows import LATER, Flaky, Node, Plan

URL = "https://api.example.com"


async def fall_asleep(tree: Tree, at: str = "") -> None:
    """Let a node fail, so that it waits for its retry."""
    await tree.goes_on(at, "break_down")


async def wake(tree: Tree, at: str = "") -> str:
    """What an activity of a sleeper opens when it goes on: an update from outside wakes it."""
    opened: str = await tree.update(at, "use_token", "apiToken")
    return opened


async def test_a_root_in_a_backoff_is_rotated_and_revoked_and_nothing_says_that_it_took_it(
    tree: Tree,
) -> None:
    await tree.start(run=Flaky.run, retry_policy=LATER)
    before = await tree.rotate("second", origins=[URL, "https://other.example.com"])
    await fall_asleep(tree)

    status = await tree.tokens.status(tree.root)
    assert status is not None
    assert status.state == "held"
    assert status.asleep_until is not None
    rotated = await tree.tokens.rotate(tree.root, "third", timeout=20)

    assert rotated.signed is not None
    assert before.signed is not None
    assert rotated.signed.origins == before.signed.origins
    (root,) = rotated.asleep
    assert (root.state, root.current, root.fingerprint) == (
        "told",
        True,
        rotated.signed.fingerprint,
    )
    status = await tree.tokens.status(tree.root)
    assert status is not None
    assert status.state == "told"
    assert status.fingerprint == rotated.signed.fingerprint
    assert len(await events_of(tree[""], "WORKFLOW_TASK_SCHEDULED")) == 0
    assert await wake(tree) == "third"


async def test_what_is_set_at_a_sleeper_keeps_the_terms_of_what_it_was_sent_and_a_revocation_too(
    tree: Tree,
) -> None:
    await tree.start(run=Flaky.run, retry_policy=LATER)
    await fall_asleep(tree)
    elsewhere = "https://elsewhere.example.com"
    await tree.tokens.set(tree.root, "second", origins=[elsewhere], api_url=elsewhere)
    assert (await tree.tokens.revoke(tree.root)).state == "told"

    with pytest.raises(WorkflowAsleep, match="asleep until"):
        await tree.tokens.set_api_url(tree.root, elsewhere)

    status = await tree.tokens.set(tree.root, "third")

    assert (status.state, status.origins) == ("told", (elsewhere,))
    await tree[""].signal("apiToken", "garbage")
    assert (await tree.tokens.revoke(tree.root)).state == "told"
    assert await wake(tree) == "TokenRevoked"


async def test_a_root_within_its_start_delay_is_known_by_its_start(tree: Tree) -> None:
    await tree.tokens.start_workflow(
        Node.run,
        Plan(),
        id=tree.root,
        task_queue=tree.queue,
        api_token="first",
        origins=[URL],
        start_delay=timedelta(hours=1),
    )

    told = await tree.tokens.status(tree.root)
    assert told is not None
    assert (told.state, told.origins) == ("told", (URL,))
    assert (await tree.tokens.rotate(tree.root, "second", timeout=20)).converged
    assert await wake(tree) == "second"


async def test_of_a_root_that_has_not_begun_and_has_no_token_that_is_said(
    client: Client, tokens: TokenClient, queue: str, shared_queue: str
) -> None:
    await client.start_workflow(
        Node.run, Plan(), id=queue, task_queue=shared_queue, start_delay=timedelta(hours=1)
    )

    with pytest.raises(NoWorkerAnswers, match="set the token when it has begun"):
        await tokens.set(queue, "first", origins=[URL])


@pytest.mark.parametrize("rests", ["cron", "backoff"])
async def test_a_child_that_is_asleep_is_told_and_holds_up_no_rotation(
    tree: Tree, rests: str
) -> None:
    await tree.start()
    await tree.signal("", "add_child", "a", Plan(type="Flaky", rests=rests))
    await tree.knows("a", "running")
    if rests == "backoff":
        await tree.has(2)
        await fall_asleep(tree, "a")

    rotated = await tree.rotate("second")

    (asleep,) = rotated.asleep
    assert (asleep.id, asleep.type, asleep.state) == (tree.id("a"), "Flaky", "told")
    assert await events_of(tree["a"], "WORKFLOW_TASK_SCHEDULED") == []
    assert await wake(tree, "a") == "second"


async def test_whom_a_sleeper_left_is_handed_what_nobody_else_can_tell_it(tree: Tree) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan()}, type="Flaky", rests="backoff")}))
    await fall_asleep(tree, "a")

    rotated = await tree.rotate("second")

    assert {node.id: node.state for node in rotated.nodes} == {
        tree.id(): "held",
        tree.id("a"): "told",
        tree.id("a-x"): "held",
    }
    assert await tree.opened("a-x") == ["second"]


async def test_a_sleeper_that_its_parent_cannot_signal_is_handed_the_message(
    engine: EmbeddedEngine, keyring: Keyring, unserved: Tree
) -> None:
    unreachable = Unreachable()
    client = await Client.connect(
        engine.address, plugins=[StatefulPlugin(keyring)], interceptors=[unreachable]
    )
    async with start_worker(client, unserved.queue):
        await unserved.start(Plan({"a": Plan(type="Flaky", rests="backoff")}))
        await fall_asleep(unserved, "a")
        unreachable.ids.add(unserved.id("a"))

        rotated = await unserved.rotate("second")

        assert [node.state for node in rotated.asleep] == ["told"]
        assert await wake(unserved, "a") == "second"


# --- paused --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def pausing() -> AsyncIterator[EmbeddedEngine]:
    """A server that lets workflows be paused."""
    enabled = ["--dynamic-config-value", "frontend.WorkflowPauseEnabled=true"]
    async with start_engine(ui=False, extra_args=enabled) as engine:
        yield engine


async def pause(client: Client, workflow_id: str) -> None:
    request = PauseWorkflowExecutionRequest(
        namespace=client.namespace, workflow_id=workflow_id, request_id=uuid.uuid4().hex
    )
    await client.workflow_service.pause_workflow_execution(request)


async def unpause(client: Client, workflow_id: str) -> None:
    request = UnpauseWorkflowExecutionRequest(
        namespace=client.namespace, workflow_id=workflow_id, request_id=uuid.uuid4().hex
    )
    await client.workflow_service.unpause_workflow_execution(request)


async def test_a_paused_workflow_is_told_and_is_behind_until_it_goes_on(
    pausing: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    client = await Client.connect(pausing.address, plugins=[StatefulPlugin(keyring)])
    tree = Tree(client, TokenClient(client, keyring), queue, queue)
    async with tree.worker():
        await tree.start(Plan({"a": Plan({"x": Plan()}), "b": Plan({"y": Plan()})}))
        for at in ("", "b-y"):
            await pause(client, tree.id(at))
        assert (await tree.tokens.set(tree.root, "second")).state == "told"
        await unpause(client, tree.root)
        await tree.opens("second", "", "a", "a-x", "b")
        await tree["b"].terminate()

        with pytest.raises(NotConverged) as caught:
            await tree.tokens.rotate(tree.root, "third", timeout=15)

        (behind,) = caught.value.tree.behind
        assert behind.id == tree.id("b-y")
        assert "is paused" in str(behind.problem)
        await unpause(client, tree.id("b-y"))
        await tree.opens("third", "", "a", "a-x", "b-y")
