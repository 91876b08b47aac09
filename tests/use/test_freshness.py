"""One rule of freshness in every kind of activity, whatever client sends its requests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetActivityRequest
from temporalio.client import (
    Client,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import (
        Keyring,
        PluginMissing,
        StatefulPlugin,
        StatefulWorkflow,
        TokenClient,
        current_api_url,
        current_token,
        current_token_async,
    )
    from stateful_workflow.engine import EmbeddedEngine
    from tests.support.api import Api, start_api
    from tests.support.asking import Counted, eventually, lower
    from tests.support.builders import CLAIMS

ORIGINS = ["https://api.example.com"]
SOON = timedelta(seconds=50)


@dataclass
class Watch:
    """What an activity does: takes its token, stands at a gate, and takes it again.

    Attributes:
        gate: address of the gate; None for none.
        how: "loop", "await", "thread" (that it starts with its context) or "bare" (without).
        until: the activity takes its token until it is this; "" takes it once more.
        needs: it fails where the last one is not this; "" never.
        url: take the API's address instead.
        attempts: at most so many; 0 for no limit.
    """

    gate: str | None = None
    how: str = "loop"
    until: str = ""
    needs: str = ""
    url: bool = False
    attempts: int = 1
    seen: list[str] = field(default_factory=list[str])


def take(url: bool = False) -> str:
    return str(current_api_url()) if url else current_token().reveal()


def in_bare_thread() -> str:
    said: list[str] = []

    def run() -> None:
        try:
            said.append(take())
        except PluginMissing as error:
            said.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return said[0]


async def taken(watch: Watch) -> str:
    if watch.how == "await":
        return (await current_token_async()).reveal()
    if watch.how == "thread":
        return await asyncio.to_thread(take, watch.url)
    return in_bare_thread() if watch.how == "bare" else take(watch.url)


def judged(watch: Watch, seen: list[str]) -> list[str]:
    if watch.needs and seen[-1] != watch.needs:
        raise RuntimeError("not yet")
    return [*seen, f"attempt {activity.info().attempt}"]


@activity.defn
async def watch(watch: Watch) -> list[str]:
    seen = [await taken(watch)]
    if watch.gate is not None:
        async with httpx.AsyncClient(timeout=60) as http:
            await http.get(watch.gate)
        seen.append(await taken(watch))
    while watch.until and seen[-1] != watch.until:
        await asyncio.sleep(0.02)
        seen.append(await taken(watch))
    return judged(watch, seen)


@activity.defn
def watch_sync(watch: Watch) -> list[str]:
    seen = [take(watch.url)]
    if watch.gate is not None:
        with httpx.Client(timeout=60) as http:
            http.get(watch.gate)
        seen.append(take(watch.url))
    return judged(watch, seen)


@activity.defn
async def work() -> str:
    """Takes no token."""
    return "done"


async def watched(name: str, watch: Watch, queue: str | None = None) -> list[str]:
    return await workflow.execute_activity(
        name,
        watch,
        activity_id="watch",
        task_queue=queue,
        result_type=list[str],
        start_to_close_timeout=SOON,
        retry_policy=RetryPolicy(
            initial_interval=timedelta(milliseconds=50),
            maximum_interval=timedelta(milliseconds=200),
            maximum_attempts=watch.attempts,
        ),
    )


@workflow.defn
class Watcher(StatefulWorkflow):
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.update
    async def do(self, name: str, watch: Watch) -> list[str]:
        return await watched(name, watch)


@workflow.defn(name="Moved", sandboxed=False)
class BeforeMove:
    @workflow.run
    async def run(self, name: str, watch: Watch, queue: str) -> list[str]:
        return await watched(name, watch, queue)


@workflow.defn(name="Moved", sandboxed=False)
class AfterMove(StatefulWorkflow):
    @workflow.run
    async def run(self, name: str, watch: Watch, queue: str) -> list[str]:
        return await watched(name, watch, queue)


@workflow.defn
class Worked:
    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_activity(work, start_to_close_timeout=SOON)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
async def by(engine: EmbeddedEngine, keyring: Keyring, counted: Counted) -> Client:
    """The workers' client."""
    return await Client.connect(
        engine.address,
        namespace=engine.namespace,
        interceptors=[counted],
        plugins=[StatefulPlugin(keyring)],
    )


def worker_of(client: Client, queue: str, workflows: list[type]) -> Worker:
    return Worker(
        client,
        task_queue=queue,
        workflows=workflows,
        activities=[watch, watch_sync, work],
        activity_executor=ThreadPoolExecutor(4),
    )


@pytest.fixture
async def worker(by: Client, queue: str) -> AsyncIterator[Worker]:
    async with worker_of(by, queue, [Watcher, Worked]) as worker:
        yield worker


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        yield api


Root = WorkflowHandle[Watcher, None]


async def start(tokens: TokenClient, queue: str) -> Root:
    return await tokens.start_workflow(
        Watcher.run, id=queue, task_queue=queue, api_token="first", origins=ORIGINS
    )


@pytest.mark.parametrize(
    ("name", "how"),
    [("watch", "loop"), ("watch", "await"), ("watch", "thread"), ("watch_sync", "")],
    ids=["on the loop", "awaited", "in a thread of the activity's own", "in a thread"],
)
@pytest.mark.usefixtures("worker")
async def test_a_long_activity_turns_to_the_newest_token_without_being_refused(
    tokens: TokenClient,
    queue: str,
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    how: str,
) -> None:
    lower(monkeypatch, fresh_seconds=0.3, wait_seconds=0.1)
    root = await start(tokens, queue)
    until = "second" if how == "loop" else ""
    doing = asyncio.create_task(
        root.execute_update(Watcher.do, args=[name, Watch(api.gate("g"), how, until)])
    )
    await api.reached("g")
    await tokens.rotate(queue, "second", timeout=20)
    rotated = time.monotonic()

    async def is_old() -> bool:
        return time.monotonic() - rotated > 0.4

    await eventually(is_old)
    api.open("g")

    *seen, attempt = await doing
    assert seen[0] == "first"
    assert seen[-1] == "second"
    assert attempt == "attempt 1"


@pytest.mark.usefixtures("worker")
async def test_the_address_is_as_current_as_its_token(
    tokens: TokenClient, queue: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower(monkeypatch, fresh_seconds=0)
    root = await tokens.start_workflow(
        Watcher.run, id=queue, task_queue=queue, api_token="first", api_url="https://old.example"
    )
    asked = Watch(api.gate("g"), url=True)
    doing = asyncio.create_task(root.execute_update(Watcher.do, args=["watch_sync", asked]))
    await api.reached("g")
    new = "https://new.example"
    await tokens.rotate(queue, "second", origins=[new], api_url=new, timeout=20)
    api.open("g")

    assert (await doing)[:2] == ["https://old.example", new]


@pytest.mark.usefixtures("worker")
async def test_nobody_is_asked_after_the_activity_has_ended(
    tokens: TokenClient, queue: str, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower(monkeypatch, fresh_seconds=0.05, wait_seconds=0.05)
    root = await start(tokens, queue)
    await root.execute_update(Watcher.do, args=["watch", Watch()])
    asked = counted.queries
    await asyncio.sleep(0.5)

    assert counted.queries <= asked + 1, "one may have been under way"


@pytest.mark.usefixtures("worker")
async def test_a_thread_that_an_activity_starts_without_its_context_is_told_how(
    tokens: TokenClient, queue: str
) -> None:
    root = await start(tokens, queue)

    said, _ = await root.execute_update(Watcher.do, args=["watch", Watch(how="bare")])

    assert "asyncio.to_thread" in said
    assert "contextvars.copy_context().run" in said


@pytest.mark.parametrize("name", ["watch", "watch_sync"])
@pytest.mark.usefixtures("worker")
async def test_an_activity_whose_attempts_are_counted_anew_asks_all_the_same(
    tokens: TokenClient,
    client: Client,
    queue: str,
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    lower(monkeypatch, fresh_seconds=0.3)
    root = await start(tokens, queue)
    needed = Watch(api.gate("g"), needs="second", attempts=0)
    doing = asyncio.create_task(root.execute_update(Watcher.do, args=[name, needed]))
    await api.reached("g")
    await tokens.rotate(queue, "second", timeout=20)
    reset = ResetActivityRequest(
        namespace=client.namespace, execution=WorkflowExecution(workflow_id=queue), id="watch"
    )
    await client.workflow_service.reset_activity(reset)
    api.open("g")

    *seen, _ = await doing
    assert seen[0] == "second"


# --- nothing came along --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how"),
    [("watch", "loop"), ("watch", "await"), ("watch_sync", "")],
    ids=["on the loop", "awaited", "in a thread"],
)
async def test_an_activity_that_was_scheduled_before_the_base_class_came_asks_its_workflow(
    tokens: TokenClient,
    engine: EmbeddedEngine,
    by: Client,
    queue: str,
    name: str,
    how: str,
) -> None:
    plain = await Client.connect(engine.address, namespace=engine.namespace)
    needed = Watch(how=how, needs="first", attempts=0)
    activities = f"{queue}-use"
    async with worker_of(by, activities, []):
        async with Worker(plain, task_queue=queue, workflows=[BeforeMove]):
            root: WorkflowHandle[Any, list[str]] = await plain.start_workflow(
                "Moved",
                args=[name, needed, activities],
                id=queue,
                task_queue=queue,
                result_type=list[str],
            )

            async def is_refused() -> bool:
                pending = (await root.describe()).raw_description.pending_activities
                failures = [one.last_failure.application_failure_info.type for one in pending]
                return failures == ["PluginMissing"]

            await eventually(is_refused)
        async with Worker(by, task_queue=queue, workflows=[AfterMove]):
            await tokens.set(queue, "first", origins=ORIGINS)

            assert (await root.result())[0] == "first"


@pytest.mark.usefixtures("worker")
async def test_a_plain_workflow_is_not_asked_by_an_activity_that_takes_no_token(
    client: Client, queue: str, counted: Counted
) -> None:
    assert await client.execute_workflow(Worked.run, id=queue, task_queue=queue) == "done"
    assert counted.queries == 0


# --- on its way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["watch", "watch_sync"])
@pytest.mark.usefixtures("worker")
async def test_the_first_attempt_asks_for_a_token_that_was_on_its_way_when_it_was_scheduled(
    client: Client, tokens: TokenClient, queue: str, counted: Counted, name: str
) -> None:
    root = await tokens.start_workflow(Watcher.run, id=queue, task_queue=queue)
    place, now = await root.query("apiTokenStatus"), int(time.time() * 1000)
    claims = replace(CLAIMS, root=queue, authority=queue, tree=place["tree"], version=now)
    await root.signal("apiToken", Keyring.generate().seal(claims, "of a stranger"))

    async def waits() -> bool:
        answer = await root.query("apiToken")
        return answer is not None and bool(answer["state"] == "waiting")

    await eventually(waits)
    with pytest.raises(WorkflowUpdateFailedError) as failed:
        await root.execute_update(Watcher.do, args=[name, Watch()])

    cause = failed.value.cause.__cause__
    assert isinstance(cause, ApplicationError)
    assert cause.type == "TokenNotSet"
    assert "state waiting" in cause.message
    assert counted.queries > 0
