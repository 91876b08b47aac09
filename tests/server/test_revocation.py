"""A revocation cascades, outlives what ends a run, and only a newer message ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from temporalio.api.enums.v1 import ResetReapplyExcludeType
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from stateful_workflow import TokenClient, TokenStale, TokenWithheld
from stateful_workflow.sealed.message import parse

from .api import Api, start_api
from .conftest import start_worker
from .support import (
    eventually,
    next_run,
    nodes_run,
    reset,
    run_id,
    sealed_at,
    status_of,
    tasks_of,
)
from .test_runs import QUICK, start
from .test_sharing import opened, opens
from .use_workflows import ASYNC_ACTIVITIES, USE_WORKFLOWS, Caller, Distant, Job
from .workflows import Flaky, FlakyParent, Plan

URL = "https://api.example.com"


# --- it cascades -----------------------------------------------------------------


@pytest.mark.usefixtures("worker")
async def test_a_revocation_at_the_root_reaches_every_node_and_converges(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan({"x": Plan()}), "b": Plan(type="Regional")}))

    assert (await tokens.revoke(queue)).state == "revoked"

    nodes = [queue, f"{queue}-a", f"{queue}-a-x", f"{queue}-b"]
    await opens(client, "TokenRevoked", *nodes)
    tree = await tokens.tree(queue)
    assert tree.converged
    assert {node.state for node in tree.nodes} == {"revoked"}
    assert len({node.fingerprint for node in tree.nodes}) == 1


@pytest.mark.usefixtures("worker")
async def test_a_token_set_nearer_stands_below_a_revocation(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan({"x": Plan()}), "b": Plan()}))
    await tokens.rotate(f"{queue}-a", "its own", origins=[URL], timeout=20)

    await tokens.revoke(queue)

    await opens(client, "TokenRevoked", queue, f"{queue}-b")
    assert await opened(client, f"{queue}-a", f"{queue}-a-x") == ["its own", "its own"]
    await tokens.inherit(f"{queue}-a")  # there is nothing above to take
    await opens(client, "TokenRevoked", f"{queue}-a", f"{queue}-a-x")


@pytest.mark.usefixtures("worker")
async def test_children_that_start_while_it_is_revoked_are_revoked_as_well(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan({"a": Plan()}))

    await asyncio.gather(
        tokens.revoke(queue), *[root.signal("add_children", args=[3 * n, 3]) for n in range(3)]
    )

    async def all_revoked() -> None:
        tree = await tokens.tree(queue)
        assert len(tree.nodes) == 11
        assert {node.state for node in tree.nodes} == {"revoked"}

    await eventually(all_revoked)
    assert await opened(client, f"{queue}-c0", f"{queue}-c8") == ["TokenRevoked"] * 2


@pytest.mark.usefixtures("worker")
async def test_a_revocation_reaches_a_softly_withheld_child_that_still_holds_the_token(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    """A workflow's own code may narrow: keeping a revocation from a child would widen."""
    root = await start(tokens, queue, Plan({"a": Plan(), "b": Plan()}))
    await root.signal("keep_from", args=["a", None])

    await tokens.revoke(queue)
    await opens(client, "TokenRevoked", queue, f"{queue}-b")

    async def nothing_is_on_its_way() -> None:
        assert (await status_of(client, queue))["undelivered"] == []

    await eventually(nothing_is_on_its_way)
    assert await opened(client, f"{queue}-a") == ["TokenRevoked"]


# --- activities in flight --------------------------------------------------------


@pytest.mark.usefixtures("worker")
async def test_an_activity_in_flight_that_is_retried_is_told_that_its_token_was_revoked(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
    leaf = client.get_workflow_handle(f"{queue}-a-x")
    running = asyncio.create_task(leaf.execute_update("use_token_again"))

    async def opened_it() -> bool:
        return "opened first" in await leaf.query("notes")

    await eventually(opened_it)
    await tokens.revoke(queue)
    await _state_is(tokens, leaf.id, "revoked")
    await leaf.signal("note", "go")

    assert await running == "TokenRevoked"


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        api.valid = {"first"}
        yield api


async def test_an_activity_in_flight_that_asks_after_a_401_is_told_that_its_token_was_revoked(
    client: Client, tokens: TokenClient, queue: str, api: Api
) -> None:
    async with start_worker(client, queue, workflows=USE_WORKFLOWS, activities=ASYNC_ACTIVITIES):
        await tokens.start_workflow(
            Distant.run,
            {"a": queue},
            id=queue,
            task_queue=queue,
            api_token="first",
            api_url=api.origin,
        )
        await nodes_run(tokens, queue, 2)
        child = client.get_workflow_handle(f"{queue}-a")
        job = Job([api.url("before"), api.gate("g"), api.url("after")])
        running = asyncio.create_task(child.execute_update(Caller.do, job))
        await api.reached("g")

        await tokens.revoke(queue)
        await _state_is(tokens, child.id, "revoked")
        api.valid = set()
        api.open("g")

        before, after = await running
        assert before == "200"
        assert after.startswith("TokenRevoked: ")


async def _state_is(tokens: TokenClient, workflow_id: str, state: str) -> None:
    async def there() -> None:
        status = await tokens.status(workflow_id)
        assert status is not None
        assert status.state == state

    await eventually(there)


# --- it survives what ends a run -------------------------------------------------


async def _stands(client: Client, old: str, *nodes: str) -> None:
    """Show that these nodes are revoked, and that the token before it does not come back."""
    await opens(client, "TokenRevoked", *nodes)
    for node_id in nodes:
        handle = client.get_workflow_handle(node_id)
        await handle.signal("apiToken", old)
        with pytest.raises(WorkflowUpdateFailedError) as caught:
            await handle.execute_update("apiToken", old)
        assert isinstance(caught.value.cause, ApplicationError)
        assert caught.value.cause.type == TokenStale.__name__
        assert TokenStale.__name__ in (await status_of(client, node_id))["rejections"]["counts"]
    assert await opened(client, *nodes) == ["TokenRevoked"] * len(nodes)


async def _revoke(client: Client, tokens: TokenClient, *nodes: str) -> str:
    """Revoke at the first of these nodes, wait for the others, and return the token before it."""
    old = await sealed_at(client, nodes[0])
    await tokens.revoke(nodes[0])
    await opens(client, "TokenRevoked", *nodes)
    return old


async def _ends_with_a_newer_token(client: Client, tokens: TokenClient, *nodes: str) -> None:
    assert (await tokens.rotate(nodes[0], "newer", origins=[URL], timeout=20)).converged
    assert await opened(client, *nodes) == ["newer"] * len(nodes)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("how", ["go_on", "go_on_at_once"])
async def test_a_revocation_survives_continue_as_new_of_its_authority_and_of_a_child(
    client: Client, tokens: TokenClient, queue: str, how: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
    nodes = [queue, f"{queue}-a", f"{queue}-a-x"]
    old = await _revoke(client, tokens, *nodes)

    for node_id in nodes:
        before = await run_id(client, node_id)
        await client.get_workflow_handle(node_id).signal(how)
        await next_run(client, node_id, before)

    await _stands(client, old, *nodes)
    await _ends_with_a_newer_token(client, tokens, *nodes)


@pytest.mark.usefixtures("worker")
async def test_a_revocation_that_meets_a_continue_as_new_is_not_lost(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan()}))
    root = client.get_workflow_handle(queue)

    for _ in range(3):
        before = await run_id(client, queue)
        await asyncio.gather(tokens.revoke(queue), root.signal("go_on"))
        await next_run(client, queue, before)
        await opens(client, "TokenRevoked", queue, f"{queue}-a")
        await tokens.rotate(queue, "newer", origins=[URL], timeout=20)
        assert await opened(client, queue, f"{queue}-a") == ["newer", "newer"]


@pytest.mark.usefixtures("worker")
async def test_a_revocation_survives_the_retry_of_its_authority(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await tokens.start_workflow(
        Flaky.run,
        Plan({"a": Plan()}),
        id=queue,
        task_queue=queue,
        api_token="first",
        api_url=URL,
        retry_policy=QUICK,
    )
    await nodes_run(tokens, queue, 2)
    nodes = [queue, f"{queue}-a"]
    old = await _revoke(client, tokens, *nodes)

    await _fail(client, queue)

    await _stands(client, old, *nodes)
    await _ends_with_a_newer_token(client, tokens, *nodes)


@pytest.mark.usefixtures("worker")
async def test_a_revocation_survives_the_retry_of_a_child_it_came_to(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    await tokens.start_workflow(
        FlakyParent.run, Plan(), id=queue, task_queue=queue, api_token="first", api_url=URL
    )
    await nodes_run(tokens, queue, 2)
    nodes = [queue, f"{queue}-flaky"]
    old = await _revoke(client, tokens, *nodes)

    await _fail(client, f"{queue}-flaky")

    await _stands(client, old, *nodes)
    await _ends_with_a_newer_token(client, tokens, *nodes)


async def _fail(client: Client, workflow_id: str) -> None:
    before = await run_id(client, workflow_id)
    await client.get_workflow_handle(workflow_id).signal("break_down")
    await next_run(client, workflow_id, before)


async def test_a_revocation_survives_a_worker_restart(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    nodes = [queue, f"{queue}-a"]
    async with start_worker(client, queue):
        await start(tokens, queue, Plan({"a": Plan()}))
        old = await _revoke(client, tokens, *nodes)

    async with start_worker(client, queue):
        await _stands(client, old, *nodes)
        await _ends_with_a_newer_token(client, tokens, *nodes)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("suffix", ["", "-a"], ids=["its authority", "a child it came to"])
async def test_a_revocation_survives_a_reset_that_applies_signals_and_updates_again(
    client: Client, tokens: TokenClient, queue: str, suffix: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan()}))
    nodes = [queue, f"{queue}-a"]
    task = (await tasks_of(client, f"{queue}{suffix}"))[-1]
    old = await _revoke(client, tokens, *nodes)

    await reset(client, f"{queue}{suffix}", task)

    await _stands(client, old, *nodes)
    await _ends_with_a_newer_token(client, tokens, *nodes)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("suffix", ["", "-a"], ids=["its authority", "a child it came to"])
async def test_a_reset_that_excludes_signals_and_updates_takes_a_node_to_before_the_revocation(
    client: Client, tokens: TokenClient, queue: str, suffix: str
) -> None:
    """The exception: what is not in a history did not happen. Revoke again after such a reset."""
    await start(tokens, queue, Plan({"a": Plan()}))
    nodes = [queue, f"{queue}-a"]
    task = (await tasks_of(client, f"{queue}{suffix}"))[-1]
    await _revoke(client, tokens, *nodes)

    await reset(
        client,
        f"{queue}{suffix}",
        task,
        exclude=[
            ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_SIGNAL,
            ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_UPDATE,
        ],
    )

    other = next(node_id for node_id in nodes if node_id != f"{queue}{suffix}")
    assert await opened(client, f"{queue}{suffix}", other) == ["first", "TokenRevoked"]
    old = await sealed_at(client, f"{queue}{suffix}")
    await tokens.revoke(queue)
    await opens(client, "TokenRevoked", *nodes)
    await _stands(client, old, *nodes)


# --- a newer message ends it, and nothing else -----------------------------------


async def _newest_at(client: Client, authority: str) -> str:
    """The message that was set at a workflow last, whatever its kind."""
    state: dict[str, Any] = await client.get_workflow_handle(authority).query("statefulState")
    [text] = [t for t in state["ledger"]["held"] if parse(t).claims.authority == authority]
    return text


@pytest.mark.usefixtures("worker")
async def test_neither_older_messages_nor_the_workflows_code_end_a_revocation(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
    a, x = f"{queue}-a", f"{queue}-a-x"
    middle = client.get_workflow_handle(a)
    await tokens.rotate(a, "its own", origins=[URL], timeout=20)
    old = [await _newest_at(client, a)]
    await tokens.inherit(a)
    old.append(await _newest_at(client, a))
    await tokens.revoke(a)
    await opens(client, "TokenRevoked", a, x)

    for copied in old:
        assert await middle.execute_update("take_copy", copied) == TokenStale.__name__
        await middle.signal("hand_on", args=["x", copied])
    await middle.signal("give_to", args=["x", None])
    await root.signal("give_to", args=["a", None])
    await tokens.rotate(queue, "second", timeout=20)  # at another place: it does not count there

    async def refused() -> None:
        counts = (await status_of(client, x))["rejections"]["counts"]
        assert counts == {TokenStale.__name__: 2}

    await eventually(refused)
    assert await opened(client, queue, a, x) == ["second", "TokenRevoked", "TokenRevoked"]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("by", ["set", "inherit"])
async def test_a_newer_token_or_inherit_at_the_same_node_ends_a_revocation(
    client: Client, tokens: TokenClient, queue: str, by: str
) -> None:
    await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
    subtree = [f"{queue}-a", f"{queue}-a-x"]
    await tokens.revoke(subtree[0])
    await opens(client, "TokenRevoked", *subtree)

    if by == "set":
        await tokens.set(subtree[0], "its own", origins=[URL])
        await opens(client, "its own", *subtree)
    else:
        await tokens.inherit(subtree[0])
        await opens(client, "first", *subtree)


# --- children that start after it ------------------------------------------------


@pytest.mark.usefixtures("worker")
async def test_a_child_started_after_a_revocation_is_revoked_and_refuses_what_is_old(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan({"a": Plan()}))
    old = await _revoke(client, tokens, queue, f"{queue}-a")

    await root.signal("add_child", args=["late", Plan({"x": Plan()})])
    await client.get_workflow_handle(f"{queue}-a").signal("add_child", args=["late", Plan()])
    await nodes_run(tokens, queue, 5)

    late = [f"{queue}-late", f"{queue}-late-x", f"{queue}-a-late"]
    await _stands(client, old, *late)
    await _ends_with_a_newer_token(client, tokens, queue, *late)


@pytest.mark.usefixtures("worker")
async def test_a_withheld_child_started_after_a_revocation_holds_the_floor_too(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue, Plan())
    old = await _revoke(client, tokens, queue)

    await root.signal("keep_from", args=["soft", None])
    for suffix, plan in {
        "soft": Plan(),
        "hard": Plan(hard=True),
        "clean": Plan(type="Cleanup"),
    }.items():
        await root.signal("add_child", args=[suffix, plan])
    await nodes_run(tokens, queue, 4)

    expected = {"soft": TokenStale, "hard": TokenWithheld, "clean": TokenWithheld}
    for suffix, reason in expected.items():
        await client.get_workflow_handle(f"{queue}-{suffix}").signal("apiToken", old)
        status = await status_of(client, f"{queue}-{suffix}")
        assert status["rejections"]["counts"] == {reason.__name__: 1}
    state = await client.get_workflow_handle(f"{queue}-hard").query("statefulState")
    [[name, authority, orders]] = state["ledger"]["floors"]
    assert (name, authority) == ("apiToken", queue)
    assert [version for version, _ in orders.values()] > [parse(old).claims.version]
