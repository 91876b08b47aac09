"""What an attacker meets: the real engine, a tree with workers, and a client without any key."""

from __future__ import annotations

import pytest
from temporalio.client import Client

from stateful_workflow.engine import EmbeddedEngine

from ..server.conftest import client, engine, keyring, queue, tokens

__all__ = ["client", "engine", "keyring", "outsider", "queue", "tokens"]


@pytest.fixture(scope="session")
async def outsider(engine: EmbeddedEngine) -> Client:
    """May do in the namespace what the server lets anybody do; has no key and no plugin."""
    return await Client.connect(engine.address, namespace=engine.namespace)
