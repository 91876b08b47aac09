"""The workflows of the recorded histories. Never change one: add another beside it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ApplicationError,
    ChildWorkflowError,
    WorkflowAlreadyStartedError,
)

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import (
        SealedToken,
        StatefulWorkflow,
        TokenUnavailable,
        current_token,
        seal_token,
    )

SOON = timedelta(seconds=10)


@activity.defn
async def use() -> str:
    """What an activity knows of its token."""
    try:
        return current_token().fingerprint
    except TokenUnavailable as error:
        return type(error).__name__


@activity.defn
async def seal(secret: str) -> SealedToken:
    """Stands for an issuer's activity; the argument for what it would fetch."""
    return seal_token(secret)


@dataclass
class Branch:
    """What a workflow starts: for each child its id suffix, its type, and how."""

    children: dict[str, str] = field(default_factory=dict[str, str])
    hard: list[str] = field(default_factory=list[str])


class _Steered(StatefulWorkflow):
    def __init__(self) -> None:
        self.stopped = False
        self.going_on = False
        self.broken = False

    async def live(self, branch: Branch) -> str:
        await asyncio.gather(*[self.begin(s, kind, branch) for s, kind in branch.children.items()])
        await workflow.wait_condition(lambda: self.stopped or self.going_on or self.broken)
        await workflow.wait_condition(workflow.all_handlers_finished)
        if self.broken:
            raise ApplicationError("told to fail")
        if self.going_on:
            workflow.continue_as_new(Branch())
        return "stopped"

    async def begin(self, suffix: str, kind: str, branch: Branch) -> None:
        async def start() -> None:
            await workflow.start_child_workflow(
                kind,
                Branch(),
                id=f"{workflow.info().workflow_id}-{suffix}",
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                retry_policy=RetryPolicy(
                    initial_interval=timedelta(milliseconds=50), maximum_attempts=2
                ),
            )

        if suffix in branch.hard:
            with self.withholding():
                await start()
        else:
            await start()

    @workflow.signal
    def stop(self) -> None:
        self.stopped = True

    @workflow.signal
    def go_on(self) -> None:
        self.going_on = True

    @workflow.signal
    def break_down(self) -> None:
        self.broken = True

    @workflow.signal
    def keep_from(self, suffix: str) -> None:
        self.withhold(f"{workflow.info().workflow_id}-{suffix}")

    @workflow.signal
    def give_to(self, suffix: str) -> None:
        self.share(f"{workflow.info().workflow_id}-{suffix}")

    @workflow.signal
    async def grow(self, suffix: str) -> None:
        await self.begin(suffix, "Leaf", Branch())

    @workflow.update
    async def use_both_ways(self) -> list[str]:
        return [
            await workflow.execute_activity(use, start_to_close_timeout=SOON),
            await workflow.execute_local_activity(use, start_to_close_timeout=SOON),
        ]

    @workflow.update
    async def fetch(self, secret: str) -> str:
        sealed = await workflow.execute_activity(seal, secret, start_to_close_timeout=SOON)
        return (await self.set_api_token(sealed)).state


@workflow.defn
class Trunk(_Steered, withhold=("Withheld",)):
    @workflow.run
    async def run(self, branch: Branch) -> str:
        return await self.live(branch)


@workflow.defn
class Leaf(_Steered):
    @workflow.run
    async def run(self, branch: Branch) -> str:
        return await self.live(branch)


@workflow.defn
class Withheld(_Steered):
    @workflow.run
    async def run(self, branch: Branch) -> str:
        return await self.live(branch)


@workflow.defn
class Watcher(_Steered):
    """What it does next follows from what it knows of its token."""

    @workflow.run
    async def run(self, branch: Branch) -> str:
        seen = None
        while not self.stopped:
            status = self.api_token_status
            if status != seen:
                seen = status
                await workflow.execute_local_activity(use, start_to_close_timeout=SOON)
                if status is None or status.state != "held":
                    await workflow.sleep(timedelta(milliseconds=1))
            await workflow.wait_condition(lambda: self.stopped or self.api_token_status != seen)  # noqa: B023
        return "stopped"


@workflow.defn
class Plain:
    @workflow.run
    async def run(self, branch: Branch) -> str:
        return "plain"


ISSUED = "replay-canary-issued"
"""What `issue` seals; it is in no argument, so no history may hold it."""


@activity.defn
async def issue() -> SealedToken:
    """An issuer's activity that has its secret from elsewhere."""
    return seal_token(ISSUED)


@workflow.defn
class Retried(_Steered):
    """A root that its policy starts again when it fails; its children are there by then."""

    @workflow.run
    async def run(self, branch: Branch) -> str:
        return await self.live(branch if workflow.info().attempt == 1 else Branch())


@workflow.defn
class Choosing(_Steered):
    """Keeps a child from one credential only."""

    @workflow.run
    async def run(self, branch: Branch) -> str:
        with self.withholding(name="billing"):
            await self.begin("kept", "Leaf", Branch())
        return await self.live(branch)

    @workflow.signal
    def keep_name_from(self, suffix: str, name: str) -> None:
        self.withhold(f"{workflow.info().workflow_id}-{suffix}", name=name)

    @workflow.signal
    def give_name_to(self, suffix: str, name: str) -> None:
        self.share(f"{workflow.info().workflow_id}-{suffix}", name=name)


@workflow.defn
class Issuing(_Steered):
    @workflow.run
    async def run(self, branch: Branch) -> str:
        return await self.live(branch)

    @workflow.update
    async def issue_and_set(self) -> str:
        sealed = await workflow.execute_activity(issue, start_to_close_timeout=SOON)
        return (await self.set_api_token(sealed)).state


@workflow.defn
class GivingUp(_Steered):
    """Takes a child for cancelled that is not, and is cancelled itself while it starts another."""

    @workflow.run
    async def run(self, branch: Branch) -> str:
        with suppress(asyncio.CancelledError):
            await self.begin_abandoned("first")
        return await self.live(branch)

    @workflow.signal
    async def start_and_give_up(self, suffix: str) -> None:
        child = await self.begin_abandoned(suffix)
        child.cancel()
        with suppress(ChildWorkflowError):
            await child

    async def begin_abandoned(self, suffix: str) -> workflow.ChildWorkflowHandle[Leaf, str]:
        return await workflow.start_child_workflow(
            Leaf.run,
            Branch(),
            id=f"{workflow.info().workflow_id}-{suffix}",
            cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
        )


@workflow.defn
class PlainAbove:
    """A plain workflow above a tree."""

    @workflow.run
    async def run(self, branch: Branch) -> str:
        return await workflow.execute_child_workflow(
            "Trunk", branch, id=f"{workflow.info().workflow_id}-node"
        )


@workflow.defn
class Resettable(_Steered):
    """Goes on where a child that it starts runs already."""

    @workflow.run
    async def run(self, branch: Branch) -> str:
        return await self.live(branch)

    async def begin(self, suffix: str, kind: str, branch: Branch) -> None:
        with suppress(WorkflowAlreadyStartedError):
            await super().begin(suffix, kind, branch)


WORKFLOWS: list[type] = [
    Choosing,
    GivingUp,
    Issuing,
    Leaf,
    Plain,
    PlainAbove,
    Resettable,
    Retried,
    Trunk,
    Watcher,
    Withheld,
]
ACTIVITIES = [issue, seal, use]
