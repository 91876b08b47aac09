"""Workflows whose activities use tokens in every way there is: async and in threads."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx
from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, FailureError

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import (
        ApiToken,
        AsyncOriginTransport,
        NewestUnknown,
        OriginTransport,
        SealedToken,
        StatefulError,
        StatefulWorkflow,
        TokenAuth,
        current_api_url,
        current_token,
        seal_token,
    )
    from tests.support.workflows import shown

SOON = timedelta(seconds=30)
BODY = b'{"n": 1}'


@dataclass
class Job:
    """What an activity does, and how a workflow runs it.

    Attributes:
        urls: asked in turn; a gate of the test's API is asked without a token.
        name: credential name.
        key: send the token as ``X-API-Key`` (`OriginTransport`) rather than `TokenAuth`.
        only_for: with `key`, the one origin that goes through that transport.
        body: None, "bytes", "json" or "stream"; with one the requests are POSTs.
        follow: follow redirects.
        uds: connect to this Unix socket, whatever the host.
        headers, extensions: of every request, as httpx takes them.
        succeed_at: attempts before this one fail, when all is done.
        activity: type of the activity.
        queue: its task queue; None for the workflow's.
        local: run it as a local activity.
        attempts: at most so many; 0 for no limit.
        insist: fail unless every answer is 200.
    """

    urls: list[str] = field(default_factory=list[str])
    name: str = "apiToken"
    key: bool = False
    only_for: str | None = None
    body: str | None = None
    follow: bool = False
    uds: str | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    extensions: dict[str, str] = field(default_factory=dict[str, str])
    succeed_at: int = 1
    activity: str = "call"
    queue: str | None = None
    local: bool = False
    attempts: int = 1
    insist: bool = False


@contextmanager
def _answering(answers: list[str], *failures: type[Exception]) -> Generator[None, None, None]:
    """What is raised inside becomes an answer, where it is ours or one of these."""
    try:
        yield
    except NewestUnknown:
        raise
    except StatefulError as error:
        answers.append(f"{type(error).__name__}: {error}")
    except failures as error:
        answers.append(type(error).__name__)


def _options(job: Job, transport: Any, by_key: type) -> dict[str, Any]:
    if not job.key:
        return {"transport": transport, "auth": TokenAuth(job.name), "follow_redirects": job.follow}
    keyed = by_key(transport, name=job.name)
    through = {"transport": keyed} if job.only_for is None else {"mounts": {job.only_for: keyed}}
    return {**through, "follow_redirects": job.follow}


@activity.defn
async def call(job: Job) -> list[str]:
    """Ask each address; the answers' status codes, or what was raised instead."""
    answers: list[str] = []
    options = _options(job, httpx.AsyncHTTPTransport(uds=job.uds), AsyncOriginTransport)
    async with httpx.AsyncClient(**options) as http, httpx.AsyncClient(timeout=60) as bare:
        for url in job.urls:
            if "/gate/" in url:
                await bare.get(url)
                continue
            with _answering(answers, httpx.HTTPError, httpx.InvalidURL):
                answer = await http.request(**_request(job, url, _stream_async()))
                answers.append(str(answer.status_code))
    return _judged(job, answers)


@activity.defn
def call_sync(job: Job) -> list[str]:
    """`call` for threads and process pools."""
    answers: list[str] = []
    options = _options(job, httpx.HTTPTransport(uds=job.uds), OriginTransport)
    with httpx.Client(**options) as http, httpx.Client(timeout=60) as bare:
        for url in job.urls:
            if "/gate/" in url:
                bare.get(url)
                continue
            with _answering(answers, httpx.HTTPError, httpx.InvalidURL):
                answer = http.request(**_request(job, url, _stream()))
                answers.append(str(answer.status_code))
    return _judged(job, answers)


@activity.defn
async def look(job: Job) -> list[str]:
    """What `current_token` and `current_api_url` give, or what they raise."""
    return look_sync(job)


@activity.defn
def look_sync(job: Job) -> list[str]:
    """`look` for threads and process pools."""
    seen: list[str] = []
    with _answering(seen):
        seen.append(shown(current_token(job.name).reveal()))
    with _answering(seen):
        seen.append(str(current_api_url()))
    return seen


def _request(job: Job, url: str, stream: Any) -> dict[str, Any]:
    every = {"url": url, "headers": job.headers, "extensions": job.extensions}
    if job.body is None:
        return {"method": "GET", **every}
    sent: dict[str, Any] = {
        "bytes": {"content": BODY},
        "json": {"json": {"n": 1}},
        "stream": {"content": stream},
    }[job.body]
    return {"method": "POST", **every, **sent}


def _stream() -> Iterator[bytes]:
    yield BODY


async def _stream_async() -> AsyncIterator[bytes]:
    yield BODY


def _judged(job: Job, answers: list[str]) -> list[str]:
    if activity.info().attempt < job.succeed_at:
        raise ApplicationError("this attempt was to fail")
    if job.insist and set(answers) != {"200"}:
        raise ApplicationError("not every answer is 200")
    return answers


async def run_job(job: Job) -> list[str]:
    retries = RetryPolicy(
        initial_interval=timedelta(milliseconds=20), maximum_attempts=job.attempts
    )
    options: dict[str, Any] = {
        "result_type": list[str],
        "start_to_close_timeout": SOON,
        "retry_policy": retries,
    }
    if job.local:
        # So short that every retry waits for a timer, outside a workflow task.
        options["local_retry_threshold"] = timedelta(milliseconds=1)
        return await workflow.execute_local_activity(job.activity, job, **options)
    return await workflow.execute_activity(job.activity, job, task_queue=job.queue, **options)


@workflow.defn
class Caller(StatefulWorkflow):
    """Runs the jobs it is told to."""

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.update
    async def do(self, job: Job) -> list[str]:
        return await run_job(job)


@workflow.defn
class PlainCaller:
    """Runs one job, and takes no part in a tree."""

    @workflow.run
    async def run(self, job: Job) -> list[str]:
        return await run_job(job)


@workflow.defn
class Distant(StatefulWorkflow):
    """Its children run on task queues of their own."""

    @workflow.run
    async def run(self, queues: dict[str, str]) -> None:
        for suffix, queue in queues.items():
            await workflow.start_child_workflow(
                "Caller", id=f"{workflow.info().workflow_id}-{suffix}", task_queue=queue
            )
        await workflow.wait_condition(lambda: False)


@activity.defn
async def fail_holding(text: str) -> None:
    """Fails with its token at hand, and says of it whatever it can without `reveal`."""
    token = current_token()
    raise ApplicationError(f"{text}: {token} {token!r} {[token]}", str(token), f"{token}")


@activity.defn
async def hand_over() -> ApiToken:
    """Tries to return its token to the workflow."""
    return current_token()


@activity.defn
async def seal_from_vault() -> SealedToken:
    """An issuer's activity: what it seals stands in the environment of its worker."""
    return seal_token(os.environ["TEST_VAULT"])


@workflow.defn
class Clumsy(StatefulWorkflow):
    """Does what makes things appear in histories and logs: fails, logs, continues as new."""

    def __init__(self) -> None:
        self.carry_on = False
        self.failure = ""

    @workflow.run
    async def run(self, text: str, child: bool) -> None:
        if child:
            await workflow.start_child_workflow(
                "Caller",
                id=f"{workflow.info().workflow_id}-child",
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            )
        await workflow.wait_condition(lambda: self.carry_on or bool(self.failure))
        if self.failure:
            raise ApplicationError(self.failure, repr(vars(self)), self.api_token_status)
        workflow.continue_as_new(args=[text, False])

    @workflow.update
    async def fail_activities(self, text: str) -> list[str]:
        said: list[str] = []
        for run, args in ((fail_holding, [text]), (hand_over, [])):
            for start in (workflow.execute_activity, workflow.execute_local_activity):
                try:
                    await start(
                        run,
                        args=args,
                        start_to_close_timeout=SOON,
                        retry_policy=RetryPolicy(
                            maximum_attempts=2, initial_interval=timedelta(milliseconds=20)
                        ),
                    )
                except FailureError as error:
                    workflow.logger.exception("An activity failed")
                    said.append(f"{error} {error.cause}")
        return said

    @workflow.update
    async def take_from_vault(self) -> str:
        sealed = await workflow.execute_activity(seal_from_vault, start_to_close_timeout=SOON)
        return (await self.set_api_token(sealed)).state

    @workflow.signal
    def go_on(self) -> None:
        self.carry_on = True

    @workflow.signal
    def break_down(self, text: str) -> None:
        self.failure = text


USE_WORKFLOWS: list[type] = [Caller, Clumsy, Distant, PlainCaller]
ASYNC_ACTIVITIES: list[Any] = [call, fail_holding, hand_over, look, seal_from_vault]
SYNC_ACTIVITIES: list[Any] = [call_sync, look_sync]
