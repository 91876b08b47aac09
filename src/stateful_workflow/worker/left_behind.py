"""What the run that a reset left behind has minted since: the server knows which run that was.

A reset lets a workflow go on from an earlier point of its history. Its grant is then one that may
have been spent since, while the run that was reset holds the next.
"""

from __future__ import annotations

from typing import Any, Final

from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from ..errors import AnswerMalformed
from ..node.carried import StateTooNew
from ..node.contract import STATE_QUERY, MintResult
from ..node.headers import Start
from ..node.ledger import Ledger
from ..node.members import OBJECT
from ..sealed.message import Message
from ..use.asking import Silence, ask_closed
from ..use.server import describe, first_event, history
from .descent import RPC_TIMEOUT

_RESET: Final = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW
_MOST_RUNS: Final = 50


async def left_behind(
    client: Client, workflow_id: str, run_id: str, grant: Message
) -> MintResult | None:
    """What a run that was reset holds, if its grant is newer than this one.

    It may have been reset before this run began, or have gone on from one that was: the runs before
    are looked at, back to the one in which this grant came. It is this library's word that such a
    run says; whoever takes it over judges each message.

    Raises:
        RPCError: the server does not say.
    """
    for _ in range(_MOST_RUNS):
        first = await first_event(client, workflow_id, run_id, timeout=RPC_TIMEOUT)
        start = first.workflow_execution_started_event_attributes
        before = start.continued_execution_run_id
        if start.original_execution_run_id not in ("", run_id):
            before = await _reset_run(client, workflow_id, run_id) or ""
            newer = await _newer(client, workflow_id, before, grant) if before else None
            if newer is not None:
                return newer
        elif grant.claims.version >= first.event_time.ToMilliseconds():
            return None  # it came in this run, which was not reset
        if not before or await _is_forgotten(client, workflow_id, before):
            return None
        run_id = before
    return None


async def _newer(
    client: Client, workflow_id: str, run_id: str, grant: Message
) -> MintResult | None:
    try:
        _, said = await ask_closed(
            client, workflow_id, run_id, STATE_QUERY, _ledger, lambda: RPC_TIMEOUT
        )
    except (WorkflowQueryFailedError, AnswerMalformed) as error:
        detail = f"run {run_id}, which was reset, does not say what it holds: {error}"
        return MintResult("not_ready", detail=detail[:1_000])
    name = grant.claims.name
    newer = None if isinstance(said, Silence) else said.grants.get(name)
    if isinstance(said, Silence) or newer is None or newer.order <= grant.order:
        return None
    token = said.held.get((name, workflow_id))
    text = None if token is None or token.kind != "token" else token.text
    return MintResult("newer", token=text, grant=newer.text)


async def _is_forgotten(client: Client, workflow_id: str, run_id: str) -> bool:
    try:
        await describe(client, workflow_id, run_id, timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return True
        raise
    return False


async def _reset_run(client: Client, workflow_id: str, run_id: str) -> str | None:
    """The run that this one went on from, by the last such event of its history."""
    found: str | None = None
    async for event in history(client, workflow_id, run_id, timeout=RPC_TIMEOUT):
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
            failed = event.workflow_task_failed_event_attributes
            if failed.cause == _RESET and failed.new_run_id == run_id:
                found = failed.base_run_id
    return found


def _ledger(answer: object) -> Ledger:
    data: dict[str, Any] = OBJECT(answer)
    try:
        return Ledger.load(Start.from_json(data).ledger)
    except (ValueError, StateTooNew) as error:
        raise AnswerMalformed(str(error)) from None
