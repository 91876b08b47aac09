"""A token that the API refuses makes no storm: its authority hears of it once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import httpx
import pytest
from temporalio import activity, workflow
from temporalio.client import (
    Client,
    WorkflowHandle,
    WorkflowUpdateStage,
)
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import (
        Keyring,
        StatefulPlugin,
        StatefulWorkflow,
        TokenAuth,
        TokenClient,
    )
    from stateful_workflow.engine import EmbeddedEngine
    from tests.support.api import Api, start_api
    from tests.support.asking import Counted, events_of, eventually, is_reported, lower
    from tests.support.use_places import NEVER_OLD

REQUESTS = 20


@activity.defn
async def call(url: str) -> list[int]:
    """Many requests at once, and then as many again."""
    async with httpx.AsyncClient(auth=TokenAuth(), timeout=30) as http:

        async def ask() -> int:
            return (await http.get(url)).status_code

        answers: list[int] = []
        for _ in range(2):
            answers += await asyncio.gather(*[ask() for _ in range(REQUESTS)])
    return answers


@workflow.defn
class Tenant(StatefulWorkflow):
    """Runs a child, and activities on the queues that it is signalled."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.opened = False

    @workflow.run
    async def run(self, has_child: bool) -> None:
        if has_child:
            await workflow.start_child_workflow(
                Tenant.run,
                False,
                id=f"{workflow.info().workflow_id}-child",
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            )
        await workflow.wait_condition(lambda: False)

    @workflow.signal
    async def call(self, url: str, queues: list[str]) -> None:
        calls = [
            workflow.execute_activity(
                call, url, task_queue=queue, start_to_close_timeout=timedelta(seconds=60)
            )
            for queue in queues
        ]
        for answers in await asyncio.gather(*calls):
            self.answers += answers

    @workflow.query
    def answered(self) -> list[int]:
        return self.answers

    @workflow.signal
    def open(self) -> None:
        self.opened = True

    @workflow.update
    async def stay_open(self) -> None:
        await workflow.wait_condition(lambda: self.opened)

    @workflow.update
    async def until_refused(self) -> str | None:
        await workflow.wait_condition(lambda: self.is_refused())
        return None if self.api_token_status is None else self.api_token_status.fingerprint

    @workflow.query
    def is_refused(self) -> bool:
        return self.api_token_status is not None and self.api_token_status.refused


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
async def queues(
    engine: EmbeddedEngine, keyring: Keyring, queue: str, counted: Counted
) -> AsyncIterator[list[str]]:
    """The task queues of two workers of activities, which know nothing of each other."""
    async with AsyncExitStack() as stack:
        for queue_ in (f"{queue}-a", f"{queue}-b"):
            client = await Client.connect(
                engine.address,
                namespace=engine.namespace,
                interceptors=[counted],
                plugins=[StatefulPlugin(keyring)],
            )
            worker = Worker(client, task_queue=queue_, activities=[call])
            await stack.enter_async_context(worker)
        yield [f"{queue}-a", f"{queue}-b"]


@pytest.fixture
async def worker(client: Client, queue: str) -> AsyncIterator[Worker]:
    async with Worker(client, task_queue=queue, workflows=[Tenant]) as worker:
        yield worker


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:  # nobody's token is any good
        yield api


Root = WorkflowHandle[Tenant, None]


async def start(tokens: TokenClient, queue: str, api: Api, *, has_child: bool = False) -> Root:
    root = await tokens.start_workflow(
        Tenant.run, has_child, id=queue, task_queue=queue, api_token="first", api_url=api.origin
    )

    async def runs() -> bool:
        started = await events_of(root, "CHILD_WORKFLOW_EXECUTION_STARTED")
        return len(started) == has_child

    await eventually(runs)
    return root


async def refused(handle: WorkflowHandle[Any, Any], api: Api, *queues: str) -> None:
    """Let activities of a workflow be refused, and wait until they have ended."""
    await handle.signal(Tenant.call, args=[api.url("x"), queues])

    async def have_ended() -> bool:
        answers = await handle.query(Tenant.answered)
        return answers == [401] * (2 * REQUESTS * len(queues))

    await eventually(have_ended)


@pytest.mark.usefixtures("worker")
async def test_many_refused_requests_make_one_event_at_the_authority_and_a_question_each_activity(
    tokens: TokenClient,
    client: Client,
    queue: str,
    queues: list[str],
    api: Api,
    counted: Counted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lower(monkeypatch, fresh_seconds=NEVER_OLD)
    root = await start(tokens, queue, api, has_child=True)
    child = client.get_workflow_handle(f"{queue}-child")

    await refused(child, api, *queues)
    await is_reported(client, queue)

    assert len(api.calls) == 2 * 2 * REQUESTS
    assert counted.queries == len(queues)
    assert len(await events_of(root, "WORKFLOW_EXECUTION_UPDATE_ACCEPTED")) == 1
    assert await events_of(root, "WORKFLOW_EXECUTION_SIGNALED") == []
    assert len(await events_of(child, "WORKFLOW_EXECUTION_SIGNALED")) == 1, "the test's own"
    at_root, at_child = [await tokens.status(id) for id in (queue, f"{queue}-child")]
    assert at_root is not None
    assert at_root.refused
    assert at_child is not None
    assert not at_child.refused


@pytest.mark.usefixtures("worker")
async def test_workflow_code_sees_that_its_token_was_refused_until_there_is_another(
    tokens: TokenClient, queue: str, queues: list[str], api: Api
) -> None:
    root = await start(tokens, queue, api)
    seen = await root.start_update(
        Tenant.until_refused, wait_for_stage=WorkflowUpdateStage.ACCEPTED
    )
    status = await tokens.status(queue)
    assert status is not None

    await refused(root, api, queues[0])

    assert await seen.result() == status.fingerprint
    assert not (await tokens.set(queue, "second")).refused
    assert not await root.query(Tenant.is_refused)


@pytest.mark.usefixtures("worker")
async def test_where_no_more_updates_may_be_open_one_signal_is_sent(
    tokens: TokenClient, client: Client, queue: str, queues: list[str], api: Api
) -> None:
    root = await start(tokens, queue, api)
    stage = WorkflowUpdateStage.ACCEPTED
    for _ in range(10):
        await root.start_update(Tenant.stay_open, wait_for_stage=stage)

    await refused(root, api, queues[0])
    await is_reported(client, queue)
    await root.signal(Tenant.open)

    signals = await events_of(root, "WORKFLOW_EXECUTION_SIGNALED")
    names = [one.workflow_execution_signaled_event_attributes.signal_name for one in signals]
    assert names.count("apiTokenReport") == 1


@pytest.mark.usefixtures("worker")
async def test_an_authority_that_has_closed_holds_no_request_up(
    tokens: TokenClient,
    client: Client,
    queue: str,
    queues: list[str],
    api: Api,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = await start(tokens, queue, api, has_child=True)
    child = client.get_workflow_handle(f"{queue}-child")
    await root.terminate()
    await refused(child, api, queues[0])

    async def is_said() -> bool:
        return (
            f"Workflow {queue} could not be told that the API refused its apiToken" in caplog.text
        )

    await eventually(is_said)
