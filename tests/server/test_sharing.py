"""Who gets a token: by workflow type, at one child's start, from code and from outside, by name."""

from __future__ import annotations

import io
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from rich.console import Console
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from stateful_workflow import StatefulWorkflow, TokenClient, TokenTree, TokenWithheld
from stateful_workflow.cli.tree import render
from stateful_workflow.sealed.message import parse

from .support import (
    events_of,
    eventually,
    next_run,
    nodes_run,
    run_id,
    sealed_at,
    status_of,
)
from .test_runs import start
from .workflows import Hermit, Plan, Sharer

URL = "https://api.example.com"

pytestmark = pytest.mark.usefixtures("worker")


async def opened(client: Client, *workflow_ids: str, name: str = "apiToken") -> list[str]:
    """What an activity of each of these workflows opens, or what it is told instead."""
    return [
        await client.get_workflow_handle(workflow_id).execute_update("use_token", name)
        for workflow_id in workflow_ids
    ]


async def opens(client: Client, expected: str, *workflow_ids: str, name: str = "apiToken") -> None:
    """Wait until activities of all these workflows open this, or are told it."""

    async def all_open() -> None:
        seen = await opened(client, *workflow_ids, name=name)
        assert dict(zip(workflow_ids, seen, strict=True)) == dict.fromkeys(workflow_ids, expected)

    await eventually(all_open)


async def withheld(tokens: TokenClient, workflow_id: str, name: str = "apiToken") -> set[str]:
    """The nodes that `stateful tree` says a token is withheld from, without the root's id."""
    tree = await tokens.tree(workflow_id, name)
    return {node.id.removeprefix(f"{workflow_id}-") for node in tree.nodes if node.withheld}


# --- by workflow type, on the class ----------------------------------------------


async def test_types_named_in_withhold_never_get_it_nor_does_anything_below_them(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan(), "clean": Plan({"x": Plan()}, type="Cleanup")}))

    assert (await tokens.rotate(queue, "second", timeout=20)).converged

    assert await withheld(tokens, queue) == {"clean", "clean-x"}
    assert await opened(client, f"{queue}-a") == ["second"]
    for node_id in (f"{queue}-clean", f"{queue}-clean-x"):
        assert await opened(client, node_id) == ["TokenNotSet"]
        status = await tokens.status(node_id)
        assert status is not None
        assert status.state == "withheld"


async def test_share_withholds_from_every_type_it_does_not_name(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    plan = Plan({"a": Plan(), "other": Plan(type="Regional")})
    await start(tokens, queue, plan, Sharer.run)

    await tokens.rotate(queue, "second", timeout=20)

    assert await withheld(tokens, queue) == {"other"}
    assert await opened(client, f"{queue}-a", f"{queue}-other") == ["second", "TokenNotSet"]


async def test_share_of_no_type_keeps_it_from_every_child(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan(), "b": Plan(type="Regional")}), Hermit.run)

    await tokens.rotate(queue, "second", timeout=20)

    assert await withheld(tokens, queue) == {"a", "b"}
    assert await opened(client, queue, f"{queue}-a", f"{queue}-b") == [
        "second",
        "TokenNotSet",
        "TokenNotSet",
    ]


def test_share_and_withhold_exclude_each_other_and_take_no_single_string() -> None:
    declare: Sequence[tuple[dict[str, Any], str]] = [
        ({"share": ("A",), "withhold": ("B",)}, "not both"),
        ({"share": "Node"}, "share= takes a tuple"),
        ({"withhold": "Node"}, "withhold= takes a tuple"),
    ]
    for keywords, complaint in declare:
        with pytest.raises(TypeError, match=complaint):
            type("Wrong", (StatefulWorkflow,), {}, **keywords)


# --- at one child's start (hard) -------------------------------------------------


async def test_a_child_started_withholding_gets_nothing_while_one_of_its_type_beside_it_does(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan(), "hard": Plan({"x": Plan()}, hard=True)}))

    assert (await tokens.rotate(queue, "second", timeout=20)).converged

    assert await withheld(tokens, queue) == {"hard", "hard-x"}
    assert await opened(client, f"{queue}-a", f"{queue}-hard", f"{queue}-hard-x") == [
        "second",
        "TokenNotSet",
        "TokenNotSet",
    ]


async def test_the_parents_code_cannot_share_with_a_child_started_withholding(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan({"a": Plan(), "hard": Plan(hard=True)}))

    await root.signal("give_to", args=["hard", None])
    await root.signal("give_to", args=["hard", "apiToken"])
    assert (await tokens.rotate(queue, "second", timeout=20)).converged

    assert await withheld(tokens, queue) == {"hard"}
    assert await opened(client, f"{queue}-a", f"{queue}-hard") == ["second", "TokenNotSet"]
    hard = client.get_workflow_handle(f"{queue}-hard")
    assert await events_of(hard, "WORKFLOW_EXECUTION_SIGNALED") == []


# A token copied out of a history: by whom it reaches the child, which may stand below others.


async def _signalled(client: Client, root: str, suffix: str, copied: str) -> None:
    await client.get_workflow_handle(f"{root}-{suffix}").signal("apiToken", copied)


async def _set_by_update(client: Client, root: str, suffix: str, copied: str) -> None:
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await client.get_workflow_handle(f"{root}-{suffix}").execute_update("apiToken", copied)
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == TokenWithheld.__name__


async def _handed_on_by_the_roots_code(client: Client, root: str, suffix: str, copied: str) -> None:
    await client.get_workflow_handle(root).signal("hand_on", args=[suffix, copied])


async def _set_by_its_own_code(client: Client, root: str, suffix: str, copied: str) -> None:
    child = client.get_workflow_handle(f"{root}-{suffix}")
    assert await child.execute_update("take_copy", copied) == TokenWithheld.__name__


COPIES: dict[str, tuple[Callable[[Client, str, str, str], Awaitable[None]], bool]] = {
    "signalled": (_signalled, True),
    "set by update": (_set_by_update, False),  # turned down before it enters history
    "handed on by the root's code": (_handed_on_by_the_roots_code, True),
    "set by its own code": (_set_by_its_own_code, True),
}
CHILDREN = Plan({"hard": Plan({"x": Plan()}, hard=True), "clean": Plan(type="Cleanup")})


@pytest.mark.parametrize(("copy", "is_counted"), COPIES.values(), ids=COPIES)
async def test_a_token_copied_to_a_child_started_withheld_gets_nowhere(
    client: Client,
    tokens: TokenClient,
    queue: str,
    copy: Callable[[Client, str, str, str], Awaitable[None]],
    is_counted: bool,
) -> None:
    await start(tokens, queue, CHILDREN)
    copied = await sealed_at(client, queue)

    for suffix in ("hard", "hard-x", "clean"):
        await copy(client, queue, suffix, copied)

        async def refused(node_id: str = f"{queue}-{suffix}") -> None:
            status = await status_of(client, node_id)
            expected = {TokenWithheld.__name__: 1} if is_counted else {}
            assert status["rejections"]["counts"] == expected
            assert status["tokens"] == []

        await eventually(refused)
    withheld_from = [f"{queue}-{suffix}" for suffix in ("hard", "hard-x", "clean")]
    assert await opened(client, *withheld_from) == ["TokenNotSet"] * 3


async def test_a_child_started_withheld_stays_so_in_its_later_runs(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"hard": Plan(hard=True)}))
    hard = f"{queue}-hard"
    before = await run_id(client, hard)
    await client.get_workflow_handle(hard).signal("go_on")
    await next_run(client, hard, before)

    await client.get_workflow_handle(hard).signal("add_child", args=["late", Plan()])
    await nodes_run(tokens, queue, 3)
    await tokens.rotate(queue, "second", timeout=20)
    copied = await sealed_at(client, queue)

    for node_id in (hard, f"{hard}-late"):
        await client.get_workflow_handle(node_id).signal("apiToken", copied)
        counts = (await status_of(client, node_id))["rejections"]["counts"]
        assert counts == {TokenWithheld.__name__: 1}
    assert await opened(client, hard, f"{hard}-late") == ["TokenNotSet", "TokenNotSet"]


async def test_a_token_an_issuer_sets_at_a_withheld_child_is_taken_by_it_and_those_below(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, CHILDREN)
    for suffix in ("hard", "clean"):
        await tokens.rotate(f"{queue}-{suffix}", f"{suffix} 1", origins=[URL], timeout=20)

    assert await opened(client, f"{queue}-hard", f"{queue}-hard-x") == ["hard 1"] * 2
    assert await opened(client, f"{queue}-clean") == ["clean 1"]

    await tokens.rotate(queue, "second", timeout=20)  # the root's is withheld as ever
    assert await opened(client, queue, f"{queue}-hard-x") == ["second", "hard 1"]
    await tokens.inherit(f"{queue}-hard")
    await opens(client, "TokenNotSet", f"{queue}-hard", f"{queue}-hard-x")


# --- from the parent's code, while it runs (soft) --------------------------------


async def test_soft_withholding_stops_the_next_and_sharing_delivers_the_newest_at_once(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan({"a": Plan({"x": Plan()}), "b": Plan()}))

    await root.signal("keep_from", args=["a", None])
    for token in ("second", "third"):
        assert (await tokens.rotate(queue, token, timeout=20)).converged
    assert await opened(client, f"{queue}-a", f"{queue}-a-x", f"{queue}-b") == [
        "first",
        "first",
        "third",
    ]
    assert await withheld(tokens, queue) == {"a"}

    await root.signal("give_to", args=["a", None])

    await opens(client, "third", f"{queue}-a", f"{queue}-a-x")
    assert await withheld(tokens, queue) == set()
    told = await events_of(client.get_workflow_handle(f"{queue}-a"), "WORKFLOW_EXECUTION_SIGNALED")
    assert len(told) == 1  # the newest, and not what it missed


async def test_a_child_withheld_softly_before_its_start_gets_the_standing_token_when_shared(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan())
    await root.signal("keep_from", args=["late", None])
    await root.signal("add_child", args=["late", Plan()])
    await nodes_run(tokens, queue, 2)
    assert await tokens.status(f"{queue}-late") is None
    assert await opened(client, f"{queue}-late") == ["TokenNotSet"]

    await root.signal("give_to", args=["late", None])

    await opens(client, "first", f"{queue}-late")


async def test_what_was_withheld_softly_stays_so_in_the_parents_later_runs(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan({"a": Plan(), "b": Plan()}))
    await root.signal("keep_from", args=["a", None])
    before = await run_id(client, queue)
    await client.get_workflow_handle(queue).signal("go_on")
    await next_run(client, queue, before)

    await tokens.rotate(queue, "second", timeout=20)

    assert await opened(client, f"{queue}-a", f"{queue}-b") == ["first", "second"]
    await client.get_workflow_handle(queue).signal("give_to", args=["a", None])
    await opens(client, "second", f"{queue}-a")


async def test_what_was_withheld_from_a_closed_child_stays_withheld_from_those_it_leaves(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
    await root.signal("keep_from", args=["a", None])
    await client.get_workflow_handle(f"{queue}-a").terminate()

    assert (await tokens.rotate(queue, "second", timeout=20)).converged

    assert await opened(client, f"{queue}-a-x") == ["first"]


async def test_what_a_closed_workflow_withheld_from_its_child_stays_withheld(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan({"x": Plan(), "y": Plan()})}))
    middle = client.get_workflow_handle(f"{queue}-a")
    await middle.signal("keep_from", args=["x", None])
    assert (await status_of(client, f"{queue}-a"))["children"][0]["withheld"] == ["*"]
    await middle.terminate()

    await tokens.rotate(queue, "second", timeout=20)

    await opens(client, "second", f"{queue}-a-y")
    assert await opened(client, f"{queue}-a-x") == ["first"]


# --- from outside, by an issuer --------------------------------------------------


@pytest.mark.parametrize(
    ("at", "cut_off", "beside"),
    [("a", ["a", "a-x", "a-y"], ["b"]), ("a-x", ["a-x"], ["a", "a-y", "b"])],
    ids=["in the middle", "at a leaf"],
)
async def test_revoke_cuts_a_subtree_off_and_inherit_gives_it_back(
    client: Client,
    tokens: TokenClient,
    queue: str,
    at: str,
    cut_off: list[str],
    beside: list[str],
) -> None:
    await start(tokens, queue, Plan({"a": Plan({"x": Plan(), "y": Plan()}), "b": Plan()}))
    below = [f"{queue}-{suffix}" for suffix in cut_off]
    others = [queue, *[f"{queue}-{suffix}" for suffix in beside]]

    await tokens.revoke(f"{queue}-{at}")
    await opens(client, "TokenRevoked", *below)
    await tokens.rotate(queue, "second", timeout=20)
    assert await opened(client, *below) == ["TokenRevoked"] * len(below)
    assert await opened(client, *others) == ["second"] * len(others)

    await tokens.inherit(f"{queue}-{at}")
    await opens(client, "second", *below)
    await tokens.rotate(queue, "third", timeout=20)
    assert await opened(client, *below, *others) == ["third"] * 5


# --- a token that is held already ------------------------------------------------


async def test_a_child_withheld_softly_keeps_what_it_holds_and_a_rotation_leaves_it_with_that(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    """Withhold, then rotate: once the API ends the old token, the child has a dead one."""
    root = await start(tokens, queue, Plan({"a": Plan({"x": Plan()}), "b": Plan()}))
    held = [f"{queue}-a", f"{queue}-a-x"]

    await root.signal("keep_from", args=["a", None])
    assert await opened(client, *held) == ["first", "first"]

    assert (await tokens.rotate(queue, "second", timeout=20)).converged
    assert await opened(client, *held) == ["first", "first"]
    assert await opened(client, queue, f"{queue}-b") == ["second", "second"]


async def test_a_child_that_holds_a_token_is_cut_off_at_once_by_revoking_at_it(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan({"a": Plan({"x": Plan()}), "b": Plan()}))
    await root.signal("keep_from", args=["a", None])

    await tokens.revoke(f"{queue}-a")

    await opens(client, "TokenRevoked", f"{queue}-a", f"{queue}-a-x")
    assert await opened(client, queue, f"{queue}-b") == ["first", "first"]


async def line_of(tokens: TokenClient, root: str, node_id: str, name: str = "apiToken") -> str:
    """What `stateful tree` prints of one node."""
    tree: TokenTree = await tokens.tree(root, name)
    out = io.StringIO()
    Console(file=out, width=300).print(render(tree, time.time()))
    [line] = [line for line in out.getvalue().splitlines() if f" {node_id} " in line]
    return line


async def test_the_tree_shows_from_whom_a_token_is_withheld(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(
        tokens, queue, Plan({"clean": Plan(type="Cleanup"), "hard": Plan(hard=True)})
    )
    await root.signal("keep_from", args=["late", None])
    await root.signal("add_child", args=["late", Plan()])
    await nodes_run(tokens, queue, 4)

    for suffix in ("clean", "hard", "late"):
        line = await line_of(tokens, queue, f"{queue}-{suffix}")
        assert line.endswith(" withheld"), line


async def test_the_tree_shows_which_version_a_softly_withheld_child_still_holds(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan({"a": Plan()}))
    old = parse(await sealed_at(client, queue)).fingerprint
    await root.signal("keep_from", args=["a", None])
    await tokens.rotate(queue, "second", timeout=20)

    assert f" withheld, still holds {old}" in await line_of(tokens, queue, f"{queue}-a")


async def test_the_tree_shows_a_token_and_a_revocation_that_were_set_at_a_withheld_child(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan({"hard": Plan(hard=True), "soft": Plan()}))
    await root.signal("keep_from", args=["soft", None])

    own = await tokens.set(f"{queue}-hard", "its own", origins=[URL])
    await tokens.revoke(f"{queue}-soft")

    assert f"held {own.fingerprint}" in await line_of(tokens, queue, f"{queue}-hard")
    assert "revoked" in await line_of(tokens, queue, f"{queue}-soft")


# --- for which workflow types ----------------------------------------------------


async def test_only_activities_of_the_types_signed_for_may_open_it_wherever_it_is_held(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    plan = Plan({"a": Plan(), "other": Plan({"x": Plan()}, type="Regional")})
    await start(tokens, queue, plan)
    nodes = [queue, f"{queue}-a", f"{queue}-other-x", f"{queue}-other"]

    tree = await tokens.rotate(queue, "narrow", types=["Node"], timeout=20)

    assert {node.state for node in tree.nodes} == {"held"}
    assert await opened(client, *nodes) == ["narrow", "narrow", "narrow", "WrongWorkflowType"]
    await tokens.rotate(queue, "next", timeout=20)  # a rotation keeps them
    assert await opened(client, *nodes) == ["next", "next", "next", "WrongWorkflowType"]
    await tokens.rotate(queue, "wide", types="any", timeout=20)
    assert await opened(client, *nodes) == ["wide"] * 4


async def test_a_copied_token_is_opened_by_no_activity_of_a_type_it_is_not_signed_for(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan({"other": Plan(type="Regional")}))
    await root.signal("keep_from", args=["other", None])
    await tokens.set(queue, "narrow", types=["Node"])
    copied = await sealed_at(client, queue)

    await client.get_workflow_handle(f"{queue}-other").signal("apiToken", copied)

    assert await sealed_at(client, f"{queue}-other") == copied
    assert await opened(client, f"{queue}-other") == ["WrongWorkflowType"]


# --- several named tokens in one tree --------------------------------------------


async def test_each_child_sees_exactly_the_named_tokens_it_should(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(
        tokens,
        queue,
        Plan(
            {
                "both": Plan(),
                "github": Plan({"x": Plan()}, without="billing"),
                "billing": Plan({"x": Plan()}),
                "neither": Plan(hard=True),
            }
        ),
    )
    await root.signal("keep_from", args=["billing", "github"])

    for version in ("1", "2"):
        await tokens.rotate(queue, f"gh {version}", name="github", origins=[URL], timeout=20)
        await tokens.rotate(queue, f"pay {version}", name="billing", origins=[URL], timeout=20)

        async def sees(suffix: str) -> list[str]:
            node_id = f"{queue}-{suffix}"
            names = ("github", "billing", "apiToken")
            return [(await opened(client, node_id, name=name))[0] for name in names]

        assert await sees("both") == [f"gh {version}", f"pay {version}", "first"]
        assert await sees("github") == [f"gh {version}", "TokenNotSet", "first"]
        assert await sees("github-x") == [f"gh {version}", "TokenNotSet", "first"]
        assert await sees("billing") == ["TokenNotSet", f"pay {version}", "first"]
        assert await sees("billing-x") == ["TokenNotSet", f"pay {version}", "first"]
        assert await sees("neither") == ["TokenNotSet"] * 3

    assert await withheld(tokens, queue, "github") == {"billing", "neither"}
    assert await withheld(tokens, queue, "billing") == {"github", "github-x", "neither"}
    assert await withheld(tokens, queue) == {"neither"}


async def test_a_child_started_without_one_name_refuses_a_copy_of_that_one_only(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"github": Plan(without="billing")}))
    child = f"{queue}-github"
    for name in ("github", "billing"):
        await tokens.rotate(queue, name, name=name, origins=[URL], timeout=20)
        answer = await client.get_workflow_handle(queue).query("apiToken", name)
        await client.get_workflow_handle(child).signal("apiToken", answer["sealed"])

    assert (await status_of(client, child))["rejections"]["counts"] == {TokenWithheld.__name__: 1}
    assert await opened(client, child, name="billing") == ["TokenNotSet"]

    await tokens.set(child, "its own", name="billing", origins=[URL])
    assert await opened(client, child, name="billing") == ["its own"]
    assert await opened(client, queue, name="billing") == ["billing"]
    assert await opened(client, child, name="github") == ["github"]


async def test_a_child_from_which_all_is_withheld_softly_is_given_one_name(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan())
    await root.signal("keep_from", args=["late", None])
    await root.signal("add_child", args=["late", Plan()])
    await nodes_run(tokens, queue, 2)
    for name in ("github", "billing"):
        await tokens.rotate(queue, name, name=name, origins=[URL], timeout=20)

    await root.signal("give_to", args=["late", "github"])

    await opens(client, "github", f"{queue}-late", name="github")
    assert await opened(client, f"{queue}-late", name="billing") == ["TokenNotSet"]
    assert await opened(client, f"{queue}-late") == ["TokenNotSet"]
    assert await withheld(tokens, queue, "github") == set()
    assert await withheld(tokens, queue, "billing") == {"late"}


async def test_revoking_one_name_at_a_node_leaves_the_others(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan()}))
    for name in ("github", "billing"):
        await tokens.rotate(queue, name, name=name, origins=[URL], timeout=20)

    await tokens.revoke(queue, "billing")

    await opens(client, "TokenRevoked", queue, f"{queue}-a", name="billing")
    assert await opened(client, queue, f"{queue}-a", name="github") == ["github", "github"]
