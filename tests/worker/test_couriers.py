"""A courier runs beside each worker with workflows, of whatever kind, and takes no task of its."""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.api.workflowservice.v1 import SetWorkerDeploymentCurrentVersionRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkerDeploymentConfig

from stateful_workflow import Keyring, NoWorkerAnswers, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.record.metrics import Metrics
from stateful_workflow.record.recorder import Recorder, SinkWriter
from stateful_workflow.worker import beside as beside_module
from stateful_workflow.worker import courier
from stateful_workflow.worker.activities import OfPlugin
from stateful_workflow.worker.pace import SignalPace
from tests.faults.proxy import Proxy
from tests.support.asking import events_of, eventually, nodes_run, start_worker
from tests.support.workflows import ACTIVITIES, WORKFLOWS, Node, Plan

URL = "https://api.example.com"
PLAN = Plan({"a": Plan({"x": Plan()}), "b": Plan()})
NODES = 4

Root = WorkflowHandle[Any, Any]
Make = Callable[[Client, str], list[Worker]]


async def start(tokens: TokenClient, queue: str, plan: Plan = PLAN) -> Root:
    return await tokens.start_workflow(
        Node.run, plan, id=queue, task_queue=queue, api_token="first", api_url=URL
    )


async def all_use(client: Client, tokens: TokenClient, queue: str, secret: str) -> None:
    """Each workflow of a tree opens this token in an activity of the user's."""
    for node in (await tokens.tree(queue)).nodes:
        handle = client.get_workflow_handle(node.id)
        assert await handle.execute_update("use_token", "apiToken") == secret


async def queues_of(root: Root) -> dict[str, set[str]]:
    """The task queues on which each kind of activity of a workflow was scheduled."""
    queues: dict[str, set[str]] = {}
    for event in await events_of(root, "ACTIVITY_TASK_SCHEDULED"):
        scheduled = event.activity_task_scheduled_event_attributes
        queues.setdefault(scheduled.activity_type.name, set()).add(scheduled.task_queue.name)
    return queues


KINDS: dict[str, Make] = {
    "one worker": lambda client, queue: [start_worker(client, queue)],
    "without a cache": lambda client, queue: [start_worker(client, queue, max_cached_workflows=0)],
    "workflows and activities apart": lambda client, queue: [
        start_worker(client, queue, activities=[]),
        start_worker(client, queue, workflows=[]),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_rotation_converges_on_workers_of_every_kind(
    client: Client, tokens: TokenClient, queue: str, kind: str
) -> None:
    async with AsyncExitStack() as running:
        for worker in KINDS[kind](client, queue):
            await running.enter_async_context(worker)
        root = await start(tokens, queue)
        await nodes_run(tokens, queue, NODES)

        assert (await tokens.rotate(queue, "second", timeout=20)).converged
        await all_use(client, tokens, queue, "second")

    assert await queues_of(root) == {"statefulTell": {f"{queue}:stateful"}, "reveal": {queue}}


async def test_a_rotation_converges_on_two_workers_of_a_process(
    engine: EmbeddedEngine, client: Client, tokens: TokenClient, keyring: Keyring, queue: str
) -> None:
    """The SDK takes two workers of one task queue where each has a connection of its own."""
    second = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
    async with start_worker(client, queue):
        async with start_worker(second, queue):
            await start(tokens, queue)
            await nodes_run(tokens, queue, NODES)
            assert (await tokens.rotate(queue, "second", timeout=20)).converged
            await all_use(client, tokens, queue, "second")

        assert (await tokens.rotate(queue, "third", timeout=20)).converged


async def test_a_tree_on_several_task_queues_has_a_courier_for_each(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    elsewhere = f"{queue}-2"
    async with start_worker(client, queue), start_worker(client, elsewhere):
        root = await start(tokens, queue, Plan())
        await root.signal("add_elsewhere", args=["a", elsewhere])
        await nodes_run(tokens, queue, 2)
        middle = client.get_workflow_handle(f"{queue}-a")
        await middle.signal("add_elsewhere", args=["x", queue])
        await nodes_run(tokens, queue, 3)

        assert (await tokens.rotate(queue, "second", timeout=20)).converged

        assert await queues_of(root) == {"statefulTell": {f"{queue}:stateful"}}
        assert await queues_of(middle) == {"statefulTell": {f"{elsewhere}:stateful"}}


async def test_two_versions_of_a_deployment_share_a_courier_and_one_outlives_the_other(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    deployment = f"d-{queue}"

    def version(build: str) -> Worker:
        return start_worker(
            client,
            queue,
            deployment_config=WorkerDeploymentConfig(
                version=WorkerDeploymentVersion(deployment, build),
                use_worker_versioning=True,
                default_versioning_behavior=VersioningBehavior.PINNED,
            ),
        )

    async def make_current(build: str) -> None:
        request = SetWorkerDeploymentCurrentVersionRequest(
            namespace=client.namespace,
            deployment_name=deployment,
            build_id=build,
            ignore_missing_task_queues=True,
        )

        async def is_known() -> bool:
            try:
                await client.workflow_service.set_worker_deployment_current_version(request)
            except RPCError:
                return False
            return True

        await eventually(is_known)

    second = version("2")
    async with version("1"):
        await make_current("1")
        await start(tokens, queue)
        await nodes_run(tokens, queue, NODES)
        running = asyncio.create_task(second.run())  # as another way to run a worker
        await make_current("2")
        await tokens.rotate(queue, "second", timeout=20)
        await all_use(client, tokens, queue, "second")
        await second.shutdown()
        await running

        assert (await tokens.rotate(queue, "third", timeout=20)).converged


async def test_a_courier_follows_the_client_of_its_worker(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    """A worker's client is replaced to renew its certificate; the old one is worth nothing then."""
    proxy = Proxy(int(engine.address.rpartition(":")[2]))
    plugin = StatefulPlugin(keyring)
    old = await Client.connect(f"127.0.0.1:{await proxy.start()}", plugins=[plugin])
    new = await Client.connect(engine.address, plugins=[plugin])
    tokens = TokenClient(new, keyring)
    worker = start_worker(old, queue)
    async with worker:
        await start(tokens, queue)
        await nodes_run(tokens, queue, NODES)
        worker.client = new
        proxy.cut("closed")

        async def converges() -> bool:
            try:  # a question that the old client's last poll took is lost with it
                return (await tokens.rotate(queue, "second", timeout=20)).converged
            except NoWorkerAnswers:
                return False

        await eventually(converges, within=60)
        await all_use(new, tokens, queue, "second")
        await proxy.stop()


def beside(worker: SimpleNamespace, **takes_part: bool) -> AbstractAsyncContextManager[None]:
    """A courier beside what stands for a worker: two versions of one program are two workers."""
    of_plugin = OfPlugin(
        lambda: None, Recorder(SinkWriter(None), Metrics.of(None)), SignalPace(None)
    )
    return courier.courier_beside(cast("Worker", worker), of_plugin, takes_part)


async def test_a_courier_follows_whichever_client_is_replaced_and_tries_again_where_it_cannot(
    engine: EmbeddedEngine,
    client: Client,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, another = (SimpleNamespace(client=client, task_queue=queue) for _ in range(2))
    new = await Client.connect(engine.address)
    bare, failures = beside_module._bare, [ValueError("this is not said")]

    def fails_once(client: Client) -> Client:
        if failures:
            raise failures.pop()
        return bare(client)

    async with beside(one), beside(another):
        (shared,) = (c for c in beside_module._running if len(c.owners) == 2)
        monkeypatch.setattr(beside_module, "_bare", fails_once)
        another.client = new

        async def is_followed() -> bool:
            return shared._worker.client.service_client is new.service_client

        await eventually(is_followed)
        assert [r.getMessage() for r in caplog.records if r.name == beside_module.__name__] == [
            "A courier cannot take a new client: ValueError"
        ]


async def test_a_type_that_takes_part_in_one_of_two_versions_is_not_plain(
    client: Client, queue: str
) -> None:
    one, another = (SimpleNamespace(client=client, task_queue=queue) for _ in range(2))
    async with beside(one, A=False, B=False):
        (shared,) = (c for c in beside_module._running if len(c.owners) == 1)
        assert [courier._said(shared, name) for name in "ABC"] == [False, False, None]
        async with beside(another, B=True, C=False):
            assert [courier._said(shared, name) for name in "ABC"] == [False, True, False]


class WithoutCourier(StatefulPlugin):
    """What a worker has whose courier has stopped."""

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:
        await next(worker)


async def test_where_no_courier_runs_the_tree_says_so(
    engine: EmbeddedEngine, tokens: TokenClient, keyring: Keyring, queue: str
) -> None:
    client = await Client.connect(engine.address, plugins=[WithoutCourier(keyring)])
    async with Worker(client, task_queue=queue, workflows=WORKFLOWS, activities=ACTIVITIES):
        await start(tokens, queue)
        await nodes_run(tokens, queue, NODES)
        await tokens.set(queue, "second")

        tree = await tokens.tree(queue)

        assert not tree.converged
        assert f"no worker polls task queue {queue}:stateful" in str(tree.nodes[0].problem)
        with suppress(RPCError):
            await client.get_workflow_handle(queue).terminate()
