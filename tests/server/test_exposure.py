"""What an activity gives back never holds a token that it opened."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import textwrap
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import RetryPolicy
from temporalio.converter import (
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    PayloadCodec,
)
from temporalio.exceptions import ActivityError, ApplicationError, ApplicationErrorCategory
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import StatefulWorkflow, current_token, seal_token

URL = "https://api.example.com"
CANARY = "canary-9d41c07e"


def _in_base64() -> str:
    return base64.b64encode(f"user:{current_token().reveal()}".encode()).decode()


def _fail_by_chain() -> None:
    try:
        raise LookupError(f"no user for {current_token().reveal()}")
    except LookupError as error:
        raise RuntimeError("the call failed") from error


def _fail_in_context() -> None:
    try:
        raise LookupError(f"no user for {current_token().reveal()}")
    except LookupError:
        raise RuntimeError("the call failed")  # noqa: B904 - the context is the point


class OddError(Exception):
    """Its text is made when it is asked for."""

    def __str__(self) -> str:
        return f"odd: {self.args[0]}"


def act(how: str) -> Any:
    """Give the token away in one of many ways."""
    token = current_token().reveal()
    if how == "return it":
        return token
    if how == "return it within":
        return {"headers": [{"Authorization": f"Bearer {token}"}]}
    if how == "return it in base64":
        return _in_base64()
    if how == "return it in lines of hexadecimal":
        return "\n".join(textwrap.wrap(token.encode().hex(), 16))
    if how == "return it as bytes":
        return token.encode()
    if how == "return its seal":
        return seal_token(token)
    if how == "heartbeat it":
        activity.heartbeat({"seen": token})
        return "went on"
    if how == "fail with it":
        raise RuntimeError(f"the API said: bad token {token} ({_in_base64()})")
    if how == "fail with it encoded":
        spelled = base64.b64encode(json.dumps({"token": token}).encode()).decode()
        raise RuntimeError(f"the API said: bad token {spelled}", token.encode().hex(" "))
    if how == "fail with details":
        raise ApplicationError(
            f"bad {token}",
            {"token": token},
            token.encode(),
            "harmless",
            type="BadToken",
            non_retryable=True,
            category=ApplicationErrorCategory.BENIGN,
        )
    if how == "fail by a chain":
        _fail_by_chain()
    if how == "fail in a context":
        _fail_in_context()
    if how == "fail oddly":
        raise OddError(token)
    if how == "return what is no JSON":
        return object()
    return "harmless"


@activity.defn
async def leak(how: str) -> Any:
    return act(how)


@activity.defn
def leak_sync(how: str) -> Any:
    return act(how)


@workflow.defn
class Leaker(StatefulWorkflow):
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.update
    async def try_to(self, kind: str, how: str, local: bool) -> Any:
        options: dict[str, Any] = {
            "start_to_close_timeout": timedelta(seconds=20),
            "retry_policy": RetryPolicy(maximum_attempts=1),
        }
        if local:
            return await workflow.execute_local_activity(kind, how, **options)
        return await workflow.execute_activity(
            kind, how, heartbeat_timeout=timedelta(seconds=20), **options
        )


@pytest.fixture(params=["async", "thread", "local"])
async def place(
    request: pytest.FixtureRequest, client: Client, tokens: TokenClient, queue: str
) -> AsyncIterator[tuple[WorkflowHandle[Any, Any], str, bool]]:
    """A workflow that holds the canary, the activity to run, and whether it is a local one."""
    options: dict[str, Any] = {}
    if request.param == "thread":
        options["activity_executor"] = ThreadPoolExecutor(1)
        options["max_concurrent_activities"] = 1
    kind = "leak_sync" if request.param == "thread" else "leak"
    run: Any = leak if kind == "leak" else leak_sync
    async with Worker(client, task_queue=queue, workflows=[Leaker], activities=[run], **options):
        root = await tokens.start_workflow(
            Leaker.run, id=queue, task_queue=queue, api_token=CANARY, api_url=URL
        )
        yield root, kind, request.param == "local"


async def outcome(place: tuple[WorkflowHandle[Any, Any], str, bool], how: str) -> Any:
    """What the workflow got: the result, or the error it was."""
    root, kind, local = place
    try:
        return await root.execute_update("try_to", args=[kind, how, local])
    except WorkflowUpdateFailedError as error:
        cause = error.cause
        return cause.cause if isinstance(cause, ActivityError) else cause


async def history_of(root: WorkflowHandle[Any, Any]) -> bytes:
    history = await root.fetch_history()
    return b"".join(event.SerializeToString() for event in history.events)


SPELLED = (
    CANARY.encode(),
    base64.b64encode(b"user:" + CANARY.encode())[7:-4],
    base64.b64encode(b'{"token": "' + CANARY.encode())[16:-4],
    CANARY.encode().hex()[:16].encode(),
    CANARY.encode().hex(" ").encode(),
)


def is_clean(data: bytes) -> bool:
    return not any(form in data for form in SPELLED)


@pytest.mark.parametrize(
    "how",
    [
        "return it",
        "return it within",
        "return it in base64",
        "return it in lines of hexadecimal",
        "return it as bytes",
    ],
)
async def test_a_result_that_holds_the_token_is_an_error_that_says_so(
    place: tuple[WorkflowHandle[Any, Any], str, bool], how: str
) -> None:
    error = await outcome(place, how)

    assert isinstance(error, ApplicationError)
    assert error.type == "TokenExposed"
    assert "about to return its apiToken" in error.message
    assert is_clean(await history_of(place[0]))


async def test_a_heartbeat_that_holds_the_token_is_an_error_that_says_so(
    place: tuple[WorkflowHandle[Any, Any], str, bool],
) -> None:
    error = await outcome(place, "heartbeat it")

    assert isinstance(error, ApplicationError)
    assert error.type == "TokenExposed"
    assert "about to heartbeat its apiToken" in error.message


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("fail with it", "RuntimeError"),
        ("fail with it encoded", "RuntimeError"),
        ("fail with details", "BadToken"),
        ("fail by a chain", "RuntimeError"),
        ("fail in a context", "RuntimeError"),
        ("fail oddly", "OddError"),
    ],
)
async def test_a_failure_keeps_its_kind_and_loses_the_token(
    place: tuple[WorkflowHandle[Any, Any], str, bool], how: str, kind: str
) -> None:
    error = await outcome(place, how)

    assert isinstance(error, ApplicationError)
    assert error.type == kind
    assert is_clean(await history_of(place[0]))
    if how == "fail with details":
        assert error.non_retryable
        assert error.category is ApplicationErrorCategory.BENIGN
        assert error.message == "bad <redacted: apiToken>"
        assert error.details[0] == {"token": "<redacted: apiToken>"}
        assert error.details[2] == "harmless"
    elif how == "fail with it encoded":
        assert error.message == "<redacted: apiToken>"  # of its words none is all of the latter
    elif how.startswith("fail with"):
        assert "the API said: bad token <redacted: apiToken>" in error.message
    elif how == "fail by a chain":
        assert "no user for <redacted: apiToken>" in str(error.cause)


async def test_what_holds_no_token_is_given_back_as_it_is(
    place: tuple[WorkflowHandle[Any, Any], str, bool],
) -> None:
    assert await outcome(place, "nothing") == "harmless"
    assert str(await outcome(place, "return its seal")).count(".") == 2
    assert "not JSON serializable" in str(await outcome(place, "return what is no JSON"))


class Recorder(PayloadCodec):
    """Encrypts nothing; keeps what it is given to encode."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        self.seen += [payload.SerializeToString() for payload in payloads]
        return list(payloads)

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return list(payloads)


async def test_a_codec_and_encoded_failure_attributes_are_given_nothing_to_hide(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    codec = Recorder()
    converter = dataclasses.replace(
        DataConverter.default,
        payload_codec=codec,
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
    )
    client = await Client.connect(
        engine.address,
        namespace=engine.namespace,
        data_converter=converter,
        plugins=[StatefulPlugin(keyring)],
    )
    async with Worker(client, task_queue=queue, workflows=[Leaker], activities=[leak]):
        root = await TokenClient(client, keyring).start_workflow(
            Leaker.run, id=queue, task_queue=queue, api_token=CANARY, api_url=URL
        )
        codec.seen.clear()

        error = await outcome((root, "leak", False), "fail with it")

        assert isinstance(error, ApplicationError)
        assert "bad token <redacted: apiToken>" in error.message
        assert codec.seen
        assert is_clean(b"".join(codec.seen))
        await asyncio.gather(
            *[outcome((root, "leak", False), how) for how in ("return it", "fail with details")]
        )
        assert is_clean(b"".join(codec.seen))


async def test_the_workers_own_log_has_no_token(
    place: tuple[WorkflowHandle[Any, Any], str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    for how in ("fail with it", "fail by a chain", "fail in a context", "return it"):
        await outcome(place, how)

    assert "Completing activity as failed" in caplog.text
    assert CANARY not in caplog.text
