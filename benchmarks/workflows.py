"""The workflows that the benchmark compares."""

from __future__ import annotations

import asyncio

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    import arrivals

    from stateful_workflow import StatefulWorkflow


@workflow.defn
class Plain:
    """What there is without this library: a workflow with a signal handler."""

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.signal
    def tell(self, message: str) -> None:
        arrivals.arrived(workflow.info().workflow_id)


class _Node(StatefulWorkflow):
    async def follow(self) -> None:
        self.seen = self.api_token_status
        while True:
            await workflow.wait_condition(lambda: self.api_token_status != self.seen)
            self.seen = self.api_token_status
            arrivals.arrived(workflow.info().workflow_id)


@workflow.defn
class Leaf(_Node):
    """A node without children."""

    @workflow.run
    async def run(self) -> None:
        await self.follow()


@workflow.defn
class Root(_Node):
    """A node with many children."""

    @workflow.run
    async def run(self, children: int) -> None:
        own = workflow.info().workflow_id
        for first in range(0, children, 100):
            await asyncio.gather(
                *[
                    workflow.start_child_workflow(Leaf.run, id=f"{own}-{n}")
                    for n in range(first, min(first + 100, children))
                ]
            )
        arrivals.arrived(f"{own}-started")
        await self.follow()
