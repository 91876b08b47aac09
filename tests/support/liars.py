"""A tree of which some children belong to another fleet, and answer what they like."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import StatefulWorkflow


@workflow.defn
class Host(StatefulWorkflow):
    """A node with two nodes below it, ``-a`` and ``-b``, and liars on a task queue of their own.

    They are called ``-liar0``, ``-liar1`` and so on.
    """

    @workflow.run
    async def run(self, liars: int, queue: str | None) -> None:
        own = workflow.info().workflow_id
        starts: list[Any] = []
        if queue is not None:
            starts = [
                workflow.start_child_workflow("Host", args=[0, None], id=f"{own}-{suffix}")
                for suffix in "ab"
            ]
            starts += [
                workflow.start_child_workflow("Liar", id=f"{own}-liar{n}", task_queue=queue)
                for n in range(liars)
            ]
        await asyncio.gather(*starts)
        await workflow.wait_condition(lambda: False)


@workflow.defn
class Liar:
    def __init__(self) -> None:
        self.answer: Any = None
        self.told: Any = None

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.signal(name="apiToken")
    def take(self, message: str) -> None:
        """Its parent tells it like any child; it lets that go."""

    @workflow.signal
    def say(self, answer: Any) -> None:
        self.answer = answer

    @workflow.signal
    def say_children(self, answer: Any, count: int) -> None:
        """Answer with so many children like the one, which there are not."""
        phantom = answer["children"][0]
        phantoms = [{**phantom, "id": f"{phantom['id']}-{n}"} for n in range(count)]
        self.answer = {**answer, "children": phantoms}

    @workflow.signal
    def say_of_token(self, answer: Any) -> None:
        """Answer so to the query and the update `apiToken`."""
        self.told = answer

    @workflow.update(name="apiToken")
    def update(self, message: str) -> Any:
        return self.told

    @workflow.query(name="apiToken")
    def query(self, name: str) -> Any:
        return self.told

    @workflow.query(name="apiTokenStatus")
    def status(self) -> Any:
        return self.answer
