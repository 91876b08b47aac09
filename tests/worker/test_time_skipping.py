"""Users test workflows on Temporal's time-skipping server, which has no list of workflows."""

from __future__ import annotations

from temporalio.client import Client

from stateful_workflow import Keyring, TokenClient
from tests.support.asking import knows, nodes_run, start_worker
from tests.support.workflows import Node, Plan

URL = "https://api.example.com"


async def test_a_rotation_converges_on_the_time_skipping_server_and_a_closed_child_is_forgotten(
    skipping: Client, keyring: Keyring
) -> None:
    tokens = TokenClient(skipping, keyring)
    async with start_worker(skipping, "q"):
        plan = Plan({"a": Plan({"x": Plan()}), "b": Plan()})
        await tokens.start_workflow(
            Node.run, plan, id="root", task_queue="q", api_token="first", api_url=URL
        )
        await nodes_run(tokens, "root", 4)

        assert (await tokens.rotate("root", "second", timeout=20)).converged
        leaf = skipping.get_workflow_handle("root-a-x")
        assert await leaf.execute_update("use_token", "apiToken") == "second"

        await skipping.get_workflow_handle("root-b").signal("stop")
        assert (await tokens.rotate("root", "third", timeout=20)).converged
        await knows(skipping, "root", "root-a")
