"""What a node puts on record, from workflow code: in the first run of a task, not in a replay.

Nothing comes back from here, so what a workflow does follows from its history alone.
"""

from __future__ import annotations

from typing import Final, Literal, cast

from temporalio import workflow
from typing_extensions import Unpack

from ..errors import MessageRefused, WrongAuthority, WrongTree
from ..record.event import Action, AuditEvent, OfMessage, Outcome, of_message
from ..record.recorder import Recorder
from ..sealed.message import Message

RECORDER: Final = "__stateful_workflow_recorder"
"""Name of the function, which a worker with the plugin gives to workflows, for its recorder."""


class About(OfMessage, total=False):
    """The fields of an event that a node fills in."""

    child_id: str
    child_type: str | None


class NodeRecord:
    """Records for one node."""

    def __init__(self) -> None:
        self._recorder = cast("Recorder", workflow.extern_functions()[RECORDER]())

    def accepted(self, message: Message, reason: str | None = None) -> None:
        """The node has taken a message; with a reason where its run began with it."""
        claims = message.claims
        if self._record("accept", "success", reason, **of_message(message)) and reason is None:
            seconds = workflow.time() - claims.version / 1000
            self._recorder.metrics.accepted(claims.name, seconds)

    def rejected(self, error: MessageRefused, message: Message | None) -> None:
        """The node has not taken a message, or what was sent is none."""
        said = of_message(message)
        if isinstance(error, WrongTree | WrongAuthority):
            # It is none of this node's path: whatever the sender wrote there.
            said.pop("authority", None)
        self._record("reject", "failure", type(error).__name__, **said)

    def kept_from(
        self,
        action: Literal["withhold", "share"],
        child_id: str,
        child_type: str | None,
        name: str,
        reason: str | None = None,
    ) -> None:
        """A name ("*" for every one) is withheld from a child from now on, or shared again."""
        self._record(action, "success", reason, name=name, child_id=child_id, child_type=child_type)

    def _record(
        self, action: Action, outcome: Outcome, reason: str | None, **about: Unpack[About]
    ) -> bool:
        """Record an event, and whether that was done: not in a replay."""
        if workflow.unsafe.is_replaying():
            return False
        info = workflow.info()
        event = AuditEvent(
            time=workflow.time(),
            action=action,
            outcome=outcome,
            reason=reason,
            identity=self._recorder.identity,
            namespace=info.namespace,
            workflow_id=info.workflow_id,
            run_id=info.run_id,
            workflow_type=info.workflow_type,
            **about,
        )
        self._recorder.record(event)
        return True
