"""Whoever may start workflows, or signal one, has no place in a tree by another one's id."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError

from stateful_workflow.node.ledger import Child
from stateful_workflow.node.limits import LIMITS
from stateful_workflow.node.telling import _Room  # pyright: ignore[reportPrivateUsage]
from tests.support.asking import events_of
from tests.support.trees import URL, Tree
from tests.support.workflows import Host, Plan


async def test_a_workflow_under_the_id_of_a_child_that_has_closed_is_not_let_in(
    tree: Tree, outsider: Client
) -> None:
    """The root took that child over, so that it hears nothing of its end."""
    await tree.start(Plan({"a": Plan({"x": Plan()})}))
    await tree.signal("a", "stop")
    await tree.rotate("second")
    await tree.has_children("a-x")
    await tree["a-x"].terminate()

    impostor = await outsider.start_workflow(
        "Guest", args=[tree.root, 5.0], id=tree.id("a-x"), task_queue=tree.queue
    )

    with pytest.raises(WorkflowFailureError) as failed:
        await impostor.result()
    assert isinstance(failed.value.cause, ApplicationError)
    assert failed.value.cause.type == "JoinFailed"
    assert "does not admit Guest" in failed.value.cause.message


async def test_a_closed_workflow_that_is_said_to_have_joined_leaves_nobody_to_a_node(
    tree: Tree, outsider: Client
) -> None:
    await tree.start(run=Host.run)
    stranger = f"{tree.root}-stranger"
    guest = tree.client.get_workflow_handle(f"{stranger}-guest")
    await tree.tokens.start_workflow(
        Host.run, Plan(), id=stranger, task_queue=tree.queue, api_token="theirs", origins=[URL]
    )
    await outsider.start_workflow("Guest", stranger, id=guest.id, task_queue=tree.queue)
    await guest.signal("add_child", args=["x", Plan()])
    theirs = replace(tree, root=guest.id)
    await theirs.exists("x")
    await guest.signal("stop")
    await guest.result()
    joiner = {"id": guest.id, "type": "Guest"}
    await outsider.get_workflow_handle(tree.root).signal("apiTokenJoin", joiner)

    await tree.rotate("second")
    await tree.has_children()
    assert (await tree.rotate("third")).converged


async def test_who_says_that_thousands_join_under_long_ids_stops_no_task(
    unserved: Tree, outsider: Client
) -> None:
    """As JSON each of them has six times the bytes."""
    await unserved.tokens.start_workflow(
        Host.run,
        Plan(),
        id=unserved.root,
        task_queue=unserved.queue,
        api_token="first",
        origins=[URL],
    )
    host = outsider.get_workflow_handle(unserved.root)
    for first in range(0, 1_000, 50):
        ids = [f"{n:04}" + "\x01" * 996 for n in range(first, first + 50)]
        await asyncio.gather(
            *[host.signal("apiTokenJoin", {"id": id, "type": "Guest"}) for id in ids]
        )
    async with unserved.worker():
        await unserved.has(1)
        await unserved.rotate("second")

    assert await events_of(host, "WORKFLOW_TASK_FAILED") == []


def test_one_request_has_only_as_many_bytes_as_the_server_takes() -> None:
    ids = [f"{n:04}" + "é" * 498 for n in range(1_000)]
    room = _Room({})
    fitting = [child.id for child in room.that_fit(Child(id, "Guest") for id in ids)]

    assert 0 < len(json.dumps(fitting)) < LIMITS.request_bytes
    assert room.left_out
