"""Whose child a workflow is, in the server's words: a workflow could say anything of itself."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from ..errors import OperationFailed, WorkflowNotFound, WrongTree

_TIMEOUT: Final = timedelta(seconds=10)
_DEEPEST: Final = 100


async def confirm_root(client: Client, workflow_id: str, root: str) -> None:
    """Check with the server that a workflow is a root, or stands somewhere below it.

    Args:
        client: asks the server.
        workflow_id: the workflow.
        root: workflow id that it, or a message, names as the root of its tree.

    Raises:
        WrongTree: it does not stand below that workflow; nothing may be signed for it.
        WorkflowNotFound, OperationFailed: the server does not say.
    """
    above, run = workflow_id, None
    for _ in range(_DEEPEST):
        if above == root:
            return
        try:
            described = await client.get_workflow_handle(above, run_id=run).describe(
                rpc_timeout=_TIMEOUT
            )
        except RPCError as error:
            kind = WorkflowNotFound if error.status == RPCStatusCode.NOT_FOUND else OperationFailed
            raise kind(
                f"the server does not say whose child workflow {above} is: {error.message}"
            ) from None
        if described.root_id == root:
            return
        if described.parent_id is None:
            break
        above, run = described.parent_id, described.parent_run_id
    raise WrongTree(
        f"workflow {workflow_id} answered that it belongs to the tree of {root}, and the server "
        "says that it does not; nothing was signed"
    )
