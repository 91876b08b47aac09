"""The workflows and activities that the benchmarks compare, without this library and with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    import arrivals

    from stateful_workflow import StatefulWorkflow, current_token

STARTED_AT_ONCE = 100
ACTIVITIES_AT_ONCE = 25
TIMEOUT = timedelta(seconds=60)


async def at_most(number: int, tasks: Iterable[Awaitable[Any]]) -> list[Any]:
    """All of them, so many at a time."""
    slots = asyncio.Semaphore(number)

    async def one(task: Awaitable[Any]) -> Any:
        async with slots:
            return await task

    return await asyncio.gather(*map(one, tasks))


async def start_children(kind: Any, shape: list[int]) -> list[Any]:
    """Start a level of children, and say so; each starts its own."""
    own = workflow.info().workflow_id
    starts = (
        workflow.start_child_workflow(kind, shape[1:], id=f"{own}-{n}")
        for n in range(shape[0] if shape else 0)
    )
    children = await at_most(STARTED_AT_ONCE, starts)
    arrivals.arrived(f"{own} started")
    return children


@workflow.defn
class Plain:
    """What there is without this library: a workflow with a signal handler."""

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.signal
    def tell(self, message: str) -> None:
        arrivals.arrived(workflow.info().workflow_id)


@workflow.defn
class ByHand:
    """What a user would write: each workflow signals its children."""

    @workflow.run
    async def run(self, shape: list[int]) -> None:
        self.children = await start_children(ByHand.run, shape)
        await workflow.wait_condition(lambda: False)

    @workflow.signal
    async def tell(self, message: str) -> None:
        arrivals.arrived(workflow.info().workflow_id)
        await asyncio.gather(*[child.signal(ByHand.tell, message) for child in self.children])


@workflow.defn
class Node(StatefulWorkflow):
    """The same tree with this library."""

    @workflow.run
    async def run(self, shape: list[int]) -> None:
        self.seen = self.api_token_status
        await start_children(Node.run, shape)
        while True:
            await workflow.wait_condition(lambda: self.api_token_status != self.seen)
            self.seen = self.api_token_status
            if not workflow.unsafe.is_replaying():  # it may have left the cache
                arrivals.arrived(workflow.info().workflow_id)

    @workflow.signal
    def note(self) -> None:
        arrivals.arrived(f"{workflow.info().workflow_id} noted")


# --- what the library costs beside a rotation ----------------------------------------------------


@activity.defn
async def do_nothing() -> None:
    """What an activity costs at least."""


@activity.defn
async def open_token() -> None:
    current_token()


async def start_noting(kind: Any, children: int, at_once: int) -> None:
    """Start children, so many at a time, and note each call."""
    own = workflow.info().workflow_id

    async def start(number: int) -> None:
        arrivals.arrived(f"{own}-{number} called")
        await workflow.start_child_workflow(kind, id=f"{own}-{number}")

    await at_most(at_once, map(start, range(children)))
    await workflow.wait_condition(lambda: False)


async def begin() -> None:
    """What a child does first: say that it runs."""
    arrivals.arrived(workflow.info().workflow_id)
    await workflow.wait_condition(lambda: False)


async def execute(kind: Any, number: int) -> None:
    """Run an activity so many times, a few at once."""
    await at_most(
        ACTIVITIES_AT_ONCE,
        (workflow.execute_activity(kind, start_to_close_timeout=TIMEOUT) for _ in range(number)),
    )


@workflow.defn
class PlainChild:
    @workflow.run
    async def run(self) -> None:
        await begin()


@workflow.defn
class PlainParent:
    @workflow.run
    async def run(self, children: int, at_once: int) -> None:
        await start_noting(PlainChild.run, children, at_once)


@workflow.defn
class PlainCaller:
    @workflow.run
    async def run(self, activities: int) -> None:
        await execute(do_nothing, activities)


@workflow.defn
class StatefulChild(StatefulWorkflow):
    @workflow.run
    async def run(self) -> None:
        await begin()


@workflow.defn
class StatefulParent(StatefulWorkflow):
    @workflow.run
    async def run(self, children: int, at_once: int) -> None:
        await start_noting(StatefulChild.run, children, at_once)


@workflow.defn
class StatefulCaller(StatefulWorkflow):
    @workflow.run
    async def run(self, activities: int) -> None:
        await execute(open_token, activities)


PLAIN = [Plain, ByHand, PlainParent, PlainChild, PlainCaller]
OURS = [Node, StatefulParent, StatefulChild, StatefulCaller]
