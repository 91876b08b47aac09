"""`api_url` as an attribute of the user's own: the error names the property."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ApplicationError

from stateful_workflow import StatefulWorkflow
from tests.support.asking import start_worker
from tests.support.trees import Tree


@pytest.mark.parametrize("value", ["https://api.example.com", None, property(lambda _: None)])
def test_a_class_that_has_its_own_api_url_is_told_of_the_property(value: Any) -> None:
    with pytest.raises(TypeError, match="Own: api_url is the property of StatefulWorkflow"):
        type("Own", (StatefulWorkflow,), {"api_url": value})


@workflow.defn(sandboxed=False)
class OwnAttribute(StatefulWorkflow):
    @workflow.run
    async def run(self) -> None:
        self.api_url = {"prod": "https://api.example.com"}  # pyright: ignore[reportAttributeAccessIssue]


async def test_a_workflow_that_keeps_something_else_in_it_fails_and_says_so(
    unserved: Tree,
) -> None:
    tree = unserved
    async with start_worker(tree.client, tree.queue, workflows=[OwnAttribute]):
        run = await tree.client.start_workflow(
            OwnAttribute.run, id=tree.root, task_queue=tree.queue
        )
        with pytest.raises(WorkflowFailureError) as failed:
            await run.result()
    assert isinstance(failed.value.cause, ApplicationError)
    assert "api_url was set to a dict: it is the property" in str(failed.value.cause)
