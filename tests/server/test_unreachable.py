"""A child that cannot be told is listed, retried, and told once it can be."""

from __future__ import annotations

import asyncio

from temporalio.client import Client

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine

from .conftest import start_worker
from .support import eventually, nodes_run, status_of
from .workflows import Node, Plan

URL = "https://api.example.com"
SIGNALS = 15
FEW_SIGNALS = [
    "--dynamic-config-value",
    f"history.maximumSignalsPerExecution={SIGNALS}",
]


async def test_a_child_whose_signal_limit_is_used_up_is_listed_and_told_in_its_next_run() -> None:
    keyring = Keyring.generate()
    async with start_engine(ui=False, extra_args=FEW_SIGNALS) as engine:
        client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        tokens = TokenClient(client, keyring)
        async with start_worker(client, "q"):
            await tokens.start_workflow(
                Node.run,
                Plan({"a": Plan(), "b": Plan()}),
                id="root",
                task_queue="q",
                api_token="first",
                api_url=URL,
            )
            await nodes_run(tokens, "root", 3)
            full = client.get_workflow_handle("root-a")
            await asyncio.gather(*[full.signal("note", str(n)) for n in range(SIGNALS)])

            await tokens.set("root", "second")

            async def one_is_listed() -> None:
                undelivered = (await status_of(client, "root"))["undelivered"]
                assert [child["id"] for child in undelivered] == ["root-a"]
                assert "limit" in undelivered[0]["reason"]

            await eventually(one_is_listed)
            assert (await tokens.get("root-b")).reveal() == "second"
            assert [node.id for node in (await tokens.tree("root")).behind] == ["root-a"]

            await full.execute_update("move_on")

            async def told() -> bool:
                return (await tokens.get("root-a")).reveal() == "second"

            await eventually(told)
            assert (await status_of(client, "root"))["undelivered"] == []
