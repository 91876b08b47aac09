"""A tree whose issuer signs what `tests.builders.signed` signs."""

from __future__ import annotations

import pytest

from stateful_workflow import Keyring
from tests.attacks.messages.unsent import Unsent, unsent_for
from tests.conftest import client, replays, shared_queue, tokens, tree, unserved
from tests.support import builders
from tests.support.trees import Tree
from tests.support.workflows import Plan

__all__ = ["client", "keyring", "replays", "shared_queue", "tokens", "tree", "unsent", "unserved"]


@pytest.fixture(scope="session")
def keyring() -> Keyring:
    return builders.keyring()


@pytest.fixture
async def unsent(tree: Tree) -> Unsent:
    """For a root with a child, both of which hold the token "first"."""
    await tree.start(Plan({"a": Plan()}))
    return await unsent_for(tree)
