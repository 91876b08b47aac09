"""What the server says of workflows, whatever statuses it knows.

The SDK's own calls raise for a status that is not in its enumeration, such as *paused*, and a
server's enumeration grows. Here a status that is not known is that of an open workflow.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType, WorkflowExecutionStatus
from temporalio.api.history.v1 import HistoryEvent, WorkflowExecutionStartedEventAttributes
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    ListWorkflowExecutionsRequest,
)
from temporalio.client import Client

_CLOSED: Final = frozenset(
    {
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED,
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_FAILED,
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_CANCELED,
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TERMINATED,
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW,
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TIMED_OUT,
    }
)
_PAUSED: Final = 8
"""The SDK of the oldest version that is supported has no name for it."""

_PAGE: Final = 1_000


@dataclass(frozen=True)
class Execution:
    """One run as the server describes or lists it.

    Attributes:
        id, run_id, type, task_queue: of the workflow.
        is_open: it has not ended.
        is_paused: somebody paused it: it answers nothing, and the server keeps its signals.
        first_run_id: of the chain that it belongs to.
        parent_id, parent_run_id, root_id: None where it has none, or the server does not say.
        start_time: when the run began.
        first_task: Unix seconds at which its first workflow task is or was due.
        starting: ids of children that it has asked for and that are not closed.
    """

    id: str
    run_id: str
    type: str
    task_queue: str
    is_open: bool
    is_paused: bool
    first_run_id: str
    parent_id: str | None
    parent_run_id: str | None
    root_id: str | None
    start_time: datetime
    first_task: float
    starting: frozenset[str] = frozenset()

    @property
    def asleep_until(self) -> float | None:
        """Unix seconds until which it waits for its first task; None where it does not.

        So it is between cron runs, in a retry's backoff, and within a start delay.
        """
        return self.first_task if self.is_open and self.first_task > time.time() else None

    @classmethod
    def of(cls, info: WorkflowExecutionInfo, starting: frozenset[str] = frozenset()) -> Execution:
        """Read what the server sent."""
        return cls(
            id=info.execution.workflow_id,
            run_id=info.execution.run_id,
            type=info.type.name,
            task_queue=info.task_queue,
            is_open=info.status not in _CLOSED,
            is_paused=info.status == _PAUSED,
            first_run_id=info.first_run_id,
            parent_id=info.parent_execution.workflow_id or None,
            parent_run_id=info.parent_execution.run_id or None,
            root_id=info.root_execution.workflow_id or None,
            start_time=info.start_time.ToDatetime(timezone.utc),
            first_task=info.execution_time.ToDatetime(timezone.utc).timestamp(),
            starting=starting,
        )


async def describe(
    client: Client, workflow_id: str, run_id: str | None = None, *, timeout: timedelta
) -> Execution:
    """One run, or the newest of a workflow.

    Raises:
        RPCError: the server does not know it, or does not say.
    """
    request = DescribeWorkflowExecutionRequest(
        namespace=client.namespace,
        execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id or ""),
    )
    service = client.workflow_service
    said = await service.describe_workflow_execution(request, retry=True, timeout=timeout)
    starting = frozenset(child.workflow_id for child in said.pending_children)
    return Execution.of(said.workflow_execution_info, starting)


async def listed(client: Client, query: str, most: int, *, timeout: timedelta) -> list[Execution]:
    """So many at most of the runs that a list filter finds; `timeout` is of each call.

    Raises:
        RPCError: the server does not say, or has no list.
    """
    found: list[Execution] = []
    page = b""
    while True:
        request = ListWorkflowExecutionsRequest(
            namespace=client.namespace,
            page_size=min(_PAGE, most - len(found)),
            next_page_token=page,
            query=query,
        )
        service = client.workflow_service
        said = await service.list_workflow_executions(request, retry=True, timeout=timeout)
        found += map(Execution.of, said.executions)
        page = said.next_page_token
        if not page or len(found) >= most:
            return found[:most]


def history(
    client: Client, workflow_id: str, run_id: str, *, timeout: timedelta, page: int = 100
) -> AsyncIterator[HistoryEvent]:
    """The events of a run, from its first on.

    Raises:
        RPCError: the server does not know it, or does not say.
    """
    handle = client.get_workflow_handle(workflow_id, run_id=run_id)
    return handle.fetch_history_events(page_size=page, rpc_timeout=timeout)


async def start_of_run(
    client: Client, workflow_id: str, run_id: str, *, timeout: timedelta
) -> WorkflowExecutionStartedEventAttributes:
    """What a run was started with, by its first event; raises as `history`."""
    first = await first_event(client, workflow_id, run_id, timeout=timeout)
    return first.workflow_execution_started_event_attributes


async def first_event(
    client: Client, workflow_id: str, run_id: str, *, timeout: timedelta
) -> HistoryEvent:
    """The event of a run's start; raises as `history`."""
    return await anext(history(client, workflow_id, run_id, timeout=timeout, page=1))


async def never_ran(client: Client, workflow_id: str, run_id: str, *, timeout: timedelta) -> bool:
    """Whether a run closed before any workflow task of its was completed: it answers nothing.

    Raises:
        RPCError: the server does not say.
    """
    if (await describe(client, workflow_id, run_id, timeout=timeout)).is_open:
        return False
    async for event in history(client, workflow_id, run_id, timeout=timeout):
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            return False
    return True
