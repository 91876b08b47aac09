"""What stands on record of a source's tokens, from who asked for one to the end of the old one."""

from __future__ import annotations

import pytest
from temporalio.client import Client

from stateful_workflow import StatefulPlugin, TokenClient
from stateful_workflow.audit import AuditEvent
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.record.audit.reviewing import review
from tests.support.asking import eventually, lower
from tests.support.living import Provider, living_keyring
from tests.support.trees import Tree
from tests.support.workflows import Plan

Step = tuple[str, str, str | None]


class Trail:
    """A sink that keeps what it is given."""

    is_local = True

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def record(self, event: AuditEvent) -> None:
        self.events.append(event)

    def steps(self, *actions: str) -> list[Step]:
        return [
            (event.action, event.outcome, event.reason)
            for event in self.events
            if not actions or event.action in actions
        ]

    async def has(self, *steps: Step) -> None:
        async def all_there() -> None:
            assert set(steps) <= set(self.steps())

        await eventually(all_there)


@pytest.fixture
def trail() -> Trail:
    return Trail()


async def test_a_renewal_is_one_chain_on_record_in_which_a_review_finds_nothing(
    engine: EmbeddedEngine, queue: str, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower(monkeypatch, fresh_seconds=0.5)
    provider, keyring = Provider(), living_keyring()
    plugin = StatefulPlugin(keyring, sources={"own": provider}, audit=trail)
    client = await Client.connect(engine.address, plugins=[plugin])
    home = Tree(client, TokenClient(client, keyring), queue, queue)
    async with home.worker():
        await home.start(
            Plan({"a": Plan()}),
            api_token=None,
            api_url=None,
            source="own",
            grant=provider.first,
            origins=["https://api.example.com"],
        )
        await trail.has(("accept", "success", None))  # by the child
        await home.opens("tok-1", "", "a")
        before = len(trail.events)
        await home.tokens.renew(home.root, retire=True, by="ada", reason="leaked")
        chain = trail.events[before:]
        await home.opens("tok-2", "", "a")

    assert [(one.action, one.outcome, one.reason) for one in chain] == [
        ("renew", "unknown", None),
        ("mint", "unknown", "asked"),
        ("mint", "success", "minted"),
        ("accept", "success", "minted"),  # the next grant
        ("accept", "success", "minted"),  # the token
        ("forward", "success", None),
        ("accept", "success", None),  # by the child
        ("retire", "unknown", None),
        ("retire", "success", "refused_now"),
        ("renew", "success", None),
    ]
    assert {(one.by, one.said_reason) for one in chain if one.action == "renew"} == {
        ("ada", "leaked")
    }
    assert {one.source for one in chain if one.action != "renew"} == {"own"}
    assert [one.kind for one in chain if one.action == "accept"] == ["grant", "token", "token"]
    minted = next(one for one in chain if one.action == "mint" and one.outcome == "success")
    told = [one.version for one in chain if one.action in ("accept", "forward")][1:]
    assert told == [minted.version] * 3
    assert trail.steps("authorize") == [
        ("authorize", "unknown", None),
        ("authorize", "success", None),
    ]
    assert review(trail.events) == []


async def test_what_a_sources_worker_cannot_begin_is_on_record(
    engine: EmbeddedEngine, queue: str, trail: Trail
) -> None:
    keyring = living_keyring()
    lacks = keyring.only(issuers=True, readers=["default"])
    plugin = StatefulPlugin(lacks, sources={"own": Provider()}, audit=trail)
    client = await Client.connect(engine.address, plugins=[plugin])
    home = Tree(client, TokenClient(client, keyring), queue, queue)
    async with home.worker():
        await home.start(api_token=None, source="own", origins=["https://api.example.com"])
        await trail.has(("mint", "failure", "not_ready"))


async def test_a_dead_grant_is_on_record_whether_somebody_could_be_told_or_not(
    engine: EmbeddedEngine, queue: str, trail: Trail
) -> None:
    provider, keyring, told = Provider(), living_keyring(), list[object]()

    def tell(dead: object) -> None:
        told.append(dead)
        if len(told) == 1:
            raise ConnectionError("nobody is there")

    plugin = StatefulPlugin(keyring, sources={"own": provider}, on_dead_grant=tell, audit=trail)
    client = await Client.connect(engine.address, plugins=[plugin])
    home = Tree(client, TokenClient(client, keyring), queue, queue)
    async with home.worker():
        await home.start(
            api_token=None,
            source="own",
            grant={"refresh": "spent"},
            origins=["https://api.example.com"],
        )
        await trail.has(
            ("mint", "failure", "refused_grant"),
            ("needs_authorization", "failure", "out_of_the_blue"),
            ("needs_authorization", "success", "out_of_the_blue"),
        )
    assert len(told) == 2
