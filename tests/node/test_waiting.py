"""Workflow code waits for a token to use, and for its children to have one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from stateful_workflow import Keyring
from stateful_workflow.node.describe import View
from stateful_workflow.node.ledger import Child, Ledger, Life
from stateful_workflow.sealed.message import Claims, parse
from tests.support.asking import WITHIN, eventually
from tests.support.builders import CLAIMS, NOW, ROOT, TREE, keyring, token, trusted
from tests.support.trees import URL, Tree
from tests.support.workflows import Plan


async def test_one_line_waits_for_a_token_and_the_first_attempt_after_it_has_it(tree: Tree) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan()})}), api_token=None)
    waiting = [
        asyncio.create_task(tree.update(at, "use_token_once_held", None)) for at in ("a", "a-x")
    ]
    # A message that waits for its issuer is no token to use, though it makes a status.
    stands = await tree.status("a")
    where = (tree.client.namespace, stands["root"], stands["tree"], tree.root)
    claims = Claims("apiToken", *where, int(time.time() * 1000), origins=(URL,))
    await tree.signal("a", "apiToken", Keyring.generate().seal(claims, "of a stranger"))

    async def is_waiting() -> bool:
        status = await tree.tokens.status(tree.id("a"))
        return status is not None and status.state == "waiting"

    await eventually(is_waiting)
    assert "state waiting" in await tree.update("a", "use_token_once_held", 0.1)

    # Set by the root's own code.
    assert await tree.update("", "fetch_token", "first", [URL]) == "held"

    assert await asyncio.gather(*waiting) == ["first", "first"]


async def test_whoever_waits_for_a_token_is_told_why_there_is_none(tree: Tree) -> None:
    await tree.start(Plan({"a": Plan()}), api_token=None)

    async def told(at: str) -> str:
        answer: str = await tree.update(at, "use_token_once_held", 0.1)
        assert tree.id(at) in answer
        return answer.partition(":")[0]

    assert await told("a") == "TokenNotSet"
    await tree.rotate("first", origins=[URL], expires_in=2)

    async def is_expired() -> bool:
        return await told("a") == "TokenExpired"

    await eventually(is_expired)
    await tree.revoke()
    assert await told("") == "TokenRevoked"


async def test_a_workflow_that_sets_a_token_can_wait_until_its_children_were_given_it(
    tree: Tree,
) -> None:
    await tree.start(Plan({f"k{n}": Plan() for n in range(3)}))

    assert await tree.update("", "fetch_token", "second", None, WITHIN) == "held"

    assert (await tree.status())["undelivered"] == []
    assert await tree.opened("k0", "k1", "k2") == ["second"] * 3


def test_a_child_lacks_a_message_until_it_was_given_that_or_a_newer_one() -> None:
    ledger = Ledger((ROOT,), TREE, trusted("ours"))
    older, newer = token(NOW + 1), token(NOW + 2)
    ledger.children = {
        "told": Child("told", "Sync", Life.RUNNING),
        "starting": Child("starting", "Sync"),
        "kept": Child("kept", "Sync", Life.RUNNING, withheld=frozenset({"apiToken"})),
    }
    ledger.children["joined"] = Child("joined", "Sync", Life.IN_DOUBT, joined=True)
    ledger.withhold("softly", None)
    ledger.children["softly"] = Child("softly", "Sync", Life.RUNNING)
    ledger.accept(older, NOW)
    assert [child.id for child in ledger.lacking(older)] == ["told", "starting"]

    ledger.accept(newer, NOW)
    ledger.delivered("told", [newer])

    assert [child.id for child in ledger.lacking(older)] == ["starting"]
    assert [child.id for child in ledger.lacking(newer)] == ["starting"]


def test_an_activity_carries_two_ordinary_tokens_to_its_first_attempt() -> None:
    ledger = Ledger((ROOT,), TREE, trusted("ours"))
    for name in ("apiToken", "billing"):
        sealed = keyring().seal(replace(CLAIMS, name=name), "eyJhbGciOi" * 120)
        ledger.accept(parse(sealed), NOW)

    carried = View(ledger, NOW).use(local=False).tokens

    assert {name: entry["sealed"] is not None for name, entry in carried.items()} == {
        "apiToken": True,
        "billing": True,
    }
