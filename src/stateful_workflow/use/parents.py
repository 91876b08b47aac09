"""Whose child a workflow is, in the server's words: a workflow could say anything of itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from ..errors import OperationFailed, WorkflowNotFound, WrongTree
from .server import describe

_TIMEOUT: Final = timedelta(seconds=10)
_DEEPEST: Final = 100
_REMEMBERED: Final = 10_000


async def confirm_above(
    client: Client, workflow_id: str, above: str, *, run_id: str | None = None
) -> None:
    """Check with the server that a workflow is another one, or stands somewhere below it.

    Args:
        client: asks the server.
        workflow_id: the workflow.
        above: workflow id that it, or a message, names as its root or as an authority.
        run_id: of the workflow; None takes the newest.

    Raises:
        WrongTree: it does not stand below that workflow: nothing is signed or opened for it.
        WorkflowNotFound, OperationFailed: the server does not say.
    """
    nearer, run = workflow_id, run_id
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
        if described.parent_id is None:
            break
        nearer, run = described.parent_id, described.parent_run_id
    raise WrongTree(
        f"workflow {workflow_id} answered as if it stood below {above}, and the server says that "
        "it does not; nothing was signed or opened"
    )


class ConfirmedRoots:
    """Asks the server once for each run: the parents of a run never change.

    Args:
        client: gives the client that asks the server.
    """

    def __init__(self, client: Callable[[], Client]) -> None:
        self._client = client
        self._confirmed: dict[str, str] = {}

    async def confirm(self, workflow_id: str, run_id: str, root: str) -> None:
        """As `confirm_above`, for the root that a run names."""
        if workflow_id == root or self._confirmed.get(run_id) == root:
            return
        await confirm_above(self._client(), workflow_id, root, run_id=run_id)
        if len(self._confirmed) >= _REMEMBERED:
            self._confirmed.clear()
        self._confirmed[run_id] = root
