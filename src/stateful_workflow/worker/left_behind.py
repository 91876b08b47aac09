"""What the run that a reset left behind has minted since: the server knows which run that was.

A reset lets a workflow go on from an earlier point of its history. Its grant is then one that may
have been spent since, while the run that was reset holds the next.
"""

from __future__ import annotations

from typing import Any, Final

from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.client import Client, WorkflowQueryFailedError

from ..errors import AnswerMalformed
from ..node.carried import StateTooNew
from ..node.contract import STATE_QUERY, MintResult
from ..node.headers import Start
from ..node.ledger import Ledger
from ..node.members import OBJECT
from ..sealed.message import Message
from ..use.asking import Silence, ask_closed
from ..use.server import history, start_of_run
from .descent import RPC_TIMEOUT

_RESET: Final = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW


async def left_behind(
    client: Client, workflow_id: str, run_id: str, grant: Message
) -> MintResult | None:
    """What a run that was reset holds, if its grant is newer than this one.

    It is this library's word that such a run says; whoever takes it over judges each message.

    Raises:
        RPCError: the server does not say.
    """
    start = await start_of_run(client, workflow_id, run_id, timeout=RPC_TIMEOUT)
    if start.original_execution_run_id in ("", run_id):
        return None
    base = await _reset_run(client, workflow_id, run_id)
    if base is None:
        return None
    try:
        _, said = await ask_closed(
            client, workflow_id, base, STATE_QUERY, _ledger, lambda: RPC_TIMEOUT
        )
    except (WorkflowQueryFailedError, AnswerMalformed) as error:
        detail = f"run {base}, which was reset, does not say what it holds: {error}"
        return MintResult("not_ready", detail=detail[:1_000])
    name = grant.claims.name
    newer = None if isinstance(said, Silence) else said.grants.get(name)
    if isinstance(said, Silence) or newer is None or newer.order <= grant.order:
        return None
    token = said.held.get((name, workflow_id))
    text = None if token is None or token.kind != "token" else token.text
    return MintResult("newer", token=text, grant=newer.text)


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
