"""Ask one workflow, and send it a message: each failure says what it means and what to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Final

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import QueryRejectCondition, RawValue
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from .. import errors
from ..errors import (
    AddressRefused,
    AnswerMalformed,
    MessageRefused,
    NameNotInUse,
    NotStateful,
    NoWorkerAnswers,
    OperationFailed,
    OutcomeUnknown,
    StatefulError,
    TokenConflict,
    TokenKnown,
    TokenMalformed,
    TokenStale,
    TooManyWaiting,
    WorkflowAsleep,
    WorkflowNotFound,
)
from ..node import limits
from ..node.answers import NodeStatus, TokenAnswer, node_status
from ..node.contract import MESSAGE, RENEW, STATUS_QUERY, URL, source_queue_of
from ..node.members import read
from ..node.renewal import SourceStatus
from ..node.status import TokenStatus
from ..sealed.issuing import Said
from ..sealed.keys import Issuer
from ..sealed.message import Message, parse
from ..text.times import utc
from ..use.asking import ask_token, is_plain, read_answer
from ..use.server import Execution, describe, never_ran
from .asleep import said_of, what_is_left

_CONFIRM_EVERY_SECONDS: Final = 0.2
_POLLERS: Final = timedelta(seconds=2)

_NO_ANSWER: Final = "no answer: no worker runs, or as many updates are open as the server lets be"
_FINAL: Final = (
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.PERMISSION_DENIED,
    RPCStatusCode.UNAUTHENTICATED,
)
"""What the server says of an update where a signal would not get through either."""

_NEVER_RAN: Final = NodeStatus("", "", "", None, (), (), (), (), (), False, False)


@dataclass(frozen=True)
class Answer:
    """What a workflow answered to `apiTokenStatus`, and whether it has ended, and failed so."""

    node: NodeStatus
    closed: bool
    failed: bool = False


async def ask(client: Client, workflow_id: str, timeout: timedelta | None = None) -> Answer:
    """Ask a workflow for its status, each of two calls within the timeout (None: 10 s).

    Raises:
        WorkflowNotFound, NotStateful, NoWorkerAnswers, OperationFailed: it cannot be asked.
        WorkflowAsleep: it answers nothing now, and keeps signals.
        AnswerMalformed: it does not answer with a status.
    """
    wait = limits.LIMITS.client_question if timeout is None else timeout
    query = partial(
        client.get_workflow_handle(workflow_id).query,
        STATUS_QUERY,
        result_type=RawValue,
        rpc_timeout=wait,
    )
    closed = failed = False
    try:
        try:
            answer: object = await query(reject_condition=QueryRejectCondition.NOT_OPEN)
        except (WorkflowQueryRejectedError, ValueError) as error:
            # For a status that the SDK does not know it raises a ValueError: that is not closed.
            closed = isinstance(error, WorkflowQueryRejectedError)
            failed = getattr(error, "status", None) is WorkflowExecutionStatus.FAILED
            answer = await query(reject_condition=QueryRejectCondition.NONE)
        node = read_answer(client, workflow_id, STATUS_QUERY, answer, node_status)
    except Exception as error:  # noqa: BLE001 - a codec may raise anything
        meant = await what_it_means(client, workflow_id, error, wait)
        if closed and isinstance(meant, WorkflowNotFound):
            return Answer(_NEVER_RAN, closed=True)
        raise meant from None
    return Answer(node, closed, failed)


async def find_place(
    client: Client, workflow_id: str, name: str, trusted: Mapping[str, Issuer]
) -> tuple[Said, WorkflowAsleep | None]:
    """What is said of an open workflow's place in a tree, and of what stands there.

    Of one that is asleep also how: then the run before it says so, and messages that it was sent
    meanwhile and that one of these issuers signed.

    Raises:
        As `ask`; WorkflowNotFound also where the workflow is closed.
    """
    try:
        return await ask_place(client, workflow_id, name), None
    except WorkflowAsleep as asleep:
        left = await what_is_left(client, workflow_id, trusted=trusted)
        return left.said(name), asleep


async def ask_place(client: Client, workflow_id: str, name: str) -> Said:
    """What an open workflow says of its place in a tree, and of what stands there.

    Raises:
        As `ask`; WorkflowNotFound also where the workflow is closed.
    """
    answer = await ask(client, workflow_id)
    if answer.closed:
        raise WorkflowNotFound(f"there is no open workflow {workflow_id}: it is closed")
    return said_of(answer.node, workflow_id, name)


def check_in_use(name: str, names: Collection[str], workflow_id: str, hint: str = "") -> None:
    """Refuse a name that nobody knows where others are in use: it is mistyped.

    Raises:
        NameNotInUse: it is.
    """
    if names and name not in names:
        raise NameNotInUse(
            f"no {name} is known at workflow {workflow_id}; in use there: "
            f"{', '.join(sorted(names))}{hint}"
        )


async def token_at(
    client: Client, workflow_id: str, name: str, trusted: Mapping[str, Issuer] | None
) -> TokenAnswer | None:
    """What a workflow holds of a credential; None where nothing is known of it.

    Of one that is asleep it is what it was sent last, in the state "told", or what the run before
    it held; `trusted` as `what_is_left` has it.

    Raises:
        As `ask`.
    """
    try:
        return await _ask_token(client, workflow_id, name)
    except WorkflowAsleep as asleep:
        left = await what_is_left(client, workflow_id, trusted=trusted)
        told = left.told(name)
        if told is not None:
            return TokenAnswer(told_status(told, asleep), None)
        if left.run_before is None:
            return None
        answer = await _ask_token(client, workflow_id, name, left.run_before)
        if answer is None:
            return None
        return replace(answer, status=replace(answer.status, asleep_until=asleep.until))


async def _ask_token(
    client: Client, workflow_id: str, name: str, run_id: str | None = None
) -> TokenAnswer | None:
    try:
        wait = limits.LIMITS.client_question
        return await ask_token(client, workflow_id, name, wait, run_id)
    except Exception as error:  # noqa: BLE001 - a codec may raise anything
        raise await what_it_means(client, workflow_id, error, run_id=run_id) from None


def told_status(message: Message, asleep: WorkflowAsleep) -> TokenStatus:
    """What is known of a message that a workflow takes when it goes on."""
    status = TokenStatus.of_message(message)
    return replace(status, state="told", asleep_until=asleep.until)


async def signal(client: Client, workflow_id: str, message: Message) -> None:
    """Send a message by signal; to one that is asleep, which an update would wake before its time.

    Raises:
        WorkflowNotFound, OperationFailed: it was not sent.
    """
    handle, wait = client.get_workflow_handle(workflow_id), limits.LIMITS.client_question
    try:
        await handle.signal(MESSAGE, message.text, rpc_timeout=wait)
    except Exception as error:  # noqa: BLE001 - a codec may raise anything
        raise await what_it_means(client, workflow_id, error) from None


async def send(client: Client, workflow_id: str, message: Message) -> TokenStatus:
    """Send a message by update; by signal too where no update finds room, or none is answered.

    Raises:
        MessageRefused: the workflow did not take it; the subclass says why.
        OutcomeUnknown: it was signalled, and did not stand there in time.
        WorkflowNotFound, NotStateful, OperationFailed: there is no such node.
    """
    handle = client.get_workflow_handle(workflow_id)
    update: asyncio.Task[object] = asyncio.create_task(
        handle.execute_update(MESSAGE, message.text, result_type=RawValue)
    )
    why = _NO_ANSWER
    try:
        alone = limits.LIMITS.update_alone_seconds
        if message.kind == "grant":  # it may be another by the time that anybody looks
            alone = limits.LIMITS.confirm_seconds
        await asyncio.wait([update], timeout=alone)
        try:
            return await _answer_of(client, workflow_id, message, update)
        except _NoRoom as error:
            why = str(error)
        if message.kind == "grant":
            raise OutcomeUnknown(
                f"workflow {workflow_id} was given a grant and did not answer ({why}); look at its "
                "status, and authorize again"
            )
        await signal(client, workflow_id, message)
        stands = _stands(client, workflow_id, message, update)
        return await asyncio.wait_for(stands, limits.LIMITS.confirm_seconds)
    except asyncio.TimeoutError:
        raise OutcomeUnknown(
            f"workflow {workflow_id} took no update ({why}); the message was signalled as "
            "well and is applied when a worker runs. Ask `status` later, or repeat the call"
        ) from None
    finally:
        update.cancel()


async def send_renewal(
    client: Client, workflow_id: str, name: str, *, retire: bool
) -> SourceStatus:
    """Have the source of a credential mint a new token now.

    Raises:
        NotRenewable: nothing mints it there, or it needs authorization.
        OutcomeUnknown: no worker answered in time; it may be done later.
        WorkflowAsleep, WorkflowNotFound, NotStateful, OperationFailed: there is no such node.
    """
    argument = {"name": name, "retire": retire}
    answer = await _updated(client, workflow_id, RENEW, argument, f"asked for a new {name}")
    return read_answer(client, workflow_id, RENEW, answer, partial(read, SourceStatus))


def why_not_renewed(workflow_id: str, status: SourceStatus, seconds: float) -> str:
    """What holds a renewal up."""
    name, where = status.name, f"workflow {workflow_id}"
    why = status.amiss or "it is under way"
    if status.needs_authorization:
        return f"{where}: {name} needs authorization: {why}; run `{status.cure(workflow_id)}`"
    if status.asked:
        return f"{where} had no new {name} from source {status.source} within {seconds:g} s: {why}"
    return f"{where} has a new {name}, and the old one was kept after {seconds:g} s: {why}"


async def is_polled(client: Client, queue: str) -> bool:
    """Whether a worker polls a task queue for activities; also where the server does not say."""
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
    )
    try:
        described = await client.workflow_service.describe_task_queue(request, timeout=_POLLERS)
    except RPCError:
        return True
    return len(described.pollers) > 0


async def source_at(client: Client, workflow_id: str, name: str) -> SourceStatus | None:
    """What is known of the source that mints a credential at a workflow; None where none does.

    Raises:
        As `ask`.
    """
    status = (await ask(client, workflow_id)).node.source(name)
    if status is not None and status.waits:
        is_pending = not await is_polled(client, source_queue_of(status.source))
        return replace(status, pending=is_pending or None)
    return status


async def send_url(client: Client, workflow_id: str, url: str | None) -> None:
    """Give a workflow an API address of its own, or with None its token's again, by update.

    Raises:
        AddressRefused: the workflow did not take it.
        OutcomeUnknown: no worker answered in time; it may be applied later.
        WorkflowAsleep: it is asleep, and an update would wake it; nothing was sent.
        WorkflowNotFound, NotStateful, OperationFailed: there is no such node.
    """
    try:
        await _updated(client, workflow_id, URL, url, "given an API address")
    except TokenMalformed as error:
        raise AddressRefused(str(error)) from None


async def _updated(
    client: Client, workflow_id: str, update: str, argument: object, what: str
) -> RawValue:
    """The answer to an update that nothing is signalled in the place of; `what` it was, if none."""
    await ask(client, workflow_id)
    handle = client.get_workflow_handle(workflow_id)
    answer = handle.execute_update(update, argument, result_type=RawValue)
    try:
        return await asyncio.wait_for(answer, limits.LIMITS.confirm_seconds)
    except WorkflowUpdateFailedError as error:
        raise await _refusal(client, workflow_id, error) from None
    except (asyncio.TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError):
        raise OutcomeUnknown(
            f"workflow {workflow_id} was {what} and did not answer ({_NO_ANSWER}); repeat the call"
        ) from None
    except RPCError as error:
        raise await what_it_means(client, workflow_id, error) from None


async def _stands(
    client: Client, workflow_id: str, message: Message, update: asyncio.Task[object]
) -> TokenStatus:
    """Wait until a message that was signalled stands, or its update is answered after all."""
    while True:
        # One that closed may have applied it before.
        with suppress(_NoRoom, WorkflowNotFound):
            return await _answer_of(client, workflow_id, message, update)
        own = None
        # Whatever keeps it from being read now: it was signalled, and may be applied.
        with suppress(StatefulError):
            said = await ask_place(client, workflow_id, message.claims.name)
            own = None if said.own is None else parse(said.own)
        if own is not None and own.hash == message.hash:
            return TokenStatus.of_message(message).at(time.time())
        if own is not None and own.order > message.order:
            raise (TokenStale if own.issuer == message.issuer else TokenConflict)(
                f"workflow {workflow_id}: a newer {own.claims.name} stands there; read the status "
                "and decide which one stands"
            )
        await asyncio.sleep(_CONFIRM_EVERY_SECONDS)


class _NoRoom(Exception):
    """Nothing is known of an update, and a signal may get through."""


async def _answer_of(
    client: Client, workflow_id: str, message: Message, update: asyncio.Task[object]
) -> TokenStatus:
    """What an update came to; raises `_NoRoom` where it says nothing of the message, or not yet."""
    if not update.done():
        # The SDK repeats an update that finds no room, and does not say so.
        raise _NoRoom(_NO_ANSWER)
    try:
        answer = await update
    except WorkflowUpdateFailedError as error:
        refusal = await _refusal(client, workflow_id, error)
        if isinstance(refusal, TokenKnown):
            return TokenStatus.of_message(message).at(time.time())
        if isinstance(refusal, TooManyWaiting):
            raise _NoRoom(str(refusal)) from None
        raise refusal from None
    except WorkflowUpdateRPCTimeoutOrCancelledError:
        raise _NoRoom(_NO_ANSWER) from None
    except RPCError as error:
        if error.status in _FINAL:
            raise await what_it_means(client, workflow_id, error) from None
        raise _NoRoom(error.message) from None
    except OperationFailed:
        raise
    except Exception as error:  # noqa: BLE001 - a codec may raise anything
        raise OutcomeUnknown(str(_undecodable(workflow_id, error))) from None
    return read_answer(client, workflow_id, MESSAGE, answer, partial(read, TokenStatus)).at(
        time.time()
    )


_NO_WORKER: Final = (
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.FAILED_PRECONDITION,
)


async def what_it_means(
    client: Client,
    workflow_id: str,
    error: Exception,
    timeout: timedelta | None = None,
    run_id: str | None = None,
) -> OperationFailed:
    """Say what a failed question, or a signal, means and what to do; the server is asked."""
    timeout = limits.LIMITS.client_question if timeout is None else timeout
    if isinstance(error, OperationFailed) and not isinstance(error, AnswerMalformed):
        return error
    if isinstance(error, WorkflowQueryFailedError | AnswerMalformed):
        if await is_plain(client, workflow_id, error, run_id=run_id, timeout=timeout):
            return NotStateful(
                f"workflow {workflow_id} is not a StatefulWorkflow (it has no such query)"
            )
        if isinstance(error, AnswerMalformed):
            return error
        return NoWorkerAnswers(f"workflow {workflow_id} could not answer: {error}")
    is_rpc = isinstance(error, RPCError)
    if is_rpc and error.status == RPCStatusCode.NOT_FOUND:
        if any(one.Is(NamespaceNotFoundFailure.DESCRIPTOR) for one in error.grpc_status.details):
            return OperationFailed(f"there is no namespace {client.namespace} on this server")
        return WorkflowNotFound(
            f"there is no open workflow {workflow_id} in namespace {client.namespace}: "
            f"{error.message}"
        )
    if is_rpc and error.status not in _NO_WORKER:
        return OperationFailed(
            f"workflow {workflow_id} could not be asked ({error.status.name}): {error.message}"
        )
    queue = "its task queue"
    # A status that the SDK does not know, such as paused, is a ValueError.
    with suppress(RPCError):
        run = await describe(client, workflow_id, run_id, timeout=timeout)
        queue = f"task queue {run.task_queue}" if run.task_queue else queue
        if run.is_paused or run.asleep_until is not None:
            return _asleep(run)
        if not run.is_open and await never_ran(client, workflow_id, run.run_id, timeout=timeout):
            return WorkflowNotFound(f"there is no open workflow {workflow_id}: it never ran")
    if is_rpc:
        return NoWorkerAnswers(
            f"no worker answered for workflow {workflow_id}: is one running on {queue}? "
            "(Just after one was killed this takes some seconds; try again.)"
        )
    return _undecodable(workflow_id, error)


def _asleep(run: Execution) -> WorkflowAsleep:
    if run.asleep_until is None:
        return WorkflowAsleep(
            f"workflow {run.id} is paused: it takes what it is sent when somebody unpauses it "
            f"(`temporal workflow unpause --workflow-id {run.id}`)",
            None,
        )
    return WorkflowAsleep(
        f"workflow {run.id} is asleep until {utc(run.asleep_until)}, between cron runs, in the "
        "backoff of a retry, or in its start delay: it takes what it is sent then",
        run.asleep_until,
    )


def _undecodable(workflow_id: str, error: Exception) -> AnswerMalformed:
    return AnswerMalformed(
        f"what is said to workflow {workflow_id}, or by it, cannot be encoded or decoded "
        f"({type(error).__name__}): has this client the data converter and the payload codec of "
        "the workflow's worker?"
    )


async def _refusal(
    client: Client, workflow_id: str, error: WorkflowUpdateFailedError
) -> StatefulError:
    """Say what a failed update means: the node names the class of the error."""
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.type is not None:
        known = getattr(errors, cause.type, None)
        if isinstance(known, type) and issubclass(known, MessageRefused):
            return known(cause.message)
    if await is_plain(client, workflow_id, timeout=limits.LIMITS.client_question):
        return NotStateful(f"workflow {workflow_id} is not a StatefulWorkflow")
    return OperationFailed(f"workflow {workflow_id} did not take the message: {cause}")
