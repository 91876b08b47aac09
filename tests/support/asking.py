"""What the server tests share beside fixtures."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, ResetReapplyExcludeType
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    ResetWorkflowExecutionRequest,
)
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    QueryWorkflowInput,
    SignalWorkflowInput,
    WorkflowExecutionStatus,
    WorkflowHandle,
)
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from stateful_workflow import TokenClient
from stateful_workflow.node import limits
from tests.support.workflows import ACTIVITIES, WORKFLOWS, Node, Plan

T = TypeVar("T")

WITHIN = 40.0
"""Seconds in which anything awaited here happens on a busy machine, or the test fails."""


def lower(patch: pytest.MonkeyPatch, **bounds: Any) -> None:
    """Give some of the library's own bounds other values for the time of a test."""
    patch.setattr(limits, "LIMITS", replace(limits.LIMITS, **bounds))


class Unreachable(Interceptor):
    """Lets signals to some workflows fail, as a server that is down for them would."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        ids = self.ids

        class _Outbound(OutboundInterceptor):
            async def signal_workflow(self, input: SignalWorkflowInput) -> None:
                if input.id in ids:
                    raise RPCError("made so", RPCStatusCode.UNAVAILABLE, b"")
                await super().signal_workflow(input)

        return _Outbound(next)


@dataclass
class Counted(Interceptor):
    """How many queries were made by the clients that have this."""

    queries: int = 0

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        counted = self

        class Outbound(OutboundInterceptor):
            async def query_workflow(self, input: QueryWorkflowInput) -> Any:
                counted.queries += 1
                return await super().query_workflow(input)

        return Outbound(next)


class Silent(Interceptor):
    """Lets what one workflow is asked go unanswered."""

    def __init__(self) -> None:
        self.workflow_id: str | None = None
        self.asked = 0

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        silent = self

        class _Outbound(OutboundInterceptor):
            async def query_workflow(self, input: QueryWorkflowInput) -> Any:
                silent.hear(input.id)
                return await super().query_workflow(input)

        return _Outbound(next)

    def hear(self, workflow_id: str) -> None:
        if workflow_id == self.workflow_id:
            self.asked += 1
            raise RPCError("made so", RPCStatusCode.DEADLINE_EXCEEDED, b"")

    async def is_asked(self) -> None:
        """Wait until it is asked once more."""
        before = self.asked

        async def again() -> bool:
            return self.asked > before

        await eventually(again)


def start_worker(client: Client, queue: str, **options: Any) -> Worker:
    """A worker of the tests' workflows and activities, sandbox on."""
    settings: dict[str, Any] = {"workflows": WORKFLOWS, "activities": ACTIVITIES, **options}
    return Worker(client, task_queue=queue, **settings)


async def eventually(probe: Callable[[], Awaitable[T]], *, within: float = WITHIN) -> T:
    """Ask until the answer is true or no assertion fails; the last failure is raised."""
    give_up = time.monotonic() + within
    while True:
        try:
            answer = await probe()
        except AssertionError:
            if time.monotonic() > give_up:
                raise
        else:
            if answer is not False:
                return answer
            assert time.monotonic() < give_up, "the condition never came true"
        await asyncio.sleep(0.05)


async def nodes_run(tokens: TokenClient, workflow_id: str, count: int) -> None:
    """Wait until a tree has so many nodes and every one of them answers."""

    async def all_answer() -> bool:
        nodes = (await tokens.tree(workflow_id)).nodes
        return len(nodes) == count and all(node.problem is None for node in nodes)

    await eventually(all_answer)


async def start_pair(tokens: TokenClient, queue: str) -> None:
    """A root and a child of it, which both run."""
    await tokens.start_workflow(
        Node.run,
        Plan({"a": Plan()}),
        id=queue,
        task_queue=queue,
        api_token="first",
        origins=["https://api.example.com"],
    )
    await nodes_run(tokens, queue, 2)


async def status_of(client: Client, workflow_id: str) -> dict[str, Any]:
    """The answer of the `apiTokenStatus` query."""
    answer: dict[str, Any] = await client.get_workflow_handle(workflow_id).query("apiTokenStatus")
    return answer


async def is_reported(client: Client, workflow_id: str, name: str = "apiToken") -> None:
    """Wait until a workflow knows that an API refused the token that was set at it."""

    async def knows_it() -> bool:
        answer = await client.get_workflow_handle(workflow_id).query("apiToken", name)
        return bool(answer["refused"])

    await eventually(knows_it)


async def sealed_at(client: Client, workflow_id: str) -> str:
    """The sealed token in force at a workflow."""
    answer: dict[str, Any] = await client.get_workflow_handle(workflow_id).query("apiToken")
    sealed = answer["sealed"]
    assert isinstance(sealed, str)
    return sealed


async def opened(client: Client, *workflow_ids: str, name: str = "apiToken") -> list[str]:
    """What an activity of each of these workflows opens, or what it is told instead."""
    handles = [client.get_workflow_handle(workflow_id) for workflow_id in workflow_ids]
    return await asyncio.gather(*[handle.execute_update("use_token", name) for handle in handles])


async def opens(client: Client, expected: str, *workflow_ids: str, name: str = "apiToken") -> None:
    """Wait until activities of all these workflows open this, or are told it."""

    async def all_open() -> None:
        seen = await opened(client, *workflow_ids, name=name)
        assert dict(zip(workflow_ids, seen, strict=True)) == dict.fromkeys(workflow_ids, expected)

    await eventually(all_open)


async def events_of(handle: WorkflowHandle[Any, Any], kind: str) -> list[Any]:
    """The events of one kind (such as ``WORKFLOW_TASK_FAILED``) in a workflow's history."""
    wanted = EventType.Value(f"EVENT_TYPE_{kind}")
    history = await handle.fetch_history()
    return [event for event in history.events if event.event_type == wanted]


async def knows(client: Client, workflow_id: str, *children: str, within: float = WITHIN) -> None:
    """Wait until these are a node's children."""

    async def are_so() -> bool:
        known = (await status_of(client, workflow_id))["children"]
        return [child["id"] for child in known] == list(children)

    await eventually(are_so, within=within)


async def run_id(client: Client, workflow_id: str) -> str | None:
    return (await client.get_workflow_handle(workflow_id).describe()).run_id


async def next_run(client: Client, workflow_id: str, after: str | None) -> None:
    async def moved() -> bool:
        described = await client.get_workflow_handle(workflow_id).describe()
        return described.run_id != after and described.status is WorkflowExecutionStatus.RUNNING

    await eventually(moved)


async def tasks_of(client: Client, workflow_id: str) -> list[int]:
    """Ids of the events at which workflow tasks completed: what a workflow can be reset to."""
    handle = client.get_workflow_handle(workflow_id)
    return [event.event_id for event in await events_of(handle, "WORKFLOW_TASK_COMPLETED")]


async def reset(
    client: Client,
    workflow_id: str,
    task: int,
    exclude: Sequence[ResetReapplyExcludeType.ValueType] = (),
) -> None:
    """Reset a workflow to one of its `tasks_of` and wait until the new run has begun."""
    before = await run_id(client, workflow_id)
    await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id, run_id=str(before)),
            reason="test",
            workflow_task_finish_event_id=task,
            request_id=uuid.uuid4().hex,
            reset_reapply_exclude_types=exclude,
        )
    )
    await next_run(client, workflow_id, before)


async def delete_run(client: Client, workflow_id: str, run: str) -> None:
    """Stands for retention: a closed run is deleted."""
    await client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id, run_id=run),
        )
    )

    async def deleted() -> bool:
        try:
            await client.get_workflow_handle(workflow_id, run_id=run).describe()
        except RPCError as error:
            return error.status is RPCStatusCode.NOT_FOUND
        return False

    await eventually(deleted)
