"""A refused token: what is a refusal, what is sent again, what is waited for; and no token yet."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import (
        Keyring,
        StatefulError,
        StatefulPlugin,
        StatefulWorkflow,
        TokenClient,
        TokenProvider,
    )
    from stateful_workflow.engine import EmbeddedEngine
    from tests.support.api import Api, start_api
    from tests.support.asking import Silent, eventually, lower, status_of
    from tests.support.clients import ASYNC, CLIENTS, SYNC, Asking, Kept, send, send_async

BY = pytest.mark.parametrize("by", CLIENTS)
TWO = pytest.mark.parametrize("by", ["requests", "httpx.async"])
"""For what does not depend on the client: one in a thread, and one on the event loop."""

ASKED: dict[str, list[Asking]] = {}
"""What the activity of a task queue is to send, in order: no argument could hold a stream."""


ONCE: dict[str, Any] = {
    "result_type": list[str],
    "start_to_close_timeout": timedelta(seconds=50),
    "retry_policy": RetryPolicy(maximum_attempts=1),
}


@activity.defn
async def ask_async(key: str) -> list[str]:
    said: list[str] = []
    for asking in ASKED[key]:
        try:
            said.append(str((await send_async(asking)).status))
        except StatefulError as error:
            said.append(type(error).__name__)
    return said


@activity.defn
def ask(key: str) -> list[str]:
    said: list[str] = []
    for asking in ASKED[key]:
        try:
            said.append(str(send(asking).status))
        except StatefulError as error:
            said.append(type(error).__name__)
    return said


@activity.defn
async def ask_and_tell(key: str) -> list[str]:
    """Gives back what it sent."""
    (asking,) = ASKED[key]
    await send_async(asking)
    return [asking.how["fallback"]]


@activity.defn
def ask_by_provider(key: str) -> list[str]:
    """What an SDK does that takes a callable, and calls it in a thread of its own."""
    url = ASKED[key][0].url
    secret = TokenProvider(url)

    def call() -> int:
        return httpx.get(url, headers={"X-API-Key": secret()}).status_code

    with ThreadPoolExecutor(1) as threads:
        said = [threads.submit(call).result()]
        while not threads.submit(secret.report_refused).result():
            time.sleep(0.05)
        said.append(threads.submit(call).result())
    return [str(status) for status in said]


@activity.defn
async def ask_by_provider_async(key: str) -> list[str]:
    url = ASKED[key][0].url
    secret = TokenProvider(url)
    said: list[str] = []
    async with httpx.AsyncClient() as http:
        for _ in range(2):
            answer = await http.get(url, headers={"X-API-Key": await secret.call_async()})
            said.append(str(answer.status_code))
            while answer.status_code == 401 and not await secret.report_refused_async():
                await asyncio.sleep(0.05)
    return said


@workflow.defn
class Asker(StatefulWorkflow):
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.update
    async def start_child(self, is_kept_out: bool) -> None:
        with self.withholding() if is_kept_out else nullcontext():
            child = f"{workflow.info().workflow_id}-child"
            await workflow.start_child_workflow(Asker.run, id=child)

    @workflow.update
    async def ask(self, name: str, key: str) -> list[str]:
        return await workflow.execute_activity(name, key, **ONCE)

    @workflow.update
    async def ask_locally(self, name: str, key: str) -> list[str]:
        return await workflow.execute_local_activity(name, key, **ONCE)


@workflow.defn
class PlainAsker:
    """Takes no part in a tree."""

    @workflow.run
    async def run(self, name: str, key: str) -> list[str]:
        return await workflow.execute_activity(name, key, **ONCE)


Root = WorkflowHandle[Asker, None]


@pytest.fixture(scope="module")
def kept() -> Kept:
    return Kept()


@pytest.fixture(scope="module")
def silent() -> Silent:
    return Silent()


@pytest.fixture(scope="module")
async def shared(
    engine: EmbeddedEngine, keyring: Keyring, kept: Kept, silent: Silent
) -> AsyncIterator[str]:
    """The queue of a worker with a record, whose questions some workflows do not answer."""
    client = await Client.connect(
        engine.address,
        namespace=engine.namespace,
        interceptors=[silent],
        plugins=[StatefulPlugin(keyring, audit=kept, audit_failure="block")],
    )
    queue = f"refusals-{os.getpid()}"
    with ThreadPoolExecutor(4) as threads:
        async with Worker(
            client,
            task_queue=queue,
            workflows=[Asker, PlainAsker],
            activities=[ask, ask_async, ask_and_tell, ask_by_provider, ask_by_provider_async],
            activity_executor=threads,
        ):
            yield queue


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        api.valid = {"second"}
        yield api


@pytest.fixture
def start(
    tokens: TokenClient, shared: str, queue: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Starts a workflow with the token "first", which the API does not take."""
    lower(monkeypatch, fresh_seconds=0.3, wait_seconds=0.1)

    async def started(**options: Any) -> Root:
        given: dict[str, Any] = {"api_token": "first", "api_url": api.origin, **options}
        return await tokens.start_workflow(Asker.run, id=queue, task_queue=shared, **given)

    return started


async def asks(root: Root, *asking: Asking) -> list[str]:
    """What an activity says that sends these."""
    ASKED[root.id] = list(asking)
    by = asking[0].client
    name = by if by.startswith("ask") else "ask" if by in SYNC else "ask_async"
    return await root.execute_update(Asker.ask, args=[name, root.id])


async def set_once_refused(tokens: TokenClient, root: Root, api: Api, *asking: Asking) -> list[str]:
    """The same, where the token "second" is set when the first of them was answered."""

    async def answered() -> bool:
        return bool(api.calls)

    running = asyncio.create_task(asks(root, *asking))
    await eventually(answered)
    await tokens.set(root.id, "second")
    return await running


def stream(by: str) -> Any:
    async def of_async() -> AsyncIterator[bytes]:
        yield b"a body " * 100

    def of_sync() -> Iterator[bytes]:
        yield b"a body " * 100

    return of_async() if by in ASYNC else of_sync()


# --- what is sent again --------------------------------------------------------------------------


def body_of(kind: str, by: str, folder: Path) -> dict[str, Any]:
    if kind == "files":
        return {"files": {"f": io.BytesIO(b"a body " * 100)}}
    if kind == "file":
        path = folder / "body"
        path.write_bytes(b"skipped" + b"a body " * 100)
        file = path.open("rb")
        file.seek(7)
        return {"body": file, "headers": {"Content-Length": "700"}}
    return {"body": stream(by) if kind == "stream" else b"a body " * 100}


@BY
@pytest.mark.parametrize("kind", ["bytes", "files", "file"])
async def test_a_body_that_can_be_sent_again_is_sent_whole_with_the_newer_token(
    start: Callable[..., Any],
    tokens: TokenClient,
    api: Api,
    tmp_path: Path,
    by: str,
    kind: str,
) -> None:
    if (by, kind) == ("httpx.async", "file"):
        pytest.skip("httpx takes no files there")
    root = await start()
    body = body_of(kind, by, tmp_path)
    asking = Asking(by, api.url("x"), method="POST", how={"wait_for_newer": 30}, **body)

    assert await set_once_refused(tokens, root, api, asking) == ["200"]

    first, second = api.calls
    assert (first.token, second.token) == ("first", "second")
    assert first.body == second.body
    assert b"a body " * 100 in first.body
    assert b"skipped" not in first.body


@BY
async def test_a_body_that_streams_is_sent_once_and_the_next_request_has_the_newer_token(
    start: Callable[..., Any], tokens: TokenClient, by: str, api: Api
) -> None:
    root = await start()
    how = {"wait_for_newer": timedelta(seconds=30)}
    uploads = [Asking(by, api.url("x"), method="POST", body=stream(by), how=how) for _ in range(2)]

    assert await set_once_refused(tokens, root, api, *uploads) == ["401", "200"]
    assert [(call.token, len(call.body)) for call in api.calls] == [("first", 700), ("second", 700)]


@TWO
@pytest.mark.parametrize("streamed", [False, True], ids=["bytes", "stream"])
async def test_a_refusal_of_the_newest_is_reported_and_is_the_answer(
    start: Callable[..., Any], by: str, api: Api, streamed: bool, engine: EmbeddedEngine
) -> None:
    root = await start()
    body = stream(by) if streamed else b"x"

    assert await asks(root, Asking(by, api.url("x"), method="POST", body=body)) == ["401"]

    assert api.tokens() == ["first"]
    plain = await Client.connect(engine.address, namespace=engine.namespace)

    async def reported() -> bool:
        reports = (await status_of(plain, root.id))["reports"]
        return list(reports) == ["apiToken"]

    await eventually(reported)


@pytest.mark.parametrize("by", ["ask_by_provider", "ask_by_provider_async"])
async def test_a_client_of_another_library_reports_a_refusal_and_gets_the_newer_token(
    start: Callable[..., Any], tokens: TokenClient, by: str, api: Api, kept: Kept
) -> None:
    root = await start()

    assert await set_once_refused(tokens, root, api, Asking(by, api.url("x"))) == ["401", "200"]

    assert api.tokens() == ["first", "second"]
    used = ("apiToken", api.origin, None, None, "unknown", None)
    assert kept.said()[-2:] == [used, used]


# --- what is a refusal ---------------------------------------------------------------------------


@BY
@pytest.mark.parametrize(
    ("status", "says"), [(403, ""), (200, '{"error": "expired"}')], ids=["403", "a body of 200"]
)
async def test_the_user_says_what_a_refusal_is(
    start: Callable[..., Any], tokens: TokenClient, by: str, api: Api, status: int, says: str
) -> None:
    api.refusal = (status, says)
    root = await start()

    async def by_body(response: Any) -> bool:
        return "expired" in await response.text()

    def by_status(response: Any) -> bool:
        return (response.status if by == "aiohttp" else response.status_code) == 403

    def by_text(response: Any) -> bool:
        return "expired" in response.text

    refused = by_status if status == 403 else by_body if by == "aiohttp" else by_text
    how = {"wait_for_newer": 30, "refused": refused}

    answers = await set_once_refused(tokens, root, api, Asking(by, api.url("x"), how=how))

    assert answers == ["200"]
    assert api.tokens() == ["first", "second"]


# --- what is waited for --------------------------------------------------------------------------


@TWO
@pytest.mark.parametrize("state", ["expired", "not set"])
async def test_a_token_that_comes_late_is_waited_for(
    start: Callable[..., Any], tokens: TokenClient, by: str, api: Api, state: str
) -> None:
    async def is_expired() -> bool:
        status = await tokens.status(root.id)
        return status is not None and status.state == "expired"

    root = await start(**{"expires_in": 1} if state == "expired" else {"api_token": None})
    if state == "expired":
        await eventually(is_expired)
    asking = Asking(by, api.url("x"), how={"wait_for_newer": 30})
    running = asyncio.create_task(asks(root, asking))
    await asyncio.sleep(0.5)
    assert not running.done()

    await tokens.set(root.id, "second", origins=[api.origin])

    assert await running == ["200"]
    assert api.tokens() == ["second"]


# --- before there is a token ---------------------------------------------------------------------


def bridged(by: str, url: str, *origins: str, header: str | None = None) -> Asking:
    how = {"fallback": lambda: "second", "origins": origins}
    return Asking(by, url, header=header, how=how)


@pytest.mark.parametrize(
    ("by", "header"), [*((by, None) for by in CLIENTS), ("httpx.async", "X-API-Key")]
)
async def test_the_fallback_is_used_until_there_is_a_token_and_is_on_record(
    start: Callable[..., Any],
    tokens: TokenClient,
    by: str,
    api: Api,
    kept: Kept,
    header: str | None,
) -> None:
    root = await start(api_token=None)
    asking = bridged(by, api.url("x"), api.origin, header=header)

    assert await asks(root, asking) == ["200"]
    used = ("apiToken", api.origin, "GET", 200, "success", "fallback")
    assert kept.said()[-1] == used
    assert kept.events[-1].workflow_id == root.id
    assert kept.events[-1].fingerprint is None

    api.valid = {"of the tree"}
    await tokens.set(root.id, "of the tree", origins=[api.origin])
    assert await asks(root, asking) == ["200"]
    assert api.tokens() == ["second", "of the tree"]


@pytest.mark.parametrize("by", ["httpx", "httpx.async"])
async def test_the_fallback_goes_to_its_own_origins_alone(
    start: Callable[..., Any], by: str, api: Api
) -> None:
    root = await start(api_token=None)
    with start_api() as other:
        told = await asks(
            root,
            bridged(by, other.url("x"), api.origin),
            bridged(by, f"{api.url('to')}?url={other.url('x')}", api.origin, header="X-Key"),
        )
        assert told == ["OriginNotAllowed"] * 2
        assert other.calls == []


@TWO
async def test_the_fallback_does_not_take_the_place_of_a_token_that_was_taken_away(
    start: Callable[..., Any], tokens: TokenClient, client: Client, by: str, api: Api
) -> None:
    root = await start(api_token=None)
    await root.execute_update(Asker.start_child, False)
    child = client.get_workflow_handle_for(Asker.run, f"{root.id}-child")
    asking = bridged(by, api.url("x"), api.origin)

    await tokens.set(child.id, "first", origins=[api.origin])
    await tokens.revoke(child.id)
    assert await asks(child, asking) == ["TokenRevoked"]
    await tokens.inherit(child.id)
    assert await asks(child, asking) == ["TokenNotSet"]
    assert api.calls == []


@pytest.mark.parametrize("has_token", [False, True])
async def test_the_fallback_is_not_for_whom_the_token_is_withheld_from(
    start: Callable[..., Any], client: Client, api: Api, has_token: bool
) -> None:
    root = await start(**{} if has_token else {"api_token": None})
    await root.execute_update(Asker.start_child, True)
    child = client.get_workflow_handle_for(Asker.run, f"{root.id}-child")

    assert await asks(child, bridged("httpx.async", api.url("x"), api.origin)) == ["TokenNotSet"]
    assert api.calls == []


@TWO
async def test_the_fallback_is_not_for_a_workflow_that_does_not_answer(
    start: Callable[..., Any], by: str, api: Api, silent: Silent
) -> None:
    root = await start(api_token=None)
    silent.workflow_id = root.id

    (told,) = await asks(root, bridged(by, api.url("x"), api.origin))
    assert told in ("TokenNotSet", "NewestUnknown")
    assert silent.asked > 0
    assert api.calls == []


async def test_the_fallback_is_not_for_who_cannot_ask_or_takes_no_part(
    start: Callable[..., Any], client: Client, shared: str, queue: str, api: Api
) -> None:
    root = await start(api_token=None)
    ASKED[queue] = [bridged("httpx.async", api.url("x"), api.origin)]

    said = await root.execute_update(Asker.ask_locally, args=["ask_async", queue])
    assert said == ["TokenNotSet"]
    said = await client.execute_workflow(
        PlainAsker.run, args=["ask_async", queue], id=f"{queue}-plain", task_queue=shared
    )
    assert said == ["PluginMissing"]
    assert api.calls == []


async def test_an_activity_cannot_give_a_fallback_back(
    start: Callable[..., Any], queue: str, api: Api
) -> None:
    root = await start(api_token=None)
    how = {"fallback": "of the environment", "origins": [api.origin]}
    ASKED[queue] = [Asking("httpx.async", api.url("x"), how=how)]

    with pytest.raises(WorkflowUpdateFailedError) as failed:
        await root.execute_update(Asker.ask, args=["ask_and_tell", queue])

    assert len(api.calls) == 1
    cause = failed.value.cause.__cause__
    assert isinstance(cause, ApplicationError)
    assert cause.type == "TokenExposed"
