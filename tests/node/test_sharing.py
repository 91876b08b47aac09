"""Who gets a token: by workflow type, at one child's start, from code and from outside, by name."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from stateful_workflow import StatefulWorkflow, TokenTree, TokenWithheld
from stateful_workflow.cli.tree import render
from stateful_workflow.sealed.message import parse
from tests.support.asking import events_of, eventually
from tests.support.trees import URL, Tree
from tests.support.workflows import Hermit, Node, Plan, Sharer

WITHHELD = TokenWithheld.__name__


async def withheld(tree: Tree, name: str = "apiToken") -> set[str]:
    """The nodes that `stateful tree` says a token is withheld from."""
    nodes = (await tree.tokens.tree(tree.root, name)).nodes
    return {node.id.removeprefix(f"{tree.root}-") for node in nodes if node.withheld}


# --- by workflow type, or at one child's start (hard) ----------------------------


@pytest.mark.parametrize(
    ("run", "plan", "given", "without"),
    [
        (
            Node.run,
            Plan({"a": Plan(), "clean": Plan({"x": Plan()}, type="Cleanup")}),
            ["", "a"],
            ["clean", "clean-x"],
        ),
        (Sharer.run, Plan({"a": Plan(), "other": Plan(type="Regional")}), ["", "a"], ["other"]),
        (Hermit.run, Plan({"a": Plan(), "b": Plan(type="Regional")}), [""], ["a", "b"]),
        (
            Node.run,
            Plan({"a": Plan(), "hard": Plan({"x": Plan()}, hard=True)}),
            ["", "a"],
            ["hard", "hard-x"],
        ),
    ],
    ids=["named in withhold", "not named in share", "share of no type", "started withholding"],
)
async def test_who_is_started_without_a_token_never_gets_it_nor_does_anything_below(
    tree: Tree, run: Any, plan: Plan, given: list[str], without: list[str]
) -> None:
    await tree.start(plan, run)
    for at in without:
        await tree.signal("", "give_to", at, None)  # its parent's code cannot widen
        await tree.signal("", "give_to", at, "apiToken")

    await tree.rotate("second")

    assert await withheld(tree) == set(without)
    assert await tree.opened(*given) == ["second"] * len(given)
    assert await tree.opened(*without) == ["TokenNotSet"] * len(without)
    for at in without:
        status = await tree.tokens.status(tree.id(at))
        assert status is not None
        assert status.state == "withheld"
        assert await events_of(tree[at], "WORKFLOW_EXECUTION_SIGNALED") == []


def test_share_and_withhold_exclude_each_other_and_take_no_single_string() -> None:
    declare: list[tuple[dict[str, Any], str]] = [
        ({"share": ("A",), "withhold": ("B",)}, "not both"),
        ({"share": "Node"}, "share= takes a tuple"),
        ({"withhold": "Node"}, "withhold= takes a tuple"),
    ]
    for keywords, complaint in declare:
        with pytest.raises(TypeError, match=complaint):
            type("Wrong", (StatefulWorkflow,), {}, **keywords)


CHILDREN = Plan({"hard": Plan({"x": Plan()}, hard=True), "clean": Plan(type="Cleanup")})


async def test_a_token_copied_to_a_child_started_withheld_gets_nowhere_in_its_later_runs_neither(
    tree: Tree,
) -> None:
    await tree.start(CHILDREN)
    copied = await tree.sealed()
    for at in ("hard", "hard-x", "clean"):
        await tree.signal(at, "apiToken", copied)
        with pytest.raises(WorkflowUpdateFailedError) as failed:  # before it enters history
            await tree.update(at, "apiToken", copied)
        assert isinstance(failed.value.cause, ApplicationError)
        assert failed.value.cause.type == WITHHELD
        await tree.signal("", "hand_on", at, copied)
        assert await tree.update(at, "take_copy", copied) == WITHHELD

        async def refused(at: str = at) -> None:
            status = await tree.status(at)
            assert status["rejections"]["counts"] == {WITHHELD: 3}
            assert status["tokens"] == []

        await eventually(refused)

    await tree.goes_on("hard")
    await tree.add("late", to="hard")
    await tree.rotate("second")
    copied = await tree.sealed()

    for at in ("hard", "hard-late"):
        before = (await tree.refusals(at)).get(WITHHELD, 0)
        await tree.signal(at, "apiToken", copied)
        assert await tree.refusals(at) == {WITHHELD: before + 1}
    nodes = ["hard", "hard-x", "hard-late", "clean"]
    assert await tree.opened(*nodes) == ["TokenNotSet"] * len(nodes)


async def test_a_token_an_issuer_sets_at_a_withheld_child_is_taken_by_it_and_those_below(
    tree: Tree,
) -> None:
    await tree.start(CHILDREN)
    for at in ("hard", "clean"):
        await tree.rotate(f"{at} 1", at)

    assert await tree.opened("hard", "hard-x", "clean") == ["hard 1", "hard 1", "clean 1"]

    await tree.rotate("second")  # the root's is withheld as ever
    assert await tree.opened("", "hard-x") == ["second", "hard 1"]
    await tree.inherit("hard")
    await tree.opens("TokenNotSet", "hard", "hard-x")


# --- from the parent's code, while it runs (soft) --------------------------------


async def test_what_a_parent_withholds_it_withholds_until_it_shares_the_newest_in_any_later_run(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan()}), "b": Plan()}))

    await tree.signal("", "keep_from", "a", None)
    await tree.rotate("second")
    assert await tree.opened("a", "a-x", "b") == ["first", "first", "second"]
    await tree.goes_on()
    await tree.rotate("third")
    assert await tree.opened("a", "a-x", "b") == ["first", "first", "third"]
    assert await withheld(tree) == {"a"}

    await tree.signal("", "give_to", "a", None)

    await tree.opens("third", "a", "a-x")
    assert await withheld(tree) == set()
    told = await events_of(tree["a"], "WORKFLOW_EXECUTION_SIGNALED")
    assert len(told) == 1  # the newest, and not what it missed


async def test_a_child_withheld_softly_before_its_start_gets_what_stands_once_it_is_shared(
    tree: Tree,
) -> None:
    await tree.start()
    await tree.signal("", "keep_from", "late", None)
    await tree.add("late")
    for name in ("github", "billing"):
        await tree.rotate(name, name=name, origins=[URL])
    assert await tree.tokens.status(tree.id("late")) is None
    assert await tree.opened("late") == ["TokenNotSet"]

    await tree.signal("", "give_to", "late", "github")

    await tree.opens("github", "late", name="github")
    for name in ("billing", "apiToken"):
        assert await tree.opened("late", name=name) == ["TokenNotSet"]
    assert await withheld(tree, "github") == set()
    assert await withheld(tree, "billing") == {"late"}
    await tree.signal("", "give_to", "late", None)
    await tree.opens("first", "late")


async def test_what_was_withheld_from_or_by_a_closed_child_stays_withheld_from_those_it_leaves(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan()}), "b": Plan({"x": Plan(), "y": Plan()})}))
    await tree.signal("", "keep_from", "a", None)
    await tree.signal("b", "keep_from", "x", None)
    for at in ("a", "b"):
        await tree[at].terminate()
    await tree.has_children("a-x", "b-x", "b-y")

    await tree.rotate("second")

    assert await tree.opened("a-x", "b-x", "b-y") == ["first", "first", "second"]


# --- from outside, by an issuer --------------------------------------------------


async def test_revoke_cuts_a_subtree_off_and_inherit_gives_it_back(tree: Tree) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan()}), "b": Plan({"x": Plan(), "y": Plan()})}))
    cut_off, others = ["a", "a-x", "b-x"], ["", "b", "b-y"]

    for at in ("a", "b-x"):
        await tree.revoke(at)
    await tree.opens("TokenRevoked", *cut_off)
    await tree.rotate("second")
    assert await tree.opened(*cut_off) == ["TokenRevoked"] * 3
    assert await tree.opened(*others) == ["second"] * 3

    for at in ("a", "b-x"):
        await tree.inherit(at)
    await tree.opens("second", *cut_off)
    await tree.rotate("third")
    assert await tree.opened(*cut_off, *others) == ["third"] * 6


async def line_of(tree: Tree, at: str) -> str:
    """What `stateful tree` prints of one node."""
    seen: TokenTree = await tree.tokens.tree(tree.root)
    out = io.StringIO()
    Console(file=out, width=300).print(render(seen, time.time()))
    [line] = [line for line in out.getvalue().splitlines() if f" {tree.id(at)} " in line]
    return line


async def test_the_tree_shows_from_whom_a_token_is_withheld_and_what_was_set_there(
    tree: Tree,
) -> None:
    await tree.start(
        Plan(
            {
                "clean": Plan(type="Cleanup"),
                "hard": Plan(hard=True),
                "own": Plan(hard=True),
                "soft": Plan(),
                "cut": Plan({"x": Plan()}),
            }
        )
    )
    for at in ("late", "soft", "cut"):
        await tree.signal("", "keep_from", at, None)
    await tree.add("late")
    for at in ("clean", "hard", "late"):
        assert (await line_of(tree, at)).endswith(" withheld")

    held = parse(await tree.sealed("soft")).fingerprint
    await tree.rotate("second")
    assert f" withheld, still holds {held}" in await line_of(tree, "soft")

    own = await tree.set("its own", "own")
    assert f"held {own.fingerprint}" in await line_of(tree, "own")
    assert await tree.opened("cut", "cut-x") == ["first", "first"]
    await tree.revoke("cut")
    await tree.opens("TokenRevoked", "cut", "cut-x")
    assert "revoked" in await line_of(tree, "cut")


# --- for which workflow types ----------------------------------------------------


async def test_only_activities_of_the_types_signed_for_may_open_it_wherever_it_is_held(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan(), "other": Plan({"x": Plan()}, type="Regional")}))
    nodes = ["", "a", "other-x", "other"]

    seen = await tree.rotate("narrow", types=["Node"])

    assert {node.state for node in seen.nodes} == {"held"}
    assert await tree.opened(*nodes) == ["narrow", "narrow", "narrow", "WrongWorkflowType"]
    await tree.rotate("next")  # a rotation keeps them
    assert await tree.opened(*nodes) == ["next", "next", "next", "WrongWorkflowType"]
    await tree.rotate("wide", types="any")
    assert await tree.opened(*nodes) == ["wide"] * 4


# --- several named tokens in one tree --------------------------------------------


async def test_each_child_sees_exactly_the_named_tokens_it_should(tree: Tree) -> None:
    await tree.start(
        Plan(
            {
                "both": Plan(),
                "github": Plan({"x": Plan()}, without="billing"),
                "billing": Plan({"x": Plan()}),
                "neither": Plan(hard=True),
            }
        )
    )
    await tree.signal("", "keep_from", "billing", "github")

    async def seen(name: str) -> dict[str, str]:
        ats = ("both", "github", "github-x", "billing", "billing-x", "neither")
        return dict(zip(ats, await tree.opened(*ats, name=name), strict=True))

    for version in ("1", "2"):
        await tree.rotate(f"gh {version}", name="github", origins=[URL])
        await tree.rotate(f"pay {version}", name="billing", origins=[URL])

        none = dict.fromkeys(["both", "github", "github-x", "billing", "billing-x"], "TokenNotSet")
        none |= {"neither": "TokenNotSet"}
        github = dict.fromkeys(["both", "github", "github-x"], f"gh {version}")
        billing = dict.fromkeys(["both", "billing", "billing-x"], f"pay {version}")
        everybody = dict.fromkeys(none.keys() - {"neither"}, "first")
        assert await seen("github") == {**none, **github}
        assert await seen("billing") == {**none, **billing}
        assert await seen("apiToken") == {**none, **everybody}

    assert await withheld(tree, "github") == {"billing", "neither"}
    assert await withheld(tree, "billing") == {"github", "github-x", "neither"}
    assert await withheld(tree) == {"neither"}


async def test_a_child_started_without_one_name_refuses_a_copy_of_that_one_only(
    tree: Tree,
) -> None:
    await tree.start(Plan({"github": Plan(without="billing")}))
    for name in ("github", "billing"):
        await tree.rotate(name, name=name, origins=[URL])
        answer = await tree[""].query("apiToken", name)
        await tree.signal("github", "apiToken", answer["sealed"])

    assert await tree.refusals("github") == {WITHHELD: 1}
    assert await tree.opened("github", name="billing") == ["TokenNotSet"]

    await tree.set("its own", "github", name="billing")
    assert await tree.opened("", "github", name="billing") == ["billing", "its own"]
    assert await tree.opened("github", name="github") == ["github"]

    await tree.tokens.revoke(tree.root, "github")
    await tree.opens("TokenRevoked", "", "github", name="github")
    assert await tree.opened("", name="billing") == ["billing"]
