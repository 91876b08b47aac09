"""A workflow that ran before its class took part in a tree goes on as it began."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from temporalio import workflow
from temporalio.client import Client
from temporalio.exceptions import ChildWorkflowError
from temporalio.service import RPCError
from temporalio.worker import Replayer, Worker

from stateful_workflow import StatefulPlugin, StatefulWorkflow, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from tests.support.asking import (
    WITHIN,
    events_of,
    eventually,
    next_run,
    opens,
    run_id,
    status_of,
)
from tests.support.trees import URL, Tree
from tests.support.workflows import SOON, Plan, reveal


@workflow.defn(sandboxed=False)
class Below:
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)


async def body() -> int:
    """Start children whose ends, of every kind, are noted; start one of their ids again."""
    own = workflow.info().workflow_id
    ends = 0
    for name in ("terminated", "cancelled", "terminated"):
        child = await workflow.start_child_workflow("Below", id=f"{own}-{name}")
        if name == "cancelled":
            child.cancel()
        try:
            await child
        except (ChildWorkflowError, asyncio.CancelledError):
            ends += 1
    return ends


@workflow.defn(name="Grown", sandboxed=False)
class Before:
    @workflow.run
    async def run(self) -> int:
        return await body()


@workflow.defn(name="Grown", sandboxed=False)
class After(StatefulWorkflow):
    @workflow.run
    async def run(self) -> int:
        return await body()


async def test_a_history_from_before_the_base_class_replays_with_it(
    engine: EmbeddedEngine, client: Client, queue: str
) -> None:
    plain = await Client.connect(engine.address, namespace=engine.namespace)
    async with Worker(plain, task_queue=queue, workflows=[Before, Below]):
        root = await plain.start_workflow(Before.run, id=queue, task_queue=queue)
        for times in (1, 3):

            async def has_started(times: int = times) -> bool:
                started = await events_of(root, "CHILD_WORKFLOW_EXECUTION_STARTED")
                return len(started) == times

            await eventually(has_started)
            await plain.get_workflow_handle(f"{queue}-terminated").terminate()
        assert await root.result() == 3

    replayer = Replayer(workflows=[After], plugins=[StatefulPlugin()], namespace=engine.namespace)
    result: Any = await replayer.replay_workflow(
        await root.fetch_history(), raise_on_replay_failure=False
    )

    assert result.replay_failure is None


# --- children that ran before --------------------------------------------------------------------


@workflow.defn(name="Region", sandboxed=False)
class PlainRegion:
    """Before it took part; its end is an id, so that it is one with what comes after it."""

    def __init__(self) -> None:
        self.below = 0
        self.begun = 0

    @workflow.run
    async def run(self, below: int) -> None:
        self.below = below
        while True:
            await workflow.wait_condition(lambda: self.begun < self.below)
            self.begun += 1
            await workflow.start_child_workflow(
                "Region",
                self.begun - 1 if self.begun <= below else 0,
                id=f"{workflow.info().workflow_id}-{self.begun}",
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            )

    @workflow.signal
    def one_more(self) -> None:
        self.below += 1


@workflow.defn(name="Region", sandboxed=False)
class Region(StatefulWorkflow):
    def __init__(self) -> None:
        self.below = 0
        self.begun = 0
        self.is_over = False

    @workflow.run
    async def run(self, below: int) -> None:
        self.below = below
        while True:
            await workflow.wait_condition(lambda: self.is_over or self.begun < self.below)
            if self.is_over:
                workflow.continue_as_new(0)
            self.begun += 1
            await workflow.start_child_workflow(
                "Region",
                self.begun - 1 if self.begun <= below else 0,
                id=f"{workflow.info().workflow_id}-{self.begun}",
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            )

    @workflow.signal
    def one_more(self) -> None:
        self.below += 1

    @workflow.signal
    def go_on(self) -> None:
        self.is_over = True

    @workflow.update
    async def use_token(self, name: str) -> str:
        return await workflow.execute_activity(reveal, name, start_to_close_timeout=SOON)


async def test_children_from_before_join_when_they_are_told_and_what_they_held_falls_away(
    engine: EmbeddedEngine, client: Client, tokens: TokenClient, queue: str
) -> None:
    plain = await Client.connect(engine.address, namespace=engine.namespace)
    async with Worker(plain, task_queue=queue, workflows=[PlainRegion]):
        root = await plain.start_workflow(PlainRegion.run, 2, id=queue, task_queue=queue)

        async def has_started() -> bool:
            return len(await events_of(root, "CHILD_WORKFLOW_EXECUTION_STARTED")) == 2

        await eventually(has_started)
        below = plain.get_workflow_handle(f"{queue}-2")

        async def has_started_too() -> bool:
            return len(await events_of(below, "CHILD_WORKFLOW_EXECUTION_STARTED")) == 1

        await eventually(has_started_too)

    ids = {queue, f"{queue}-1", f"{queue}-2", f"{queue}-2-1", f"{queue}-2-2"}
    async with Worker(client, task_queue=queue, workflows=[Region], activities=[reveal]):

        async def answers() -> bool:
            with suppress(RPCError):  # for some seconds, just after the worker before was stopped
                return bool(await status_of(client, queue) and await status_of(client, below.id))
            return False

        await eventually(answers)
        await below.signal("one_more")  # what it starts now begins in a tree of its own
        await tokens.set(f"{queue}-2", "own", origins=[URL])
        await opens(client, "own", f"{queue}-2", f"{queue}-2-2")

        tree = await tokens.rotate(queue, "first", origins=[URL], timeout=WITHIN)
        assert {node.id for node in tree.nodes if node.state == "held"} == ids
        assert {node.authority for node in tree.nodes} == {queue}
        await opens(client, "first", *ids)

        before = await run_id(client, f"{queue}-2")
        await below.signal("go_on")
        await next_run(client, f"{queue}-2", before)
        await tokens.rotate(queue, "second", timeout=WITHIN)
        await opens(client, "second", *ids)

        replayer = Replayer(
            workflows=[Region], plugins=[StatefulPlugin()], namespace=engine.namespace
        )
        for id in ids:
            await replayer.replay_workflow(await client.get_workflow_handle(id).fetch_history())


async def test_a_message_of_another_tree_makes_a_child_ask_its_parent_once(
    tree: Tree, tokens: TokenClient
) -> None:
    await tree.start(Plan({"a": Plan()}))
    other = await tree.client.start_workflow(
        "Node", Plan(), id=tree.id("other"), task_queue=tree.queue
    )
    await tokens.set(other.id, "theirs", origins=[URL])
    theirs = await tree.sealed("other")
    for times in (1, 2, 3):
        await tree.signal("a", "apiToken", theirs)

        async def refused(times: int = times) -> None:
            assert (await tree.refusals("a")) == {"WrongTree": times}

        await eventually(refused)
    asked = await events_of(tree["a"], "ACTIVITY_TASK_SCHEDULED")
    assert [e.activity_task_scheduled_event_attributes.activity_type.name for e in asked] == [
        "statefulJoin"
    ]
    await tree.opens("first", "", "a")
