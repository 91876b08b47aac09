"""What an attacker meets: the real engine, a tree with workers, and a client without any key."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle

from stateful_workflow import TokenClient
from stateful_workflow.engine import EmbeddedEngine
from tests.support.workflows import Node, Plan

ORIGIN = "https://api.example.com"


@pytest.fixture(scope="session")
async def outsider(engine: EmbeddedEngine) -> Client:
    """May do in the namespace what the server lets anybody do; has no key and no plugin."""
    return await Client.connect(engine.address, namespace=engine.namespace)


async def start_root(tokens: TokenClient, queue: str, **options: Any) -> WorkflowHandle[Any, Any]:
    """A root with its first token, and nothing below it; its worker may come later."""
    return await tokens.start_workflow(
        Node.run,
        Plan(),
        id=queue,
        task_queue=queue,
        api_token="first",
        origins=[ORIGIN],
        **options,
    )
