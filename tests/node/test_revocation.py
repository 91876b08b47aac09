"""A revocation cascades, outlives what ends a run, and only a newer message ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from temporalio.api.enums.v1 import ResetReapplyExcludeType
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from stateful_workflow import TokenStale, TokenWithheld
from stateful_workflow.sealed.message import parse
from tests.support.api import Api, start_api
from tests.support.asking import eventually, reset, tasks_of
from tests.support.trees import Tree
from tests.support.use_workflows import ASYNC_ACTIVITIES, USE_WORKFLOWS, Caller, Distant, Job
from tests.support.workflows import QUICK, Flaky, Plan

STALE = TokenStale.__name__


# --- it cascades -----------------------------------------------------------------


async def test_a_revocation_reaches_whom_it_is_withheld_from_and_not_whom_a_nearer_token_has(
    tree: Tree,
) -> None:
    """A workflow's own code may narrow: keeping a revocation from a child would widen."""
    await tree.start(Plan({"a": Plan({"x": Plan()}), "b": Plan(type="Regional"), "soft": Plan()}))
    await tree.rotate("its own", "a")
    await tree.signal("", "keep_from", "soft", None)

    await tree.revoke()

    await tree.opens("TokenRevoked", "", "b", "soft")
    assert await tree.opened("a", "a-x") == ["its own", "its own"]
    await tree.inherit("a")  # there is nothing above to take
    await tree.opens("TokenRevoked", "a", "a-x")

    async def converged() -> None:
        seen = await tree.tokens.tree(tree.root)
        assert seen.converged
        assert {node.state for node in seen.nodes} == {"revoked"}
        assert len({node.fingerprint for node in seen.nodes}) == 1

    await eventually(converged)


async def test_children_that_start_while_it_is_revoked_or_later_refuse_what_is_old(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan()}))
    old = await tree.sealed()

    await asyncio.gather(
        tree.revoke(), *[tree.signal("", "add_children", 3 * n, 3) for n in range(3)]
    )
    await tree.add("late", Plan({"x": Plan()}))
    await tree.add("late", to="a")

    await _stands(tree, old, *[f"c{n}" for n in range(9)], "late", "late-x", "a-late")
    await _ends_with_a_newer_token(tree, "", "c0", "c8", "late", "late-x", "a-late")


async def test_a_withheld_child_started_after_a_revocation_holds_the_floor_too(
    tree: Tree,
) -> None:
    await tree.start()
    old = await tree.sealed()
    await tree.revoke()

    await tree.signal("", "keep_from", "soft", None)
    await tree.add("soft")
    await tree.add("hard", Plan(hard=True))
    await tree.add("clean", Plan(type="Cleanup"))

    withheld = TokenWithheld.__name__
    for at, reason in {"soft": STALE, "hard": withheld, "clean": withheld}.items():
        await tree.signal(at, "apiToken", old)
        assert await tree.refusals(at) == {reason: 1}
    state = await tree["hard"].query("statefulState")
    [[name, authority, orders]] = state["ledger"]["floors"]
    assert (name, authority) == ("apiToken", tree.root)
    assert [version for version, _ in orders.values()] > [parse(old).claims.version]


# --- activities in flight --------------------------------------------------------


async def test_an_activity_in_flight_that_is_retried_is_told_that_its_token_was_revoked(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan()})}))
    running = asyncio.create_task(tree.update("a-x", "use_token_again"))

    async def opened_it() -> bool:
        return "opened first" in await tree["a-x"].query("notes")

    await eventually(opened_it)
    await tree.revoke()
    await _is_revoked(tree, "a-x")
    await tree.signal("a-x", "note", "go")

    assert await running == "TokenRevoked"


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        api.valid = {"first"}
        yield api


async def test_an_activity_in_flight_that_asks_after_a_401_is_told_that_its_token_was_revoked(
    unserved: Tree, api: Api
) -> None:
    tree = unserved
    async with tree.worker(workflows=USE_WORKFLOWS, activities=ASYNC_ACTIVITIES):
        await tree.tokens.start_workflow(
            Distant.run,
            {"a": tree.queue},
            id=tree.root,
            task_queue=tree.queue,
            api_token="first",
            api_url=api.origin,
        )
        await tree.has(2)
        job = Job([api.url("before"), api.gate("g"), api.url("after")])
        running = asyncio.create_task(tree["a"].execute_update(Caller.do, job))
        await api.reached("g")

        await tree.revoke()
        await _is_revoked(tree, "a")
        api.valid = set()
        api.open("g")

        before, after = await running
        assert before == "200"
        assert after.startswith("TokenRevoked: ")


async def _is_revoked(tree: Tree, at: str) -> None:
    async def so() -> None:
        status = await tree.tokens.status(tree.id(at))
        assert status is not None
        assert status.state == "revoked"

    await eventually(so)


# --- it survives what ends a run -------------------------------------------------


async def _stands(tree: Tree, old: str, *ats: str) -> None:
    """Show that these nodes are revoked, and that the token before it does not come back."""
    await tree.opens("TokenRevoked", *ats)
    for at in ats:
        before = (await tree.refusals(at)).get(STALE, 0)
        await tree.signal(at, "apiToken", old)
        with pytest.raises(WorkflowUpdateFailedError) as failed:
            await tree.update(at, "apiToken", old)
        assert isinstance(failed.value.cause, ApplicationError)
        assert failed.value.cause.type == STALE
        assert (await tree.refusals(at))[STALE] == before + 1
    assert await tree.opened(*ats) == ["TokenRevoked"] * len(ats)


async def _ends_with_a_newer_token(tree: Tree, *ats: str) -> None:
    await tree.rotate("newer")
    assert await tree.opened(*ats) == ["newer"] * len(ats)


@pytest.mark.usefixtures("replays")
async def test_a_revocation_survives_later_runs_retries_and_a_restart_of_the_worker(
    unserved: Tree,
) -> None:
    tree, nodes = unserved, ["", "a", "a-x"]
    async with tree.worker():
        plan = Plan({"a": Plan({"x": Plan()}, type="Flaky", retried=True)})
        await tree.start(plan, Flaky.run, retry_policy=QUICK)
        old = await tree.sealed()
        await tree.revoke()
        await tree.opens("TokenRevoked", *nodes)

        for at in ("", "a"):
            await tree.goes_on(at, "break_down")
            await _stands(tree, old, *nodes)
        for at, how in {"": "go_on", "a": "go_on_at_once", "a-x": "go_on"}.items():
            await tree.goes_on(at, how)
        await _stands(tree, old, *nodes)

    async with tree.worker():
        await _stands(tree, old, *nodes)
        await _ends_with_a_newer_token(tree, *nodes)


async def test_a_revocation_that_meets_a_continue_as_new_is_not_lost(tree: Tree) -> None:
    await tree.start(Plan({"a": Plan()}))

    for n in range(3):
        await asyncio.gather(tree.revoke(), tree.goes_on())
        await tree.opens("TokenRevoked", "", "a")
        await tree.set(f"new {n}")
        await tree.opens(f"new {n}", "", "a")


async def test_a_revocation_survives_resets_that_apply_signals_and_updates_again(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan()}))
    old = await tree.sealed()
    tasks = {at: (await tasks_of(tree.client, tree.id(at)))[-1] for at in ("", "a")}
    await tree.revoke()
    await tree.opens("TokenRevoked", "", "a")

    for at, task in tasks.items():  # its authority, and a child it came to
        await reset(tree.client, tree.id(at), task)
        await _stands(tree, old, "", "a")

    await _ends_with_a_newer_token(tree, "", "a")


async def test_a_reset_that_excludes_signals_and_updates_takes_a_node_to_before_the_revocation(
    tree: Tree,
) -> None:
    """The exception: what is not in a history did not happen. Revoke again after such a reset."""
    await tree.start(Plan({"a": Plan()}))
    tasks = {at: (await tasks_of(tree.client, tree.id(at)))[-1] for at in ("", "a")}
    await tree.revoke()
    await tree.opens("TokenRevoked", "", "a")

    for (at, task), other in zip(tasks.items(), ("a", ""), strict=True):
        await reset(
            tree.client,
            tree.id(at),
            task,
            exclude=[
                ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_SIGNAL,
                ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_UPDATE,
            ],
        )
        assert await tree.opened(at, other) == ["first", "TokenRevoked"]
        old = await tree.sealed(at)
        await tree.revoke()
        await tree.opens("TokenRevoked", "", "a")
        await _stands(tree, old, "", "a")


# --- a newer message ends it, and nothing else -----------------------------------


async def _newest_at(tree: Tree, at: str) -> str:
    """The message that was set at a node last, whatever its kind."""
    state: dict[str, Any] = await tree[at].query("statefulState")
    [text] = [t for t in state["ledger"]["held"] if parse(t).claims.authority == tree.id(at)]
    return text


async def test_a_newer_token_or_inherit_at_the_same_node_ends_a_revocation_and_nothing_else_does(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan()})}))
    await tree.rotate("its own", "a")
    old = [await _newest_at(tree, "a")]
    await tree.inherit("a")
    old.append(await _newest_at(tree, "a"))
    await tree.revoke("a")
    await tree.opens("TokenRevoked", "a", "a-x")

    for copied in old:
        assert await tree.update("a", "take_copy", copied) == STALE
        await tree.signal("a", "hand_on", "x", copied)
    await tree.signal("a", "give_to", "x", None)
    await tree.signal("", "give_to", "a", None)
    await tree.rotate("second")  # at another place: it does not count there

    async def refused() -> None:
        assert await tree.refusals("a-x") == {STALE: 2}

    await eventually(refused)
    assert await tree.opened("", "a", "a-x") == ["second", "TokenRevoked", "TokenRevoked"]

    await tree.set("own 2", "a")
    await tree.opens("own 2", "a", "a-x")
    await tree.revoke("a")
    await tree.opens("TokenRevoked", "a", "a-x")
    await tree.inherit("a")
    await tree.opens("second", "a", "a-x")
