"""A state that a later version of the library carries is never lost on a worker of this one."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    QueryWorkflowInput,
    WorkflowExecutionStatus,
    WorkflowQueryFailedError,
)
from temporalio.common import RawValue, RetryPolicy

from stateful_workflow import Keyring, NoWorkerAnswers, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.node import carried
from stateful_workflow.node.contract import STATE_QUERY
from stateful_workflow.node.headers import Start
from tests.support.asking import events_of, eventually, next_run, nodes_run, run_id, start_worker
from tests.support.workflows import Flaky, Node, Plan

URL = "https://api.example.com"
LATER = carried.FORMAT + 1
UPGRADE = (
    rf"the carried state has format {LATER}, and this version of stateful-workflow "
    rf"reads formats up to {carried.FORMAT}\. Upgrade this worker"
)
"""What an operator reads."""

QUICK = RetryPolicy(initial_interval=timedelta(milliseconds=50))

Json = dict[str, Any]


class OlderWorkerAnswers(Interceptor):
    """Lets questions for a run's state be answered as by a worker that cannot read it."""

    def __init__(self) -> None:
        self.on = True
        self.answers = 0

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        older = self

        class _Outbound(OutboundInterceptor):
            async def query_workflow(self, input: QueryWorkflowInput) -> Any:
                if older.on and input.query == STATE_QUERY:
                    older.answers += 1
                    raise WorkflowQueryFailedError("it does not replay here")
                return await super().query_workflow(input)

        return _Outbound(next)


@contextmanager
def later_version() -> Generator[None, None, None]:
    """In here the library is a later one, which keeps nothing but the format where it was."""
    to_json, from_json = Start.to_json, Start.from_json.__func__  # type: ignore[attr-defined]

    def write(start: Start) -> Json:
        return {"ledger": {"format": LATER}, "moved": to_json(start)}

    def read(cls: type[Start], data: Json) -> Start:
        return from_json(cls, data.get("moved", data))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carried, "FORMAT", LATER)
        patch.setattr(Start, "to_json", write)
        patch.setattr(Start, "from_json", classmethod(read))
        yield


async def task_failures(client: Client, workflow_id: str) -> list[str]:
    failed = await events_of(client.get_workflow_handle(workflow_id), "WORKFLOW_TASK_FAILED")
    return [e.workflow_task_failed_event_attributes.failure.message for e in failed]


async def assert_kept(client: Client, workflow_id: str) -> None:
    """A worker of this version fails the tasks of a workflow, says why, and ends nothing."""
    handle = client.get_workflow_handle(workflow_id)
    await handle.signal("note", "a task for this worker")

    async def refused() -> None:
        failures = await task_failures(client, workflow_id)
        assert failures
        assert all(re.match(UPGRADE, text) for text in failures), failures

    await eventually(refused)
    assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING


async def start_tree(tokens: TokenClient, queue: str, run: Any = Node.run, **options: Any) -> Any:
    return await tokens.start_workflow(
        run,
        Plan({"a": Plan()}),
        id=queue,
        task_queue=queue,
        api_token="first",
        api_url=URL,
        **options,
    )


async def holds(tokens: TokenClient, workflow_id: str, token: str) -> bool:
    try:
        status = await tokens.status(workflow_id)
    except NoWorkerAnswers:
        return False
    assert status is not None
    assert status.state == "held"
    return (await tokens.get(workflow_id)).reveal() == token


async def moved_on(client: Client, workflow_id: str, signal: str) -> None:
    """Signal a workflow and wait until its next run is there."""
    before = await run_id(client, workflow_id)
    await client.get_workflow_handle(workflow_id).signal(signal)
    await next_run(client, workflow_id, before)


@pytest.mark.parametrize("which", ["root", "child"])
async def test_a_start_by_a_later_version_waits_for_a_later_worker(
    tokens: TokenClient, client: Client, queue: str, which: str
) -> None:
    workflow_id = queue if which == "root" else f"{queue}-a"
    with later_version():
        async with start_worker(client, queue):
            await start_tree(tokens, queue)
            await nodes_run(tokens, queue, 2)

    async with start_worker(client, queue):
        await assert_kept(client, workflow_id)

    with later_version():
        async with start_worker(client, queue):
            assert (await tokens.get(workflow_id)).reveal() == "first"
            assert (await tokens.rotate(queue, "second", timeout=20)).converged


async def test_a_run_that_a_later_version_continued_waits_for_a_later_worker(
    tokens: TokenClient, client: Client, queue: str
) -> None:
    with later_version():
        async with start_worker(client, queue):
            await start_tree(tokens, queue)
            await nodes_run(tokens, queue, 2)
            await tokens.rotate(queue, "second", timeout=20)
            await moved_on(client, queue, "go_on")

    async with start_worker(client, queue):
        await assert_kept(client, queue)

    with later_version():
        async with start_worker(client, queue):
            assert (await tokens.get(queue)).reveal() == "second"
            tree = await tokens.rotate(queue, "third", timeout=20)
            assert tree.converged
            assert len(tree.nodes) == 2


async def test_a_retry_that_a_later_version_recovered_waits_for_a_later_worker(
    tokens: TokenClient, client: Client, queue: str
) -> None:
    async with start_worker(client, queue):
        await start_tree(tokens, queue, Flaky.run, retry_policy=QUICK)
        await nodes_run(tokens, queue, 2)
        await tokens.rotate(queue, "second", timeout=20)
    with later_version():
        async with start_worker(client, queue):
            await moved_on(client, queue, "break_down")
            await eventually(lambda: holds(tokens, queue, "second"))

    async with start_worker(client, queue):
        await assert_kept(client, queue)

    with later_version():
        async with start_worker(client, queue):
            assert (await tokens.get(queue)).reveal() == "second"
            assert (await tokens.rotate(queue, "third", timeout=20)).converged


async def test_a_retry_asks_again_where_a_worker_cannot_read_the_run_before(
    tokens: TokenClient, engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    older = OlderWorkerAnswers()
    client = await Client.connect(
        engine.address,
        namespace=engine.namespace,
        plugins=[StatefulPlugin(keyring)],
        interceptors=[older],
    )
    async with start_worker(client, queue):
        await start_tree(tokens, queue, Flaky.run, retry_policy=QUICK)
        await nodes_run(tokens, queue, 2)
        await tokens.rotate(queue, "second", timeout=20)
        await moved_on(client, queue, "break_down")
        handle = client.get_workflow_handle(queue)

        async def answered() -> bool:
            return older.answers > 0

        await eventually(answered)
        assert await task_failures(client, queue) == []
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING

        older.on = False
        await eventually(lambda: holds(tokens, queue, "second"), within=40)


def test_what_others_send_is_not_decoded_before_its_size_was_looked_at() -> None:
    """The SDK decodes what a handler does not take raw."""
    definition = workflow._Definition.must_from_class(Node)  # pyright: ignore[reportPrivateUsage]
    handlers = [*definition.signals.values(), *definition.updates.values()]
    ours = [one for one in handlers if (one.name or "").startswith("api")]
    assert len(ours) > 6
    assert {tuple(one.arg_types or ()) for one in ours} == {(RawValue,)}
