"""What is shown of a source, and of a tree that lives by it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from temporalio.client import Client

from stateful_workflow import NotRenewed, SourceStatus, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from tests.node.test_details import details_of
from tests.support.asking import eventually
from tests.support.living import URL, Provider, living_keyring, plugin, source_is
from tests.support.trees import Tree
from tests.support.workflows import Plan


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
async def home(engine: EmbeddedEngine, provider: Provider, queue: str) -> AsyncIterator[Tree]:
    """A root with a child; only a worker of the source "own" runs beside theirs."""
    keyring = living_keyring()
    client = await Client.connect(engine.address, plugins=[plugin(keyring, provider)])
    tree = Tree(client, TokenClient(client, keyring), queue, queue)
    async with tree.worker():
        await tree.start(Plan({"a": Plan()}), api_token=None, api_url=None)
        yield tree


async def test_what_waits_for_a_worker_of_a_source_that_nobody_runs_is_pending(home: Tree) -> None:
    await home.tokens.authorize(home.root, source=f"own-{home.queue}", grant={}, origins=[URL])

    status = await source_is(home.tokens, home.root, lambda one: one.is_minting)
    assert (status.state, status.pending) == ("invalid", True)
    queue = f"stateful-source:own-{home.queue}"
    assert status.amiss == (
        f"pending: no worker polls task queue {queue}: start one that has this source"
    )
    tree = await home.tokens.tree(home.root)
    assert [node.source and node.source.pending for node in tree.nodes] == [True, None]
    assert tree.glance == "nothing usable is held · 1 pending"


async def test_a_dead_grant_is_seen_while_its_token_serves(home: Tree, provider: Provider) -> None:
    await home.tokens.authorize(home.root, source="own", grant=provider.first, origins=[URL])
    await home.opens("tok-1", "", "a")
    provider.grant = "revoked-at-the-provider"
    with pytest.raises(NotRenewed):
        await home.tokens.renew(home.root)

    tree = await home.tokens.tree(home.root)

    assert (tree.glance, tree.usable) == ("converged · 1 needs authorization", True)
    source = tree.nodes[0].source
    assert source is not None
    assert source.cure(home.root) == f"stateful token authorize {home.root} --source own"


async def test_a_dead_grant_is_seen_when_its_token_serves_no_more(
    home: Tree, provider: Provider
) -> None:
    provider.lives = 4
    await home.tokens.authorize(home.root, source="own", grant=provider.first, origins=[URL])
    await source_is(home.tokens, home.root, lambda status: status.counts.get("minted", 0) > 0)
    provider.grant = "revoked-at-the-provider"

    async def seen() -> SourceStatus:
        tree = await home.tokens.tree(home.root)
        assert [node.state for node in tree.nodes] == ["needs_authorization", "expired"]
        assert tree.counts == {"needs authorization": 1, "expired": 1}
        assert not tree.usable
        assert tree.nodes[0].source is not None
        return tree.nodes[0].source

    source = await eventually(seen)
    assert source.amiss == ("the provider refuses the grant: the provider answered invalid_grant")
    assert "source `own` needs authorization" in await details_of(home.client, home.root)
