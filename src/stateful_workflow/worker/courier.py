"""The activities a node runs: forward to its children, ask, renew its trust, recover its state.

Their names stand in histories, so they never change. `statefulForward` runs first as a
local activity for about a second and then, for what is left, as an ordinary one
(docs/decisions/09-telling.md).
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from typing import Any, Final, cast

from temporalio import activity
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
    WorkflowUpdateStage,
)
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from ..errors import AnswerMalformed, KeyringError
from ..node.contract import (
    ASK,
    FORWARD,
    MESSAGE,
    NO_ANSWER,
    RECOVER,
    STATE_QUERY,
    STATUS_QUERY,
    TRUST,
    AskRequest,
    AskResult,
    ForwardRequest,
    ForwardResult,
    RecoverResult,
    TrustResult,
)
from ..node.describe import known_children
from ..node.ledger import TOO_NEW
from ..record.event import AuditEvent, of_message
from ..record.recorder import Recorder
from ..sealed.keyring import Keyring
from ..sealed.message import parse
from ..use.asking import has_no_query, never_ran, read_answer
from .pace import SignalPace

MAX_CONCURRENT_SIGNALS: Final = 100
"""Signals in flight from one worker process, whatever the number of nodes it runs."""

_RPC_TIMEOUT: Final = timedelta(seconds=5)
_ASK_SECONDS: Final = 12.0
_LOCAL_ASK_SECONDS: Final = 4.0
_RESULT_BYTES: Final = 1_000_000
_ANSWER_BYTES: Final = 1_800_000
_REASON_CHARACTERS: Final = 300


class NodeActivities:
    """The activities, bound to one worker.

    Args:
        client: the worker's client; deliveries go through it.
        keyring: gives the worker's keyring as it is now, or None where it has none.
        recorder: gives what deliveries are put on record with.
        pace: gives what says when a signal may be sent.
        plain_types: workflow types this worker runs that take no part in a tree.
        ordinary: whether this worker runs ordinary activities beside local ones.
        cached: whether it keeps workflows between tasks. Where it keeps none, a workflow that
            is evicted has its local activity cancelled and waits for the task's timeout, so
            that the local attempt leaves everything to the ordinary one.
    """

    def __init__(
        self,
        client: Client,
        keyring: Callable[[], Keyring | None],
        recorder: Callable[[], Recorder],
        pace: Callable[[], SignalPace],
        plain_types: Collection[str],
        *,
        ordinary: bool,
        cached: bool = True,
    ) -> None:
        self._client = client
        self._keyring = keyring
        self._recorder = recorder
        self._pace = pace
        self._plain_types = frozenset(plain_types)
        self._ordinary = ordinary
        self._cached = cached
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_SIGNALS)

    def all(self) -> list[Callable[..., Any]]:
        """What to register with the worker."""
        return [self.forward, self.ask, self.trust, self.recover]

    @activity.defn(name=FORWARD)
    async def forward(self, request: ForwardRequest) -> ForwardResult:
        """Signal each target its messages, within the time given."""
        result = ForwardResult(ordinary=self._ordinary)
        if self._leaves_to_ordinary():
            result.left.extend([target[0] for target in request.targets] + request.ended)
            return result
        deadline = time.monotonic() + request.seconds
        delivery = _Delivery(request, self._recorder())
        jobs = [self._tell(delivery, target, deadline, result) for target in request.targets]
        await asyncio.gather(*jobs)
        jobs = [self._ask_closed(id, deadline, result, delivery.room) for id in request.ended]
        await asyncio.gather(*jobs)
        return result

    async def _tell(
        self,
        delivery: _Delivery,
        target: tuple[str, str, list[int]],
        deadline: float,
        result: ForwardResult,
    ) -> None:
        child_id, child_type, indexes = target
        untold = list(indexes)
        if child_type in self._plain_types:
            result.plain.append(child_id)
            return
        try:
            async with self._slots:
                handle = self._client.get_workflow_handle(child_id)
                for sent, index in enumerate(indexes):
                    result.sent[child_id] = sent
                    at = self._pace().take(time.monotonic(), deadline)
                    if at is None:
                        result.left.append(child_id)
                        return
                    await asyncio.sleep(at - time.monotonic())
                    if not await _deliver(handle, delivery.messages[index].text):
                        result.by_update.append(child_id)
                    delivery.record(target, [untold.pop(0)])
                del result.sent[child_id]
        except WorkflowUpdateRPCTimeoutOrCancelledError as error:
            result.failed[child_id] = "its run takes no more signals, and no update was answered"
            delivery.record(target, untold, type(error).__name__)
        except RPCError as error:
            delivery.record(target, untold, error.status.name)
            if error.status != RPCStatusCode.NOT_FOUND:
                result.failed[child_id] = f"{error.status.name}: {error.message}"
                return
            await self._ask_closed(child_id, deadline, result, delivery.room)
        except Exception as error:  # noqa: BLE001 - what a codec raises; the others are to be told
            result.failed[child_id] = type(error).__name__
            delivery.record(target, untold, type(error).__name__)

    async def _ask_closed(
        self, child_id: str, deadline: float, result: ForwardResult, room: _Room
    ) -> None:
        """Ask a closed child for the children it last knew (a closed workflow answers queries)."""
        async with self._slots:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                result.left.append(child_id)
                return
            # A local activity holds the workflow task; an ordinary one can wait for an answer.
            hurried = self._ordinary and activity.info().is_local
            timeout = min(_RPC_TIMEOUT, timedelta(seconds=seconds)) if hurried else _RPC_TIMEOUT
            try:
                children = await self._children(child_id, timeout)
                if room.take(children):
                    result.closed[child_id] = children
                else:
                    result.left.append(child_id)
            except _NoAnswer as error:
                if hurried and error.late:
                    result.left.append(child_id)
                else:
                    result.failed[child_id] = f"closed; {error}"

    @activity.defn(name=ASK)
    async def ask(self, request: AskRequest) -> AskResult:
        """Ask workflows for their children, and the server for parents; within 12 s, locally 4.

        Raises:
            ApplicationError: nothing was answered; it is to be asked again.
        """
        result, room, failed = AskResult(), _Room(), list[str]()
        if self._leaves_to_ordinary():
            raise ApplicationError("left to an ordinary activity", type=NO_ANSWER)
        seconds = _LOCAL_ASK_SECONDS if activity.info().is_local else _ASK_SECONDS
        server = _Server(self._client, time.monotonic() + seconds)

        async def note_closed(child_id: str) -> None:
            described = await server.describe(child_id)
            if described is None or described.parent_id != activity.info().workflow_id:
                result.closed[child_id] = []
            elif described.status == WorkflowExecutionStatus.RUNNING:
                result.open.append(child_id)
            else:
                children = await self._children(child_id, server.time_left())
                if room.take(children):
                    result.closed[child_id] = children

        async def note_running(child_id: str) -> None:
            result.running[child_id] = await server.first_run_of_parent(child_id)

        async def one(child_id: str, note: Callable[[str], Awaitable[None]]) -> None:
            try:
                async with self._slots:
                    await note(child_id)
            except _NoAnswer as error:
                failed.append(f"{child_id}: {error}")

        jobs = [one(child_id, note_closed) for child_id in request.closed]
        jobs += [one(child_id, note_running) for child_id in request.running]
        random.shuffle(jobs)  # those that are silent use up the time, and are not always first
        await asyncio.gather(*jobs)
        if not result.any:
            raise ApplicationError("; ".join(failed[:10]), type=NO_ANSWER)
        return result

    async def _children(self, workflow_id: str, timeout: timedelta) -> list[dict[str, Any]]:
        """The children a workflow last knew; none where it takes no part.

        Raises:
            _NoAnswer: it cannot be asked.
        """
        try:
            raw: object = await self._client.get_workflow_handle(workflow_id).query(
                STATUS_QUERY, result_type=RawValue, rpc_timeout=timeout
            )
            return read_answer(self._client, workflow_id, STATUS_QUERY, raw, known_children)
        except AnswerMalformed as error:
            raise _NoAnswer(str(error)) from None
        except WorkflowQueryFailedError as error:
            if has_no_query(error):
                return []
            raise _NoAnswer(error.message) from None
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND or never_ran(error):
                return []
            late = error.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)
            raise _NoAnswer(f"{error.status.name}: {error.message}", late=late) from None
        except Exception as error:  # noqa: BLE001 - what a codec raises
            raise _NoAnswer(type(error).__name__) from None

    @activity.defn(name=TRUST)
    async def trust(self) -> TrustResult:
        """The issuers of this worker's keyring.

        Raises:
            KeyringError: where it has none; retryable, another worker may be asked.
        """
        keyring = self._keyring()
        if keyring is None or not keyring.trusted():
            raise KeyringError(
                "this worker has no keyring with issuers, so nodes cannot learn new ones from it; "
                "give it the public keyring"
            )
        trusted = {kid: issuer.to_json() for kid, issuer in keyring.trusted().items()}
        return TrustResult(trusted, list(keyring.revoked()))

    @activity.defn(name=RECOVER)
    async def recover(self, workflow_id: str, run_id: str) -> RecoverResult:
        """Ask a closed run for the state it last had."""
        if self._leaves_to_ordinary():
            return RecoverResult(asked=False, again=True)
        handle = self._client.get_workflow_handle(workflow_id, run_id=run_id)
        try:
            state: object = await handle.query(STATE_QUERY, rpc_timeout=_RPC_TIMEOUT)
        except WorkflowQueryFailedError as error:
            # A run that no longer replays may have revoked what an earlier header holds.
            too_new = TOO_NEW in error.message
            return RecoverResult(asked=has_no_query(error), too_new=too_new)
        except RPCError as error:
            if never_ran(error):
                return RecoverResult(asked=True)
            if error.status == RPCStatusCode.NOT_FOUND:  # past retention
                return RecoverResult(asked=False)
            return RecoverResult(asked=False, again=self._ordinary)
        members = cast("dict[str, Any]", state) if isinstance(state, dict) else None
        return RecoverResult(asked=True, state=members)

    def _leaves_to_ordinary(self) -> bool:
        return self._ordinary and not self._cached and activity.info().is_local


class _NoAnswer(Exception):
    """A workflow cannot be asked, and why; `late` where the answer did not come in time."""

    def __init__(self, why: str, *, late: bool = False) -> None:
        super().__init__(why[:_REASON_CHARACTERS])
        self.late = late


class _Room:
    """How much an activity's result may still hold: the server takes 2 MB."""

    def __init__(self) -> None:
        self._bytes = 0

    def take(self, children: list[dict[str, Any]]) -> bool:
        """Whether these find room, beside others or alone.

        Raises:
            _NoAnswer: they never will.
        """
        size = len(json.dumps(children))
        if size > _ANSWER_BYTES:
            raise _NoAnswer(f"its answer has {size:,} bytes, more than {_ANSWER_BYTES:,}")
        fits = self._bytes == 0 or self._bytes + size <= _RESULT_BYTES
        self._bytes += size if fits else 0
        return fits


class _Server:
    """What the server says of workflows, until a time.

    Args:
        deadline: in seconds of `time.monotonic`.
    """

    def __init__(self, client: Client, deadline: float) -> None:
        self._client = client
        self._deadline = deadline
        self._first_runs: dict[str | None, str | None] = {}  # by run: most children share one

    def time_left(self) -> timedelta:
        """For one call.

        Raises:
            _NoAnswer: there is none.
        """
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise _NoAnswer("not asked in time")
        return min(_RPC_TIMEOUT, timedelta(seconds=seconds))

    async def first_run_of_parent(self, child_id: str) -> str | None:
        """The first run of the parent that started a workflow, where that is this workflow.

        The workflow itself is not asked, since it may say anything.

        Raises:
            _NoAnswer: the server does not say.
        """
        own = activity.info().workflow_id
        described = await self.describe(child_id)
        if own is None or described is None or described.parent_id != own:
            return None
        run = described.parent_run_id
        if run not in self._first_runs:
            parent = await self.describe(own, run)
            self._first_runs[run] = None if parent is None else parent.raw_info.first_run_id
        return self._first_runs[run]

    async def describe(
        self, workflow_id: str, run_id: str | None = None
    ) -> WorkflowExecutionDescription | None:
        """A workflow, or None where there is none.

        Raises:
            _NoAnswer: the server does not say.
        """
        handle = self._client.get_workflow_handle(workflow_id, run_id=run_id)
        timeout = self.time_left()
        try:
            return await handle.describe(rpc_timeout=timeout)
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return None
            raise _NoAnswer(f"{error.status.name}: {error.message}") from None
        except Exception as error:  # noqa: BLE001 - an interceptor's, or a status not known here
            raise _NoAnswer(type(error).__name__) from None


class _Delivery:
    """One run of `NodeActivities.forward`, with what it puts on record."""

    def __init__(self, request: ForwardRequest, recorder: Recorder) -> None:
        self.messages = [parse(text) for text in request.messages]
        self.room = _Room()
        self._recorder = recorder

    def record(
        self, target: tuple[str, str, list[int]], indexes: list[int], why: str | None = None
    ) -> None:
        """A child was told messages, or could not be: the name of what went wrong says why."""
        info = activity.info()
        child_id, child_type, _ = target
        for index in indexes:
            self._recorder.record(
                AuditEvent(
                    time=time.time(),
                    action="forward",
                    outcome="success" if why is None else "failure",
                    reason=why,
                    identity=self._recorder.identity,
                    namespace=info.namespace,
                    workflow_id=info.workflow_id,
                    run_id=info.workflow_run_id,
                    workflow_type=info.workflow_type,
                    child_id=child_id,
                    child_type=child_type,
                    **of_message(self.messages[index]),
                )
            )


async def _deliver(handle: WorkflowHandle[Any, Any], message: str) -> bool:
    """Signal a message; where the run takes no more signals, send it as an update: False then.

    What the update is turned down for, a signal would be rejected for as well.
    """
    try:
        await handle.signal(MESSAGE, message, rpc_timeout=_RPC_TIMEOUT)
    except RPCError as error:
        if (
            error.status != RPCStatusCode.INVALID_ARGUMENT
            or "limit for signal" not in error.message
        ):
            raise
        await handle.start_update(
            MESSAGE,
            message,
            wait_for_stage=WorkflowUpdateStage.ACCEPTED,
            rpc_timeout=_RPC_TIMEOUT,
        )
        return False
    return True
