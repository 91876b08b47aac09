"""Ask another workflow for a place in its tree, on behalf of one that was started outside it.

Who is there, who runs and whose child somebody is are the server's words; what such a child would
start with, and whether its type is let in, are those of the workflow that is asked.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any, Final

from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.service import RPCError, RPCStatusCode

from ..errors import AnswerMalformed
from ..node.answers import JoinAnswer, Refusal
from ..node.carried import StateTooNew
from ..node.contract import JOIN, PlaceRequest, PlaceResult
from ..node.ledger import Ledger
from ..use.asking import ask_for_place, is_plain
from ..use.server import Execution, describe
from .descent import RPC_TIMEOUT, Descent, NoAnswer

_BEGINNING: Final = datetime.fromtimestamp(0, timezone.utc)
_ASKED_WITHIN: Final = 15.0


async def place_of(client: Client, request: PlaceRequest, id: str, type: str) -> PlaceResult:
    """What the workflow that is named gives one of this id and type to begin with.

    Raises:
        ApplicationError: nothing yet; the server is to repeat the activity.
    """
    at = request.at
    # Whoever waits for it does so for a time of its own choosing.
    may_come = not (request.as_child or request.register)
    described = await _described(client, at)
    if described is None or not described.is_open:
        why = f"there is no workflow {at}" if described is None else f"workflow {at} is closed"
        return _later(why) if may_come else PlaceResult(refused=why)
    if request.as_child and not await _is_child(client, described, id):
        return PlaceResult(refused=f"the server does not say that {id} is a child of {at}")
    if request.register:
        await _register(client, at, id, type)
    answer = await _answer(client, at, id, type, request.as_child)
    if isinstance(answer, str):
        return PlaceResult(refused=answer) if request.as_child else _later(answer)
    refused = answer.refused
    if refused == "not_open":
        who = f"{at} does not admit {type}"
        return PlaceResult(refused=f"{who}: its class by open_to=, or a TokenHome by its list")
    if refused is not None:
        why = f"workflow {at} {_NOT_YET[refused]}"
        is_final = refused == "no_token" and not may_come
        return PlaceResult(refused=why) if is_final else _later(why)
    if request.register and not answer.registered:
        return _later(f"workflow {at} tells as many as it can that joined it")
    return PlaceResult(dict(answer.ledger or {}), answer.parent_api_url)


_NOT_YET: Final[dict[Refusal, str]] = {
    "no_token": "has no token yet",
    "not_ready": "does not know yet what it holds, or may give",
}


async def _described(client: Client, at: str) -> Execution | None:
    try:
        return await describe(client, at, timeout=RPC_TIMEOUT)
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            return None
        return _later(f"the server does not say whether {at} runs: {error.message}")


async def _is_child(client: Client, parent: Execution, id: str) -> bool:
    deadline = time.monotonic() + _ASKED_WITHIN
    descent = Descent(client, parent.id, parent.run_id, _BEGINNING, deadline)
    try:
        return await descent.child(id) is not None
    except NoAnswer as error:
        return _later(str(error))


async def _register(client: Client, at: str, id: str, type: str) -> None:
    joiner: dict[str, Any] = {"id": id, "type": type}
    try:
        await client.get_workflow_handle(at).signal(JOIN, joiner, rpc_timeout=RPC_TIMEOUT)
    except RPCError as error:
        _later(f"workflow {at} could not be signalled: {error.message}")


async def _answer(client: Client, at: str, id: str, type: str, as_child: bool) -> JoinAnswer | str:
    """Its answer; a text where it takes no part in a tree."""
    try:
        answer = await ask_for_place(client, at, id, type, RPC_TIMEOUT, as_child=as_child)
        if answer.ledger is not None:
            Ledger.load(answer.ledger)
    except WorkflowQueryFailedError as error:
        if await is_plain(client, at, error, timeout=RPC_TIMEOUT):
            return f"workflow {at} is no StatefulWorkflow"
        return _later(f"workflow {at} could not answer: {error.message}")
    except RPCError as error:
        return _later(f"no worker answered for workflow {at}: {error.message}")
    except (AnswerMalformed, ValueError, StateTooNew) as error:
        return _later(str(error))
    return answer


def _later(why: str) -> Any:
    raise ApplicationError(why, category=ApplicationErrorCategory.BENIGN)
