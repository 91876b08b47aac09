"""State survives what ends a run: continue-as-new, retry, cron, reset."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
from temporalio.common import RetryPolicy

from stateful_workflow import TokenStale
from stateful_workflow.node import contract
from tests.support.asking import (
    delete_run,
    events_of,
    eventually,
    lower,
    next_run,
    reset,
    run_id,
    tasks_of,
)
from tests.support.trees import URL, Tree
from tests.support.workflows import QUICK, Buggy, Flaky, Mended, Node, Plan, Ticker

# --- continue-as-new -------------------------------------------------------------


async def test_a_later_run_has_the_state_the_address_the_floors_and_the_children_that_live_on(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan(), "dies": Plan(close_policy=1)}))
    old = await tree.sealed()
    await tree.rotate("second")
    await tree.signal("", "move_to", "https://moved.example.com")

    for n, how in enumerate(("go_on", "go_on_at_once")):  # from the run, and from a handler
        await tree.goes_on(how=how)

        assert await tree[""].query("apiUrl") == "https://moved.example.com"
        seen = await tree.rotate(f"third {n}")
        assert {node.id for node in seen.nodes if not node.closed} == tree.ids("", "a")
        await tree.reveals(f"third {n}", "", "a")
        refused = (await tree.refusals()).get(TokenStale.__name__, 0)
        await tree.signal("", "apiToken", old)
        assert await tree.refusals() == {TokenStale.__name__: refused + 1}


async def test_of_rotations_and_later_runs_at_the_same_time_none_is_lost(tree: Tree) -> None:
    children = {f"k{n}": Plan() for n in range(6)}
    await tree.start(Plan({"a": Plan({"x": Plan()}), **children}))

    async def go_on(at: str) -> None:
        for _ in range(3):
            await tree.goes_on(at)

    async def rotate() -> None:
        for n in range(6):
            await tree.set(f"token-{n}")

    await asyncio.gather(go_on(""), go_on("a"), rotate())

    async def converged() -> None:
        seen = await tree.tokens.tree(tree.root)
        assert len(seen.nodes) == 9
        assert seen.converged

    await eventually(converged)
    await tree.reveals("token-5", "", "a", "a-x", *children)


async def test_a_run_of_many_signals_is_shown_and_warned_of_until_it_continues_as_new(
    unserved: Tree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tree = unserved
    lower(monkeypatch, many_signals=3)
    with caplog.at_level(logging.WARNING):
        async with tree.worker():
            await tree.start(Plan({"a": Plan()}))
            assert (await tree.tokens.tree(tree.root)).nearly_full == ()

            for text in ("one", "two", "three"):
                await tree.signal("", "note", text)

            async def is_shown() -> None:
                [full] = (await tree.tokens.tree(tree.root)).nearly_full
                assert full.id == tree.root

            await eventually(is_shown)
            assert (await tree.status())["signals"] == 3
            await tree.goes_on()
            assert (await tree.status())["signals"] == 0
    [warned] = [r.getMessage() for r in caplog.records if "continue as new" in r.getMessage()]
    assert f"{contract.MAX_SIGNALS:,} signals" in warned


# --- retry and cron --------------------------------------------------------------


async def test_a_retried_root_and_a_retried_child_resume_with_the_newest_and_their_children(
    tree: Tree,
) -> None:
    plan = Plan({"a": Plan({"x": Plan()}), "again": Plan(type="Flaky", retried=True)})
    await tree.start(plan, Flaky.run, retry_policy=QUICK)
    await tree.rotate("second")

    for at in ("", "again"):
        await tree.goes_on(at, "break_down")
        assert await tree.opened(at) == ["second"]

    await tree.rotate("third")
    await tree.reveals("third", "", "again", "a", "a-x")
    await tree["a"].terminate()  # one of the run before: whom it leaves is found
    await tree.rotate("fourth")
    await tree.has_children("a-x", "again")
    await tree.reveals("fourth", "a-x")


@pytest.mark.parametrize("later", [Buggy, Mended], ids=["is past retention", "does not replay"])
async def test_a_retry_after_a_run_that_cannot_be_asked_uses_nothing_until_it_is_set_again(
    unserved: Tree, later: type
) -> None:
    """What that run had may have been revoked. A bug is mended by code that does not replay it."""
    tree = unserved
    retry = RetryPolicy(initial_interval=timedelta(seconds=4))
    async with tree.worker(workflows=[Buggy]):
        await tree.start(run=Buggy.run, retry_policy=retry)
        await tree.revoke()
        before = await run_id(tree.client, tree.root)
        await tree.signal("", "break_down")

        async def failed() -> bool:
            return await run_id(tree.client, tree.root) != before

        await eventually(failed)
    if later is Buggy:
        await delete_run(tree.client, tree.root, str(before))
    async with tree.worker(workflows=[later]):

        async def asks_for_a_token() -> bool:
            status = await tree.tokens.status(tree.root)
            return status is not None and status.state == "needs_set"

        await eventually(asks_for_a_token)
        assert await tree.opened("") == ["TokenNotSet"]
        await tree.set("again", origins=[URL])
        assert await tree.opened("") == ["again"]


async def test_a_cron_run_takes_over_what_the_run_before_held(tree: Tree) -> None:
    await tree.tokens.start_workflow(
        Ticker.run,
        id=tree.root,
        task_queue=tree.queue,
        api_token="first",
        api_url=URL,
        cron_schedule="@every 1s",
    )
    for _ in range(2):
        run = await run_id(tree.client, tree.root)
        await next_run(tree.client, tree.root, run)
        handle = tree.client.get_workflow_handle(tree.root, run_id=run)
        [*_, used] = await events_of(handle, "ACTIVITY_TASK_COMPLETED")
        [result] = used.activity_task_completed_event_attributes.result.payloads
        assert result.data == b'"first"'
    await tree[""].terminate()


# --- reset -----------------------------------------------------------------------


async def test_a_run_reset_to_before_its_children_ends_with_the_newest_and_knows_them_again(
    tree: Tree,
) -> None:
    await tree.start()
    await tree.signal("", "try_to_start", "a")
    await tree.has(2)
    await tree.rotate("second")

    await reset(tree.client, tree.root, (await tasks_of(tree.client, tree.root))[0])

    await tree.has(2)
    await tree.reveals("second", "", "a")
    await tree.rotate("third")
    await tree.reveals("third", "a")


# --- whose child it is -----------------------------------------------------------


async def test_a_later_workflow_of_the_same_id_takes_back_no_child_of_the_one_before(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan()}))
    await tree.signal("a", "try_to_start", "x")
    await tree.has(3)
    await tree.signal("a", "keep_from", "x", None)
    await tree["a"].terminate()
    await tree.has_children("a-x")

    await tree.add("a")
    await tree.signal("a", "try_to_start", "x")

    async def has_asked() -> bool:
        return len(await events_of(tree["a"], "ACTIVITY_TASK_COMPLETED")) > 0

    await eventually(has_asked)
    await tree.rotate("second")

    assert (await tree.status("a"))["children"] == []
    await tree.reveals("first", "a-x")


async def test_a_workflow_that_is_no_child_is_not_taken_for_one_where_it_cannot_be_started(
    tree: Tree,
) -> None:
    await tree.tokens.start_workflow(
        Node.run, Plan(), id=tree.id("a"), task_queue=tree.queue, api_token="theirs", api_url=URL
    )
    await tree.start()

    await tree.signal("", "try_to_start", "a")
    await tree.add("b")

    seen = await tree.rotate("second")
    assert {node.id for node in seen.nodes} == tree.ids("", "b")
    await tree.reveals("theirs", "a")
    assert await tree.refusals("a") == {}


async def test_many_children_started_at_once_are_told_what_did_not_fit_their_headers(
    unserved: Tree,
) -> None:
    tree, large = unserved, "x" * 7000
    async with tree.worker():
        await tree.start(api_token=large)
        for name in ("github", "billing"):
            await tree.set(large, name=name, origins=[URL])

        await tree.signal("", "add_children", 0, 30)
        await tree.has(31)

        async def all_told() -> None:
            assert (await tree.status())["undelivered"] == []
            for n in range(30):
                assert len((await tree.status(f"c{n}"))["tokens"]) == 3

        await eventually(all_told)
        told = await events_of(tree["c29"], "WORKFLOW_EXECUTION_SIGNALED")
        assert len(told) == 3
