"""The tree that faults happen to: nodes that do what they are told, and use their token."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ApplicationError,
    ApplicationErrorCategory,
    WorkflowAlreadyStartedError,
)

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import StatefulError, StatefulWorkflow, current_token
    from tests.faults.uses import record

TASK_TIMEOUT = timedelta(seconds=2)
AGAIN = timedelta(seconds=1)


@dataclass
class Plan:
    """What a node does when it starts.

    Attributes:
        children: for each child its id's suffix and its own plan.
        type: workflow type of this node.
        retried: whether it has a retry policy.
        uses: whether an activity of it opens the token again and again.
        note: clear text, to be found wherever a clear token would be.
    """

    children: dict[str, Plan] = field(default_factory=dict[str, "Plan"])
    type: str = "Node"
    retried: bool = False
    uses: bool = True
    note: str = ""

    def ids(self, own: str) -> list[str]:
        """The ids of this node and of all below it, where this one's is `own`."""
        below = [id for suffix, plan in self.children.items() for id in plan.ids(f"{own}-{suffix}")]
        return [own, *below]


@activity.defn
async def use() -> None:
    """Open the token and note which version was given; then fail, to be tried again.

    Raises:
        ApplicationError: always.
    """
    try:
        record(version=current_token().version)
    except StatefulError as error:
        record(refused=type(error).__name__)
    raise ApplicationError(
        "used; to be tried again",
        next_retry_delay=AGAIN,
        category=ApplicationErrorCategory.BENIGN,  # not logged
    )


class _Node(StatefulWorkflow):
    def __init__(self) -> None:
        self._told = ""

    async def live(self, plan: Plan) -> str:
        if plan.uses:
            workflow.start_activity(use, start_to_close_timeout=timedelta(seconds=10))
        children = plan.children.items()
        await asyncio.gather(*[self._start(suffix, child) for suffix, child in children])
        await workflow.wait_condition(lambda: self._told != "")
        if self._told == "fail":
            raise ApplicationError("told to fail")
        if self._told == "continue":
            workflow.continue_as_new(replace(plan, children={}))
        return self._told

    async def _start(self, suffix: str, plan: Plan) -> None:
        # A run that is retried, or next by cron or reset, finds them running.
        with suppress(WorkflowAlreadyStartedError):
            await workflow.start_child_workflow(
                plan.type,
                plan,
                id=f"{workflow.info().workflow_id}-{suffix}",
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                task_timeout=TASK_TIMEOUT,
                retry_policy=QUICK if plan.retried else None,
            )

    @workflow.signal
    def tell(self, what: str) -> None:
        """End this run: "complete", "fail" or "continue"."""
        self._told = what

    @workflow.signal
    async def grow(self, count: int) -> None:
        """Start so many children in one task."""
        await asyncio.gather(*[self._start(f"g{n}", Plan(uses=False)) for n in range(count)])


QUICK = RetryPolicy(initial_interval=timedelta(milliseconds=100), backoff_coefficient=1)


@workflow.defn
class Node(_Node, withhold=("Withheld",)):
    """Entitled, unless something above it is withheld."""

    @workflow.run
    async def run(self, plan: Plan) -> str:
        return await self.live(plan)


@workflow.defn
class Withheld(_Node):
    """Never given the token."""

    @workflow.run
    async def run(self, plan: Plan) -> str:
        return await self.live(plan)


WORKFLOWS: list[type[Any]] = [Node, Withheld]
