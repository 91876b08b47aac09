"""A token set at the root reaches every workflow below it that takes part."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.support.asking import events_of, eventually, next_run, run_id
from tests.support.trees import URL, Tree
from tests.support.workflows import BareNode, GrownNode, Plan


def children(count: int) -> Plan:
    return Plan({f"k{n}": Plan() for n in range(count)})


async def test_a_token_reaches_every_node_at_its_start_and_by_rotation_and_no_plain_child(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan(), "y": Plan()}), "b": Plan()}))
    await tree.add("plain", Plan(type="Plain"))
    await tree.reveals("first", "", "a-x", "b")

    seen = await tree.rotate("second")

    nodes = ["", "a", "a-x", "a-y", "b"]
    assert {node.id for node in seen.nodes} == tree.ids(*nodes)
    assert len({node.fingerprint for node in seen.nodes}) == 1
    await tree.reveals("second", *nodes)
    assert await events_of(tree["plain"], "WORKFLOW_EXECUTION_SIGNALED") == []


async def test_the_first_node_below_a_plain_workflow_is_a_root_and_is_given_a_token_later(
    tree: Tree,
) -> None:
    await tree.client.start_workflow(
        "PlainParent", Plan({"a": Plan()}), id=tree.root, task_queue=tree.queue
    )
    below = replace(tree, root=f"{tree.root}-root")
    await below.exists()
    await below.has(2)
    assert (await below.status())["root"] == below.root
    assert await below.tokens.status(below.root) is None

    await below.rotate("late", origins=[URL])

    await below.reveals("late", "", "a")


async def test_a_child_that_starts_during_a_rotation_ends_with_the_newest(tree: Tree) -> None:
    await tree.start(children(3))

    async def rotate() -> None:
        for n in range(5):
            await tree.set(f"token-{n}")

    await asyncio.gather(rotate(), *[tree.signal("", "add_children", 3 * n, 3) for n in range(4)])

    async def all_newest() -> None:
        seen = await tree.tokens.tree(tree.root)
        assert len(seen.nodes) == 16
        assert seen.converged

    await eventually(all_newest)
    await tree.reveals("token-4", *[f"c{n}" for n in range(12)])


async def test_a_child_that_is_gone_or_never_ran_is_dropped_and_those_it_leaves_are_adopted(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan({"deep": Plan()})}), "b": Plan()}))
    await tree.signal("", "add_elsewhere", "never")
    await tree.knows("never", "running")
    for at in ("never", "a", "a-x"):
        await tree[at].terminate()

    await tree.rotate("second")

    await tree.has_children("a-x-deep", "b")
    await tree.reveals("second", "a-x-deep", "b")
    await tree.rotate("third")
    await tree.reveals("third", "a-x-deep", "b")


async def test_a_node_answers_while_it_tells_many_and_returns_when_all_are_told(
    tree: Tree,
) -> None:
    await tree.start(children(15))
    root = tree[""]

    setting = asyncio.create_task(tree.rotate("second"))
    for n in range(5):
        await root.signal("note", str(n))
        assert (await root.query("notes"))[-1] == str(n)
    await setting

    await tree.set("third")
    await root.signal("stop")
    assert await root.result() == "stopped"
    held = await asyncio.gather(*[tree.tokens.get(tree.id(f"k{n}")) for n in range(15)])
    assert {token.reveal() for token in held} == {"third"}


async def test_a_rotation_adds_one_telling_to_its_parents_history(tree: Tree) -> None:
    await tree.start(children(10))
    before = len((await tree[""].fetch_history()).events)

    await tree.rotate("second")

    assert len((await tree[""].fetch_history()).events) <= before + 12
    assert len(await events_of(tree[""], "ACTIVITY_TASK_SCHEDULED")) == 1


async def test_each_workflow_has_its_own_address_which_a_signal_moves_within_the_signed_origins(
    tree: Tree,
) -> None:
    own = "https://own.example.com"
    plan = {"plain": Plan(), "own": Plan(api_url=own), "class": Plan(type="Regional")}
    await tree.start(Plan(plan))

    await tree.signal("", "move_to", "https://moved.example.com")  # its own code may

    expected = {"": "https://moved.example.com", "plain": URL, "own": own}
    expected |= {"class": "https://eu.example.com"}
    assert {at: await tree[at].query("apiUrl") for at in expected} == expected

    for refused in ("https://evil.example.net", f"{URL}/v2", f"{URL}?a=b", f"{URL}/{'a' * 5_000}"):
        await tree.signal("own", "apiUrl", refused)
    assert await tree[""].query("apiUrl") == expected[""]
    assert await tree["own"].query("apiUrl") == own
    assert await tree.refusals("own") == {"TokenMalformed": 4}
    await tree.signal("own", "apiUrl", f"{URL}:443/")
    assert await tree["own"].query("apiUrl") == URL


async def test_an_activity_opens_what_its_workflow_holds(tree: Tree) -> None:
    await tree.start(Plan({"a": Plan(), "clean": Plan(type="Cleanup")}))

    assert await tree.opened("a", "clean") == ["first", "TokenNotSet"]
    assert await tree.update("a", "use_token_locally") == "first"
    assert await tree.update("a", "use_address") == URL
    await tree.rotate("second")
    assert await tree.opened("a", "clean") == ["second", "TokenNotSet"]


async def test_a_parent_sets_a_token_that_an_issuers_activity_sealed(tree: Tree) -> None:
    await tree.start(Plan({"a": Plan()}), api_token=None)

    assert await tree.update("", "fetch_token", "fetched", [URL]) == "held"

    async def arrived() -> bool:
        return await tree.tokens.status(tree.id("a")) is not None

    await eventually(arrived)
    token = await tree.tokens.get(tree.id("a"))
    assert (token.reveal(), token.origins) == ("fetched", (URL,))


async def test_a_child_that_ran_before_its_parent_took_part_is_beside_the_tree_until_it_is_told(
    unserved: Tree,
) -> None:
    tree = unserved
    async with tree.worker(workflows=[BareNode], max_cached_workflows=0):
        await tree.client.start_workflow(
            BareNode.run, args=[True], id=tree.root, task_queue=tree.queue
        )
        await tree.exists("old")
    async with tree.worker(workflows=[GrownNode]):
        await tree.set("own", "old")
        [old] = (await tree.tokens.tree(tree.root)).behind
        assert (old.id, old.beside) == (tree.id("old"), True)
        assert (old.state, old.authority) == ("held", tree.id("old")), "what it holds is shown"

        seen = await tree.rotate("first", origins=[URL])

        assert {(node.id, node.authority, node.beside) for node in seen.nodes} == {
            (tree.root, tree.root, False),
            (tree.id("old"), tree.root, False),
        }
        await tree.reveals("first", "", "old")


async def test_a_child_whose_id_is_started_again_is_told_and_so_is_what_an_earlier_one_left(
    tree: Tree,
) -> None:
    await tree.start(Plan({"again": Plan({"left": Plan()}), "a": Plan()}))
    for _ in range(2):
        before = await run_id(tree.client, tree.id("again"))
        await tree.signal("again", "stop")
        await tree.knows("again", "closed")
        await tree.signal("", "add_child", "again", Plan())
        await next_run(tree.client, tree.id("again"), before)
    for n in range(3):  # one that lives cannot be started
        await tree.signal("", "try_to_start", "a")
        await tree.set(f"token-{n}")

    await tree.reveals("token-2", "a")
    seen = await tree.rotate("second")

    nodes = ["", "again", "again-left", "a"]
    assert {node.id for node in seen.nodes} == tree.ids(*nodes)
    await tree.reveals("second", *nodes)
