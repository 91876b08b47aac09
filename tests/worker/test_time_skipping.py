"""Users test workflows on Temporal's time-skipping server, which has no list of workflows."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from tests.support.asking import knows, nodes_run, start_worker
from tests.support.workflows import Node, Plan

URL = "https://api.example.com"
PROGRAM = shutil.which("temporal-test-server", path=str(Path(sys.executable).parent))

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="it has no package for this platform")


@pytest.fixture
async def skipping(keyring: Keyring) -> AsyncIterator[Client]:
    """A client of a time-skipping server."""
    environment = await WorkflowEnvironment.start_time_skipping(test_server_existing_path=PROGRAM)
    async with environment:
        config = environment.client.config(active_config=True)
        yield await Client.connect(
            config["service_client"].config.target_host, plugins=[StatefulPlugin(keyring)]
        )


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
