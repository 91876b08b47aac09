"""A provider that a test scripts, and a tree whose workers mint there."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from temporalio.client import Client

from stateful_workflow import TokenClient
from stateful_workflow.engine import EmbeddedEngine
from tests.support.living import Provider, living_keyring, plugin
from tests.support.trees import Tree


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
async def unserved_home(engine: EmbeddedEngine, provider: Provider, queue: str) -> Tree:
    """A tree that has no worker but those the test starts; each of them mints as well."""
    keyring = living_keyring()
    client = await Client.connect(engine.address, plugins=[plugin(keyring, provider)])
    return Tree(client, TokenClient(client, keyring), queue, queue)


@pytest.fixture
async def home(unserved_home: Tree) -> AsyncIterator[Tree]:
    """A tree whose workers mint as well; its root is to be started with a grant."""
    async with unserved_home.worker():
        yield unserved_home
