"""A child that takes no more signals is told by update; what does not answer is asked again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine, start_engine

from .conftest import start_worker
from .support import (
    Silent,
    Unreachable,
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
from .workflows import Node, Plan, Quitter

URL = "https://api.example.com"
SIGNALS = 15
FEW_SIGNALS = [
    "--dynamic-config-value",
    f"history.maximumSignalsPerExecution={SIGNALS}",
]


async def start(tokens: TokenClient, queue: str, plan: Plan) -> WorkflowHandle[Any, Any]:
    return await tokens.start_workflow(
        Node.run, plan, id=queue, task_queue=queue, api_token="first", api_url=URL
    )


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
    root = await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
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


async def test_a_silent_child_holds_up_no_other(
    client: Client, tokens: TokenClient, queue: str, asking: Client, silent: Silent
) -> None:
    async with start_worker(asking, queue):
        root = await start(
            tokens, queue, Plan({"a": Plan({"x": Plan()}), "b": Plan({"y": Plan()})})
        )
        await nodes_run(tokens, queue, 5)
        silent.workflow_id = f"{queue}-a"
        await client.get_workflow_handle(f"{queue}-a").terminate()

        async def is_asked_patiently() -> bool:
            return len(await events_of(root, "ACTIVITY_TASK_SCHEDULED")) == 2

        await eventually(is_asked_patiently, within=60)
        await silent.is_asked()

        await client.get_workflow_handle(f"{queue}-b").terminate()

        await knows(client, queue, f"{queue}-a", f"{queue}-b-y")
        silent.workflow_id = None
        await knows(client, queue, f"{queue}-b-y", f"{queue}-a-x")


async def test_children_that_do_not_fit_into_one_request_are_told_by_the_next(
    client: Client,
    tokens: TokenClient,
    queue: str,
    engine: EmbeddedEngine,
    keyring: Keyring,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that cannot be reached stand first, and hold up neither the others nor the loop."""
    three = 3 * len(f"{queue}-aNode")
    monkeypatch.setattr("stateful_workflow.node.fanout._REQUEST_BYTES", three)
    unreachable = Unreachable()
    reaching = await Client.connect(
        engine.address, plugins=[StatefulPlugin(keyring)], interceptors=[unreachable]
    )
    async with start_worker(reaching, queue):
        root = await start(tokens, queue, Plan({name: Plan() for name in "abcdefg"}))
        await nodes_run(tokens, queue, 8)
        unreachable.ids |= {f"{queue}-{name}" for name in "abcd"}

        await tokens.set(queue, "second")

        async def hold_it(names: str) -> bool:
            held = [(await tokens.get(f"{queue}-{name}")).reveal() for name in names]
            return held == ["second"] * len(names)

        await eventually(lambda: hold_it("efg"))
        undelivered = (await status_of(client, queue))["undelivered"]
        assert {child["id"] for child in undelivered} == unreachable.ids
        unreachable.ids.clear()

        await eventually(lambda: hold_it("abcdefg"))
        assert len(await events_of(root, "MARKER_RECORDED")) < 20


@activity.defn
async def something_else() -> None:
    """What a worker of activities alone runs."""


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside_an_activity_worker"])
async def test_where_no_worker_takes_its_activities_the_nodes_own_worker_asks(
    client: Client, tokens: TokenClient, queue: str, engine: EmbeddedEngine, beside: bool
) -> None:
    plain = await Client.connect(engine.address)
    async with (
        start_worker(client, queue, activities=[]),
        Worker(plain, task_queue=queue if beside else f"{queue}-2", activities=[something_else]),
    ):
        root = await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
        await nodes_run(tokens, queue, 3)

        await client.get_workflow_handle(f"{queue}-a").terminate()

        await knows(client, queue, f"{queue}-a-x")
        failed = "ACTIVITY_TASK_FAILED" if beside else "ACTIVITY_TASK_TIMED_OUT"
        assert len(await events_of(root, failed)) == 1


async def test_a_child_whose_handle_was_given_up_is_a_child_still(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    async with start_worker(client, queue):
        root = await start(tokens, queue, Plan())
        await root.signal("start_and_give_up", "a")

        async def is_open_again() -> bool:
            children = (await status_of(client, queue))["children"]
            activities = await events_of(root, "ACTIVITY_TASK_COMPLETED")
            return len(activities) == 1 and [child["ended"] for child in children] == [False]

        await eventually(is_open_again)
        await tokens.rotate(queue, "second", timeout=20)

        assert (await tokens.get(f"{queue}-a")).reveal() == "second"
        assert (await tokens.get(f"{queue}-a-x")).reveal() == "second"
        await client.get_workflow_handle(f"{queue}-a").terminate()
        await tokens.rotate(queue, "third", timeout=20)
        assert (await tokens.get(f"{queue}-a-x")).reveal() == "third"


async def test_children_that_were_being_started_when_their_parent_was_cancelled_are_told(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    async with start_worker(client, queue):
        root = await tokens.start_workflow(
            Quitter.run, 60, id=queue, task_queue=queue, api_token="first", api_url=URL
        )

        async def some_run() -> bool:
            return len(await events_of(root, "CHILD_WORKFLOW_EXECUTION_STARTED")) > 1

        await eventually(some_run)
        await root.cancel()

        async def all_run() -> bool:
            return len(await events_of(root, "CHILD_WORKFLOW_EXECUTION_STARTED")) == 61

        await eventually(all_run, within=60)
        assert await root.query("notes") != []
        tree = await tokens.rotate(queue, "second", timeout=40)

        assert len(tree.nodes) == 62
        for given_up in await root.query("notes"):
            assert (await tokens.get(f"{queue}-{given_up}")).reveal() == "second"


async def test_a_child_whose_start_was_never_sent_is_forgotten(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await tokens.start_workflow(
        Quitter.run, 0, id=queue, task_queue=queue, api_token="first", api_url=URL
    )
    await root.cancel()
    async with start_worker(client, queue):
        assert len((await tokens.rotate(queue, "second", timeout=20)).nodes) == 1
        assert await root.query("notes") == ["first"]
        await knows(client, queue)


async def test_answers_that_are_too_long_for_one_result_come_one_after_the_other(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    """The server takes results of 2 MB; each of these children answers with 0.7 MB."""
    names = ["a", "b", "c", "d"]
    async with start_worker(client, queue):
        root = await start(tokens, queue, Plan({name: Plan(type="Talkative") for name in names}))

        async def are_started() -> bool:
            children = (await status_of(client, queue))["children"]
            return [child["confirmed"] for child in children] == [True] * len(names)

        await eventually(are_started)
        for name in names:
            await client.get_workflow_handle(f"{queue}-{name}").terminate()

        await knows(client, queue, within=60)
        assert await events_of(root, "WORKFLOW_TASK_FAILED") == []
        assert len(await events_of(root, "ACTIVITY_TASK_COMPLETED")) >= len(names)


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
        root = await start(tokens, queue, Plan())
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
