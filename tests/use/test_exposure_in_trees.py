"""What an activity gives back never holds a token that it opened."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import textwrap
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload
from temporalio.client import (
    AsyncActivityHandle,
    AsyncActivityIDReference,
    Client,
    WorkflowHandle,
    WorkflowUpdateFailedError,
)
from temporalio.common import RetryPolicy
from temporalio.converter import (
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    PayloadCodec,
)
from temporalio.exceptions import ActivityError, ApplicationError, ApplicationErrorCategory
from temporalio.testing import ActivityEnvironment
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient, TokenExposed
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.use.given_back import LATER, MAX_LATER, Gate, Later

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import StatefulWorkflow, current_token, seal_token

URL = "https://api.example.com"
CANARY = "canary-9d41c07e"


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class OddError(Exception):
    """Its text is made when it is asked for."""

    def __str__(self) -> str:
        return f"odd: {self.args[0]}"


def with_cause(error: Exception) -> RuntimeError:
    outer = RuntimeError("the call failed")
    outer.__cause__ = error
    return outer


def in_context(error: Exception) -> RuntimeError:
    outer = RuntimeError("the call failed")
    outer.__context__ = error
    return outer


def detailed(token: str) -> ApplicationError:
    return ApplicationError(
        f"bad {token}",
        {"token": token},
        token.encode(),
        type="BadToken",
        non_retryable=True,
        next_retry_delay=timedelta(seconds=7),
        category=ApplicationErrorCategory.BENIGN,
    )


RETURNS: dict[str, Callable[[str], Any]] = {
    "as it is": lambda token: token,
    "within": lambda token: {"headers": [{"Authorization": f"Bearer {token}"}]},
    "in base64": lambda token: in_base64(f"user:{token}"),
    "in lines of hexadecimal": lambda token: "\n".join(textwrap.wrap(token.encode().hex(), 16)),
    "as bytes": str.encode,
}
FAILURES: dict[str, tuple[Callable[[str], Exception], str | None]] = {
    "plainly": (lambda token: RuntimeError(f"bad token {token}"), "RuntimeError"),
    "in base64 of JSON": (
        lambda token: RuntimeError(in_base64(json.dumps({"token": token}))),
        "RuntimeError",
    ),
    "in an argument": (lambda token: RuntimeError("bad", token.encode().hex(" ")), "RuntimeError"),
    "with details": (detailed, "BadToken"),
    "by its type": (lambda token: ApplicationError("bad", type=f"Bad {token}"), None),
    "by its cause": (lambda token: with_cause(LookupError(token)), "RuntimeError"),
    "in its context": (lambda token: in_context(LookupError(token)), "RuntimeError"),
    "oddly": (OddError, "OddError"),
}
WAYS: dict[str, Callable[[str], Any]] = {
    **RETURNS,
    **{f"fail {how}": error for how, (error, _) in FAILURES.items()},
    "heartbeat": lambda token: activity.heartbeat({"seen": token}),
    "its seal": seal_token,
    "no JSON": lambda token: object(),
    "nothing": lambda token: "harmless",
}
"""What an activity may do with its token; it raises what is an error."""

HANDED: asyncio.Queue[activity.Info] = asyncio.Queue()
"""Activities that are to be completed by a handle."""


@activity.defn
async def leak(how: str) -> Any:
    return leak_sync(how)


@activity.defn
def leak_sync(how: str) -> Any:
    given = WAYS[how](current_token().reveal())
    if isinstance(given, Exception):
        raise given
    return given


@activity.defn
async def hand_over(how: str) -> None:
    """It is completed by a handle; what it had to tell names the token, and is not told."""
    try:
        raise LookupError(current_token().reveal())
    except LookupError:
        HANDED.put_nowait(activity.info())
        activity.raise_complete_async()


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


@dataclass
class Place:
    """A workflow that holds the canary, and the activity that it runs."""

    root: WorkflowHandle[Any, Any]
    kind: str = "leak"
    local: bool = False

    async def outcome(self, how: str) -> Any:
        """What the workflow got: the result, or the error it was."""
        try:
            return await self.root.execute_update("try_to", args=[self.kind, how, self.local])
        except WorkflowUpdateFailedError as error:
            cause = error.cause
            return cause.cause if isinstance(cause, ActivityError) else cause

    async def history(self) -> bytes:
        history = await self.root.fetch_history()
        return b"".join(event.SerializeToString() for event in history.events)


async def start(client: Client, keyring: Keyring, queue: str) -> WorkflowHandle[Any, Any]:
    return await TokenClient(client, keyring).start_workflow(
        Leaker.run, id=queue, task_queue=queue, api_token=CANARY, api_url=URL
    )


@pytest.fixture(params=["async", "thread", "local"])
async def place(
    request: pytest.FixtureRequest, client: Client, keyring: Keyring, queue: str
) -> AsyncIterator[Place]:
    run: Any = leak_sync if request.param == "thread" else leak
    with ThreadPoolExecutor(1) as threads:
        async with Worker(
            client,
            task_queue=queue,
            workflows=[Leaker],
            activities=[run],
            activity_executor=threads,
            max_concurrent_activities=1,
        ):
            root = await start(client, keyring, queue)
            yield Place(root, run.__name__, request.param == "local")


SPELLED = (
    CANARY.encode(),
    in_base64(f"user:{CANARY}")[7:-4].encode(),
    in_base64(f'{{"token": "{CANARY}')[16:-4].encode(),
    CANARY.encode().hex()[:16].encode(),
    CANARY.encode().hex(" ").encode(),
)


def is_clean(data: bytes) -> bool:
    return not any(form in data for form in SPELLED)


async def test_a_result_that_holds_the_token_is_an_error_that_says_so(place: Place) -> None:
    for how in RETURNS:
        error = await place.outcome(how)

        assert isinstance(error, ApplicationError), how
        assert error.type == "TokenExposed"
        assert "about to return its apiToken" in error.message
    assert is_clean(await place.history())


async def test_a_heartbeat_that_holds_the_token_is_an_error_that_says_so(place: Place) -> None:
    error = await place.outcome("heartbeat")

    assert isinstance(error, ApplicationError)
    assert error.type == "TokenExposed"
    assert "about to heartbeat its apiToken" in error.message


async def test_a_failure_keeps_its_type_and_its_place_and_loses_what_it_says(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    for how, (_, kind) in FAILURES.items():
        error = await place.outcome(f"fail {how}")

        assert isinstance(error, ApplicationError), how
        assert error.type == kind
        assert f" at {__file__}:" in error.message
        assert "what it says is left out" in error.message
    assert is_clean(await place.history())
    assert "Completing activity as failed" in caplog.text
    assert CANARY not in caplog.text


async def test_a_failure_that_held_the_token_is_retried_as_it_would_have_been(
    place: Place,
) -> None:
    error = await place.outcome("fail with details")

    assert isinstance(error, ApplicationError)
    assert error.non_retryable
    assert error.next_retry_delay == timedelta(seconds=7)
    assert error.category is ApplicationErrorCategory.BENIGN


async def test_what_holds_no_token_is_given_back_as_it_is(place: Place) -> None:
    assert await place.outcome("nothing") == "harmless"
    assert str(await place.outcome("its seal")).count(".") == 2
    assert "not JSON serializable" in str(await place.outcome("no JSON"))


@pytest.mark.parametrize("by", ["task token", "id"])
async def test_what_completes_an_activity_by_a_handle_holds_no_token_either(
    client: Client, keyring: Keyring, queue: str, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    def handle_of(info: activity.Info) -> AsyncActivityHandle:
        if by == "task token":
            return client.get_async_activity_handle(task_token=info.task_token)
        return client.get_async_activity_handle(
            workflow_id=queue, run_id=None, activity_id=info.activity_id
        )

    async with Worker(client, task_queue=queue, workflows=[Leaker], activities=[hand_over]):
        place = Place(await start(client, keyring, queue), "hand_over")
        outcome = asyncio.create_task(place.outcome(""))
        info = await HANDED.get()
        handle = handle_of(info)
        for giving in (
            handle.complete(f"Bearer {CANARY}"),
            handle.heartbeat({"seen": CANARY}),
            handle.report_cancellation(CANARY),
            handle.fail(RuntimeError(), last_heartbeat_details=[CANARY]),
        ):
            with pytest.raises(TokenExposed):
                await giving
        await handle.heartbeat("harmless")
        await handle.complete("harmless")
        assert await outcome == "harmless"
        assert LATER.gate(info.task_token) is None

        outcome = asyncio.create_task(place.outcome(""))
        await handle_of(await HANDED.get()).fail(RuntimeError(f"bad token {CANARY[:12]}"))
        error = await outcome

        assert isinstance(error, ApplicationError)
        assert error.type == "RuntimeError"
        assert "what it says is left out" in error.message

        outcome = asyncio.create_task(place.outcome(""))
        cancelled = cast("Exception", asyncio.CancelledError(f"while {CANARY} was sent"))
        await handle_of(await HANDED.get()).fail(cancelled)
        assert CANARY[:12] not in str(await outcome)
        assert is_clean(await place.history())
    assert CANARY not in caplog.text


def test_of_activities_that_nobody_completes_here_the_last_are_kept_in_mind() -> None:
    later = Later()
    for number in range(MAX_LATER + 1):
        with suppress(BaseException), later.possible(gate_of(number)):
            activity.raise_complete_async()

    assert later.gate(b"0") is None
    assert later.gate(b"1") is not None
    assert later.gate(AsyncActivityIDReference("w", "another run", "1")) is None
    assert later.gate(AsyncActivityIDReference("w", "run", "1")) is later.gate(b"1")
    with later.possible(gate_of(1)):
        assert later.gate(b"1") is not None
    assert later.gate(b"1") is None


def gate_of(number: int) -> Gate:
    info = dataclasses.replace(
        ActivityEnvironment.default_info(),
        task_token=str(number).encode(),
        workflow_id="w",
        workflow_run_id="run",
        activity_id=str(number),
    )
    gate = Gate.__new__(Gate)
    gate.info = info
    return gate


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
        place = Place(await start(client, keyring, queue))
        codec.seen.clear()

        error = await place.outcome("fail plainly")
        assert isinstance(error, ApplicationError)
        assert "what it says is left out" in error.message
        for how in ("as it is", "fail with details"):
            await place.outcome(how)

        assert b"what it says is left out" in b"".join(codec.seen)
        assert is_clean(b"".join(codec.seen))
