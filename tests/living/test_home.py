"""A workflow that has a grant mints its tokens, renews them, and gives them to its tree."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from temporalio.client import Client

from stateful_workflow import (
    NotRenewed,
    ProviderUnreachable,
    RateLimited,
    ReplyLost,
    SourceWorker,
    StatefulPlugin,
    TokenClient,
    TokenHome,
)
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.node.contract import STATE_QUERY
from stateful_workflow.sealed.message import parse
from stateful_workflow.source import Grant, Minted
from stateful_workflow.worker import minting
from tests.support.living import URL, Provider, living_keyring, plugin, source_is, start_home
from tests.support.trees import Tree
from tests.support.workflows import Plan


async def test_a_root_that_is_started_with_a_grant_mints_its_first_token(
    home: Tree, provider: Provider
) -> None:
    await start_home(home, provider, Plan({"0": Plan(), "1": Plan()}))
    await source_is(home.tokens, home.root, lambda status: status.state == "fresh")
    await home.opens("tok-1", "", "0", "1")
    assert provider.exchanges == 1


async def test_a_person_has_a_new_token_minted_and_the_old_one_retired_once_nobody_uses_it(
    home: Tree, provider: Provider
) -> None:
    await start_home(home, provider, Plan({"a": Plan()}))
    await source_is(home.tokens, home.root, lambda status: status.state == "fresh")

    status = await home.tokens.renew(home.root, retire=True, timeout=60)

    assert (status.retiring, status.proven, status.counts) == ((), True, {"minted": 2})
    assert provider.valid == {"tok-2"}
    assert await home.opened("", "a") == ["tok-2"] * 2


async def test_a_grant_that_is_refused_needs_authorization_and_then_all_goes_on(
    home: Tree, provider: Provider
) -> None:
    await start_home(home, provider, Plan({"a": Plan()}))
    await source_is(home.tokens, home.root, lambda status: status.state == "fresh")
    provider.grant = "revoked-at-the-provider"

    with pytest.raises(NotRenewed, match="needs authorization"):
        await home.tokens.renew(home.root)
    status = await source_is(home.tokens, home.root, lambda status: status.needs_authorization)
    assert (status.after_lost, status.counts["refused_grant"]) == (False, 1)

    provider.grant = "given-anew"
    await home.tokens.authorize(home.root, source="own", grant=provider.first)
    await source_is(home.tokens, home.root, lambda status: status.state == "fresh")
    await home.opens("tok-2", "", "a")


async def test_a_reply_that_is_lost_is_asked_for_again_with_the_same_grant(
    home: Tree, provider: Provider
) -> None:
    provider.failures = [ReplyLost("the connection broke")]
    await start_home(home, provider)
    status = await source_is(home.tokens, home.root, lambda status: status.state == "fresh")
    assert status.counts == {"lost_reply": 1, "minted": 1}


async def test_what_passes_is_no_dead_grant_and_is_tried_again(
    home: Tree, provider: Provider
) -> None:
    provider.failures = [
        ProviderUnreachable("no route"),
        RateLimited("patience", retry_after=1.0),
        ValueError("secret-canary"),
    ]
    await start_home(home, provider)
    status = await source_is(home.tokens, home.root, lambda status: status.state == "fresh")
    assert status.counts == {"unreachable": 1, "rate_limited": 1, "lost_reply": 1, "minted": 1}


class Keeping:
    """A source whose provider has no way to revoke a token, and gives expired ones at first."""

    def __init__(self) -> None:
        self.given = 0

    async def mint(self, grant: Grant) -> Minted:
        self.given += 1
        expires = time.time() + (3600 if self.given > 1 else -1)
        return Minted(f"tok-{self.given}", expires)


async def test_an_expired_token_is_no_token_and_one_that_cannot_be_revoked_is_not_said_to_be(
    engine: EmbeddedEngine, queue: str
) -> None:
    keyring, source = living_keyring(), Keeping()
    client = await Client.connect(engine.address, plugins=[plugin(keyring, source)])
    tree = Tree(client, TokenClient(client, keyring), queue, queue)
    async with tree.worker():
        await tree.start(None, api_token=None, source="own")
        status = await source_is(tree.tokens, tree.root, lambda status: status.state == "fresh")
        assert status.counts == {"malformed": 1, "minted": 1}

        with pytest.raises(NotRenewed, match="cannot revoke a token") as not_renewed:
            await tree.tokens.renew(tree.root, retire=True)

        assert not_renewed.value.status.retired is None
        assert await tree.opened("") == ["tok-3"]


@pytest.mark.parametrize("is_given_out", [True, False])
async def test_a_grant_is_spent_only_where_what_comes_of_it_can_be_taken(
    engine: EmbeddedEngine, provider: Provider, queue: str, is_given_out: bool
) -> None:
    """The key of the source's worker is younger than the run, and the run's workers may lack it."""
    old = living_keyring()
    new = old.add_issuer()
    first = next(iter(old.trusted()))
    signs = new.retire(first)
    known = signs if is_given_out else old
    client = await Client.connect(engine.address, plugins=[StatefulPlugin(known)])
    home = Tree(client, TokenClient(client, old), queue, queue)
    minting = await Client.connect(engine.address, plugins=[plugin(signs, provider)])
    async with home.worker(), SourceWorker(minting):
        await start_home(home, provider)
        if is_given_out:
            status = await source_is(home.tokens, home.root, lambda one: one.state == "fresh")
            assert status.counts == {"not_ready": 1, "minted": 1}
            await home.opens("tok-1", "")
            state: Any = await client.get_workflow_handle(home.root).query(STATE_QUERY)
            grant = parse(state["ledger"]["grants"][0])
            text = signs.open_grant(grant, namespace=client.namespace, workflow_id=home.root)
            assert json.loads(text)["by"] == first  # who gave it, whoever has signed since
        else:
            status = await source_is(home.tokens, home.root, lambda one: one.failures > 1)
            assert status.counts == {"not_ready": status.failures}
            assert "do not know issuer" in (status.detail or "")
    assert (provider.exchanges, provider.reused) == (is_given_out, 0)


async def test_a_worker_makes_few_exchanges_at_a_time_however_many_homes_ask(
    engine: EmbeddedEngine, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work: list[int] = []

    class Slow:
        now = 0

        async def mint(self, grant: Grant) -> Minted:
            self.now += 1
            at_work.append(self.now)
            await asyncio.sleep(0.3)
            self.now -= 1
            return Minted("tok", expires_at=time.time() + 3600)

    monkeypatch.setattr(minting, "MOST_EXCHANGES", 2)
    keyring, homes = living_keyring(), [f"{queue}-{number}" for number in range(6)]
    client = await Client.connect(engine.address, plugins=[plugin(keyring, Slow())])
    tokens = TokenClient(client, keyring)
    joins: list[str] = []
    for home in homes:
        await tokens.start_workflow(
            TokenHome.run, joins, id=home, task_queue=queue, source="own", origins=[URL]
        )
    async with Tree(client, tokens, queue, queue).worker():
        for home in homes:
            await source_is(tokens, home, lambda status: status.state == "fresh")
            await client.get_workflow_handle(home).terminate()
    assert (len(at_work), max(at_work)) == (6, 2)


async def test_a_provider_that_still_takes_what_it_revoked_is_said_to(
    home: Tree, provider: Provider
) -> None:
    await start_home(home, provider)
    await source_is(home.tokens, home.root, lambda status: status.state == "fresh")
    provider.retires = False

    with pytest.raises(NotRenewed, match="still takes it"):
        await home.tokens.renew(home.root, retire=True)

    provider.retires = True
    assert (await home.tokens.renew(home.root, retire=True)).proven is True
