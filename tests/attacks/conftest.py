"""What an attacker meets: the real engine, a tree with workers, and a client without any key."""

from __future__ import annotations

import pytest
from temporalio.client import Client

from stateful_workflow import Keyring
from stateful_workflow.engine import EmbeddedEngine
from tests import builders

from ..server.conftest import client, engine, queue, replays, shared_queue, tokens, tree, unserved
from ..server.trees import Tree
from ..server.workflows import Plan
from .messages import Unsent, unsent_for

__all__ = [
    "client",
    "engine",
    "keyring",
    "outsider",
    "queue",
    "replays",
    "shared_queue",
    "tokens",
    "tree",
    "unsent",
    "unserved",
]


@pytest.fixture(scope="session")
def keyring() -> Keyring:
    """The one whose issuer `builders.signed` signs as."""
    return builders.keyring()


@pytest.fixture(scope="session")
async def outsider(engine: EmbeddedEngine) -> Client:
    """May do in the namespace what the server lets anybody do; has no key and no plugin."""
    return await Client.connect(engine.address, namespace=engine.namespace)


@pytest.fixture
async def unsent(tree: Tree) -> Unsent:
    """For a root with a child, both of which hold the token "first"."""
    await tree.start(Plan({"a": Plan()}))
    return await unsent_for(tree)
