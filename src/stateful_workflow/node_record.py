"""What a node puts on record, from workflow code: in the first run of a task, not in a replay.

Nothing comes back from here, so what a workflow does follows from its history alone.
"""

from __future__ import annotations

from typing import Final, Literal, cast

from temporalio import workflow

from .audit.events import Action, AuditEvent, Outcome, of_message
from .audit.recorder import Recorder
from .errors import MessageRefused
from .messages import Message

RECORDER: Final = "__stateful_workflow_recorder"
"""Name of the function, which a worker with the plugin gives to workflows, for its recorder."""


class NodeRecord:
    """Records for one node."""

    def __init__(self) -> None:
        self._recorder = cast("Recorder", workflow.extern_functions()[RECORDER]())

    def accepted(self, message: Message, reason: str | None = None) -> None:
        """The node has taken a message; with a reason where it was started with it."""
        if workflow.unsafe.is_replaying():
            return
        self._message("accept", message, "success", reason)
        if reason is None:
            claims = message.claims
            self._recorder.metrics.accepted(claims.name, workflow.time() - claims.version / 1000)

    def rejected(self, error: MessageRefused, message: Message | None) -> None:
        """The node has not taken a message, or what was sent is none."""
        if not workflow.unsafe.is_replaying():
            self._message("reject", message, "failure", type(error).__name__)

    def kept_from(
        self,
        action: Literal["withhold", "share"],
        child_id: str,
        child_type: str | None,
        name: str,
        reason: str | None = None,
    ) -> None:
        """A name ("*" for every one) is withheld from a child from now on, or shared again."""
        if workflow.unsafe.is_replaying():
            return
        info = workflow.info()
        self._recorder.record(
            AuditEvent(
                time=workflow.time(),
                action=action,
                outcome="success",
                reason=reason,
                namespace=info.namespace,
                workflow_id=info.workflow_id,
                run_id=info.run_id,
                workflow_type=info.workflow_type,
                name=name,
                child_id=child_id,
                child_type=child_type,
            )
        )

    def owes(self, node: object, children: int) -> None:
        """So many children are to be told; a replay leads to the same number."""
        self._recorder.metrics.owes(node, children)

    def _message(
        self, action: Action, message: Message | None, outcome: Outcome, reason: str | None
    ) -> None:
        info = workflow.info()
        self._recorder.record(
            AuditEvent(
                time=workflow.time(),
                action=action,
                outcome=outcome,
                reason=reason,
                namespace=info.namespace,
                workflow_id=info.workflow_id,
                run_id=info.run_id,
                workflow_type=info.workflow_type,
                **of_message(message),
            )
        )
