"""A credential that needs authorization: who is told, what waits for it, and whose a grant is."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowUpdateStage

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import (
        Keyring,
        NewGrant,
        NotRenewable,
        SourceWorker,
        StatefulPlugin,
        TokenClient,
        WrongAuthority,
    )
    from stateful_workflow.engine import EmbeddedEngine
    from stateful_workflow.node.contract import MINT, MintRequest, source_queue_of
    from stateful_workflow.sealed.grants import AUDIENCE, Granted
    from stateful_workflow.sealed.issuing import Place
    from stateful_workflow.sealed.message import DEFAULT_NAME, Claims, Renewal
    from stateful_workflow.source.announcing import DeadGrant, Webhook
    from tests.support.asking import eventually, next_run, run_id
    from tests.support.living import URL, Provider, living_keyring, source_is
    from tests.support.trees import Tree
    from tests.support.workflows import WORKFLOWS, Node, Plan

SECRET = "shared-with-the-hook"


@workflow.defn
class Sourced(Node, source="own"):
    """A node whose class says where its token comes from."""

    @workflow.run
    async def run(self, plan: Plan) -> str:
        await self.start(plan)
        return await self.until_told()


@workflow.defn
class TwiceSourced(Node, source={"github": "own", "billing": "other"}):
    @workflow.run
    async def run(self, plan: Plan) -> str:
        await self.start(plan)
        return await self.until_told()


@workflow.defn
class Thief:
    """Has a source's worker mint with whatever it got hold of."""

    @workflow.run
    async def run(self, request: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = await workflow.execute_activity(
            MINT,
            request,
            task_queue=source_queue_of("own"),
            start_to_close_timeout=timedelta(seconds=30),
        )
        return result


@dataclass
class Hook:
    """A web server that is told of dead grants.

    Attributes:
        status: of its answers.
        taken: bodies and signatures that it got.
    """

    url: str = ""
    status: int = 204
    taken: list[tuple[bytes, str | None]] = field(default_factory=list[tuple[bytes, str | None]])


@contextmanager
def start_hook() -> Generator[Hook, None, None]:
    hook = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hook.taken.append((body, self.headers["Stateful-Signature"]))
            self.send_response(hook.status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    hook.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    with start_hook() as hook:
        yield hook


@pytest.fixture
def keyring() -> Keyring:
    return living_keyring()


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def other() -> Provider:
    """Another provider, of the source "other"."""
    other = Provider()
    other.grant = "other-refresh-canary"
    return other


@pytest.fixture
async def home(
    engine: EmbeddedEngine,
    keyring: Keyring,
    provider: Provider,
    other: Provider,
    hook: Hook,
    queue: str,
) -> AsyncIterator[Tree]:
    plugin = StatefulPlugin(
        keyring,
        sources={"own": provider, "other": other},
        on_dead_grant=Webhook(hook.url, secret=SECRET),
    )
    client = await Client.connect(engine.address, plugins=[plugin])
    tree = Tree(client, TokenClient(client, keyring), queue, queue)
    async with tree.worker(workflows=[*WORKFLOWS, Sourced, TwiceSourced, Thief]):
        yield tree


async def start(home: Tree, plan: Plan | None = None, **options: Any) -> None:
    settings: dict[str, Any] = {"api_token": None, "api_url": None, "origins": [URL], **options}
    await home.start(plan, **settings)


async def state(home: Tree, at: str = "", name: str = DEFAULT_NAME) -> str:
    status = await home.tokens.status(home.id(at), name)
    return "" if status is None else status.state


# --- until somebody authorizes ---------------------------------------------------


async def test_a_class_that_names_its_source_needs_authorization_and_what_waits_for_that_goes_on(
    home: Tree, provider: Provider
) -> None:
    """Whoever started it: a plain client knows nothing of tokens."""
    await home.client.start_workflow(
        Sourced.run, Plan({"a": Plan()}), id=home.root, task_queue=home.queue
    )
    await home.has(2)
    source = await source_is(home.tokens, home.root, lambda one: one.needs_authorization)
    assert (source.source, source.grant, source.counts) == ("own", None, {})
    assert await state(home) == "needs_authorization"
    with pytest.raises(NotRenewable):
        await home.tokens.renew(home.root)
    waiting = [
        await home[at].start_update(
            "use_token_once_held",
            None,
            wait_for_stage=WorkflowUpdateStage.ACCEPTED,
            result_type=str,
        )
        for at in ("", "a")
    ]

    await home.tokens.authorize(home.root, source="own", grant=provider.first, origins=[URL])

    assert [await one.result() for one in waiting] == ["tok-1", "tok-1"]
    assert provider.exchanges == 1


async def test_a_dead_grant_is_announced_once_with_a_signature_and_the_command_that_mends_it(
    home: Tree, provider: Provider, hook: Hook
) -> None:
    await start(home, source="own", grant={"refresh": "revoked-canary"})

    async def told() -> None:
        assert hook.taken

    await eventually(told)
    await home.goes_on()
    source = await source_is(home.tokens, home.root, lambda one: one.needs_authorization)
    assert source.counts == {"refused_grant": 1}
    with pytest.raises(NotRenewable):
        await home.tokens.renew(home.root)

    [(body, signature)] = hook.taken
    assert signature == hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    said = json.loads(body)
    command = said.pop("command")
    assert DeadGrant(**said) == DeadGrant(
        "default", home.root, "Node", DEFAULT_NAME, "own", source.grant or "", False, source.detail
    )
    assert command == f"stateful token authorize {home.root} --source own"
    assert b"canary" not in body


async def test_whoever_cannot_be_told_holds_nothing_up(
    home: Tree, provider: Provider, hook: Hook
) -> None:
    hook.status = 500
    await start(home, source="own", grant={"refresh": "revoked"})

    async def told_twice() -> None:
        assert len(hook.taken) >= 2

    await eventually(told_twice)
    await home.goes_on()  # the next run tells it again
    before = len(hook.taken)

    async def told_again() -> None:
        assert len(hook.taken) > before

    await eventually(told_again)
    await home.tokens.authorize(home.root, source="own", grant=provider.first, origins=[URL])
    await home.opens("tok-1", "")


async def test_a_revocation_stops_a_source_until_somebody_authorizes_it_again(
    home: Tree, provider: Provider
) -> None:
    await start(home, Plan({"a": Plan()}), source="own", grant=provider.first)
    await home.opens("tok-1", "", "a")

    await home.revoke()
    assert await state(home) == "revoked"
    source = await source_is(home.tokens, home.root, lambda one: one.needs_authorization)
    assert source.grant is None
    with pytest.raises(NotRenewable, match="needs authorization"):
        await home.tokens.renew(home.root)
    assert provider.exchanges == 1

    await home.tokens.authorize(home.root, source="own", grant=provider.first)
    await home.opens("tok-2", "", "a")


async def test_what_a_grant_still_brings_that_was_revoked_meanwhile_is_dropped(
    home: Tree, provider: Provider
) -> None:
    async def revoke() -> None:
        provider.before_reply = None
        await home.revoke()

    await start(home, source="own", grant=provider.first)
    await home.opens("tok-1", "")
    provider.before_reply = revoke

    with pytest.raises(Exception, match="needs authorization"):
        await home.tokens.renew(home.root)
    source = await source_is(home.tokens, home.root, lambda one: not one.is_minting)
    assert (source.state, source.counts) == ("needs_authorization", {"minted": 2})
    assert await state(home) == "revoked"


async def test_what_a_grant_still_brings_that_was_replaced_meanwhile_is_dropped(
    home: Tree, provider: Provider, other: Provider
) -> None:
    async def authorize() -> None:
        provider.before_reply = None
        await home.tokens.authorize(home.root, source="other", grant=other.first)

    await start(home, source="own", grant=provider.first)
    await home.opens("tok-1", "")
    provider.before_reply = authorize

    await home.tokens.renew(home.root)
    source = await source_is(home.tokens, home.root, lambda one: one.state == "fresh")
    assert (source.source, other.exchanges) == ("other", 1)


# --- several ------------------------------------------------------------------------


async def test_each_credential_has_a_source_of_its_own(
    home: Tree, provider: Provider, other: Provider
) -> None:
    await home.tokens.start_workflow(
        Node.run,
        Plan({"a": Plan()}),
        id=home.root,
        task_queue=home.queue,
        api_tokens={
            "github": NewGrant("own", provider.first, origins=[URL]),
            "billing": NewGrant("other", other.first, origins=["https://billing.example.com"]),
        },
    )
    await home.knows("a", "running", by="")
    for name in ("github", "billing"):
        await home.opens("tok-1", "", "a", name=name)
    assert (provider.exchanges, other.exchanges) == (1, 1)

    await home.tokens.renew(home.root, "billing")
    await home.opens("tok-2", "", "a", name="billing")
    await home.opens("tok-1", "", "a", name="github")

    provider.grant = "revoked"
    with pytest.raises(Exception, match="needs authorization"):
        await home.tokens.renew(home.root, "github")
    await home.tokens.renew(home.root, "billing")
    assert (provider.exchanges, other.exchanges) == (1, 3)


async def test_of_the_names_of_a_class_each_waits_for_its_own_authorization(
    home: Tree, other: Provider
) -> None:
    await home.client.start_workflow(TwiceSourced.run, Plan(), id=home.root, task_queue=home.queue)
    names = ("github", "billing")
    assert [await state(home, name=name) for name in names] == ["needs_authorization"] * 2

    await home.tokens.authorize(
        home.root, source="other", grant=other.first, name="billing", origins=[URL]
    )
    await home.opens("tok-1", "", name="billing")
    assert await state(home, name="github") == "needs_authorization"


# --- whose a grant is -----------------------------------------------------------------


async def test_a_child_is_never_given_a_grant_and_takes_none_but_its_own(
    home: Tree, provider: Provider
) -> None:
    await start(home, Plan({"a": Plan({"x": Plan()})}), source="own", grant=provider.first)
    await home.opens("tok-1", "", "a", "a-x")

    carried = await home[""].query("statefulState")
    [grant] = carried["ledger"]["grants"]
    await home["a"].signal("apiToken", grant)

    async def refused() -> None:
        assert await home.refusals("a") == {WrongAuthority.__name__: 1}

    await eventually(refused)
    for at in ("a", "a-x"):
        below = await home[at].query("statefulState")
        assert below["ledger"]["grants"] == []
        assert grant not in json.dumps(below)
        assert await home.tokens.source(home.id(at)) is None


async def test_a_node_below_a_root_may_be_the_home_of_a_grant_of_its_own(
    home: Tree, provider: Provider
) -> None:
    await start(home, Plan({"a": Plan({"x": Plan()}), "b": Plan()}), api_token="first", api_url=URL)

    await home.tokens.authorize(home.id("a"), source="own", grant=provider.first, origins=[URL])
    await home.opens("tok-1", "a", "a-x")
    await home.rotate("second")
    await home.tokens.renew(home.id("a"))

    await home.opens("tok-2", "a", "a-x")
    await home.opens("second", "", "b")
    before = await run_id(home.client, home.id("a"))
    await home.signal("a", "go_on")
    await next_run(home.client, home.id("a"), before)
    await home.tokens.renew(home.id("a"))
    await home.opens("tok-3", "a", "a-x")


ELSEWHERE: dict[str, dict[str, Any]] = {
    "workflow": {"authority": "another", "root": "another"},
    "namespace": {"namespace": "another"},
    "name": {"name": "another"},
    "source": {"source": "another"},
}


@pytest.mark.parametrize("changed", [None, *ELSEWHERE])
async def test_a_sources_worker_mints_with_no_grant_that_is_for_something_else(
    home: Tree, keyring: Keyring, provider: Provider, changed: str | None
) -> None:
    id = f"{home.queue}-{uuid.uuid4().hex[:8]}"
    claims = Claims(
        DEFAULT_NAME,
        home.client.namespace,
        id,
        "tree",
        id,
        int(time.time() * 1000),
        source="own",
        renewal=Renewal(),
        audiences=(AUDIENCE,),
    )
    claims = replace(claims, **({} if changed is None else ELSEWHERE[changed]))
    grant = keyring.seal(claims, Granted(provider.first, {"origins": [URL]}).to_text())
    trusted = [*keyring.trusted()]
    request = MintRequest(DEFAULT_NAME, "first", grant, None, None, False, trusted)

    result = await home.client.execute_workflow(
        Thief.run, vars(request), id=id, task_queue=home.queue
    )

    is_meant = changed is None
    assert result["outcome"] == ("minted" if is_meant else "not_ready")
    assert provider.exchanges == is_meant


# --- what is given wrongly -------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        *({"origins": wrong} for wrong in (5, [5], URL, URL.encode())),
        *({"types": wrong} for wrong in (5, [None], "Node")),
        {"readers": 5},
        {"allow_http": [5]},
        *({"renew_every": wrong} for wrong in (0, -1, float("inf"), float("nan"), timedelta.max)),
    ],
    ids=str,
)
def test_options_of_a_grant_that_are_none_of_their_kind_are_said_to_be_so(
    options: dict[str, Any],
) -> None:
    place = Place(DEFAULT_NAME, "default", "acme", "tree", "acme")
    given: dict[str, Any] = {"origins": [URL], **options}
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        NewGrant("own", {}, **given).seal(place, living_keyring())


async def test_two_sources_of_one_name_do_not_run_on_one_connection(
    home: Tree, keyring: Keyring, provider: Provider, other: Provider
) -> None:
    def beside(source: Provider) -> SourceWorker:
        config = home.client.config()
        config["plugins"] = [StatefulPlugin(keyring, sources={"own": source})]
        return SourceWorker(Client(**config))

    with pytest.raises(ValueError, match="two StatefulPlugins of this process have a source own"):
        async with beside(other):
            pass
    async with beside(provider):
        await start(home, source="own", grant=provider.first)
        await home.opens("tok-1", "")


async def test_a_workflow_that_is_told_to_inherit_needs_no_authorization_any_more(
    home: Tree, provider: Provider
) -> None:
    await start(home, Plan({"a": Plan()}), source="own", grant=provider.first)
    await home.opens("tok-1", "", "a")
    await home.tokens.authorize(home.id("a"), source="nobodys", grant={}, origins=[URL])
    await home.tokens.inherit(home.id("a"))

    await home.opens("tok-1", "a")
    tree = await home.tokens.tree(home.root)
    assert tree.glance == "converged"
