"""What a node puts on record, from workflow code: in the first run of a task, not in a replay.

Nothing comes back from here, so what a workflow does follows from its history alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal, cast

from temporalio import workflow

from ..errors import MessageRefused, WrongAuthority, WrongTree
from ..record.event import AuditEvent, Scene
from ..record.recorder import Recorder
from ..sealed.message import Message
from ..text.printable import printable

RECORDER: Final = "__stateful_workflow_recorder"
"""Name of the function, which a worker with the plugin gives to workflows, for its recorder."""


def warn(text: str) -> None:
    """Log a warning of workflow code; in it may stand what others chose."""
    workflow.logger.warning(printable(text))


class NodeRecord:
    """Records for one node."""

    def __init__(self) -> None:
        self._recorder = cast("Recorder", workflow.extern_functions()[RECORDER]())
        self._scene = Scene.of(self._recorder.identity, workflow.info())

    def accepted(self, message: Message, reason: str | None = None) -> None:
        """The node has taken a message; with a reason where its run began with it."""
        now, claims = workflow.time(), message.claims
        self._record(self._scene.event("accept", "success", message, at=now, reason=reason))
        if reason is None and not workflow.unsafe.is_replaying():
            self._recorder.metrics.accepted(claims.name, now - claims.version / 1000)

    def rejected(self, error: MessageRefused, message: Message | None) -> None:
        """The node has not taken a message, or what was sent is none."""
        why, now = type(error).__name__, workflow.time()
        event = self._scene.event("reject", "failure", message, at=now, reason=why)
        if isinstance(error, WrongTree | WrongAuthority):
            # It is none of this node's path: whatever the sender wrote there.
            event = replace(event, authority=None)
        self._record(event)

    def lost_reply(self, name: str, source: str) -> None:
        """The worker that minted a token did not answer: it has put on record no more than that it
        began."""
        event = self._scene.event(
            "mint", "failure", None, name, at=workflow.time(), reason="lost_reply", source=source
        )
        self._record(event)

    def kept_from(
        self,
        action: Literal["withhold", "share"],
        child_id: str,
        child_type: str | None,
        name: str,
        reason: str | None = None,
    ) -> None:
        """A name ("*" for every one) is withheld from a child from now on, or shared again."""
        event = self._scene.event(
            action,
            "success",
            None,
            name,
            at=workflow.time(),
            reason=reason,
            child_id=child_id,
            child_type=child_type,
        )
        self._record(event)

    def _record(self, event: AuditEvent) -> None:
        if not workflow.unsafe.is_replaying():
            self._recorder.record(event)
