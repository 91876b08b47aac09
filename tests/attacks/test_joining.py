"""Whoever may start workflows, or signal one, has no place in a tree by another one's id."""

from __future__ import annotations

import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError

from tests.support.trees import Tree
from tests.support.workflows import Plan


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
