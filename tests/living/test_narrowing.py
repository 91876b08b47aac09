"""A child that is to do less gets a token that the source derives from its parent's."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Replayer, Worker

from stateful_workflow import (
    Keyring,
    NotConverged,
    ProviderUnreachable,
    StatefulPlugin,
    StatefulWorkflow,
    TokenClient,
)
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.node.contract import NARROW, NarrowRequest
from stateful_workflow.source import Minted, Source
from stateful_workflow.source.oauth import OAuthSource
from stateful_workflow.source.vault import Vault, VaultToken
from stateful_workflow.worker.source_worker import SourceWorker
from tests.replay.test_grouping import Grouping
from tests.support.asking import events_of, eventually
from tests.support.authorization_servers import AuthorizationServer, start_authgent
from tests.support.living import Provider, living_keyring, source_is
from tests.support.secret_managers import ROOT, OpenBao, start_openbao
from tests.support.trees import Tree
from tests.support.workflows import WORKFLOWS, Plan, shown

READ = Plan(scopes=["read"])


class Narrowing(Provider):
    """Its narrower tokens say what they were derived from."""

    def __init__(self) -> None:
        super().__init__()
        self.narrowed: list[str] = []
        self.refusals: list[Exception] = []

    async def narrow(self, token: str, values: Mapping[str, str], scopes: Sequence[str]) -> Minted:
        if self.refusals:
            raise self.refusals.pop(0)
        self.narrowed.append(f"{token}:{'+'.join(scopes)}")
        return Minted(self.narrowed[-1], expires_at=time.time() + 10_000)


@pytest.fixture
def provider() -> Narrowing:
    return Narrowing()


@asynccontextmanager
async def growing(
    engine: EmbeddedEngine, queue: str, source: Source | None, name: str = "own"
) -> AsyncGenerator[Tree, None]:
    """A tree of workers beside which this source runs, if one is given."""
    keyring = living_keyring()
    sources = {} if source is None else {name: source}
    plugin = StatefulPlugin(keyring, sources=sources)
    client = await Client.connect(engine.address, plugins=[plugin])
    tree = Tree(client, TokenClient(client, keyring), queue, queue)
    async with tree.worker():
        yield tree


@pytest.fixture
async def tree(
    engine: EmbeddedEngine, provider: Narrowing, queue: str, replays: None
) -> AsyncIterator[Tree]:
    async with growing(engine, queue, provider) as tree:
        yield tree


async def start(tree: Tree, grant: Any, plan: Plan, source: str = "own") -> None:
    await tree.start(
        plan,
        api_token=None,
        source=source,
        grant=grant,
        origins=["https://api.example.com"],
        api_url=None,
    )
    await source_is(tree.tokens, tree.root, lambda status: status.state == "fresh")


async def is_held(tree: Tree, at: str) -> None:
    """Wait until it holds a token."""

    async def so() -> None:
        status = await tree.tokens.status(tree.id(at))
        assert status is not None
        assert status.state == "held"

    await eventually(so)


async def narrowings(tree: Tree, at: str = "") -> int:
    """How many activities a node has had children's tokens derived by."""
    started = await events_of(tree[at], "ACTIVITY_TASK_SCHEDULED")
    attributes = [one.activity_task_scheduled_event_attributes for one in started]
    return sum(
        one.activity_type.name == NARROW and one.task_queue.name.startswith("stateful-source:")
        for one in attributes
    )


async def test_a_child_has_what_the_source_derived_and_never_its_parents(
    tree: Tree, provider: Narrowing
) -> None:
    await start(tree, provider.first, Plan({"a": Plan({"b": Plan()}, scopes=["read"])}))
    await tree.opens(shown("tok-1:read"), "a", "a-b")
    parents = await tree.sealed()
    for at in ("a", "a-b"):
        assert parents not in (await tree[at].fetch_history()).to_json()
    child = (await tree.tokens.get(tree.id("a"))).message.claims
    parent = (await tree.tokens.get(tree.root)).message.claims
    assert (child.authority, child.source) == (tree.id("a"), "own")
    assert child.expires_at == parent.expires_at
    assert (child.origins, child.types, child.audiences) == (
        parent.origins,
        parent.types,
        parent.audiences,
    )
    # Not even where somebody hands it over.
    await tree.signal("", "hand_on", "a", parents)
    await eventually(lambda: _refused(tree, "a"))
    assert await tree.opened("a") == [shown("tok-1:read")]


async def _refused(tree: Tree, at: str) -> bool:
    return "TokenWithheld" in await tree.refusals(at)


async def test_it_is_renewed_with_its_parents_also_over_continue_as_new(
    tree: Tree, provider: Narrowing
) -> None:
    await start(tree, provider.first, Plan({"a": READ}))
    await tree.opens(shown("tok-1:read"), "a")
    await tree.goes_on()
    await tree.goes_on("a")
    await tree.opens(shown("tok-1:read"), "a")
    await tree.tokens.renew(tree.root)
    await tree.opens(shown("tok-2:read"), "a")
    seen = await tree.tokens.tree(tree.root)
    assert seen.converged, seen
    assert seen.counts == {}
    assert provider.narrowed == ["tok-1:read", "tok-2:read"]


async def test_it_is_revoked_with_its_parents_and_comes_back_with_it(
    tree: Tree, provider: Narrowing
) -> None:
    await start(tree, provider.first, Plan({"a": READ, "b": READ}))
    await tree.opens(shown("tok-1:read"), "a", "b")
    await tree.revoke("b")  # somebody means that
    await tree.revoke()
    await tree.opens("TokenRevoked", "a", "b")
    await tree.tokens.authorize(tree.root, source="own", grant={"refresh": provider.grant})
    await tree.opens(shown("tok-2:read"), "a")
    assert await tree.opened("b") == ["TokenRevoked"]


async def test_twenty_children_are_one_activity(tree: Tree, provider: Narrowing) -> None:
    await start(tree, provider.first, Plan())
    children = {f"c{n}": READ for n in range(20)}
    await tree.add("p", Plan(children))
    await tree.opens(shown("tok-1:read"), *[f"p-{at}" for at in children])
    assert await narrowings(tree, "p") == 1
    assert len(provider.narrowed) == 20


async def test_while_no_worker_of_the_source_runs_it_is_pending(
    engine: EmbeddedEngine, queue: str, provider: Narrowing
) -> None:
    keyring = living_keyring()
    client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
    tree = Tree(client, TokenClient(client, keyring), queue, queue)
    name = f"source-{queue}"
    minting = StatefulPlugin(keyring, sources={name: provider})
    sources = await Client.connect(engine.address, plugins=[minting])
    async with tree.worker():
        async with SourceWorker(sources):
            await start(tree, provider.first, Plan(), name)
        await tree.signal("", "add_child", "a", READ)
        await tree.exists("a")

        async def waits() -> None:
            seen = await tree.tokens.tree(tree.root)
            assert [node.id for node in seen.behind] == [tree.id("a")]
            assert f"stateful-source:{name}" in str(seen.behind[0].problem)

        await eventually(waits)
        with pytest.raises(NotConverged, match=tree.id("a")):
            await tree.tokens.rotate(tree.root, "by-hand", timeout=3)
        assert await tree.opened("a") == ["TokenNotSet"]
        async with SourceWorker(sources):
            await tree.tokens.renew(tree.root)
            await tree.opens(shown("tok-2:read"), "a")
            assert (await tree.tokens.tree(tree.root)).converged


async def test_what_fails_is_tried_again_and_says_why(tree: Tree, provider: Narrowing) -> None:
    provider.refusals = [ProviderUnreachable("no route"), ValueError("secret-canary")]
    await start(tree, provider.first, Plan({"a": READ}))
    await tree.opens(shown("tok-1:read"), "a")
    assert "secret-canary" not in (await tree[""].fetch_history()).to_json()


async def test_it_replays_with_updates_before_what_came_before_them(
    tree: Tree, provider: Narrowing
) -> None:
    await start(tree, provider.first, Plan({"a": READ}))
    for number in range(5):
        await tree.signal("", "add_child", f"c{number}", READ)
        await tree.set(f"hand-{number}")  # no source derives anything of it
        await tree.tokens.renew(tree.root)
    await tree.opens(shown("tok-6:read"), "a", *(f"c{number}" for number in range(5)))
    history = await tree[""].fetch_history()

    async def fails(grouping: Grouping) -> Exception | None:
        replayer = Replayer(
            workflows=WORKFLOWS, plugins=[StatefulPlugin(Keyring())], workflow_runner=grouping
        )
        result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
        return result.replay_failure

    first = Grouping()
    assert await fails(first) is None
    for together in [*({number} for number in first.before_updates), first.before_updates]:
        assert await fails(Grouping(together)) is None


@workflow.defn(sandboxed=False)
class Impostor(StatefulWorkflow):
    """Asks for what is not its own."""

    @workflow.run
    async def run(self, message: str, child: str) -> dict[str, Any]:
        request = NarrowRequest("apiToken", message, [(child, ["read"], None)], more=False)
        return await workflow.execute_activity(
            NARROW,
            request,
            task_queue="stateful-source:own",
            start_to_close_timeout=timedelta(seconds=20),
            result_type=dict,
        )


async def test_the_server_says_whose_child_it_is_and_whose_token(
    tree: Tree, provider: Narrowing
) -> None:
    await start(tree, provider.first, Plan({"a": READ}))
    await tree.opens(shown("tok-1:read"), "a")
    queue = f"{tree.queue}-impostor"

    async with Worker(tree.client, task_queue=queue, workflows=[Impostor]):
        handle = await tree.tokens.start_workflow(
            Impostor.run,
            args=[await tree.sealed(), tree.id("a")],
            id=queue,
            task_queue=queue,
            api_token="own",
            origins=["https://api.example.com"],
        )
        said = await handle.result()
    assert said["given"] == {}
    assert "as if it stood below" in said["failed"][tree.id("a")]
    assert provider.narrowed == ["tok-1:read"]


# --- real providers ------------------------------------------------------------


@pytest.fixture(scope="module")
def authgent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthorizationServer]:
    with start_authgent(tmp_path_factory.mktemp("authgent")) as server:
        yield server


@pytest.fixture(scope="module")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with start_openbao(tmp_path_factory.mktemp("openbao")) as server:
        server.allow("read-prod", {"secret/data/prod/*": ["read"]})
        server.allow("write-prod", {"secret/data/prod/*": ["create", "update"]})
        server.allow("narrowing", {"auth/token/create": ["create", "update"]})
        server.ask("POST", "secret/data/prod/acme", {"data": {"field": "value"}})
        yield server


async def test_at_an_authorization_server_the_child_has_fewer_scopes(
    engine: EmbeddedEngine, queue: str, authgent: AuthorizationServer
) -> None:
    source = OAuthSource(
        authgent.client_id,
        issuer=authgent.issuer,
        client_secret=authgent.client_secret,
        params={"audience": "https://api.example.com"},
    )
    async with growing(engine, queue, source) as tree:
        await start(tree, authgent.new_grant(), Plan({"a": READ}))

        async def scope(at: str) -> str:
            said = authgent.introspected((await tree.tokens.get(tree.id(at))).reveal())
            assert said["active"]
            return said["scope"]

        await is_held(tree, "a")
        assert set((await scope("")).split()) == {"read", "write"}
        assert await scope("a") == "read"


async def test_at_openbao_the_child_cannot_do_what_its_parent_can(
    engine: EmbeddedEngine, queue: str, openbao: OpenBao
) -> None:
    vault = Vault(openbao.address, {"token": ROOT})
    async with growing(engine, queue, VaultToken(vault)) as tree:
        grant = {"policies": ["read-prod", "write-prod", "narrowing"], "ttl": "1h"}
        await start(tree, grant, Plan({"a": Plan(scopes=["read-prod"])}))

        await is_held(tree, "a")

        async def answered(at: str, method: str) -> int:
            token = (await tree.tokens.get(tree.id(at))).reveal()
            url = f"{openbao.address}/v1/secret/data/prod/acme"
            body = {"data": {"field": "new"}} if method == "POST" else None
            async with httpx.AsyncClient() as http:
                headers = {"X-Vault-Token": token}
                return (await http.request(method, url, headers=headers, json=body)).status_code

        assert [await answered(at, "GET") for at in ("", "a")] == [200, 200]
        assert [await answered(at, "POST") for at in ("", "a")] == [200, 403]
