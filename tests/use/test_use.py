"""An activity uses the newest token, only where it may, in every kind of executor."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import timedelta, timezone
from typing import Any

import pytest
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    QueryWorkflowInput,
)
from temporalio.worker import SharedStateManager, Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from tests.support.api import Api, start_api
from tests.support.asking import events_of, eventually, is_reported, lower, status_of
from tests.support.use_places import (
    KINDS,
    NEVER_OLD,
    Place,
    Root,
    place_of,
    start,
)
from tests.support.use_workflows import (
    ASYNC_ACTIVITIES,
    BODY,
    SYNC_ACTIVITIES,
    USE_WORKFLOWS,
    Caller,
    Job,
    PlainCaller,
)
from tests.support.workflows import shown

pytestmark = pytest.mark.usefixtures("workflows")

LARGE = "x" * 5000


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        api.valid = {"first", "second"}
        yield api


@pytest.fixture(scope="module")
async def user(engine: EmbeddedEngine, keyring: Keyring) -> Client:
    """A client of workers that run activities."""
    return await connect(engine, keyring)


async def connect(engine: EmbeddedEngine, keyring: Keyring, **options: Any) -> Client:
    plugin = StatefulPlugin(keyring)
    return await Client.connect(
        engine.address, namespace=engine.namespace, plugins=[plugin], **options
    )


@pytest.fixture
async def workflows(client: Client, queue: str) -> AsyncIterator[Worker]:
    """A worker that runs the workflows, and asynchronous activities beside them."""
    async with Worker(
        client, task_queue=queue, workflows=USE_WORKFLOWS, activities=ASYNC_ACTIVITIES
    ) as worker:
        yield worker


@pytest.fixture(params=["async", "thread"])
async def place(request: pytest.FixtureRequest, user: Client, queue: str) -> AsyncIterator[Place]:
    async with place_of(request.param, user, queue) as place:
        yield place


async def meanwhile(
    root: Root, api: Api, job: Job, change: Coroutine[Any, Any, object]
) -> list[str]:
    """What a job answers that stands at the gate ``g`` while something changes."""
    running = asyncio.create_task(root.execute_update(Caller.do, job))
    await api.reached("g")
    await change
    api.open("g")
    return await running


async def replace_first(tokens: TokenClient, queue: str, api: Api) -> None:
    """Rotate, and let the API take the new token only."""
    await tokens.rotate(queue, "second", timeout=20)
    api.valid = {"second"}


async def scheduled_at(root: Root) -> float:
    """Unix seconds at which the one pending activity was scheduled; waits for it."""

    async def scheduled() -> float:
        pending = (await root.describe()).raw_description.pending_activities
        assert len(pending) == 1
        return pending[0].scheduled_time.ToDatetime(timezone.utc).timestamp()

    return await eventually(scheduled)


async def passed(since: float, seconds: float) -> None:
    async def over() -> bool:
        return time.time() - since > seconds

    await eventually(over)


# --- what is at hand -----------------------------------------------------------------------------


async def test_the_token_and_the_address_are_at_hand_and_none_stays_behind_for_who_comes_after(
    tokens: TokenClient, client: Client, queue: str, api: Api, place: Place
) -> None:
    root = await start(tokens, queue, api)
    job = place.job(activity="look")
    assert await root.execute_update(Caller.do, job) == ["first", api.origin]

    seen = await client.execute_workflow(
        PlainCaller.run, job, id=f"{queue}-plain", task_queue=queue
    )

    assert [text.partition(":")[0] for text in seen] == ["PluginMissing"] * 2


async def test_requests_carry_the_token_of_the_name_that_is_asked_for(
    tokens: TokenClient, queue: str, api: Api, place: Place
) -> None:
    root = await start(tokens, queue, api)
    await tokens.set(queue, "second", name="github", origins=[api.origin])

    for name, token in (("apiToken", "first"), ("github", "second")):
        for key in (False, True):
            job = place.job(api.url(name), api.url(name), name=name, key=key)
            assert await root.execute_update(Caller.do, job) == ["200", "200"]
        assert api.tokens(name) == [token] * 4


async def test_a_token_too_large_for_the_header_is_asked_for_or_goes_to_a_local_activity(
    tokens: TokenClient, queue: str, api: Api, place: Place
) -> None:
    root = await start(tokens, queue, api, api_token=LARGE)

    for job in (place.job(activity="look"), Job(activity="look", local=True)):
        assert (await root.execute_update(Caller.do, job))[0] == shown(LARGE)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
async def test_in_a_process_pool_no_token_is_at_hand_and_the_error_says_what_to_do(
    tokens: TokenClient, user: Client, queue: str, api: Api, method: str
) -> None:
    root = await start(tokens, queue, api)
    context = multiprocessing.get_context(method)
    with context.Manager() as manager, ProcessPoolExecutor(1, mp_context=context) as pool:
        async with Worker(
            user,
            task_queue=f"{queue}-use",
            activities=SYNC_ACTIVITIES,
            activity_executor=pool,
            shared_state_manager=SharedStateManager.create_from_multiprocessing(manager),
            max_concurrent_activities=1,
        ):
            place = Place("process", f"{queue}-use")
            said = await root.execute_update(Caller.do, place.job(activity="look"))
            said += await root.execute_update(Caller.do, place.job(api.url("x")))

    assert len(said) == 3
    for error in said:
        assert error.startswith("PluginMissing: ")
        assert "process pool" in error
        assert "ThreadPoolExecutor" in error
    assert api.calls == []


# --- the newest ----------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("body", [None, "bytes", "json"])
async def test_a_refused_token_is_replaced_in_place_by_a_newer_one(
    tokens: TokenClient,
    queue: str,
    api: Api,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    body: str | None,
    key: bool,
) -> None:
    lower(monkeypatch, fresh_seconds=NEVER_OLD)
    root = await start(tokens, queue, api)
    job = place.job(api.url("before"), api.gate("g"), api.url("after"), body=body, key=key)

    answers = await meanwhile(root, api, job, replace_first(tokens, queue, api))

    assert answers == ["200", "200"]
    assert api.tokens("after") == ["first", "second"]
    sent = {call.body for call in api.calls if call.path == "/after"}
    assert len(sent) == 1
    if body is not None:
        assert json.loads(sent.pop()) == {"n": 1}


@KINDS
async def test_a_body_that_streams_is_not_sent_twice(
    tokens: TokenClient,
    queue: str,
    api: Api,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    key: bool,
) -> None:
    lower(monkeypatch, fresh_seconds=NEVER_OLD)
    root = await start(tokens, queue, api)
    job = place.job(api.gate("g"), api.url("after"), body="stream", key=key)

    assert await meanwhile(root, api, job, replace_first(tokens, queue, api)) == ["401"]
    assert [(call.token, call.body) for call in api.calls] == [("first", BODY)]


@KINDS
async def test_a_refused_token_that_was_revoked_meanwhile_says_so(
    tokens: TokenClient,
    queue: str,
    api: Api,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    key: bool,
) -> None:
    async def revoke() -> None:
        await tokens.revoke(queue)
        api.valid = set()

    lower(monkeypatch, fresh_seconds=NEVER_OLD)
    root = await start(tokens, queue, api)
    job = place.job(api.gate("g"), api.url("after"), api.url("again"), key=key)

    answers = await meanwhile(root, api, job, revoke())

    assert [answer.partition(":")[0] for answer in answers] == ["TokenRevoked"] * 2
    assert [call.path for call in api.calls] == ["/after"]


@KINDS
async def test_a_refused_token_that_is_the_newest_is_reported_to_its_authority(
    tokens: TokenClient,
    client: Client,
    queue: str,
    api: Api,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    key: bool,
) -> None:
    root = await start(tokens, queue, api)
    status = await tokens.status(queue)
    assert status is not None
    assert not status.refused
    api.valid = set()

    assert await root.execute_update(Caller.do, place.job(api.url("x"), key=key)) == ["401"]

    assert api.tokens() == ["first"]
    await is_reported(client, queue)
    assert (await status_of(client, queue))["reports"] == {"apiToken": {status.fingerprint: 1}}


async def test_a_thread_that_waits_in_vain_gives_its_question_up_and_the_activity_is_retried(
    tokens: TokenClient,
    engine: EmbeddedEngine,
    keyring: Keyring,
    queue: str,
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    class Hangs(Interceptor):
        def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
            class Outbound(OutboundInterceptor):
                async def query_workflow(self, input: QueryWorkflowInput) -> Any:
                    if asked:
                        return await super().query_workflow(input)
                    asked.append("in vain")
                    api.valid = {"first"}
                    try:
                        await asyncio.Event().wait()
                    finally:
                        asked.append("given up")

            return Outbound(next)

    lower(monkeypatch, fresh_seconds=NEVER_OLD)
    monkeypatch.setattr("stateful_workflow.use.newest._THREAD_SECONDS", 0.1)
    root = await start(tokens, queue, api)
    api.valid = set()
    user = await connect(engine, keyring, interceptors=[Hangs()])
    async with place_of("thread", user, queue) as place:
        job = place.job(api.url("x"), attempts=0)
        assert await root.execute_update(Caller.do, job) == ["200"]

    assert asked == ["in vain", "given up"]
    [started] = await events_of(root, "ACTIVITY_TASK_STARTED")
    last = started.activity_task_started_event_attributes.last_failure
    assert last.application_failure_info.type == "NewestUnknown"


async def test_a_retried_attempt_uses_the_newest(
    tokens: TokenClient, queue: str, api: Api, place: Place
) -> None:
    root = await start(tokens, queue, api)
    job = place.job(api.gate("g"), api.url("x"), succeed_at=2, attempts=2)

    answers = await meanwhile(root, api, job, tokens.rotate(queue, "second", timeout=20))

    assert answers == ["200"]
    assert api.tokens() in (
        ["first", "second"],
        ["second", "second"],  # where the first attempt took longer than a token is fresh
    )


async def test_a_retried_attempt_that_cannot_ask_fails_rather_than_use_an_old_token(
    tokens: TokenClient,
    client: Client,
    user: Client,
    queue: str,
    api: Api,
    workflows: Worker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lower(monkeypatch, activity_question=timedelta(seconds=1))
    root = await start(tokens, queue, api)
    async with place_of("async", user, queue) as place:
        job = place.job(api.gate("g"), api.url("x"), succeed_at=2, attempts=0)
        running = asyncio.create_task(root.execute_update(Caller.do, job))
        await api.reached("g")
        await tokens.rotate(queue, "second", timeout=20)
        await workflows.shutdown()
        api.open("g")

        async def failed() -> str:
            pending = (await root.describe()).raw_description.pending_activities
            failure = pending[0].last_failure
            assert failure.application_failure_info.type == "NewestUnknown"
            return failure.message

        assert f"workflow {queue} did not answer for its newest apiToken" in await eventually(
            failed
        )
        assert len(api.calls) == 1

        async with Worker(client, task_queue=queue, workflows=USE_WORKFLOWS):
            assert await running == ["200"]

    assert api.tokens()[-1] == "second"


async def test_an_answer_that_cannot_be_read_counts_as_none(
    tokens: TokenClient, engine: EmbeddedEngine, keyring: Keyring, queue: str, api: Api
) -> None:
    garbled: list[object] = [{"name": "apiToken"}, {"sealed": "x"}, "x", 7]

    class Garbles(Interceptor):
        def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
            class Outbound(OutboundInterceptor):
                async def query_workflow(self, input: QueryWorkflowInput) -> Any:
                    return garbled.pop() if garbled else await super().query_workflow(input)

            return Outbound(next)

    user = await connect(engine, keyring, interceptors=[Garbles()])
    root = await start(tokens, queue, api)
    async with place_of("async", user, queue) as place:
        job = place.job(api.url("x"), succeed_at=2, attempts=0)
        assert await root.execute_update(Caller.do, job) == ["200"]

    assert garbled == []
    assert len(api.calls) == 2, "the first attempt and the one that was answered"
    [started] = await events_of(root, "ACTIVITY_TASK_STARTED")
    last = started.activity_task_started_event_attributes.last_failure
    assert last.application_failure_info.type == "NewestUnknown"
    assert "AnswerMalformed: " in last.message


@pytest.mark.parametrize(
    ("fresh_seconds", "expires_in", "used"),
    [(NEVER_OLD, None, "first"), (0.3, None, "second"), (NEVER_OLD, 30, "second")],
    ids=["just now", "long ago", "near expiry"],
)
async def test_an_activity_asks_before_it_uses_what_is_old_or_near_its_expiry(
    tokens: TokenClient,
    user: Client,
    queue: str,
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
    fresh_seconds: float,
    expires_in: int | None,
    used: str,
) -> None:
    lower(monkeypatch, fresh_seconds=fresh_seconds)
    root = await start(tokens, queue, api, expires_in=expires_in)
    job = Job([api.url("x")], queue=f"{queue}-use")
    running = asyncio.create_task(root.execute_update(Caller.do, job))
    since = await scheduled_at(root)

    await tokens.rotate(queue, "second", timeout=20)
    await passed(since, 0.3)
    async with place_of("async", user, queue):
        assert await running == ["200"]

    assert api.tokens() == [used]


async def test_a_long_activity_turns_to_the_newest_without_being_refused(
    tokens: TokenClient, queue: str, api: Api, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def rotate() -> None:
        since = time.time()
        await tokens.rotate(queue, "second", timeout=20)
        await passed(since, 0.3)

    lower(monkeypatch, fresh_seconds=0.3)
    root = await start(tokens, queue, api)
    job = place.job(api.url("before"), api.gate("g"), api.url("after"))

    assert await meanwhile(root, api, job, rotate()) == ["200", "200"]
    assert (api.tokens("before"), api.tokens("after")) == (["first"], ["second"])


async def test_a_local_activity_uses_what_it_carries_and_never_asks(
    tokens: TokenClient, queue: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its query would wait for the workflow task that waits for it, and come back with nothing.
    lower(monkeypatch, fresh_seconds=-1)
    root = await start(tokens, queue, api)
    api.valid = set()

    job = Job([api.url("x")], local=True)
    assert await root.execute_update(Caller.do, job) == ["401"]

    assert api.tokens() == ["first"]
    seen = await root.execute_update(Caller.do, replace(job, activity="look"))
    assert seen == ["first", api.origin]


async def test_a_local_activity_that_a_timer_schedules_again_has_what_came_meanwhile(
    tokens: TokenClient, queue: str, api: Api
) -> None:
    root = await start(tokens, queue, api)
    api.valid = {"second"}
    job = Job([api.url("x")], local=True, attempts=0, insist=True)
    running = asyncio.create_task(root.execute_update(Caller.do, job))

    async def waits() -> bool:
        return bool(await events_of(root, "TIMER_STARTED"))

    await eventually(waits)
    await tokens.set(queue, "second")

    assert await running == ["200"]
    assert set(api.tokens()[:-1]) == {"first"}
    assert api.tokens()[-1] == "second"


# --- what may not be used ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"api_token": None}, "TokenNotSet"),
        ({"types": ["Other"]}, "WrongWorkflowType"),
        ({"expires_in": 1}, "TokenExpired"),
    ],
    ids=["none is set", "for other types", "expired"],
)
async def test_no_token_is_used_that_is_not_there_or_not_for_this(
    tokens: TokenClient, queue: str, api: Api, options: dict[str, Any], error: str
) -> None:
    root = await start(tokens, queue, api, **options)
    status = await tokens.status(queue)
    if status is not None and status.expires_at is not None:
        await passed(status.expires_at, 0)

    (answer,) = await root.execute_update(Caller.do, Job([api.url("x")]))

    assert answer.startswith(f"{error}: ")
    assert api.calls == []


async def test_a_revoked_token_is_not_used(
    tokens: TokenClient, queue: str, api: Api, place: Place
) -> None:
    root = await start(tokens, queue, api)
    await tokens.revoke(queue)

    (answer,) = await root.execute_update(Caller.do, place.job(api.url("x")))

    assert answer.startswith(f"TokenRevoked: apiToken is revoked at workflow {queue}")
    assert api.calls == []


async def test_a_worker_does_not_use_what_its_own_keyring_does_not_allow(
    engine: EmbeddedEngine, tokens: TokenClient, keyring: Keyring, queue: str, api: Api
) -> None:
    keys = json.loads(keyring.to_json())
    for key in keys["keys"]:
        key["stateful"] = {"revoked": key["use"] == "sig"}
    (reader,) = [info.kid for info in keyring.keys() if info.kind == "reader"]
    without = {
        "TokenRevoked: ": Keyring.from_json(json.dumps(keys)),
        f"NoReaderKey: apiToken is sealed for readers {reader}": keyring.public(),
    }
    root = await start(tokens, queue, api)

    for said, lacking in without.items():
        user = await connect(engine, lacking)
        async with place_of("async", user, queue) as place:
            seen = await root.execute_update(Caller.do, place.job(activity="look"))
        assert seen[0].startswith(said)


async def test_a_tree_started_by_a_stranger_gives_its_activities_nothing(
    client: Client, queue: str, api: Api, place: Place
) -> None:
    root = await start(TokenClient(client, Keyring.generate()), queue, api)

    (answer,) = await root.execute_update(Caller.do, place.job(api.url("x")))

    assert answer.startswith("TokenForged: ")
    assert api.calls == []


# --- only to its origins -------------------------------------------------------------------------


@KINDS
async def test_a_token_goes_to_no_other_origin(
    tokens: TokenClient, queue: str, api: Api, place: Place, key: bool
) -> None:
    root = await start(tokens, queue, api)
    with start_api() as other:
        elsewhere = [
            other.url("x"),
            api.url("x").replace("http://", "http://user:secret@"),
            api.url("x").replace("127.0.0.1", "localhost"),
            "https://api.example.com/x",
        ]
        answers = await root.execute_update(Caller.do, place.job(*elsewhere, key=key))

        assert (api.calls, other.calls) == ([], [])
    assert {answer.partition(":")[0] for answer in answers} == {"OriginNotAllowed"}
    assert other.origin in answers[0]
    assert not [answer for answer in answers if "first" in answer or "secret" in answer]
