"""Ask one workflow, and send it a message: each failure says what it means and what to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

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
    AnswerMalformed,
    MessageRefused,
    NotStateful,
    NoWorkerAnswers,
    OperationFailed,
    OutcomeUnknown,
    StatefulError,
    TokenConflict,
    TokenKnown,
    TokenStale,
    TooManyWaiting,
    WorkflowNotFound,
)
from ..node import limits
from ..node.answers import NodeStatus, TokenAnswer, node_status, token_answer, token_status
from ..node.contract import MESSAGE, STATUS_QUERY
from ..node.status import TokenStatus
from ..sealed.issuing import Said
from ..sealed.message import Message, parse
from ..use.asking import has_no_query, never_ran, read_answer

_CONFIRM_EVERY_SECONDS: Final = 0.2

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
        AnswerMalformed: it does not answer with a status.
    """
    query = partial(
        client.get_workflow_handle(workflow_id).query,
        STATUS_QUERY,
        result_type=RawValue,
        rpc_timeout=limits.LIMITS.client_question if timeout is None else timeout,
    )
    closed = failed = False
    try:
        try:
            answer: object = await query(reject_condition=QueryRejectCondition.NOT_OPEN)
        except (WorkflowQueryRejectedError, ValueError) as error:
            # A status that the SDK does not know, such as paused, is a ValueError, and not closed.
            closed = isinstance(error, WorkflowQueryRejectedError)
            failed = (
                isinstance(error, WorkflowQueryRejectedError)
                and error.status is WorkflowExecutionStatus.FAILED
            )
            answer = await query(reject_condition=QueryRejectCondition.NONE)
    except (WorkflowQueryFailedError, RPCError) as error:
        if closed and isinstance(error, RPCError) and never_ran(error):
            return Answer(_NEVER_RAN, closed=True)
        raise query_error(error, workflow_id) from None
    except Exception as error:  # noqa: BLE001 - what a codec raises
        raise AnswerMalformed(
            f"the answer of workflow {workflow_id} cannot be decoded: {type(error).__name__}"
        ) from None
    node = read_answer(client, workflow_id, STATUS_QUERY, answer, node_status)
    return Answer(node, closed, failed)


async def ask_place(client: Client, workflow_id: str, name: str) -> Said:
    """What an open workflow says of its place in a tree, and of what stands there.

    Raises:
        As `ask`; WorkflowNotFound also where the workflow is closed.
    """
    answer = await ask(client, workflow_id)
    if answer.closed:
        raise WorkflowNotFound(f"there is no open workflow {workflow_id}: it is closed")
    node = answer.node
    for held in node.tokens:
        if held.status.name == name and held.authority == workflow_id:
            return Said(node.root, node.tree, held.message, held.last)
    return Said(node.root, node.tree)


async def ask_token(client: Client, workflow_id: str, name: str) -> TokenAnswer | None:
    """Ask a workflow for what it holds of a credential; None where nothing is known of it.

    Raises:
        As `ask`.
    """
    handle = client.get_workflow_handle(workflow_id)
    try:
        answer: object = await handle.query(
            MESSAGE, name, result_type=RawValue, rpc_timeout=limits.LIMITS.client_question
        )
    except (WorkflowQueryFailedError, RPCError) as error:
        raise query_error(error, workflow_id) from None
    return read_answer(client, workflow_id, MESSAGE, answer, partial(token_answer, name=name))


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
        await asyncio.wait([update], timeout=limits.LIMITS.update_alone_seconds)
        try:
            return await _answer_of(client, workflow_id, message, update)
        except _NoRoom as error:
            why = str(error)
        try:
            await handle.signal(MESSAGE, message.text, rpc_timeout=limits.LIMITS.client_question)
        except RPCError as error:
            raise query_error(error, workflow_id) from None
        stands = _stands(client, workflow_id, message, update)
        return await asyncio.wait_for(stands, limits.LIMITS.confirm_seconds)
    except asyncio.TimeoutError:
        raise OutcomeUnknown(
            f"workflow {workflow_id} took no update ({why}); the message was signalled as "
            "well and is applied when a worker runs. Ask `status` later, or repeat the call"
        ) from None
    finally:
        update.cancel()


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
        refusal = _refusal(error, workflow_id)
        if isinstance(refusal, TokenKnown):
            return TokenStatus.of_message(message).at(time.time())
        if isinstance(refusal, TooManyWaiting):
            raise _NoRoom(str(refusal)) from None
        raise refusal from None
    except WorkflowUpdateRPCTimeoutOrCancelledError:
        raise _NoRoom(_NO_ANSWER) from None
    except RPCError as error:
        if error.status in _FINAL:
            raise query_error(error, workflow_id) from None
        raise _NoRoom(error.message) from None
    return read_answer(client, workflow_id, MESSAGE, answer, token_status).at(time.time())


_NO_WORKER: Final = (
    NoWorkerAnswers,
    "no worker answered for workflow {id}: is one running on its task queue? "
    "(Just after one was killed this takes some seconds; try again.)",
)
_MEANINGS: Final[Mapping[RPCStatusCode, tuple[type[OperationFailed], str]]] = {
    RPCStatusCode.NOT_FOUND: (WorkflowNotFound, "there is no open workflow {id}: {said}"),
    RPCStatusCode.DEADLINE_EXCEEDED: _NO_WORKER,
    RPCStatusCode.CANCELLED: _NO_WORKER,
    RPCStatusCode.FAILED_PRECONDITION: _NO_WORKER,
}


def query_error(error: WorkflowQueryFailedError | RPCError, workflow_id: str) -> OperationFailed:
    """Say what a failed query or signal means and what to do."""
    if isinstance(error, WorkflowQueryFailedError):
        if has_no_query(error):
            return NotStateful(
                f"workflow {workflow_id} is not a StatefulWorkflow (it has no such query)"
            )
        return NoWorkerAnswers(f"workflow {workflow_id} could not answer: {error}")
    status = RPCStatusCode.NOT_FOUND if never_ran(error) else error.status
    otherwise = OperationFailed, f"workflow {{id}} could not be asked ({status.name}): {{said}}"
    kind, text = _MEANINGS.get(status, otherwise)
    return kind(text.format(id=workflow_id, said=error.message))


def _refusal(error: WorkflowUpdateFailedError, workflow_id: str) -> StatefulError:
    """Say what a failed update means: the node names the class of the error."""
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.type is not None:
        known = getattr(errors, cause.type, None)
        if isinstance(known, type) and issubclass(known, MessageRefused):
            return known(cause.message)
    if "not found" in str(cause):
        return NotStateful(f"workflow {workflow_id} is not a StatefulWorkflow")
    return OperationFailed(f"workflow {workflow_id} did not take the message: {cause}")
