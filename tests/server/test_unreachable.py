"""A child that takes no more signals is told by update; what does not answer is asked again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    QueryWorkflowInput,
    WorkflowHandle,
)
from temporalio.service import RPCError, RPCStatusCode

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine, start_engine

from .conftest import start_worker
from .support import (
    events_of,
    eventually,
    knows,
    next_run,
    nodes_run,
    reset,
    run_id,
    status_of,
    tasks_of,
)
from .workflows import Node, Plan

URL = "https://api.example.com"
SIGNALS = 15
FEW_SIGNALS = [
    "--dynamic-config-value",
    f"history.maximumSignalsPerExecution={SIGNALS}",
]


async def test_a_child_whose_signal_limit_is_used_up_is_told_by_update_and_the_tree_says_so() -> (
    None
):
    keyring = Keyring.generate()
    async with start_engine(ui=False, extra_args=FEW_SIGNALS) as engine:
        client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        tokens = TokenClient(client, keyring)
        async with start_worker(client, "q"):
            await tokens.start_workflow(
                Node.run,
                Plan({"a": Plan({"b": Plan()}), "c": Plan()}),
                id="root",
                task_queue="q",
                api_token="first",
                api_url=URL,
            )
            await nodes_run(tokens, "root", 4)
            full = client.get_workflow_handle("root-a")
            await asyncio.gather(*[full.signal("note", str(n)) for n in range(SIGNALS)])

            tree = await tokens.rotate("root", "second", timeout=20)

            assert [node.id for node in tree.nodes if node.by_update] == ["root-a"]
            for node in ("root-a", "root-a-b", "root-c"):
                assert (await tokens.get(node)).reveal() == "second"
            assert len(await events_of(full, "WORKFLOW_EXECUTION_UPDATE_ACCEPTED")) == 1
            children = (await status_of(client, "root"))["children"]
            assert {c["id"]: c["by_update"] for c in children} == {"root-a": True, "root-c": False}

            # Its next run takes signals again.
            await full.execute_update("move_on")
            await nodes_run(tokens, "root", 4)
            tree = await tokens.rotate("root", "third", timeout=20)

            assert [node.id for node in tree.nodes if node.by_update] == []
            assert (await tokens.get("root-a-b")).reveal() == "third"


async def test_a_child_that_neither_takes_signals_nor_answers_is_listed_and_told_later() -> None:
    keyring = Keyring.generate()
    async with start_engine(ui=False, extra_args=FEW_SIGNALS) as engine:
        client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        tokens = TokenClient(client, keyring)
        async with start_worker(client, "q"):
            await tokens.start_workflow(
                Node.run, Plan(), id="root", task_queue="q", api_token="first", api_url=URL
            )
            root = client.get_workflow_handle("root")
            await root.signal("add_elsewhere", "far")  # nobody polls its task queue
            far = client.get_workflow_handle("root-far")

            async def use_up_its_signals() -> None:
                for n in range(SIGNALS):
                    await far.signal("note", str(n))

            async def is_started() -> bool:
                return [c["confirmed"] for c in (await status_of(client, "root"))["children"]] == [
                    True
                ]

            await eventually(is_started)
            await use_up_its_signals()

            await tokens.set("root", "second")

            async def is_listed() -> None:
                undelivered = (await status_of(client, "root"))["undelivered"]
                assert [child["id"] for child in undelivered] == ["root-far"]
                assert "no more signals" in undelivered[0]["reason"]

            await eventually(is_listed)
            async with start_worker(client, "nobody"):

                async def is_told() -> bool:
                    return (await status_of(client, "root"))["undelivered"] == []

                await eventually(is_told)
                assert (await tokens.get("root-far")).reveal() == "second"


class Silent(Interceptor):
    """Lets questions to one workflow go unanswered, as those to a worker that was just killed."""

    def __init__(self) -> None:
        self.workflow_id: str | None = None
        self.asked = 0

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        silent = self

        class _Outbound(OutboundInterceptor):
            async def query_workflow(self, input: QueryWorkflowInput) -> Any:
                if input.id == silent.workflow_id:
                    silent.asked += 1
                    raise RPCError("made so", RPCStatusCode.DEADLINE_EXCEEDED, b"")
                return await super().query_workflow(input)

        return _Outbound(next)

    async def is_asked(self) -> None:
        """Wait until it is asked once more."""
        before = self.asked

        async def again() -> bool:
            return self.asked > before

        await eventually(again)


@pytest.fixture
def silent() -> Silent:
    return Silent()


@pytest.fixture
async def asking(engine: EmbeddedEngine, keyring: Keyring, silent: Silent) -> Client:
    """A worker's client whose questions may go unanswered."""
    return await Client.connect(
        engine.address, plugins=[StatefulPlugin(keyring)], interceptors=[silent]
    )


async def terminate_silent_child(
    client: Client, tokens: TokenClient, queue: str, silent: Silent
) -> WorkflowHandle[Any, Any]:
    """Start a root, its child and a grandchild, and terminate the child, which does not answer."""
    root = await tokens.start_workflow(
        Node.run,
        Plan({"a": Plan({"x": Plan()})}),
        id=queue,
        task_queue=queue,
        api_token="first",
        api_url=URL,
    )
    await nodes_run(tokens, queue, 3)
    silent.workflow_id = f"{queue}-a"
    await client.get_workflow_handle(f"{queue}-a").terminate()
    await silent.is_asked()
    return root


async def test_a_terminated_child_is_asked_until_it_says_what_it_leaves_alive(
    client: Client, tokens: TokenClient, queue: str, asking: Client, silent: Silent
) -> None:
    async with start_worker(asking, queue):
        await terminate_silent_child(client, tokens, queue, silent)
        silent.workflow_id = None

        await knows(client, queue, f"{queue}-a-x")


async def test_a_continued_run_goes_on_asking_what_a_terminated_child_leaves_alive(
    client: Client, tokens: TokenClient, queue: str, asking: Client, silent: Silent
) -> None:
    async with start_worker(asking, queue):
        root = await terminate_silent_child(client, tokens, queue, silent)
        before = await run_id(client, queue)

        await root.signal("go_on")
        await next_run(client, queue, before)
        await silent.is_asked()
        silent.workflow_id = None

        await knows(client, queue, f"{queue}-a-x")


async def test_a_run_that_has_no_header_asks_with_its_next_fan_out(
    client: Client, tokens: TokenClient, queue: str, asking: Client
) -> None:
    """An older version may have begun it, whose history is to be borne out."""
    async with start_worker(asking, queue):
        root = await client.start_workflow(
            Node.run, Plan({"a": Plan({"x": Plan()})}), id=queue, task_queue=queue
        )
        await nodes_run(tokens, queue, 3)
        await client.get_workflow_handle(f"{queue}-a").terminate()

        async def is_noted() -> bool:
            return (await status_of(client, queue))["children"][0]["ended"] is True

        await eventually(is_noted)
        assert await events_of(root, "ACTIVITY_TASK_SCHEDULED") == []
        assert await events_of(root, "MARKER_RECORDED") == []

        await tokens.rotate(queue, "second", timeout=20, origins=[URL])

        await knows(client, queue, f"{queue}-a-x")
        assert (await tokens.get(f"{queue}-a-x")).reveal() == "second"


async def test_a_reset_run_counts_a_child_as_starting_until_it_says_whose_it_is(
    client: Client, tokens: TokenClient, queue: str, asking: Client, silent: Silent
) -> None:
    async with start_worker(asking, queue):
        root = await tokens.start_workflow(
            Node.run, Plan(), id=queue, task_queue=queue, api_token="first", api_url=URL
        )
        await root.signal("try_to_start", "a")
        await nodes_run(tokens, queue, 2)
        first_task, *_ = await tasks_of(client, queue)
        silent.workflow_id = f"{queue}-a"

        await reset(client, queue, first_task)

        async def is_starting() -> bool:
            return [node.problem for node in (await tokens.tree(queue)).nodes] == [None, "starting"]

        await eventually(is_starting)
        await silent.is_asked()
        silent.workflow_id = None
        assert (await tokens.rotate(queue, "second", timeout=20)).converged
        assert (await tokens.get(f"{queue}-a")).reveal() == "second"
