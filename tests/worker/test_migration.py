"""A workflow that ran before its class took part in a tree goes on as it began."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.client import Client
from temporalio.exceptions import ChildWorkflowError
from temporalio.worker import Replayer, Worker

from stateful_workflow import StatefulPlugin, StatefulWorkflow
from stateful_workflow.engine import EmbeddedEngine
from tests.support.asking import events_of, eventually


@workflow.defn(sandboxed=False)
class Below:
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)


async def body() -> int:
    """Start children whose ends, of every kind, are noted; start one of their ids again."""
    own = workflow.info().workflow_id
    ends = 0
    for name in ("terminated", "cancelled", "terminated"):
        child = await workflow.start_child_workflow("Below", id=f"{own}-{name}")
        if name == "cancelled":
            child.cancel()
        try:
            await child
        except (ChildWorkflowError, asyncio.CancelledError):
            ends += 1
    return ends


@workflow.defn(name="Grown", sandboxed=False)
class Before:
    @workflow.run
    async def run(self) -> int:
        return await body()


@workflow.defn(name="Grown", sandboxed=False)
class After(StatefulWorkflow):
    @workflow.run
    async def run(self) -> int:
        return await body()


async def test_a_history_from_before_the_base_class_replays_with_it(
    engine: EmbeddedEngine, client: Client, queue: str
) -> None:
    plain = await Client.connect(engine.address, namespace=engine.namespace)
    async with Worker(plain, task_queue=queue, workflows=[Before, Below]):
        root = await plain.start_workflow(Before.run, id=queue, task_queue=queue)
        for times in (1, 3):

            async def has_started(times: int = times) -> bool:
                started = await events_of(root, "CHILD_WORKFLOW_EXECUTION_STARTED")
                return len(started) == times

            await eventually(has_started)
            await plain.get_workflow_handle(f"{queue}-terminated").terminate()
        assert await root.result() == 3

    replayer = Replayer(workflows=[After], plugins=[StatefulPlugin()], namespace=engine.namespace)
    result: Any = await replayer.replay_workflow(
        await root.fetch_history(), raise_on_replay_failure=False
    )

    assert result.replay_failure is None
