"""Where a token is set decides whom it reaches, and of two issuers one wins everywhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowUpdateInput,
    WorkflowUpdateFailedError,
    WorkflowUpdateHandle,
)
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from stateful_workflow import (
    Keyring,
    StatefulPlugin,
    TokenClient,
    TokenConflict,
    TokenStale,
    TokenStatus,
)
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.sealed.message import Message, parse
from tests.builders import jwks, keyring_of

from .conftest import start_worker
from .support import (
    WITHIN,
    eventually,
    next_run,
    nodes_run,
    run_id,
    sealed_at,
    status_of,
)
from .test_runs import start
from .test_sharing import opened, opens
from .workflows import Plan

URL = "https://api.example.com"

TREE = Plan({"a": Plan({"x": Plan(), "y": Plan()}), "b": Plan({"z": Plan()})})
NODES = ["", "-a", "-a-x", "-a-y", "-b", "-b-z"]
SECRETS = [f"t {n}" for n in range(5)]


# --- the nearest authority -------------------------------------------------------


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("at", "below"),
    [("", NODES), ("-a", ["-a", "-a-x", "-a-y"]), ("-b-z", ["-b-z"])],
    ids=["at the root", "in the middle", "at a leaf"],
)
async def test_a_token_may_be_set_at_any_node_and_reaches_that_nodes_subtree(
    client: Client, tokens: TokenClient, queue: str, at: str, below: list[str]
) -> None:
    await start(tokens, queue, TREE)

    tree = await tokens.rotate(f"{queue}{at}", "its own", origins=[URL], timeout=20)

    assert {node.id for node in tree.nodes} == {f"{queue}{suffix}" for suffix in below}
    assert {node.authority for node in tree.nodes} == {f"{queue}{at}"}
    expected = ["its own" if suffix in below else "first" for suffix in NODES]
    assert await opened(client, *[f"{queue}{suffix}" for suffix in NODES]) == expected


@pytest.mark.usefixtures("worker")
async def test_the_nearest_authority_wins_and_inherit_falls_back_to_the_newest_above(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
    path = [queue, f"{queue}-a", f"{queue}-a-x"]
    await tokens.rotate(path[2], "leaf", origins=[URL], timeout=20)
    await tokens.rotate(path[1], "middle", origins=[URL], timeout=20)
    assert (await tokens.rotate(path[0], "second", timeout=20)).converged
    assert await opened(client, *path) == ["second", "middle", "leaf"]

    await tokens.inherit(path[2])
    assert await opened(client, *path) == ["second", "middle", "middle"]
    await tokens.rotate(path[0], "third", timeout=20)
    assert await opened(client, *path) == ["third", "middle", "middle"]

    await tokens.inherit(path[1])
    await opens(client, "third", *path)
    await tokens.rotate(path[0], "fourth", timeout=20)
    assert await opened(client, *path) == ["fourth"] * 3


@pytest.mark.usefixtures("worker")
async def test_nothing_old_comes_back_with_inherit(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
    a, x = f"{queue}-a", f"{queue}-a-x"
    old = [await sealed_at(client, queue)]
    for n in (1, 2):
        await tokens.rotate(a, f"own {n}", origins=[URL], timeout=20)
        old.append(await sealed_at(client, a))
        await tokens.rotate(queue, f"top {n}", timeout=20)
        old.append(await sealed_at(client, queue))
    await tokens.rotate(queue, "newest", timeout=20)

    await tokens.inherit(a)
    await opens(client, "newest", a, x)

    async def refuse_what_is_old(*nodes: str) -> None:
        for node_id in nodes:
            for message in old:
                await client.get_workflow_handle(node_id).signal("apiToken", message)
            counts = (await status_of(client, node_id))["rejections"]["counts"]
            assert counts == {TokenStale.__name__: len(old)}
        assert await opened(client, *nodes) == ["newest"] * len(nodes)

    await refuse_what_is_old(a, x)
    await client.get_workflow_handle(a).signal("add_child", args=["late", Plan()])
    await nodes_run(tokens, queue, 4)
    await refuse_what_is_old(f"{a}-late")

    before = await run_id(client, a)
    await client.get_workflow_handle(a).signal("go_on")
    await next_run(client, a, before)
    await client.get_workflow_handle(a).signal("add_child", args=["later", Plan()])
    await nodes_run(tokens, queue, 5)
    await refuse_what_is_old(f"{a}-later")
    assert await opened(client, a) == ["newest"]


@pytest.mark.usefixtures("worker")
async def test_a_softly_withheld_child_that_is_shared_with_before_it_inherits_has_the_newest(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan({"a": Plan()}))
    await root.signal("keep_from", args=["a", None])
    await tokens.revoke(f"{queue}-a")
    await tokens.rotate(queue, "second", timeout=20)

    await root.signal("give_to", args=["a", None])
    await tokens.inherit(f"{queue}-a")

    await opens(client, "second", f"{queue}-a")


@pytest.mark.usefixtures("worker")
async def test_a_node_that_inherits_can_be_given_a_token_of_its_own_again(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
    await tokens.set(f"{queue}-a", "its own", origins=[URL])
    await tokens.inherit(f"{queue}-a")
    await opens(client, "first", f"{queue}-a", f"{queue}-a-x")

    await tokens.rotate(f"{queue}-a", "again", origins=[URL], timeout=20)

    assert await opened(client, queue, f"{queue}-a", f"{queue}-a-x") == ["first", "again", "again"]


# --- two issuers -----------------------------------------------------------------


@dataclass(frozen=True)
class Issuers:
    """Two issuers, each of whom can sign only for himself and knows the other.

    Attributes:
        client: of workers that know both.
        meeting: of clients whose updates leave two at a time.
        ours, theirs: keyrings; both open what either sealed.
        alone: our keyring from before there was another issuer.
    """

    client: Client
    meeting: Client
    ours: Keyring
    theirs: Keyring
    alone: Keyring

    @property
    def us(self) -> TokenClient:
        return TokenClient(self.client, self.ours)

    @property
    def them(self) -> TokenClient:
        return TokenClient(self.client, self.theirs)

    async def race(
        self, root: str, ours: Sequence[str], theirs: Sequence[str]
    ) -> list[TokenStatus | BaseException]:
        """Both set these tokens one after the other, each pair at once; what came of each."""
        outcomes: list[TokenStatus | BaseException] = []

        async def set_all(keyring: Keyring, secrets: Sequence[str]) -> None:
            tokens = TokenClient(self.meeting, keyring)
            for secret in secrets:
                try:
                    outcomes.append(await tokens.set(root, secret))
                except TokenConflict as error:
                    outcomes.append(error)

        await asyncio.gather(set_all(self.ours, ours), set_all(self.theirs, theirs))
        return outcomes


class Meeting(Interceptor):
    """Lets updates leave two at a time: each is sealed before the other is sent.

    One that nobody comes to meet leaves alone after a while: on a busy machine an issuer's own
    call can come between, and is made once more.
    """

    def __init__(self) -> None:
        self._first: asyncio.Future[None] | None = None

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return _MeetingOutbound(next, self)

    async def meet(self) -> None:
        first, self._first = self._first, None
        if first is None:
            mine = self._first = asyncio.get_running_loop().create_future()
            await asyncio.wait({mine}, timeout=WITHIN / 10)
            if self._first is mine:
                self._first = None
        else:
            first.set_result(None)


class _MeetingOutbound(OutboundInterceptor):
    def __init__(self, next: OutboundInterceptor, meeting: Meeting) -> None:
        super().__init__(next)
        self._meeting = meeting

    async def start_workflow_update(
        self, input: StartWorkflowUpdateInput
    ) -> WorkflowUpdateHandle[Any]:
        await self._meeting.meet()
        return await super().start_workflow_update(input)


@pytest.fixture(scope="module")
async def issuers(engine: EmbeddedEngine) -> Issuers:
    mine, other = Keyring.generate(), Keyring().add_issuer()
    ours = keyring_of(*jwks(other.public()), *jwks(mine))
    theirs = keyring_of(*jwks(mine.only(readers=["default"])), *jwks(other))
    client, meeting = [
        await Client.connect(
            engine.address,
            namespace=engine.namespace,
            plugins=[StatefulPlugin(ours)],
            interceptors=interceptors,
        )
        for interceptors in ([], [Meeting()])
    ]
    return Issuers(client, meeting, ours, theirs, mine)


@pytest.fixture
async def worker_of_both(issuers: Issuers, queue: str, replays: None) -> AsyncIterator[Worker]:
    async with start_worker(issuers.client, queue) as worker:
        yield worker


def issuer_of(keyring: Keyring) -> str:
    """Key id of the issuer who signs with this keyring."""
    [kid] = [key.kid for key in keyring.keys() if key.kind == "issuer" and key.private]
    return kid


async def same_everywhere(
    issuers: Issuers, root: str, fingerprint: str | None, *, count: int = len(NODES)
) -> None:
    """Wait until every node holds this message and nothing is on its way any more."""

    async def all_hold_it() -> None:
        tree = await issuers.us.tree(root)
        assert len(tree.nodes) == count
        assert {node.fingerprint for node in tree.nodes} == {fingerprint}
        for node in tree.nodes:
            status = await status_of(issuers.client, node.id)
            assert len(status["tokens"]) == 1
            assert (status["undelivered"], status["waiting"]) == ([], [])

    await eventually(all_hold_it)


def highest(outcomes: Sequence[TokenStatus | BaseException]) -> TokenStatus:
    """Of what several sets came to the one that has to stand; the others were told why not."""
    taken = [outcome for outcome in outcomes if isinstance(outcome, TokenStatus)]
    assert all(isinstance(o, TokenConflict) for o in outcomes if not isinstance(o, TokenStatus))
    return max(taken, key=lambda status: (status.version, status.fingerprint))


@pytest.mark.usefixtures("worker_of_both")
async def test_of_two_issuers_who_set_at_once_the_same_one_wins_at_every_node(
    issuers: Issuers, queue: str
) -> None:
    await start(issuers.us, queue, TREE)
    secret = "first"

    for n in range(6):
        winner = highest(await issuers.race(queue, [f"our {n}"], [f"their {n}"]))

        await same_everywhere(issuers, queue, winner.fingerprint)
        secret = f"{'our' if winner.issuer == issuer_of(issuers.ours) else 'their'} {n}"
        assert (await issuers.us.get(queue)).reveal() == secret

    nodes = [f"{queue}{suffix}" for suffix in NODES]
    assert await opened(issuers.client, *nodes) == [secret] * len(nodes)


@pytest.mark.usefixtures("worker_of_both")
@pytest.mark.parametrize("known", [True, False], ids=["both known", "one new to the tree"])
async def test_two_issuers_who_rotate_again_and_again_end_with_one_token_everywhere(
    issuers: Issuers, queue: str, known: bool
) -> None:
    starter = issuers.us if known else TokenClient(issuers.client, issuers.alone)
    await start(starter, queue, TREE)

    outcomes = await issuers.race(queue, SECRETS, SECRETS)

    await same_everywhere(issuers, queue, highest(outcomes).fingerprint)


@pytest.mark.usefixtures("worker_of_both")
async def test_two_issuers_leave_no_mixture_in_a_tree_that_grows_and_continues_as_new(
    issuers: Issuers, queue: str
) -> None:
    await start(issuers.us, queue, TREE)
    middle, beside = (
        issuers.client.get_workflow_handle(f"{queue}{suffix}") for suffix in ("-a", "-b")
    )

    async def go_on() -> None:
        for _ in range(2):
            before = await run_id(issuers.client, middle.id)
            await middle.signal("go_on")
            await next_run(issuers.client, middle.id, before)

    async def grow() -> None:
        for n in range(4):
            await beside.signal("add_child", args=[f"late{n}", Plan()])

    outcomes, *_ = await asyncio.gather(issuers.race(queue, SECRETS, SECRETS), go_on(), grow())

    winner = highest(outcomes)
    await same_everywhere(issuers, queue, winner.fingerprint, count=len(NODES) + 4)


@pytest.mark.usefixtures("worker_of_both")
@pytest.mark.parametrize("ahead", [-1, 0, 1], ids=["ours newer", "same version", "theirs newer"])
async def test_in_whatever_order_two_issuers_messages_come_the_higher_stands_at_every_node(
    issuers: Issuers, queue: str, ahead: int
) -> None:
    await start(issuers.us, queue, TREE)
    claims = parse(await sealed_at(issuers.client, queue)).claims
    version = max(int(time.time() * 1000), claims.version + 2)
    ours = parse(issuers.ours.seal(replace(claims, version=version), "ours"))
    theirs = parse(issuers.theirs.seal(replace(claims, version=version + ahead), "theirs"))
    lower, higher = sorted((ours, theirs), key=lambda message: message.order)

    orders: Mapping[str, list[Message]] = {
        "": [lower, higher],
        "-a": [higher, lower],
        "-a-x": [lower, higher],
        "-a-y": [higher, lower, higher],
        "-b": [higher],
        "-b-z": [lower],  # the higher comes from its parent
    }

    async def deliver(suffix: str, messages: list[Message]) -> None:
        handle = issuers.client.get_workflow_handle(f"{queue}{suffix}")
        for message in messages:
            await handle.signal("apiToken", message.text)

    await asyncio.gather(*[deliver(suffix, messages) for suffix, messages in orders.items()])

    await same_everywhere(issuers, queue, higher.fingerprint)
    refused = (await status_of(issuers.client, f"{queue}-a"))["rejections"]
    assert set(refused["counts"]) == {TokenConflict.__name__}
    assert {last["issuer"] for last in refused["last"]} == {lower.issuer}


@pytest.mark.usefixtures("worker_of_both")
async def test_a_set_below_another_issuers_newer_one_is_a_conflict_and_changes_nothing(
    issuers: Issuers, queue: str
) -> None:
    root = await start(issuers.us, queue, TREE)
    await issuers.us.rotate(queue, "ours", timeout=20)
    standing = parse(await sealed_at(issuers.client, queue))
    below = replace(standing.claims, version=standing.claims.version - 1)
    message = issuers.theirs.seal(below, "theirs")

    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await root.execute_update("apiToken", message)
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == TokenConflict.__name__
    assert issuer_of(issuers.ours) in caught.value.cause.message
    for suffix in NODES:
        handle = issuers.client.get_workflow_handle(f"{queue}{suffix}")
        await handle.signal("apiToken", message)
        counts = (await status_of(issuers.client, f"{queue}{suffix}"))["rejections"]["counts"]
        assert counts == {TokenConflict.__name__: 1}

    await same_everywhere(issuers, queue, standing.fingerprint)


@pytest.mark.usefixtures("worker_of_both")
async def test_an_issuer_who_was_overtaken_sees_it_in_the_status(
    issuers: Issuers, queue: str
) -> None:
    await start(issuers.us, queue, TREE)
    await issuers.us.rotate(queue, "ours", timeout=20)
    ours = await issuers.us.status(queue)
    assert ours is not None
    assert ours.overtaken == {}

    await issuers.them.rotate(queue, "theirs", timeout=20)

    async def shown(workflow_id: str) -> Any:
        status = await issuers.us.status(workflow_id)
        assert status is not None
        assert status.issuer == issuer_of(issuers.theirs)
        [token] = (await status_of(issuers.client, workflow_id))["tokens"]
        assert token["overtaken"] == status.overtaken
        return status.overtaken

    for suffix in NODES:
        assert await shown(f"{queue}{suffix}") == {issuer_of(issuers.ours): ours.version}
    before = await run_id(issuers.client, queue)
    await issuers.client.get_workflow_handle(queue).signal("go_on")
    await next_run(issuers.client, queue, before)
    assert await shown(queue) == {issuer_of(issuers.ours): ours.version}


@pytest.mark.usefixtures("worker_of_both")
async def test_two_issuers_at_different_nodes_do_not_meet(issuers: Issuers, queue: str) -> None:
    await start(issuers.us, queue, TREE)

    await asyncio.gather(
        issuers.us.rotate(queue, "ours", timeout=20),
        issuers.them.rotate(f"{queue}-a", "theirs", origins=[URL], timeout=20),
    )

    expected = ["theirs" if suffix.startswith("-a") else "ours" for suffix in NODES]
    nodes = [f"{queue}{suffix}" for suffix in NODES]
    assert await opened(issuers.client, *nodes) == expected
    for node_id in nodes:
        status = await status_of(issuers.client, node_id)
        assert status["rejections"]["counts"] == {}
        assert [token["overtaken"] for token in status["tokens"] if token["overtaken"]] == []
