"""State survives what ends a run: continue-as-new, retry, cron, reset."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from stateful_workflow import TokenClient, TokenStale

from .conftest import start_worker
from .support import (
    events_of,
    eventually,
    knows,
    next_run,
    nodes_run,
    reset,
    run_id,
    sealed_at,
    status_of,
    tasks_of,
)
from .workflows import Buggy, Flaky, FlakyParent, Mended, Node, Plan, Ticker

URL = "https://api.example.com"
QUICK = RetryPolicy(initial_interval=timedelta(milliseconds=50))


async def start(tokens: TokenClient, queue: str, plan: Plan, run: Any = Node.run) -> Any:
    root = await tokens.start_workflow(
        run, plan, id=queue, task_queue=queue, api_token="first", api_url=URL
    )
    await nodes_run(tokens, queue, size(plan))
    return root


def size(plan: Plan) -> int:
    return 1 + sum(size(child) for child in plan.children.values())


@pytest.mark.parametrize("how", ["go_on", "go_on_at_once"])
async def test_continue_as_new_from_run_or_handler_carries_state_and_children(
    tokens: TokenClient, client: Client, queue: str, worker: Worker, how: str
) -> None:
    root = await start(tokens, queue, Plan({"a": Plan(), "b": Plan()}))
    await root.signal("move_to", "https://moved.example.com")
    before = await run_id(client, queue)

    await client.get_workflow_handle(queue).signal(how)
    await next_run(client, queue, before)

    assert (await tokens.get(queue)).reveal() == "first"
    assert await client.get_workflow_handle(queue).query("apiUrl") == "https://moved.example.com"
    tree = await tokens.rotate(queue, "second", timeout=20)
    assert len(tree.nodes) == 3
    assert (await tokens.get(f"{queue}-a")).reveal() == "second"


async def test_continue_as_new_during_a_rotation_loses_nothing(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
) -> None:
    await start(tokens, queue, Plan({f"k{n}": Plan() for n in range(15)}))
    handle = client.get_workflow_handle(queue)

    for n in range(3):
        before = await run_id(client, queue)
        await tokens.set(queue, f"token-{n}")
        await handle.signal("go_on")
        await next_run(client, queue, before)

    async def converged() -> None:
        tree = await tokens.tree(queue)
        assert len(tree.nodes) == 16
        assert tree.converged

    await eventually(converged)
    assert (await tokens.get(f"{queue}-k7")).reveal() == "token-2"


async def test_an_older_message_is_old_in_every_later_run(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
) -> None:
    await start(tokens, queue, Plan({"a": Plan()}))
    old = await sealed_at(client, queue)
    await tokens.rotate(queue, "second", timeout=20)
    before = await run_id(client, queue)
    await client.get_workflow_handle(queue).signal("go_on")
    await next_run(client, queue, before)

    await client.get_workflow_handle(queue).signal("apiToken", old)

    counts = (await status_of(client, queue))["rejections"]["counts"]
    assert counts == {TokenStale.__name__: 1}
    assert (await tokens.get(queue)).reveal() == "second"


async def test_children_that_their_close_policy_ends_with_a_run_are_forgotten(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
) -> None:
    await start(tokens, queue, Plan({"dies": Plan(close_policy=1), "lives": Plan()}))
    before = await run_id(client, queue)

    await client.get_workflow_handle(queue).signal("go_on")
    await next_run(client, queue, before)

    tree = await tokens.rotate(queue, "second", timeout=20)
    assert tree.converged
    assert {node.id for node in tree.nodes if not node.closed} == {queue, f"{queue}-lives"}


async def test_a_retried_root_resumes_with_the_newest_and_keeps_its_children(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
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
    await tokens.rotate(queue, "second", timeout=20)
    before = await run_id(client, queue)

    await client.get_workflow_handle(queue).signal("break_down")
    await next_run(client, queue, before)

    handle = client.get_workflow_handle(queue)
    assert await handle.execute_update("use_token", "apiToken") == "second"
    await tokens.rotate(queue, "third", timeout=20)
    assert (await tokens.get(f"{queue}-a")).reveal() == "third"


async def test_a_retried_root_finds_whom_a_child_of_the_run_before_leaves(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
) -> None:
    await tokens.start_workflow(
        Flaky.run,
        Plan({"a": Plan({"x": Plan()})}),
        id=queue,
        task_queue=queue,
        api_token="first",
        api_url=URL,
        retry_policy=QUICK,
    )
    await nodes_run(tokens, queue, 3)
    before = await run_id(client, queue)
    await client.get_workflow_handle(queue).signal("break_down")
    await next_run(client, queue, before)
    handle = client.get_workflow_handle(queue)
    assert await handle.execute_update("use_token", "apiToken") == "first"
    await client.get_workflow_handle(f"{queue}-a").terminate()

    await tokens.rotate(queue, "second", timeout=20)

    await knows(client, queue, f"{queue}-a-x")
    assert (await tokens.get(f"{queue}-a-x")).reveal() == "second"


async def test_a_child_retried_by_its_policy_resumes_with_the_newest(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
) -> None:
    await tokens.start_workflow(
        FlakyParent.run, Plan(), id=queue, task_queue=queue, api_token="first", api_url=URL
    )
    await nodes_run(tokens, queue, 2)
    await tokens.rotate(queue, "second", timeout=20)
    child = f"{queue}-flaky"
    before = await run_id(client, child)

    await client.get_workflow_handle(child).signal("break_down")
    await next_run(client, child, before)

    handle = client.get_workflow_handle(child)
    assert await handle.execute_update("use_token", "apiToken") == "second"
    assert (await tokens.rotate(queue, "third", timeout=20)).converged
    assert (await tokens.get(child)).reveal() == "third"


async def test_a_retry_that_cannot_ask_the_closed_run_uses_nothing_until_it_is_set_again(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
) -> None:
    await tokens.start_workflow(
        Flaky.run,
        Plan(),
        id=queue,
        task_queue=queue,
        api_token="first",
        api_url=URL,
        retry_policy=RetryPolicy(initial_interval=timedelta(seconds=6), backoff_coefficient=1),
    )
    await nodes_run(tokens, queue, 1)
    before = await run_id(client, queue)
    handle = client.get_workflow_handle(queue)
    await handle.signal("break_down")

    async def new_run() -> bool:
        return (await handle.describe()).run_id != before

    await eventually(new_run)
    await delete_run(client, queue, str(before))
    await next_run(client, queue, before)

    async def lost() -> bool:
        status = await tokens.status(queue)
        return status is not None and status.state == "needs_set"

    await eventually(lost)
    assert await handle.execute_update("use_token", "apiToken") == "TokenNotSet"
    await tokens.set(queue, "again", origins=[URL])
    assert await handle.execute_update("use_token", "apiToken") == "again"


async def delete_run(client: Client, workflow_id: str, run: str) -> None:
    """Stands for retention: the closed run is deleted."""
    await client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id, run_id=run),
        )
    )

    async def deleted() -> bool:
        try:
            await client.get_workflow_handle(workflow_id, run_id=run).describe()
        except RPCError as error:
            return error.status is RPCStatusCode.NOT_FOUND
        return False

    await eventually(deleted)


async def test_a_cron_run_takes_over_what_the_run_before_held(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
) -> None:
    handle = await tokens.start_workflow(
        Ticker.run,
        id=queue,
        task_queue=queue,
        api_token="first",
        api_url=URL,
        cron_schedule="@every 1s",
    )

    async def two_runs() -> bool:
        return (await results()).count("first") >= 2

    async def results() -> list[str]:
        found: list[str] = []
        async for execution in client.list_workflows(f"WorkflowId = '{queue}'"):
            history = await client.get_workflow_handle(
                queue, run_id=execution.run_id
            ).fetch_history()
            for event in history.events:
                if event.HasField("activity_task_completed_event_attributes"):
                    payload = event.activity_task_completed_event_attributes.result.payloads[0]
                    if payload.data.startswith(b'"'):
                        found.append(payload.data.decode().strip('"'))
        return found

    await eventually(two_runs)
    await handle.terminate()
    assert set(await results()) == {"first"}


async def test_a_reset_run_ends_with_the_newest(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
) -> None:
    await start(tokens, queue, Plan({"a": Plan()}))
    await tokens.rotate(queue, "second", timeout=20)

    await reset(client, queue, (await tasks_of(client, queue))[0])

    async def newest() -> bool:
        return (await tokens.get(queue)).reveal() == "second"

    await eventually(newest)
    assert (await tokens.get(f"{queue}-a")).reveal() == "second"


async def test_a_run_reset_to_before_its_children_knows_them_again(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
) -> None:
    root = await start(tokens, queue, Plan())
    await root.signal("try_to_start", "a")
    await nodes_run(tokens, queue, 2)

    await reset(client, queue, (await tasks_of(client, queue))[0])

    await nodes_run(tokens, queue, 2)
    assert (await tokens.rotate(queue, "second", timeout=20)).converged
    assert (await tokens.get(f"{queue}-a")).reveal() == "second"


async def has_asked(handle: Any) -> bool:
    return len(await events_of(handle, "ACTIVITY_TASK_COMPLETED")) > 0


async def test_a_later_workflow_of_the_same_id_takes_back_no_child_of_the_one_before(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
) -> None:
    root = await start(tokens, queue, Plan({"a": Plan()}))
    middle, leaf = (client.get_workflow_handle(f"{queue}-{at}") for at in ("a", "a-x"))
    await middle.signal("try_to_start", "x")
    await nodes_run(tokens, queue, 3)
    await middle.signal("keep_from", args=["x", None])
    before = await run_id(client, f"{queue}-a")
    await middle.terminate()
    await knows(client, queue, f"{queue}-a-x")

    await root.signal("add_child", args=["a", Plan()])
    await next_run(client, f"{queue}-a", before)
    await middle.signal("try_to_start", "x")
    await nodes_run(tokens, queue, 3)
    await eventually(lambda: has_asked(middle))
    await tokens.rotate(queue, "second", timeout=20)

    assert (await status_of(client, f"{queue}-a"))["children"] == []
    assert (await tokens.get(leaf.id)).reveal() == "first"


async def test_a_workflow_that_is_no_child_is_not_taken_for_one_where_it_cannot_be_started(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
) -> None:
    await tokens.start_workflow(
        Node.run, Plan(), id=f"{queue}-a", task_queue=queue, api_token="theirs", api_url=URL
    )
    root = await start(tokens, queue, Plan())

    await root.signal("try_to_start", "a")
    await root.signal("add_child", args=["b", Plan()])
    await nodes_run(tokens, queue, 2)

    tree = await tokens.rotate(queue, "second", timeout=20)
    assert {node.id for node in tree.nodes} == {queue, f"{queue}-b"}
    assert (await tokens.get(f"{queue}-a")).reveal() == "theirs"
    assert (await status_of(client, f"{queue}-a"))["rejections"]["counts"] == {}


async def test_many_children_started_at_once_are_told_what_did_not_fit_their_headers(
    tokens: TokenClient, client: Client, queue: str
) -> None:
    async with start_worker(client, queue):
        await tokens.start_workflow(
            Node.run,
            Plan({f"k{n}": Plan() for n in range(110)}),
            id=queue,
            task_queue=queue,
            api_token="x" * 7000,
            api_url=URL,
        )

        async def all_told() -> bool:
            status = await status_of(client, queue)
            started = [child["id"] for child in status["children"] if child["life"] == "running"]
            return len(started) == 110 and not status["undelivered"]

        await eventually(all_told, within=40)
        tree = await tokens.tree(queue)
        assert len(tree.nodes) == 111
        assert {node.state for node in tree.nodes} == {"held"}


async def test_rotations_and_runs_at_the_same_time_end_with_the_last(
    tokens: TokenClient, client: Client, queue: str, worker: Worker
) -> None:
    await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
    middle = client.get_workflow_handle(f"{queue}-a")

    async def go_on_in_the_middle() -> None:
        for _ in range(3):
            before = await run_id(client, f"{queue}-a")
            await middle.signal("go_on")
            await next_run(client, f"{queue}-a", before)

    async def rotate() -> None:
        for n in range(6):
            await tokens.set(queue, f"token-{n}")

    await asyncio.gather(go_on_in_the_middle(), rotate())

    async def newest() -> bool:
        return (await tokens.get(f"{queue}-a-x")).reveal() == "token-5"

    await eventually(newest)


async def test_a_retry_after_a_run_that_no_longer_replays_does_not_use_what_that_run_revoked(
    tokens: TokenClient, client: Client, queue: str
) -> None:
    """A bug is mended by other code, which cannot replay the run before it to ask it."""
    async with start_worker(client, queue, workflows=[Buggy]):
        handle = await tokens.start_workflow(
            Buggy.run,
            id=queue,
            task_queue=queue,
            api_token="first",
            api_url=URL,
            retry_policy=RetryPolicy(initial_interval=timedelta(seconds=2)),
        )
        await tokens.revoke(queue)
        before = await run_id(client, queue)
        await handle.signal("go_wrong")

        async def failed() -> bool:
            return await run_id(client, queue) != before

        await eventually(failed)
    async with start_worker(client, queue, workflows=[Mended]):

        async def asks_for_a_token() -> bool:
            status = await tokens.status(queue)
            return status is not None and status.state == "needs_set"

        await eventually(asks_for_a_token, within=30)
