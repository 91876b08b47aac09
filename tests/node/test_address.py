"""The API's address belongs to its token, and every workflow without one of its own follows it."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.client import WorkflowFailureError

from stateful_workflow import AddressRefused, NotStateful, OriginsMissing, WorkflowNotFound
from tests.support.asking import events_of, eventually
from tests.support.trees import URL, Tree
from tests.support.workflows import Plan

OLD, NEW, OWN = "https://old.example.com", "https://new.example.com", "https://own.example.com"


async def urls(tree: Tree, *ats: str) -> list[str | None]:
    return [await tree[at].query("apiUrl") for at in ats]


async def test_a_tree_and_its_running_activities_follow_the_address_that_comes_with_a_token(
    tree: Tree,
) -> None:
    plan = Plan({"a": Plan({"x": Plan()}), "own": Plan(api_url=OWN)})
    await tree.start(plan, api_url=f"{OLD}/v1", origins=[OLD, OWN])
    assert await urls(tree, "", "a-x", "own") == [f"{OLD}/v1", f"{OLD}/v1", OWN]
    running = asyncio.create_task(tree.update("a-x", "use_next_address"))

    async def is_running() -> bool:
        return f"at {OLD}/v1" in await tree["a-x"].query("notes")

    await eventually(is_running)
    seen = await tree.rotate("second", origins=[NEW, OWN], api_url=f"{NEW}/v2")

    assert await running == f"{NEW}/v2"
    assert seen.signed is not None
    assert seen.signed.api_url == f"{NEW}/v2"
    followed = [f"{NEW}/v2"] * 3 + [OWN]
    assert [node.used_api_url for node in seen.nodes] == followed
    await tree.rotate("third")
    await tree.add("late")
    await tree.goes_on("a")
    assert await urls(tree, "", "a", "a-x", "own", "late") == [*followed, f"{NEW}/v2"]
    assert await tree.update("late", "use_address") == f"{NEW}/v2"


async def test_an_own_address_that_the_token_in_force_is_not_signed_for_is_shown_and_not_used(
    tree: Tree,
) -> None:
    await tree.start(Plan({"own": Plan(api_url=OWN), "class": Plan(type="Regional")}))

    for at, own in (("own", OWN), ("class", "https://eu.example.com")):
        assert await urls(tree, at) == [own]
        assert await tree.update(at, "use_address") == URL
    [_, *below] = (await tree.tokens.tree(tree.root)).nodes
    assert {(node.api_url, node.used_api_url) for node in below} == {
        (OWN, URL),
        ("https://eu.example.com", URL),
    }
    await tree.rotate("second", origins=[URL, OWN])
    assert await tree.update("own", "use_address") == OWN


async def test_where_nothing_but_an_unsigned_address_is_known_an_activity_is_told_so(
    tree: Tree,
) -> None:
    await tree.start(api_url=None, origins=[URL])
    assert await tree.update("", "use_address") is None

    await tree.signal("", "move_to", OWN)

    assert await tree.update("", "use_address") == "OriginNotAllowed"


async def test_a_child_that_takes_another_token_has_no_address_that_it_is_not_signed_for(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan()})}), api_url=f"{URL}/v1")

    await tree.rotate("of a", "a", origins=[NEW])
    assert await tree.update("a-x", "use_address") in (None, "OriginNotAllowed")
    await tree.rotate("of a", "a", origins=[NEW], api_url=NEW)
    assert await tree.update("a-x", "use_address") == NEW

    await tree.rotate("of a", "a", origins=[URL, NEW])  # it keeps its own
    assert await tree.update("a-x", "use_address") == NEW
    await tree.inherit("a")
    await tree.reveals("first", "a-x")
    assert await tree.update("a-x", "use_address") == f"{URL}/v1"


async def test_a_token_without_an_address_leaves_the_one_from_above_where_it_is_signed_for_that(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan()}), api_url=f"{URL}/v1")

    await tree.rotate("of a", "a", origins=[URL])

    assert await urls(tree, "a") == [f"{URL}/v1"]


async def test_without_a_tokens_address_a_child_has_its_parents(tree: Tree) -> None:
    plan = Plan({"a": Plan({"x": Plan({"y": Plan()})}, api_url=OWN)})
    await tree.start(plan, api_url=None, origins=[OWN, NEW])
    assert await urls(tree, "", "a-x-y") == [None, OWN]

    await tree.rotate("second", api_url=NEW)

    assert await urls(tree, "", "a", "a-x-y") == [NEW, OWN, NEW]


async def test_who_gives_a_workflow_an_address_is_told_where_it_is_refused(tree: Tree) -> None:
    await tree.start(Plan({"a": Plan()}), api_url=f"{URL}/v1", origins=[URL, NEW])
    give, a = tree.tokens.set_api_url, tree.id("a")

    for refused in (OWN, f"{NEW}/path", f"{NEW}?a=b", "garbage", "ftp://new.example.com"):
        with pytest.raises(AddressRefused, match=a):
            await give(a, refused)
    assert await events_of(tree["a"], "WORKFLOW_EXECUTION_UPDATE_ACCEPTED") == []
    for given, shown in ((f"{NEW}:443/", NEW), (f"{URL}/v1", f"{URL}/v1"), (None, f"{URL}/v1")):
        await give(a, given)
        assert await urls(tree, "a") == [shown]
        assert await tree.update("a", "use_address") == shown
    await tree.signal("a", "apiUrl", NEW)
    await tree.signal("a", "apiUrl", f"{URL}/v2")
    assert await tree.refusals("a") == {"TokenMalformed": 1}
    await tree.rotate("second", api_url=f"{URL}/v2")
    assert await urls(tree, "a") == [NEW]
    await tree.signal("a", "apiUrl", f"{URL}/v2")  # which was signed, with its path
    assert await urls(tree, "a") == [f"{URL}/v2"]

    with pytest.raises(WorkflowNotFound):
        await give("nobody", NEW)
    await tree.add("plain", Plan(type="Plain"))
    with pytest.raises(NotStateful):
        await give(tree.id("plain"), NEW)


async def test_an_address_that_is_none_fails_the_workflow_that_sets_it(tree: Tree) -> None:
    await tree.start()

    await tree.signal("", "move_to", "garbage")

    with pytest.raises(WorkflowFailureError) as failed:
        await tree[""].result()
    assert AddressRefused.__name__ in repr(failed.value.cause)
    assert "the API address is refused" in str(failed.value.cause)


async def test_no_origin_is_signed_because_of_an_address_that_workflow_code_can_change(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan()}), api_token=None)
    for at in ("", "a"):
        await tree.signal(at, "move_to", OWN)
        assert await urls(tree, at) == [OWN]

        with pytest.raises(OriginsMissing):
            await tree.tokens.set(tree.id(at), "first")

    await tree.set("first", api_url=f"{NEW}/v1")
    assert (await tree.tokens.get(tree.root)).origins == (NEW,)
    await tree.set("second")
    assert (await tree.tokens.get(tree.root)).origins == (NEW,)
