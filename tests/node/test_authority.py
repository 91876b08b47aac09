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
from tests.support.asking import eventually
from tests.support.builders import jwks, keyring_of
from tests.support.trees import Tree
from tests.support.workflows import Plan

PLAN = Plan({"a": Plan({"x": Plan(), "y": Plan()}), "b": Plan({"z": Plan()})})
NODES = ["", "a", "a-x", "a-y", "b", "b-z"]
CONFLICT = TokenConflict.__name__


# --- the nearest authority -------------------------------------------------------


async def test_a_token_may_be_set_at_any_node_and_reaches_that_nodes_subtree(tree: Tree) -> None:
    await tree.start(PLAN)
    expected = dict.fromkeys(NODES, "first")
    subtrees = {"b-z": ["b-z"], "a": ["a", "a-x", "a-y"], "": ["", "b"]}

    for at, subtree in subtrees.items():
        seen = await tree.rotate(f"of {at or 'root'}", at)

        below = [node for node in NODES if node.startswith(at)]
        assert {node.id for node in seen.nodes} == tree.ids(*below)
        reached = {node.id for node in seen.nodes if node.authority == tree.id(at)}
        assert reached == tree.ids(*subtree)
        expected |= dict.fromkeys(subtree, f"of {at or 'root'}")
        assert await tree.opened(*NODES) == list(expected.values())


async def test_the_nearest_authority_wins_and_inherit_falls_back_to_the_newest_above(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan()})}))
    path = ["", "a", "a-x"]
    await tree.rotate("leaf", "a-x")
    await tree.rotate("middle", "a")
    await tree.rotate("second")
    assert await tree.opened(*path) == ["second", "middle", "leaf"]

    await tree.inherit("a-x")
    assert await tree.opened(*path) == ["second", "middle", "middle"]
    await tree.rotate("third")
    assert await tree.opened(*path) == ["third", "middle", "middle"]

    await tree.inherit("a")
    await tree.opens("third", *path)
    await tree.rotate("fourth")
    assert await tree.opened(*path) == ["fourth"] * 3

    await tree.rotate("again", "a")
    assert await tree.opened(*path) == ["fourth", "again", "again"]


async def test_nothing_old_comes_back_with_inherit(tree: Tree) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan()})}))
    old = [await tree.sealed()]
    for n in (1, 2):
        await tree.rotate(f"own {n}", "a")
        old.append(await tree.sealed("a"))
        await tree.rotate(f"top {n}")
        old.append(await tree.sealed())
    await tree.rotate("newest")

    await tree.inherit("a")
    await tree.opens("newest", "a", "a-x")

    async def refuse_what_is_old(*ats: str) -> None:
        for at in ats:
            for message in old:
                await tree.signal(at, "apiToken", message)
            assert await tree.refusals(at) == {TokenStale.__name__: len(old)}
        assert await tree.opened(*ats) == ["newest"] * len(ats)

    await refuse_what_is_old("a", "a-x")
    await tree.add("late", to="a")
    await refuse_what_is_old("a-late")
    await tree.goes_on("a")
    await tree.add("later", to="a")
    await refuse_what_is_old("a-later")
    assert await tree.opened("a") == ["newest"]


async def test_a_softly_withheld_child_that_is_shared_with_before_it_inherits_has_the_newest(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan()}))
    await tree.signal("", "keep_from", "a", None)
    await tree.revoke("a")
    await tree.rotate("second")

    await tree.signal("", "give_to", "a", None)
    await tree.inherit("a")

    await tree.opens("second", "a")


# --- two issuers -----------------------------------------------------------------


@dataclass(frozen=True)
class Issuers(Tree):
    """A tree of two issuers, each of whom can sign only for himself and knows the other.

    Attributes:
        meeting: a client whose updates leave two at a time.
        ours, theirs: keyrings; both open what either sealed.
        alone: our keyring from before there was another issuer.
    """

    meeting: Client
    ours: Keyring
    theirs: Keyring
    alone: Keyring

    async def race(self, count: int) -> TokenStatus:
        """Both set so many tokens one after the other, each pair at once; which has to stand.

        The others are told why theirs do not.
        """
        taken: list[TokenStatus] = []

        async def set_all(keyring: Keyring, whose: str) -> None:
            tokens = TokenClient(self.meeting, keyring)
            for n in range(count):
                try:
                    taken.append(await tokens.set(self.root, f"{whose} {n}"))
                except TokenConflict:
                    continue

        await asyncio.gather(set_all(self.ours, "our"), set_all(self.theirs, "their"))
        return max(taken, key=lambda status: (status.version, status.fingerprint))

    async def all_hold(self, fingerprint: str | None, *, count: int = len(NODES)) -> None:
        """Wait until every node holds this message and nothing is on its way any more."""

        async def so() -> None:
            nodes = (await self.tokens.tree(self.root)).nodes
            assert len(nodes) == count
            assert {node.fingerprint for node in nodes} == {fingerprint}
            for node in nodes:
                status = await self.status(node.id.removeprefix(self.root).removeprefix("-"))
                assert len(status["tokens"]) == 1
                assert (status["undelivered"], status["waiting"]) == ([], [])

        await eventually(so)


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
            await asyncio.wait({mine}, timeout=2)
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


@pytest.fixture
async def issuers(engine: EmbeddedEngine, queue: str, replays: None) -> AsyncIterator[Issuers]:
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
    tree = Issuers(client, TokenClient(client, ours), queue, queue, meeting, ours, theirs, mine)
    async with tree.worker():
        yield tree


def issuer_of(keyring: Keyring) -> str:
    """Key id of the issuer who signs with this keyring."""
    [kid] = [key.kid for key in keyring.keys() if key.kind == "issuer" and key.private]
    return kid


async def test_of_two_issuers_who_set_at_once_the_same_one_wins_at_every_node(
    issuers: Issuers,
) -> None:
    await issuers.start(PLAN)

    for _ in range(4):
        winner = await issuers.race(1)

        await issuers.all_hold(winner.fingerprint)
        secret = "our 0" if winner.issuer == issuer_of(issuers.ours) else "their 0"
        assert await issuers.opened(*NODES) == [secret] * len(NODES)


async def test_two_issuers_leave_no_mixture_in_a_tree_that_learns_of_one_grows_and_goes_on(
    issuers: Issuers,
) -> None:
    alone = TokenClient(issuers.client, issuers.alone)
    await replace(issuers, tokens=alone).start(PLAN)

    async def go_on() -> None:
        for _ in range(2):
            await issuers.goes_on("a")

    async def grow() -> None:
        for n in range(4):
            await issuers.signal("b", "add_child", f"late{n}", Plan())

    winner, *_ = await asyncio.gather(issuers.race(5), go_on(), grow())

    await issuers.all_hold(winner.fingerprint, count=len(NODES) + 4)


async def test_in_whatever_order_two_issuers_messages_come_the_higher_stands_at_every_node(
    issuers: Issuers,
) -> None:
    await issuers.start(PLAN)
    conflicts = 0

    for ahead in (-1, 0, 1):
        claims = parse(await issuers.sealed()).claims
        version = max(int(time.time() * 1000), claims.version + 2)
        ours = parse(issuers.ours.seal(replace(claims, version=version), "ours"))
        theirs = parse(issuers.theirs.seal(replace(claims, version=version + ahead), "theirs"))
        lower, higher = sorted((ours, theirs), key=lambda message: message.order)
        orders: Mapping[str, Sequence[Message]] = {
            "": [lower, higher],
            "a": [higher, lower],
            "a-x": [lower, higher],
            "a-y": [higher, lower, higher],
            "b": [higher],
            "b-z": [lower],  # the higher comes from its parent
        }

        async def deliver(at: str, messages: Sequence[Message]) -> None:
            for message in messages:
                await issuers.signal(at, "apiToken", message.text)

        await asyncio.gather(*[deliver(at, messages) for at, messages in orders.items()])

        await issuers.all_hold(higher.fingerprint)
        refused = (await issuers.status("a"))["rejections"]
        assert set(refused["counts"]) == {CONFLICT}
        assert refused["counts"][CONFLICT] > conflicts
        conflicts = refused["counts"][CONFLICT]
        assert refused["last"][-1]["issuer"] == lower.issuer


async def test_a_set_below_another_issuers_newer_one_is_a_conflict_and_changes_nothing(
    issuers: Issuers,
) -> None:
    await issuers.start(PLAN)
    await issuers.rotate("ours")
    standing = parse(await issuers.sealed())
    below = replace(standing.claims, version=standing.claims.version - 1)
    message = issuers.theirs.seal(below, "theirs")

    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await issuers.update("", "apiToken", message)
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == CONFLICT
    assert issuer_of(issuers.ours) in caught.value.cause.message
    for at in NODES:
        await issuers.signal(at, "apiToken", message)
        assert await issuers.refusals(at) == {CONFLICT: 1}

    await issuers.all_hold(standing.fingerprint)


async def test_two_issuers_at_different_nodes_do_not_meet_and_at_one_the_overtaken_sees_it(
    issuers: Issuers,
) -> None:
    await issuers.start(PLAN)
    them = replace(issuers, tokens=TokenClient(issuers.client, issuers.theirs))

    await asyncio.gather(issuers.rotate("ours"), them.rotate("theirs", "a"))

    expected = ["theirs" if at.startswith("a") else "ours" for at in NODES]
    assert await issuers.opened(*NODES) == expected
    for at in NODES:
        status = await issuers.status(at)
        assert status["rejections"]["counts"] == {}
        assert not any(token["overtaken"] for token in status["tokens"])

    ours = await issuers.tokens.status(issuers.root)
    assert ours is not None
    await them.rotate("theirs")

    async def is_shown(at: str) -> None:
        status = await issuers.tokens.status(issuers.id(at))
        assert status is not None
        assert status.issuer == issuer_of(issuers.theirs)
        assert status.overtaken == {issuer_of(issuers.ours): ours.version}
        [token] = (await issuers.status(at))["tokens"]
        assert token["overtaken"] == status.overtaken

    for at in ("", "b", "b-z"):
        await is_shown(at)
    await issuers.goes_on()
    await is_shown("")
