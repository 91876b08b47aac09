"""Genuine messages, copied from a history or signed with a stolen key, where they do not belong.

What only shows when a token is used is in `tests/use/test_at_opening.py`.
"""

from __future__ import annotations

from dataclasses import replace

from temporalio.client import Client

from stateful_workflow import StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.sealed.message import MAX_VERSION, parse
from tests.attacks.messages.unsent import (
    Unsent,
    are_refused,
    is_everywhere,
    is_healthy,
    now,
    signalled,
    unsent_for,
)
from tests.support import builders
from tests.support.builders import header_of, jwks, keyring_of, marked, signed
from tests.support.trees import Tree
from tests.support.workflows import Plan

TOO_FAR_AHEAD = 5 * 60 * 1000
"""Milliseconds; a version may be so far ahead of the workflow's clock."""


async def test_genuine_messages_of_another_tree_place_or_time_are_refused_by_name(
    unsent: Unsent,
) -> None:
    tree = unsent.tree
    other = replace(tree, root=f"{tree.root}-other")
    await other.start()
    of_the_child = await _set_and_captured(tree, "a")
    old = {"of this tree": await tree.sealed()}
    await tree.rotate("second")
    old["the first ever"] = unsent.sealed(version=1)
    newer = await unsent_for(tree)
    just_below = parse(await tree.sealed()).claims.version - 1
    old["one before the newest"] = newer.sealed(version=just_below)

    await are_refused(
        tree,
        {
            "captured": await other.sealed(),
            "for another tree id": newer.sealed(tree="other"),
            "for another root": newer.sealed(root="other"),
            "for another root of this tree id": newer.sealed(root=other.root, authority=other.root),
            "a revocation": builders.keyring().revocation(
                replace(parse(await other.sealed()).claims, origins=(), inherit=False)
            ),
        },
        "WrongTree",
    )
    beside = newer.sealed(authority=tree.id("b"))
    await are_refused(tree, {"below": of_the_child, "beside": beside}, "WrongAuthority")
    await are_refused(tree, {"beside": beside}, "WrongAuthority", at="a")
    for at in ("", "a"):
        await are_refused(tree, old, "TokenStale", at)
    # A minute more than may be: the workflow's clock is that of its last task.
    versions = [now() + TOO_FAR_AHEAD + 60_000, now() + 10**10, MAX_VERSION]
    ahead = {f"version {version}": newer.sealed(version=version) for version in versions}
    ahead["a revocation"] = newer.revocation(version=MAX_VERSION)
    await are_refused(tree, ahead, "TokenMalformed")

    await newer.is_taken()


async def _set_and_captured(tree: Tree, at: str) -> str:
    """A token that was set at a node, which takes the ancestors' again."""
    await tree.set("of the child", at)
    captured = await tree.sealed(at)
    await tree.inherit(at)
    await tree.opens("first", at)
    return captured


async def test_a_token_of_an_earlier_tree_with_the_same_workflow_id_is_refused(tree: Tree) -> None:
    await tree.start()
    captured = await tree.sealed()
    await tree[""].terminate()
    await tree.start(api_token="new tree")

    await are_refused(tree, {"captured": captured}, "WrongTree")

    assert await tree.refusals() == {"WrongTree": 1}
    await is_healthy(tree, holding="new tree")


# --- issuers that are unknown or revoked ---------------------------------------------------------


async def test_a_strangers_signal_waits_for_its_issuer_and_the_rotation_goes_on(
    unsent: Unsent,
) -> None:
    stranger = await unsent_for(unsent.tree, by="stranger")
    claims = replace(stranger.message.claims, version=now() + TOO_FAR_AHEAD - 60_000)
    ahead = builders.keyring("stranger").seal(claims, "x")

    for text in (stranger.message.text, ahead):
        assert await signalled(unsent.tree, "", text) == "waiting"

    waiting = (await unsent.tree.status())["waiting"]
    assert [entry["issuer"] for entry in waiting] == [builders.issuer("stranger")] * 2
    await unsent.is_taken()


async def test_a_revoked_issuers_messages_are_forged_once_a_node_knows(
    engine: EmbeddedEngine, queue: str
) -> None:
    thief = builders.keyring("ours")
    issuer_key, reader = sorted(jwks(thief), key=lambda key: key["crv"])
    successor = jwks(builders.keyring("successor"))
    renewed = keyring_of(marked(issuer_key, revoked=True), *successor, reader)
    plugin = StatefulPlugin(renewed)
    client = await Client.connect(engine.address, namespace=engine.namespace, plugins=[plugin])
    tree = Tree(client, TokenClient(client, renewed), queue, queue)
    async with tree.worker():
        await replace(tree, tokens=TokenClient(client, thief)).start(Plan({"a": Plan()}))
        # The tree was started with the old key trusted: what its thief sets is taken, also with
        # a version that no honest one would have.
        stolen = await unsent_for(tree)
        ahead = parse(stolen.sealed(version=now() + TOO_FAR_AHEAD - 60_000))
        await tree.signal("", "apiToken", ahead.text)
        await is_everywhere(tree, ahead)

        # The successor's first message makes each node ask, and stands, with its version of now.
        first = (await unsent_for(tree, by="successor")).message
        assert first.claims.version < ahead.claims.version
        await tree.signal("", "apiToken", first.text)
        await is_everywhere(tree, first)

        newer = parse(stolen.sealed(version=now() + 60_000))
        forged = {
            "captured": ahead.text,
            "newer": newer.text,
            "a revocation": stolen.revocation(version=newer.claims.version),
            "newer, in the successor's name": signed(
                header_of(by="successor"), newer.payload, by="ours"
            ),
        }
        for at in ("", "a"):
            await are_refused(tree, forged, "TokenForged", at)
        await is_healthy(tree, holding="unsent")
