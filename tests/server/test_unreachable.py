"""A child that takes no more signals is told by update; one that cannot be told is retried."""

from __future__ import annotations

import asyncio

from temporalio.client import Client

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine

from .conftest import start_worker
from .support import events_of, eventually, nodes_run, status_of
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
