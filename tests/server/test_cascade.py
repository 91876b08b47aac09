"""A token set at the root reaches every workflow below it that takes part."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError
from temporalio.worker import Worker

from stateful_workflow import TokenClient, WorkflowNotFound

from .conftest import start_worker
from .support import events_of, eventually, status_of
from .workflows import BareNode, GrownNode, Node, Plan

URL = "https://api.example.com"

Root = WorkflowHandle[Any, str]


@pytest.fixture
async def plant(tokens: TokenClient, client: Client, queue: str, worker: Worker) -> Any:
    """Start a tree and wait until all of its nodes run."""

    async def start(plan: Plan, *, run: Any = Node.run, token: str | None = "first") -> Root:
        root = await tokens.start_workflow(
            run, plan, id=queue, task_queue=queue, api_token=token, api_url=URL
        )
        await settled(client, queue, plan)
        return root

    return start


async def settled(client: Client, workflow_id: str, plan: Plan) -> None:
    async def all_started() -> None:
        status = await status_of(client, workflow_id)
        assert len(status["children"]) == len(plan.children)
        assert all(child["life"] == "running" for child in status["children"])

    await eventually(all_started)
    for suffix, child in plan.children.items():
        if not child.type.startswith("Plain"):
            await settled(client, f"{workflow_id}-{suffix}", child)


async def test_the_first_token_reaches_grandchildren_with_their_start(
    plant: Any, tokens: TokenClient, queue: str
) -> None:
    await plant(Plan({"a": Plan({"x": Plan()})}))

    assert (await tokens.get(f"{queue}-a-x")).reveal() == "first"


async def test_a_rotation_reaches_every_node_and_the_tree_says_converged(
    plant: Any, tokens: TokenClient, queue: str
) -> None:
    await plant(Plan({"a": Plan({"x": Plan(), "y": Plan()}), "b": Plan()}))

    tree = await tokens.rotate(queue, "second", timeout=20)

    assert tree.converged
    assert {node.id for node in tree.nodes} == {
        queue,
        f"{queue}-a",
        f"{queue}-a-x",
        f"{queue}-a-y",
        f"{queue}-b",
    }
    assert len({node.fingerprint for node in tree.nodes}) == 1
    assert (await tokens.get(f"{queue}-a-x")).reveal() == "second"


async def test_a_token_can_be_set_after_a_start_without_one(
    client: Client, tokens: TokenClient, queue: str, worker: Worker
) -> None:
    plan = Plan({"a": Plan()})
    await client.start_workflow(Node.run, plan, id=queue, task_queue=queue)
    await settled(client, queue, plan)
    assert await tokens.status(queue) is None

    await tokens.rotate(queue, "late", origins=[URL], timeout=20)

    assert (await tokens.get(f"{queue}-a")).reveal() == "late"


async def test_a_plain_workflow_above_leaves_the_stateful_one_below_it_the_root(
    client: Client, tokens: TokenClient, queue: str, worker: Worker
) -> None:
    plan = Plan({"a": Plan()})
    await client.start_workflow("PlainParent", plan, id=queue, task_queue=queue)

    async def is_root() -> None:
        try:
            assert (await status_of(client, f"{queue}-root"))["root"] == f"{queue}-root"
        except Exception as error:
            raise AssertionError(str(error)) from error

    await eventually(is_root)
    await settled(client, f"{queue}-root", plan)

    await tokens.rotate(f"{queue}-root", "below", origins=[URL], timeout=20)

    assert (await tokens.get(f"{queue}-root-a")).reveal() == "below"


async def test_a_child_that_starts_during_a_rotation_ends_with_the_newest(
    plant: Any, client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await plant(Plan({f"k{n}": Plan() for n in range(5)}))

    async def rotate() -> None:
        for n in range(5):
            await tokens.set(queue, f"token-{n}")

    await asyncio.gather(
        rotate(),
        *[root.signal("add_children", args=[5 * n, 5]) for n in range(4)],
    )

    async def all_newest() -> None:
        tree = await tokens.tree(queue)
        assert len(tree.nodes) == 26
        assert tree.converged

    await eventually(all_newest)
    for n in (0, 7, 19):
        assert (await tokens.get(f"{queue}-c{n}")).reveal() == "token-4"


async def test_plain_children_are_told_nothing(
    plant: Any, client: Client, tokens: TokenClient, queue: str
) -> None:
    await plant(Plan({"plain": Plan(type="Plain"), "a": Plan()}))

    tree = await tokens.rotate(queue, "second", timeout=20)

    assert {node.id for node in tree.nodes} == {queue, f"{queue}-a"}
    plain = client.get_workflow_handle(f"{queue}-plain")
    assert await events_of(plain, "WORKFLOW_EXECUTION_SIGNALED") == []


async def test_a_child_that_is_gone_is_dropped_and_its_live_children_are_adopted(
    plant: Any, client: Client, tokens: TokenClient, queue: str
) -> None:
    await plant(Plan({"a": Plan({"x": Plan({"deep": Plan()})}), "b": Plan()}))
    await client.get_workflow_handle(f"{queue}-a").terminate()
    await client.get_workflow_handle(f"{queue}-a-x").terminate()

    await tokens.rotate(queue, "second", timeout=20)

    async def adopted() -> None:
        assert (await tokens.get(f"{queue}-a-x-deep")).reveal() == "second"
        children = {child["id"] for child in (await status_of(client, queue))["children"]}
        assert children == {f"{queue}-a-x-deep", f"{queue}-b"}

    await eventually(adopted)
    assert (await tokens.rotate(queue, "third", timeout=20)).converged


async def test_a_workflow_that_returns_finishes_its_telling_first(
    plant: Any, client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await plant(Plan({f"k{n}": Plan() for n in range(10)}))

    await tokens.set(queue, "second")
    await root.signal("stop")
    assert await root.result() == "stopped"

    for n in range(10):
        assert (await tokens.get(f"{queue}-k{n}")).reveal() == "second"


async def test_signals_and_queries_of_the_user_stay_prompt_during_a_fan_out(
    plant: Any, client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await plant(Plan({f"k{n}": Plan() for n in range(40)}))

    setting = asyncio.create_task(tokens.rotate(queue, "second", timeout=30))
    for n in range(5):
        await root.signal("note", str(n))
        assert (await root.query("notes"))[-1] == str(n)
    assert (await setting).converged


async def test_each_workflow_has_its_own_address_and_children_inherit_it_only_at_their_start(
    plant: Any, client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await plant(
        Plan(
            {
                "plain": Plan(),
                "own": Plan(api_url="https://own.example.com"),
                "class": Plan(type="Regional"),
            }
        )
    )

    await root.signal("move_to", "https://moved.example.com")

    async def address(node_id: str) -> str | None:
        answer: str | None = await client.get_workflow_handle(node_id).query("apiUrl")
        return answer

    assert await address(queue) == "https://moved.example.com"
    assert await address(f"{queue}-plain") == URL
    assert await address(f"{queue}-own") == "https://own.example.com"
    assert await address(f"{queue}-class") == "https://eu.example.com"


async def test_an_address_by_signal_is_taken_only_within_the_signed_origins(
    plant: Any, client: Client, queue: str
) -> None:
    root = await plant(Plan())

    await root.signal("apiUrl", f"{URL}:443/")
    assert await root.query("apiUrl") == URL
    for refused in ("https://evil.example.net", f"{URL}/v2", f"{URL}?a=b", f"{URL}/{'a' * 5_000}"):
        await root.signal("apiUrl", refused)
    assert await root.query("apiUrl") == URL
    assert (await status_of(client, queue))["rejections"]["counts"] == {"TokenMalformed": 4}


async def test_a_parent_sets_a_token_that_an_issuers_activity_sealed(
    plant: Any, client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await plant(Plan({"a": Plan()}), token=None)

    assert await root.execute_update("fetch_token", args=["fetched", [URL]]) == "held"

    async def arrived() -> bool:
        return await tokens.status(f"{queue}-a") is not None

    await eventually(arrived)
    token = await tokens.get(f"{queue}-a")
    assert token.reveal() == "fetched"
    assert token.origins == (URL,)


async def test_an_activity_opens_what_its_workflow_holds(
    plant: Any, client: Client, tokens: TokenClient, queue: str
) -> None:
    await plant(Plan({"a": Plan(), "clean": Plan(type="Cleanup")}))
    child = client.get_workflow_handle(f"{queue}-a")

    assert await child.execute_update("use_token", "apiToken") == "first"
    assert await child.execute_update("use_token_locally") == "first"
    assert await child.execute_update("use_address") == URL
    await tokens.rotate(queue, "second", timeout=20)
    assert await child.execute_update("use_token", "apiToken") == "second"
    cleanup = client.get_workflow_handle(f"{queue}-clean")
    assert await cleanup.execute_update("use_token", "apiToken") == "TokenNotSet"


async def test_a_child_that_closed_before_it_ever_ran_holds_nothing_up(
    plant: Any, client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await plant(Plan({"a": Plan()}))
    await root.signal("add_elsewhere", "never")
    await settled(client, queue, Plan({"a": Plan(), "never": Plan(type="Plain")}))
    await client.get_workflow_handle(f"{queue}-never").terminate()

    tree = await tokens.rotate(queue, "second", timeout=20)

    assert tree.converged

    async def dropped() -> bool:
        status = await status_of(client, queue)
        return [child["id"] for child in status["children"]] == [f"{queue}-a"]

    await eventually(dropped)


async def test_a_token_is_not_set_at_a_closed_workflow(
    plant: Any, tokens: TokenClient, queue: str
) -> None:
    root = await plant(Plan())
    await root.terminate()

    with pytest.raises(WorkflowNotFound):
        await tokens.set(queue, "late")


async def test_a_rotation_keeps_origins_and_types_unless_told_otherwise(
    plant: Any, tokens: TokenClient, queue: str
) -> None:
    await plant(Plan())
    await tokens.set(queue, "narrow", types=["Node"])

    kept = await tokens.set(queue, "next")
    assert (kept.types, kept.origins) == (("Node",), (URL,))
    lifted = await tokens.set(queue, "wide", types="any")
    assert lifted.types is None


async def test_a_child_started_before_its_parent_took_part_is_shown_as_outside_the_tree(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    plain = start_worker(client, queue, workflows=[BareNode], max_cached_workflows=0)
    async with plain:
        await client.start_workflow(BareNode.run, args=[True], id=queue, task_queue=queue)

        async def both_run() -> bool:
            described = await client.get_workflow_handle(f"{queue}-old").describe()
            return described.history_length > 3

        await eventually_there(both_run)
    async with start_worker(client, queue, workflows=[GrownNode]):
        tree = await tokens.rotate(queue, "first", origins=[URL], timeout=20)

        assert tree.converged
        [old] = [node for node in tree.nodes if node.id == f"{queue}-old"]
        assert old.problem is not None
        assert "not of this tree" in old.problem
        assert (await tokens.get(queue)).reveal() == "first"


async def eventually_there(probe: Any) -> None:
    async def there() -> bool:
        try:
            return bool(await probe())
        except RPCError:
            return False

    await eventually(there)


async def test_a_child_started_again_under_its_id_is_told_and_what_the_first_one_left_as_well(
    plant: Any, client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await plant(Plan({"again": Plan({"left": Plan()})}))
    for _ in range(2):
        before = (await client.get_workflow_handle(f"{queue}-again").describe()).run_id
        await client.get_workflow_handle(f"{queue}-again").signal("stop")

        async def parent_knows() -> bool:
            children = (await status_of(client, queue))["children"]
            return any(
                child["id"] == f"{queue}-again" and child["life"] == "closed" for child in children
            )

        await eventually(parent_knows)
        await root.signal("add_child", args=["again", Plan()])

        async def runs_again(before: str | None = before) -> bool:
            described = await client.get_workflow_handle(f"{queue}-again").describe()
            return described.run_id != before

        await eventually(runs_again)

    tree = await tokens.rotate(queue, "second", timeout=20)

    assert {node.id for node in tree.nodes} == {queue, f"{queue}-again", f"{queue}-again-left"}
    assert (await tokens.get(f"{queue}-again")).reveal() == "second"
    assert (await tokens.get(f"{queue}-again-left")).reveal() == "second"


async def test_a_start_that_fails_because_the_child_lives_leaves_that_child_told(
    plant: Any, client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await plant(Plan({"a": Plan()}))

    for n in range(3):
        await root.signal("try_to_start", "a")
        await tokens.set(queue, f"token-{n}")

    async def told() -> bool:
        return (await tokens.get(f"{queue}-a")).reveal() == "token-2"

    await eventually(told)


async def test_a_rotation_adds_one_telling_to_its_parents_history(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    async with start_worker(client, queue):
        plan = Plan({f"k{n}": Plan() for n in range(10)})
        root = await tokens.start_workflow(
            Node.run, plan, id=queue, task_queue=queue, api_token="first", api_url=URL
        )
        await settled(client, queue, plan)
        before = len((await root.fetch_history()).events)

        await tokens.rotate(queue, "second", timeout=20)

        assert len((await root.fetch_history()).events) <= before + 12
        assert len(await events_of(root, "ACTIVITY_TASK_SCHEDULED")) == 1
