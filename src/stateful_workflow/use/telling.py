"""What an activity asks workflows, and tells them of a refused token."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from typing import Final

from temporalio import activity
from temporalio.api.common.v1 import Payloads, WorkflowExecution
from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage as Stage
from temporalio.api.update.v1 import Input, Meta, Request, WaitPolicy
from temporalio.api.workflowservice.v1 import UpdateWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.converter import WorkflowSerializationContext
from temporalio.service import RPCError, RPCStatusCode

from ..node import limits
from ..node.contract import REPORT
from ..sealed.token import ApiToken
from ..text.printable import printable
from .asking import ask_token
from .parents import confirm_above
from .references import References, Resolver

_NO_ROOM: Final = (RPCStatusCode.RESOURCE_EXHAUSTED, RPCStatusCode.FAILED_PRECONDITION)
"""What the server says of an update where ten are open, or the run has had 2,000."""

_ACCEPTED: Final = Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
_REMEMBERED: Final = 10_000


class Asking:
    """How the activities of one worker ask workflows, and say what an API refused."""

    def __init__(
        self, client: Callable[[], Client], resolvers: Mapping[str, Resolver] | None = None
    ) -> None:
        self.client = client
        self.references = References(resolvers)
        self.on_loop: dict[str, set[str]] = {}
        """Of each activity type the names that it takes on the event loop, where it cannot wait."""
        self._roots: dict[str, str] = {}
        self._told: dict[str, float] = {}
        self._telling: set[asyncio.Task[None]] = set()

    async def confirm_root(self, workflow_id: str, run_id: str, root: str) -> None:
        """As `confirm_above`, once for each run: its parents never change."""
        if workflow_id == root or self._roots.get(run_id) == root:
            return
        await confirm_above(self.client(), workflow_id, root, run_id=run_id)
        if len(self._roots) >= _REMEMBERED:
            self._roots.clear()
        self._roots[run_id] = root

    def report(self, token: ApiToken) -> None:
        """Tell the authority of a token that an API refused it; nobody waits for that.

        One activity of the worker does, once in the time that a token is fresh.
        """
        now, told = time.monotonic(), self._told
        if now - told.get(token.message.hash, -math.inf) < limits.LIMITS.fresh_seconds:
            return
        if len(told) >= _REMEMBERED:
            told.clear()
        told[token.message.hash] = now
        telling = asyncio.create_task(self._report(token))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    async def _report(self, token: ApiToken) -> None:
        client = self.client()
        try:
            try:
                await _update(client, token)
            except RPCError as error:
                if error.status == RPCStatusCode.NOT_FOUND:
                    self._told[token.message.hash] = math.inf  # it has closed: nobody to tell
                if error.status not in _NO_ROOM:
                    raise
                await _signal(client, token)
        except Exception as error:  # noqa: BLE001 - nobody waits, and a codec may raise anything
            said = error.message if isinstance(error, RPCError) else type(error).__name__
            activity.logger.warning(
                printable(
                    f"Workflow {token.authority} could not be told that the API refused its "
                    f"{token.name}: {said}"
                )
            )


def _report_of(token: ApiToken) -> dict[str, str | int]:
    members = "name", "authority", "version", "fingerprint"
    return {member: getattr(token, member) for member in members}


async def _update(client: Client, token: ApiToken) -> None:
    """Report by update: the workflow, or the server by its id, turns a second one away.

    Raises:
        RPCError: it did not get there. Not by the SDK's own call, which would repeat it for long.
    """
    context = WorkflowSerializationContext(client.namespace, token.authority)
    converter = client.data_converter.with_context(context)
    args = Payloads(payloads=await converter.encode([_report_of(token)]))
    meta = Meta(update_id=f"{REPORT}-{token.fingerprint}", identity=client.identity)
    request = UpdateWorkflowExecutionRequest(
        namespace=client.namespace,
        workflow_execution=WorkflowExecution(workflow_id=token.authority),
        wait_policy=WaitPolicy(lifecycle_stage=_ACCEPTED),
        request=Request(meta=meta, input=Input(name=REPORT, args=args)),
    )
    update = client.workflow_service.update_workflow_execution
    await update(request, retry=False, timeout=limits.LIMITS.activity_question)


async def _signal(client: Client, token: ApiToken) -> None:
    """Report by signal, where an update finds no room, and nobody has reported it by now."""
    timeout = limits.LIMITS.activity_question
    answer = await ask_token(client, token.authority, token.name, timeout)
    if answer is None or answer.status.fingerprint != token.fingerprint or answer.status.refused:
        return
    handle = client.get_workflow_handle(token.authority)
    await handle.signal(REPORT, _report_of(token), rpc_timeout=timeout)
