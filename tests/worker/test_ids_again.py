"""A parent that starts a child again and again under one id: nothing of the library holds it up."""

from __future__ import annotations

import asyncio

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecution
from temporalio.worker import Worker

from stateful_workflow import StatefulWorkflow, TokenClient
from tests.support.asking import eventually

TIMES = 4
IS_OPEN = "WorkflowId = '{}' AND ExecutionStatus = 'Running'"
COMPLETED = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
INITIATED = EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED


@workflow.defn(sandboxed=False)
class Step(StatefulWorkflow):
    @workflow.run
    async def run(self) -> None: ...


@workflow.defn(sandboxed=False)
class Loop(StatefulWorkflow):
    @workflow.run
    async def run(self, queue: str) -> None:
        for _ in range(TIMES):
            await workflow.execute_child_workflow(
                Step.run, id=f"{workflow.info().workflow_id}-step", task_queue=queue
            )
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("served", ["always", "while a child is open"])
async def test_each_start_is_commanded_in_the_first_task_after_the_one_before_it_closed(
    client: Client, tokens: TokenClient, queue: str, served: str
) -> None:
    elsewhere = f"{queue}-steps"

    async def open_step() -> WorkflowExecution:
        rows = client.list_workflows(IS_OPEN.format(f"{queue}-step"))
        (row,) = [one async for one in rows] or [None]
        assert row is not None
        return row

    async def serve() -> None:
        for _ in range(TIMES):
            row = await eventually(open_step)
            async with Worker(client, task_queue=elsewhere, workflows=[Step]):
                await client.get_workflow_handle(row.id, run_id=row.run_id).result()

    async with Worker(client, task_queue=queue, workflows=[Loop]):
        root = await tokens.start_workflow(
            Loop.run,
            args=[elsewhere],
            id=queue,
            task_queue=queue,
            api_token="first",
            origins=["https://api.example.com"],
        )
        if served == "always":
            async with Worker(client, task_queue=elsewhere, workflows=[Step]):
                await tokens.set(queue, "second")
                await root.result()
        else:
            serving = asyncio.create_task(serve())
            await tokens.set(queue, "second")
            await asyncio.gather(root.result(), serving)

    events = (await root.fetch_history()).events
    timers = [one for one in events if one.event_type == EventType.EVENT_TYPE_TIMER_FIRED]
    assert len(timers) == TIMES  # the loop's own
    for timer in timers[:-1]:
        later = [one for one in events if one.event_id > timer.event_id]
        task = next(one for one in later if one.event_type == COMPLETED)
        start = next(one for one in later if one.event_type == INITIATED)
        said = start.start_child_workflow_execution_initiated_event_attributes
        assert said.workflow_task_completed_event_id == task.event_id
