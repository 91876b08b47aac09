"""Activities of a workflow that was started without a token: told so at once, and not retried."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ActivityError, ApplicationError

from stateful_workflow import StatefulWorkflow, current_token
from tests.support.asking import events_of, eventually, start_worker
from tests.support.trees import URL, Tree
from tests.support.workflows import Plan


@activity.defn
async def takes_the_token(name: str) -> None:
    current_token(name)


@workflow.defn(sandboxed=False)
class Kept(StatefulWorkflow):
    @workflow.run
    async def run(self, name: str) -> None:
        await workflow.execute_activity(
            takes_the_token, name, start_to_close_timeout=timedelta(seconds=30)
        )


@workflow.defn(sandboxed=False)
class Keeps(StatefulWorkflow):
    @workflow.run
    async def run(self, name: str | None, wanted: str) -> None:
        with self.withholding(name=name):
            child = await workflow.start_child_workflow(
                Kept.run, wanted, id=f"{workflow.info().workflow_id}-kept"
            )
        await child


@pytest.mark.parametrize(
    ("withheld", "wanted"), [(None, "apiToken"), (None, "github"), ("github", "github")]
)
async def test_the_first_attempt_says_that_it_is_withheld_and_there_is_no_other(
    unserved: Tree, withheld: str | None, wanted: str
) -> None:
    tree = unserved
    async with start_worker(
        tree.client, tree.queue, workflows=[Keeps, Kept], activities=[takes_the_token]
    ):
        root = await tree.tokens.start_workflow(
            Keeps.run,
            args=[withheld, wanted],
            id=tree.root,
            task_queue=tree.queue,
            api_token="first",
            origins=[URL],
        )
        with pytest.raises(WorkflowFailureError):
            await root.result()

        with pytest.raises(WorkflowFailureError) as failed:
            await tree["kept"].result()

        cause = failed.value.cause
        assert isinstance(cause, ActivityError)
        assert isinstance(cause.cause, ApplicationError)
        assert (cause.cause.type, cause.cause.non_retryable) == ("TokenNotSet", True)
        assert f"has no {wanted}: state withheld" in str(cause.cause)
        (started,) = await events_of(tree["kept"], "ACTIVITY_TASK_STARTED")
        assert started.activity_task_started_event_attributes.attempt == 1


async def test_sharing_with_a_child_that_was_started_without_it_is_a_warning_that_names_it(
    tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    await tree.start(Plan({"hard": Plan(hard=True), "soft": Plan()}))
    with caplog.at_level(logging.WARNING, "temporalio.workflow"):
        await tree.signal("", "give_to", "soft", None)
        await tree.signal("", "give_to", "hard", "apiToken")

        async def warned() -> None:
            text = " ".join(r.message for r in caplog.records if "share()" in r.message)
            assert text.count("changes nothing for child") == 1
            assert f"for child {tree.id('hard')}, which was started without any" in text

        await eventually(warned)
