"""The workflows that run activities, and the activities that cost as little as can be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    import arrivals

    from stateful_workflow import StatefulWorkflow, current_token

AT_ONCE = 25
TIMEOUT = timedelta(seconds=60)


@activity.defn
async def do_nothing() -> None:
    """What an activity costs at least."""


@activity.defn
async def open_token() -> None:
    current_token()


@activity.defn
async def use_token() -> None:
    arrivals.note(f"{current_token().reveal()} given")


async def at_once(activities: int, run: Callable[[], Awaitable[object]]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with slots:
            await run()

    await asyncio.gather(*[one() for _ in range(activities)])


@workflow.defn
class Opening(StatefulWorkflow):
    """Runs activities that open its token, a few at once."""

    @workflow.run
    async def run(self, activities: int) -> None:
        await at_once(
            activities,
            lambda: workflow.execute_activity(open_token, start_to_close_timeout=TIMEOUT),
        )


@workflow.defn
class Calling:
    """Runs activities without this library, a few at once; each is given the arguments."""

    @workflow.run
    async def run(self, activities: int, name: str, args: list[str]) -> None:
        await at_once(
            activities,
            lambda: workflow.execute_activity(name, args=args, start_to_close_timeout=TIMEOUT),
        )


@workflow.defn
class Using(StatefulWorkflow):
    """Has its token used in one activity after another, as its children have."""

    def __init__(self) -> None:
        self.stopped = False

    @workflow.run
    async def run(self, children: int) -> None:
        own = workflow.info().workflow_id
        running = [
            await workflow.start_child_workflow(Using.run, 0, id=f"{own}-{n}")
            for n in range(children)
        ]
        while not self.stopped:
            await workflow.execute_activity(use_token, start_to_close_timeout=TIMEOUT)
        for child in running:
            await child.signal(Using.stop)
        await asyncio.gather(*running)

    @workflow.signal
    def stop(self) -> None:
        self.stopped = True


@workflow.defn
class Resolving:
    """Has its reference resolved in one activity after another."""

    def __init__(self) -> None:
        self.stopped = False

    @workflow.run
    async def run(self, name: str, reference: str) -> None:
        while not self.stopped:
            await workflow.execute_activity(name, reference, start_to_close_timeout=TIMEOUT)

    @workflow.signal
    def stop(self) -> None:
        self.stopped = True
