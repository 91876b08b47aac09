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

from .conftest import start_worker
from .support import eventually, nodes_run, status_of
from .workflows import Node, Plan

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


async def start(tokens: TokenClient, plan: Plan, *, nodes: int) -> None:
    await tokens.start_workflow(
        Node.run, plan, id="root", task_queue="q", api_token="first", api_url=URL
    )
    await nodes_run(tokens, "root", nodes)


async def test_a_rotation_converges_on_the_time_skipping_server(
    skipping: Client, keyring: Keyring
) -> None:
    tokens = TokenClient(skipping, keyring)
    async with start_worker(skipping, "q"):
        await start(tokens, Plan({"a": Plan({"x": Plan()}), "b": Plan()}), nodes=4)

        assert (await tokens.rotate("root", "second", timeout=20)).converged

        root = skipping.get_workflow_handle("root-a-x")
        assert await root.execute_update("use_token", "apiToken") == "second"


async def test_of_a_closed_child_nobody_more_is_known_there(
    skipping: Client, keyring: Keyring
) -> None:
    tokens = TokenClient(skipping, keyring)
    async with start_worker(skipping, "q"):
        await start(tokens, Plan({"a": Plan()}), nodes=2)
        await skipping.get_workflow_handle("root-a").signal("stop")

        assert (await tokens.rotate("root", "second", timeout=20)).converged

        async def is_forgotten() -> bool:
            return (await status_of(skipping, "root"))["children"] == []

        await eventually(is_forgotten)
