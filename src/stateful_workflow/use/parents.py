"""Whose child a workflow is, in the server's words: a workflow could say anything of itself.

Where it joined a tree, the workflow that it names is asked whether it admits such a one.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from ..errors import AnswerMalformed, OperationFailed, WorkflowNotFound, WrongTree
from ..node.answers import node_status
from ..node.contract import STATUS_QUERY
from .asking import ask, ask_for_place
from .server import Execution, describe

_TIMEOUT: Final = timedelta(seconds=10)
_DEEPEST: Final = 100
_MOST_JOINS: Final = 5


async def confirm_above(
    client: Client,
    workflow_id: str,
    above: str,
    *,
    run_id: str | None = None,
    joins: int = _MOST_JOINS,
) -> None:
    """Check with the server that a workflow is another one, or stands somewhere below it.

    `joins` is how many trees may have been joined on the way.

    Raises:
        WrongTree: it does not stand below that workflow, and did not join one that does: nothing
            is signed or opened for it.
        WorkflowNotFound, OperationFailed: the server does not say.
    """
    nearer, run = workflow_id, run_id
    chain: list[Execution] = []
    for _ in range(_DEEPEST):
        if nearer == above:
            return
        try:
            described = await describe(client, nearer, run, timeout=_TIMEOUT)
        except RPCError as error:
            kind = WorkflowNotFound if error.status == RPCStatusCode.NOT_FOUND else OperationFailed
            raise kind(
                f"the server does not say whose child workflow {nearer} is: {error.message}"
            ) from None
        if described.root_id == above:
            return
        chain.append(described)
        if described.parent_id is None:
            break
        nearer, run = described.parent_id, described.parent_run_id
    for described in chain if joins else ():
        joined = await _joined(client, described)
        if joined is not None:
            await confirm_above(client, joined, above, joins=joins - 1)
            return
    raise WrongTree(
        f"workflow {workflow_id} answered as if it stood below {above}, and the server says that "
        "it does not; nothing was signed or opened"
    )


async def _joined(client: Client, described: Execution) -> str | None:
    """The workflow that this one joined and that lets it; None where it joined none."""
    id = described.id
    try:
        status = await ask(
            client, id, STATUS_QUERY, node_status, run_id=described.run_id, timeout=_TIMEOUT
        )
        at = status.parent
        if at in (None, described.parent_id):
            return None
        answer = await ask_for_place(client, at, id, described.type, _TIMEOUT)
    except (WorkflowQueryFailedError, RPCError, AnswerMalformed):
        return None
    return at if answer.refused is None else None
