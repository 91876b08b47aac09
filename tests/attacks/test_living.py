"""Sources that go wrong, and workflows and workers that lie to them or to homes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from stateful_workflow import (
    AnswerMalformed,
    GrantRefused,
    Keyring,
    NotRenewed,
    RateLimited,
    SourceStatus,
    SourceWorker,
    StatefulPlugin,
    TokenClient,
    TokenRefused,
)
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.node import inbox
from stateful_workflow.node.contract import MINT, RETIRE, source_queue_of
from stateful_workflow.node.members import read
from stateful_workflow.node.renewal import Renewing
from stateful_workflow.source import Grant, Minted
from stateful_workflow.source.announcing import DeadGrant
from stateful_workflow.worker import minting
from tests.support.asking import eventually, lower, sealed_at
from tests.support.living import Provider, living_keyring, plugin, source_is
from tests.support.trees import Tree

ORIGIN = "https://api.example.com"
CANARY = "canary-7f3a9c51d2e8"


class Home:
    """A root with a grant for `Provider`, whose worker mints as well."""

    def __init__(self, engine: EmbeddedEngine, queue: str) -> None:
        self._engine, self._queue = engine, queue
        self.provider = Provider()
        self.keyring = living_keyring()

    async def tree(self, source: Any = None, **options: Any) -> Tree:
        beside = plugin(self.keyring, source or self.provider, **options)
        client = await Client.connect(self._engine.address, plugins=[beside])
        return Tree(client, TokenClient(client, self.keyring), self._queue, self._queue)

    async def start(self, tree: Tree, **options: Any) -> None:
        given = {"source": "own", "grant": self.provider.first, "origins": [ORIGIN], **options}
        await tree.start(None, api_token=None, api_url=None, **given)


@pytest.fixture
def home(engine: EmbeddedEngine, queue: str) -> Home:
    return Home(engine, queue)


async def is_fresh(tree: Tree) -> SourceStatus:
    return await source_is(tree.tokens, tree.root, lambda status: status.state == "fresh")


async def history_of(tree: Tree) -> bytes:
    history = await tree[""].fetch_history()
    return b"".join(event.SerializeToString() for event in history.events)


# --- what a source says and gives -------------------------------------------------


class Nonsense(Provider):
    """Rotates its grant at each exchange, and gives with it what cannot be sealed, at first."""

    wrong: list[dict[str, Any]]

    async def mint(self, grant: Grant) -> Minted:
        minted = await super().mint(grant)
        if not self.wrong:
            return minted
        given: dict[str, Any] = {"token": minted.token, "grant": minted.grant, **self.wrong.pop(0)}
        return Minted(**given)


async def test_whatever_a_source_gives_beside_it_the_next_grant_is_kept(home: Home) -> None:
    home.provider = source = Nonsense()
    source.wrong = [{"expires_at": float("inf")}, {"origins": 5}, {"expires_at": CANARY}]
    tree = await home.tree()
    async with tree.worker():
        await home.start(tree)
        status = await is_fresh(tree)
        assert CANARY.encode() not in await history_of(tree)
    assert status.counts == {"malformed": 3, "minted": 1}
    assert source.reused == 0


class Talkative(Provider):
    """Says in its errors what nobody is to read."""

    async def mint(self, grant: Grant) -> Minted:
        if self.exchanges:
            raise GrantRefused(f"invalid_grant: {grant['refresh']} in another order: ☃" * 200)
        return await super().mint(grant)

    async def retire(self, token: str, values: Mapping[str, str]) -> None:
        raise RuntimeError(f"400 for https://provider.example.com/revoke?token={token}")


async def test_what_the_errors_of_a_source_hold_stands_nowhere(home: Home) -> None:
    home.provider = source = Talkative()
    source.grant = CANARY
    told: list[DeadGrant] = []

    def tell(dead: DeadGrant) -> None:
        told.append(dead)
        raise RuntimeError(f"404 for https://hooks.example.com/{CANARY}")

    tree = await home.tree(on_dead_grant=tell)
    async with tree.worker():
        await home.start(tree)
        await is_fresh(tree)
        source.grant = f"{CANARY}-next"
        with pytest.raises(NotRenewed):
            await tree.tokens.renew(tree.root)

        async def was_told() -> bool:
            return len(told) > 1

        await eventually(was_told)
        status = await tree.tokens.source(tree.root)
    assert status is not None
    assert status.needs_authorization
    assert CANARY not in repr(status)
    assert CANARY not in repr(told)
    assert CANARY.encode() not in await history_of(tree)


async def test_a_token_that_could_not_be_retired_is_not_shown(home: Home) -> None:
    class Loud(Provider):
        async def mint(self, grant: Grant) -> Minted:
            minted = await super().mint(grant)
            return Minted(f"{minted.token}-{CANARY}", minted.expires_at, grant=minted.grant)

        async def retire(self, token: str, values: Mapping[str, str]) -> None:
            raise RuntimeError(f"400 for https://provider.example.com/revoke?token={token}")

    home.provider = Loud()
    tree = await home.tree()
    async with tree.worker():
        await home.start(tree)
        await is_fresh(tree)
        with pytest.raises(NotRenewed, match="RuntimeError"):
            await tree.tokens.renew(tree.root, retire=True, timeout=30)
    assert CANARY.encode() not in await history_of(tree)


async def test_an_exchange_that_never_ends_is_taken_for_lost_and_holds_no_place(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minting, "_EXCHANGED_WITHIN", 2.0)
    monkeypatch.setattr(minting, "_EXCHANGE_TAKES", 0.5)
    ended: list[bool] = []

    class Hangs(Provider):
        async def mint(self, grant: Grant) -> Minted:
            if ended:
                return await super().mint(grant)
            try:
                return await asyncio.Future()
            finally:
                ended.append(True)

    home.provider = Hangs()
    tree = await home.tree()
    async with tree.worker():
        await home.start(tree)
        assert (await is_fresh(tree)).counts == {"lost_reply": 1, "minted": 1}


async def test_a_probe_sees_the_tokens_of_its_own_source_alone(home: Home) -> None:
    seen: list[str] = []

    class Curious(Provider):
        async def probe(self, token: str, values: Mapping[str, str]) -> None:
            seen.append(token)
            raise TokenRefused("it is not active")

    home.provider = source = Curious()
    tree = await home.tree()
    async with tree.worker():
        await home.start(tree)
        await is_fresh(tree)
        await tree.set("of-another-provider", origins=[ORIGIN])
        fingerprint = (await tree.status())["tokens"][0]["fingerprint"]
        await tree.signal("", "apiTokenReport", {"name": "apiToken", "fingerprint": fingerprint})
        await source_is(tree.tokens, tree.root, lambda status: status.counts.get("minted") == 2)
    assert (seen, source.exchanges) == ([], 2)


# --- what a home is told ----------------------------------------------------------


async def test_authorizing_another_source_ends_the_wait_for_the_one_that_nobody_runs(
    home: Home,
) -> None:
    tree = await home.tree()
    async with tree.worker():
        await home.start(tree, source="of-nobody")
        await source_is(tree.tokens, tree.root, lambda status: status.is_minting)
        await tree.tokens.authorize(
            tree.root, source="own", grant=home.provider.first, origins=[ORIGIN]
        )
        assert (await is_fresh(tree)).counts == {"minted": 1}


async def test_a_second_token_that_is_refused_is_renewed_as_the_first_was(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower(monkeypatch, heal_every_ms=100)
    tree = await home.tree()
    async with tree.worker():
        await home.start(tree)
        for minted in (1, 2, 3):
            await source_is(
                tree.tokens,
                tree.root,
                lambda status, minted=minted: status.counts.get("minted") == minted,
            )
            home.provider.valid.clear()
            fingerprint = (await tree.status())["tokens"][0]["fingerprint"]
            report = {"name": "apiToken", "fingerprint": fingerprint}
            await tree.signal("", "apiTokenReport", report)
        await source_is(tree.tokens, tree.root, lambda status: status.counts.get("minted") == 4)


async def test_whoever_asks_for_new_tokens_does_not_hasten_a_provider_that_asks_for_patience(
    home: Home,
) -> None:
    home.provider.failures = [RateLimited("patience", 3600) for _ in range(30)]
    tree = await home.tree()
    async with tree.worker():
        await home.start(tree)
        await source_is(tree.tokens, tree.root, lambda status: status.failures > 0)
        for _ in range(5):
            await tree.update("", "apiTokenRenew", {"name": "apiToken", "retire": False})
            await asyncio.sleep(0.3)
        status = await tree.tokens.source(tree.root)
    assert status is not None
    assert (status.counts, status.asked) == ({"rate_limited": 1}, True)


@pytest.mark.parametrize("outcome", ["minted", "newer"])
async def test_an_answer_that_brings_nothing_is_none_and_is_waited_after(
    home: Home, outsider: Client, outcome: str
) -> None:
    @activity.defn(name=MINT)
    async def nothing(request: dict[str, Any]) -> dict[str, Any]:
        return {"outcome": outcome}

    tree = await home.tree()
    queue = source_queue_of("liars")
    async with tree.worker(), Worker(outsider, task_queue=queue, activities=[nothing]):
        await home.start(tree, source="liars")
        status = await source_is(tree.tokens, tree.root, lambda status: status.failures >= 2)
    assert status.counts == {"malformed": status.failures}


async def test_a_grant_is_not_sent_while_the_key_that_would_sign_its_successor_is_unknown(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lower(monkeypatch, trust_every_ms=1_000)
    monkeypatch.setattr(inbox, "_ANSWER_UPDATE_WITHIN", timedelta(seconds=1))
    path, before = tmp_path / "keyring.json", home.keyring
    before.save(path)
    home.keyring = before.add_issuer()
    sources = await home.tree()  # its workers mint, and none of them has workflows
    workers = await Client.connect(
        sources.client.service_client.config.target_host,
        plugins=[StatefulPlugin(Keyring.load(path))],
    )
    tree = Tree(workers, TokenClient(workers, before), sources.queue, sources.root)
    async with tree.worker(), SourceWorker(sources.client):
        await home.start(tree)
        status = await source_is(tree.tokens, tree.root, lambda status: status.failures > 1)
        assert status.counts == {"not_ready": status.failures}
        assert (home.provider.exchanges, home.provider.reused) == (0, 0)
        path.unlink()
        home.keyring.save(path)
        await is_fresh(tree)
    assert (home.provider.exchanges, home.provider.reused) == (1, 0)


@pytest.mark.parametrize("message", ["no message", "", None, 5])
def test_a_run_begins_with_no_retirement_of_what_is_no_token(message: object) -> None:
    with pytest.raises(AnswerMalformed):
        read(Renewing, {"counts": {}, "retiring": [{"message": message, "after": 1}]})


# --- who may have what minted or retired ------------------------------------------


@workflow.defn
class Hostile:
    """Has a source's worker retire a token of its choice."""

    @workflow.run
    async def run(self, name: str, request: dict[str, Any]) -> Any:
        return await workflow.execute_activity(
            name,
            request,
            task_queue=source_queue_of("own"),
            start_to_close_timeout=timedelta(seconds=60),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )


async def test_nobody_but_its_home_has_a_token_retired(home: Home, outsider: Client) -> None:
    tree = await home.tree()
    async with (
        tree.worker(),
        Worker(
            outsider,
            task_queue=f"{tree.queue}-hostile",
            workflows=[Hostile],
            workflow_runner=UnsandboxedWorkflowRunner(),
        ),
    ):
        await home.start(tree)
        await is_fresh(tree)
        old = await sealed_at(tree.client, tree.root)
        request = {"name": "apiToken", "source": "own", "old": old, "after": 1, "format": 1}
        answer: dict[str, Any] = await outsider.execute_workflow(
            Hostile.run,
            args=[RETIRE, request],
            id=f"{tree.root}-hostile",
            task_queue=f"{tree.queue}-hostile",
        )
    assert "did not mint it for this workflow" in answer["problem"]
    assert home.provider.valid == {"tok-1"}


async def test_a_grant_mints_no_more_than_who_gave_it_may_sign_and_ends_with_his_key(
    home: Home,
) -> None:
    limited = home.keyring.add_issuer(origins=["https://narrow.example.com"])
    mallory = next(key for key in limited.keys() if key.origins is not None)
    home.keyring = limited.add_issuer()  # the newest signs what the source mints
    tree = await home.tree()
    only_his = signing_with(home.keyring, mallory.kid)
    his = TokenClient(tree.client, only_his)
    async with tree.worker():
        await tree.start(None, api_token="first", origins=[ORIGIN], api_url=None)
        await his.authorize(
            tree.root, source="own", grant=home.provider.first, origins=["https://evil.example.com"]
        )
        status = await source_is(tree.tokens, tree.root, lambda status: status.failures > 0)
        assert status.counts.keys() == {"not_ready"}
        assert "may not sign" in (status.detail or "")

        await his.authorize(
            tree.root,
            source="own",
            grant=home.provider.first,
            origins=["https://narrow.example.com"],
        )
        await source_is(tree.tokens, tree.root, lambda status: status.counts.get("minted") == 1)

    home.keyring = home.keyring.revoke(mallory.kid)  # the worker's own signed the grant since
    after = await home.tree()
    async with after.worker():
        with pytest.raises(NotRenewed, match="is revoked; authorize the source again"):
            await after.tokens.renew(tree.root, timeout=10)
    assert home.provider.exchanges == 1


def signing_with(keyring: Keyring, kid: str) -> Keyring:
    """The same keyring with the private half of this issuer alone."""
    whole = json.loads(keyring.to_json())
    for key in whole["keys"]:
        if key["use"] == "sig" and key["kid"] != kid:
            del key["d"]
    return Keyring.from_json(json.dumps(whole))
