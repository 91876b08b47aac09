"""The workflows that the benchmarks compare."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import arrivals

    from stateful_workflow import StatefulWorkflow

STARTED_AT_ONCE = 100


async def start_children(
    kind: Any, shape: list[int]
) -> list[workflow.ChildWorkflowHandle[Any, Any]]:
    """Start a level of children, and say so; each starts its own."""
    own = workflow.info().workflow_id
    children: list[workflow.ChildWorkflowHandle[Any, Any]] = []
    for first in range(0, shape[0] if shape else 0, STARTED_AT_ONCE):
        children += await asyncio.gather(
            *[
                workflow.start_child_workflow(kind, shape[1:], id=f"{own}-{n}")
                for n in range(first, min(first + STARTED_AT_ONCE, shape[0]))
            ]
        )
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

    @workflow.signal
    async def tell_in_turn(self, message: str) -> None:
        arrivals.arrived(workflow.info().workflow_id)
        for child in self.children:
            await child.signal(ByHand.tell_in_turn, message)


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
        arrivals.note(f"{workflow.info().workflow_id} noted")


async def start_noting(kind: Any, children: int, *, at_once: bool) -> None:
    """Start children, all at once or each after the one before, and note each call."""
    own = workflow.info().workflow_id

    async def start(number: int) -> None:
        child = f"{own}-{number}"
        arrivals.note(f"{child} called")
        await workflow.start_child_workflow(kind, id=child)

    if at_once:
        await asyncio.gather(*[start(n) for n in range(children)])
    else:
        for n in range(children):
            await start(n)
    await workflow.wait_condition(lambda: False)


async def begin() -> None:
    """What a child does first: note that it runs."""
    own = workflow.info().workflow_id
    arrivals.note(f"{own} begun")
    arrivals.arrived(own)
    await workflow.wait_condition(lambda: False)


@workflow.defn
class PlainChild:
    @workflow.run
    async def run(self) -> None:
        await begin()


@workflow.defn
class PlainParent:
    @workflow.run
    async def run(self, children: int, at_once: bool) -> None:
        await start_noting(PlainChild.run, children, at_once=at_once)


@workflow.defn
class StatefulChild(StatefulWorkflow):
    @workflow.run
    async def run(self) -> None:
        await begin()


@workflow.defn
class StatefulParent(StatefulWorkflow):
    @workflow.run
    async def run(self, children: int, at_once: bool) -> None:
        await start_noting(StatefulChild.run, children, at_once=at_once)
