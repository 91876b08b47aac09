"""Children that cannot be told or found at once: they are shown, and it is tried again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import (
    Client,
    Interceptor,
    WorkflowExecutionStatus,
    WorkflowHandle,
)
from temporalio.common import RetryPolicy

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine, start_engine
from stateful_workflow.use.server import Execution, describe, listed
from stateful_workflow.worker import descent
from tests.support.asking import (
    Silent,
    Unreachable,
    events_of,
    eventually,
    knows,
    lower,
    next_run,
    nodes_run,
    reset,
    run_id,
    start_worker,
    status_of,
    tasks_of,
)
from tests.support.workflows import Flaky, Node, Plan, Quitter

URL = "https://api.example.com"
SIGNALS = 15
FEW_SIGNALS = [
    "--dynamic-config-value",
    f"history.maximumSignalsPerExecution={SIGNALS}",
]


async def start(tokens: TokenClient, queue: str, plan: Plan) -> WorkflowHandle[Any, Any]:
    return await tokens.start_workflow(
        Node.run, plan, id=queue, task_queue=queue, api_token="first", api_url=URL
    )


@pytest.fixture
async def few_signals(keyring: Keyring) -> AsyncIterator[Client]:
    """A client of a server that lets a run take few signals."""
    async with start_engine(ui=False, extra_args=FEW_SIGNALS) as engine:
        yield await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])


async def test_a_child_whose_run_takes_no_more_signals_is_handed_the_message_by_update(
    few_signals: Client, keyring: Keyring
) -> None:
    tokens = TokenClient(few_signals, keyring)
    async with start_worker(few_signals, "q"):
        await start(tokens, "q", Plan({"a": Plan({"b": Plan()}), "c": Plan()}))
        await nodes_run(tokens, "q", 4)
        full = few_signals.get_workflow_handle("q-a")
        await asyncio.gather(*[full.signal("note", str(n)) for n in range(SIGNALS)])

        await tokens.rotate("q", "second", timeout=20)

        for node in ("q-a", "q-a-b", "q-c"):
            assert (await tokens.get(node)).reveal() == "second"
        assert len(await events_of(full, "WORKFLOW_EXECUTION_UPDATE_ACCEPTED")) == 1

        await tokens.revoke("q")

        async def is_revoked_below() -> bool:
            states = [await tokens.status(node) for node in ("q-a", "q-a-b", "q-c")]
            return [state and state.state for state in states] == ["revoked"] * 3

        await eventually(is_revoked_below)
        assert len(await events_of(full, "WORKFLOW_EXECUTION_UPDATE_ACCEPTED")) == 2

        # Its next run takes signals again.
        await full.execute_update("move_on")
        await nodes_run(tokens, "q", 4)
        await tokens.rotate("q", "third", timeout=20, origins=[URL])

        assert (await tokens.get("q-a-b")).reveal() == "third"
        assert await events_of(full, "WORKFLOW_EXECUTION_UPDATE_ACCEPTED") == []


async def test_a_child_that_cannot_be_told_is_listed_with_the_reason(
    few_signals: Client, keyring: Keyring
) -> None:
    tokens = TokenClient(few_signals, keyring)
    async with start_worker(few_signals, "q"):
        root = await start(tokens, "q", Plan())
        await root.signal("add_elsewhere", "far")  # nobody polls its task queue
        far = few_signals.get_workflow_handle("q-far")

        async def is_started() -> bool:
            children = (await status_of(few_signals, "q"))["children"]
            return [child["life"] for child in children] == ["running"]

        await eventually(is_started)
        await asyncio.gather(*[far.signal("note", str(n)) for n in range(SIGNALS)])

        await tokens.set("q", "second")

        async def is_listed() -> None:
            undelivered = (await status_of(few_signals, "q"))["undelivered"]
            assert [child["id"] for child in undelivered] == ["q-far"]
            assert "limit for signal" in undelivered[0]["reason"]

        await eventually(is_listed)
        # The root's own code, which waits for its children, is told their names.
        assert await root.execute_update("fetch_token", args=["of its own", None, 1.0]) == "q-far"
        async with start_worker(few_signals, "nobody"):
            await tokens.rotate("q", "third", timeout=20)

            assert (await tokens.get("q-far")).reveal() == "third"


async def client_with(engine: EmbeddedEngine, keyring: Keyring, interceptor: Interceptor) -> Client:
    return await Client.connect(
        engine.address, plugins=[StatefulPlugin(keyring)], interceptors=[interceptor]
    )


@pytest.fixture
def silent() -> Silent:
    return Silent()


@pytest.fixture
async def asking(engine: EmbeddedEngine, keyring: Keyring, silent: Silent) -> Client:
    """A worker's client whose questions may go unanswered."""
    return await client_with(engine, keyring, silent)


@pytest.mark.parametrize("continued", [False, True], ids=["", "by the next run"])
async def test_a_terminated_child_is_asked_until_it_says_what_it_leaves_alive(
    client: Client,
    tokens: TokenClient,
    queue: str,
    asking: Client,
    silent: Silent,
    continued: bool,
) -> None:
    async with start_worker(asking, queue):
        root = await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
        await nodes_run(tokens, queue, 3)
        silent.workflow_id = f"{queue}-a"
        await client.get_workflow_handle(f"{queue}-a").terminate()
        await silent.is_asked()
        if continued:
            before = await run_id(client, queue)
            await root.signal("go_on")
            await next_run(client, queue, before)
            await silent.is_asked()
        silent.workflow_id = None

        await knows(client, queue, f"{queue}-a-x")


async def test_a_part_of_a_list_that_lags_is_not_taken_for_all(
    monkeypatch: pytest.MonkeyPatch, client: Client, tokens: TokenClient, queue: str
) -> None:
    """A cluster's index lags by about a second; here the list has all but one for as long."""
    until = 0.0

    async def lags(client: Client, query: str, most: int, **options: Any) -> list[Execution]:
        if time.monotonic() < until:
            query = f"{query} AND WorkflowId != '{queue}-a-y'"
        return await listed(client, query, most, **options)

    monkeypatch.setattr(descent, "listed", lags)
    async with start_worker(client, queue):
        await start(tokens, queue, Plan({"a": Plan({"x": Plan(), "y": Plan()})}))
        await nodes_run(tokens, queue, 4)
        until = time.monotonic() + 1
        await client.get_workflow_handle(f"{queue}-a").terminate()

        await tokens.rotate(queue, "second", timeout=30)

        for orphan in ("a-x", "a-y"):
            assert (await tokens.get(f"{queue}-{orphan}")).reveal() == "second"


@pytest.mark.parametrize("again", [False, True], ids=["", "and its id runs again"])
async def test_what_the_last_run_of_a_closed_child_kept_stays_kept(
    client: Client, tokens: TokenClient, queue: str, again: bool
) -> None:
    async with start_worker(client, queue):
        root = await start(tokens, queue, Plan({"a": Plan({"x": Plan(), "y": Plan()})}))
        await nodes_run(tokens, queue, 4)
        middle = client.get_workflow_handle(f"{queue}-a")
        before = await run_id(client, middle.id)
        await middle.signal("go_on")
        await next_run(client, middle.id, before)
        await middle.signal("keep_from", args=["x", None])
        assert await is_kept(client, middle.id, "x")
        await middle.terminate()
        if again:
            await root.signal("try_to_start", "a")

        await tokens.rotate(queue, "second", timeout=30)

        assert (await tokens.get(f"{queue}-a-y")).reveal() == "second"
        assert (await tokens.get(f"{queue}-a-x")).reveal() == "first"
        assert await is_kept(client, queue, "a-x")


async def test_a_run_that_was_reset_finds_whom_a_child_of_the_run_before_leaves(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    """It says that it began when it was reset, which is after those below its child began."""
    async with start_worker(client, queue):
        root = await start(tokens, queue, Plan())
        await root.signal("try_to_start", "a")
        await nodes_run(tokens, queue, 2)
        child = client.get_workflow_handle(f"{queue}-a")
        await child.signal("add_child", args=["x", Plan()])
        await nodes_run(tokens, queue, 3)
        first_task, *_ = await tasks_of(client, queue)
        await reset(client, queue, first_task)
        await nodes_run(tokens, queue, 3)
        await child.terminate()

        await tokens.rotate(queue, "second", timeout=30)

        assert (await tokens.get(f"{queue}-a-x")).reveal() == "second"


async def is_kept(client: Client, parent: str, suffix: str) -> bool:
    children = (await status_of(client, parent))["children"]
    return any(c["id"] == f"{parent}-{suffix}" and c["withheld"] == ["*"] for c in children)


async def test_whom_two_closed_workflows_leave_one_below_the_other_is_told(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    """The lower one closes first, and nobody looks below it before the upper one is gone."""
    async with start_worker(client, queue):
        await start(tokens, queue, Plan({"a": Plan({"b": Plan({"x": Plan(), "y": Plan()})})}))
        await nodes_run(tokens, queue, 5)
        lower = client.get_workflow_handle(f"{queue}-a-b")
        await lower.signal("keep_from", args=["x", None])
        assert await is_kept(client, lower.id, "x")
        await lower.terminate()
        await client.get_workflow_handle(f"{queue}-a").terminate()

        await tokens.rotate(queue, "second", timeout=30)

        assert (await tokens.get(f"{queue}-a-b-y")).reveal() == "second"
        assert (await tokens.get(f"{queue}-a-b-x")).reveal() == "first"


async def test_whom_a_closed_workflow_had_taken_over_is_told_though_the_one_between_is_silent(
    client: Client, tokens: TokenClient, queue: str, asking: Client, silent: Silent
) -> None:
    async with start_worker(asking, queue):
        await start(tokens, queue, Plan({"a": Plan({"b": Plan({"x": Plan()})})}))
        await nodes_run(tokens, queue, 4)
        await client.get_workflow_handle(f"{queue}-a-b").terminate()
        await knows(client, f"{queue}-a", f"{queue}-a-b-x")
        silent.workflow_id = f"{queue}-a-b"
        await client.get_workflow_handle(f"{queue}-a").terminate()

        await tokens.rotate(queue, "second", timeout=30)

        assert (await tokens.get(f"{queue}-a-b-x")).reveal() == "second"
        assert silent.asked == 0


async def test_whom_one_leaves_that_a_closed_workflow_had_taken_over_is_told(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    async with start_worker(client, queue):
        low = Plan({"x": Plan(), "y": Plan()})
        await start(tokens, queue, Plan({"a": Plan({"b": Plan({"c": low})})}))
        await nodes_run(tokens, queue, 6)
        await client.get_workflow_handle(f"{queue}-a-b").terminate()
        await knows(client, f"{queue}-a", f"{queue}-a-b-c")
        taken_over = client.get_workflow_handle(f"{queue}-a-b-c")
        await taken_over.signal("keep_from", args=["x", None])
        assert await is_kept(client, taken_over.id, "x")
        await taken_over.terminate()
        await client.get_workflow_handle(f"{queue}-a").terminate()

        await tokens.rotate(queue, "second", timeout=30)

        assert (await tokens.get(f"{queue}-a-b-c-y")).reveal() == "second"
        assert (await tokens.get(f"{queue}-a-b-c-x")).reveal() == "first"


async def test_a_run_that_is_cancelled_while_it_recovers_ends_and_has_used_nothing(
    tokens: TokenClient, queue: str, client: Client, asking: Client, silent: Silent
) -> None:
    async with start_worker(asking, queue):
        root = await tokens.start_workflow(
            Flaky.run,
            Plan(),
            id=queue,
            task_queue=queue,
            api_token="first",
            api_url=URL,
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=50)),
        )
        await tokens.rotate(queue, "second", timeout=20)
        before = await run_id(client, queue)
        silent.workflow_id = queue
        await root.signal("break_down")
        await next_run(client, queue, before)
        await silent.is_asked()
        status = await tokens.status(queue)
        assert status is None or status.state == "waiting"

        await root.cancel()

        async def is_cancelled() -> bool:
            return (await root.describe()).status is WorkflowExecutionStatus.CANCELED

        await eventually(is_cancelled)
        assert await events_of(root, "CHILD_WORKFLOW_EXECUTION_STARTED") == []


async def test_a_silent_child_holds_up_no_other(
    client: Client, tokens: TokenClient, queue: str, asking: Client, silent: Silent
) -> None:
    async with start_worker(asking, queue):
        root = await start(
            tokens, queue, Plan({"a": Plan({"x": Plan()}), "b": Plan({"y": Plan()})})
        )
        await nodes_run(tokens, queue, 5)
        silent.workflow_id = f"{queue}-a"
        await client.get_workflow_handle(f"{queue}-a").terminate()

        async def is_asked_patiently() -> bool:
            return len(await events_of(root, "ACTIVITY_TASK_SCHEDULED")) == 2

        await eventually(is_asked_patiently, within=60)
        await silent.is_asked()

        await client.get_workflow_handle(f"{queue}-b").terminate()

        await knows(client, queue, f"{queue}-a", f"{queue}-b-y")
        silent.workflow_id = None
        await knows(client, queue, f"{queue}-b-y", f"{queue}-a-x")


async def test_children_that_do_not_fit_into_one_request_are_told_by_the_next(
    client: Client,
    tokens: TokenClient,
    queue: str,
    engine: EmbeddedEngine,
    keyring: Keyring,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that cannot be reached stand first, and hold up neither the others nor the loop."""
    three = 3 * len(json.dumps((f"{queue}-a", "Node")))
    lower(monkeypatch, request_bytes=three)
    unreachable = Unreachable()
    reaching = await client_with(engine, keyring, unreachable)
    async with start_worker(reaching, queue):
        root = await start(tokens, queue, Plan({name: Plan() for name in "abcdefg"}))
        await nodes_run(tokens, queue, 8)
        unreachable.ids |= {f"{queue}-{name}" for name in "abcd"}

        await tokens.set(queue, "second")

        async def hold_it(names: str) -> bool:
            held = [(await tokens.get(f"{queue}-{name}")).reveal() for name in names]
            return held == ["second"] * len(names)

        await eventually(lambda: hold_it("efg"))
        undelivered = (await status_of(client, queue))["undelivered"]
        assert {child["id"] for child in undelivered} == unreachable.ids
        unreachable.ids.clear()

        await eventually(lambda: hold_it("abcdefg"))
        assert len(await events_of(root, "ACTIVITY_TASK_SCHEDULED")) < 20


async def test_a_child_whose_handle_was_given_up_is_a_child_still(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    async with start_worker(client, queue):
        root = await start(tokens, queue, Plan())
        await root.signal("start_and_give_up", "a")

        async def is_open_again() -> bool:
            children = (await status_of(client, queue))["children"]
            activities = await events_of(root, "ACTIVITY_TASK_COMPLETED")
            return bool(activities) and [child["life"] for child in children] == ["running"]

        await eventually(is_open_again)
        await tokens.rotate(queue, "second", timeout=20)

        assert (await tokens.get(f"{queue}-a")).reveal() == "second"
        assert (await tokens.get(f"{queue}-a-x")).reveal() == "second"
        await client.get_workflow_handle(f"{queue}-a").terminate()
        await tokens.rotate(queue, "third", timeout=20)
        assert (await tokens.get(f"{queue}-a-x")).reveal() == "third"


async def test_children_that_were_being_started_when_their_parent_was_cancelled_are_told(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    async with start_worker(client, queue):
        root = await tokens.start_workflow(
            Quitter.run, 60, id=queue, task_queue=queue, api_token="first", api_url=URL
        )

        async def some_run() -> bool:
            return len(await events_of(root, "CHILD_WORKFLOW_EXECUTION_STARTED")) > 1

        await eventually(some_run)
        await root.cancel()

        async def all_run() -> bool:
            return len(await events_of(root, "CHILD_WORKFLOW_EXECUTION_STARTED")) == 61

        await eventually(all_run, within=60)
        assert await root.query("notes") != []
        tree = await tokens.rotate(queue, "second", timeout=40)

        assert len(tree.nodes) == 62
        for given_up in await root.query("notes"):
            assert (await tokens.get(f"{queue}-{given_up}")).reveal() == "second"


async def test_a_child_whose_start_was_never_sent_is_forgotten(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    root = await tokens.start_workflow(
        Quitter.run, 0, id=queue, task_queue=queue, api_token="first", api_url=URL
    )
    await root.cancel()
    async with start_worker(client, queue):
        assert len((await tokens.rotate(queue, "second", timeout=20)).nodes) == 1
        assert await root.query("notes") == ["first"]
        await knows(client, queue)


async def test_a_reset_run_is_not_converged_until_the_server_says_whose_child_runs_already(
    monkeypatch: pytest.MonkeyPatch,
    client: Client,
    tokens: TokenClient,
    queue: str,
    silent: Silent,
) -> None:
    async def described(client: Client, workflow_id: str, *run: Any, **options: Any) -> Execution:
        silent.hear(workflow_id)
        return await describe(client, workflow_id, *run, **options)

    monkeypatch.setattr(descent, "describe", described)
    async with start_worker(client, queue):
        root = await start(tokens, queue, Plan())
        await root.signal("try_to_start", "a")
        await nodes_run(tokens, queue, 2)
        first_task, *_ = await tasks_of(client, queue)
        silent.workflow_id = f"{queue}-a"

        await reset(client, queue, first_task)

        async def is_in_doubt() -> bool:
            children = (await status_of(client, queue))["children"]
            return [child["life"] for child in children] == ["in_doubt"]

        await eventually(is_in_doubt)
        assert not (await tokens.tree(queue)).converged
        await silent.is_asked()
        silent.workflow_id = None
        assert (await tokens.rotate(queue, "second", timeout=20)).converged
        assert (await tokens.get(f"{queue}-a")).reveal() == "second"
