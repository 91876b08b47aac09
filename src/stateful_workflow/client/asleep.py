"""What is known of a workflow that answers nothing now, since it is asleep or paused.

Its place, and what stands there, are those of the run before it, or of its start where there is
none, and of the messages that were sent to it meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from temporalio.api.common.v1 import Payload
from temporalio.api.history.v1 import HistoryEvent, WorkflowExecutionStartedEventAttributes
from temporalio.client import Client
from temporalio.converter import WorkflowSerializationContext
from temporalio.service import RPCError

from ..errors import MessageRefused, NotStateful, NoWorkerAnswers, OperationFailed
from ..node import limits
from ..node.answers import HeldToken, NodeStatus, node_status
from ..node.carried import StateTooNew
from ..node.contract import MESSAGE, NODE_HEADER, STATUS_QUERY
from ..node.describe import View
from ..node.headers import HeaderUnreadable, Start, is_readable
from ..node.ledger import Ledger, Life
from ..node.status import TokenStatus
from ..sealed.issuing import Said
from ..sealed.keys import Issuer, verify
from ..sealed.message import Message, parse
from ..use.asking import Silence, ask_closed, decoded_payload
from ..use.server import describe, history

_MESSAGES_LOOKED_AT: Final = 1_000
"""Of those that were sent to a workflow that is asleep: the newest."""


@dataclass(frozen=True)
class Left:
    """What a workflow that answers nothing will go on from.

    Attributes:
        id: of the workflow.
        run_before: the run before that ran; None where there is none, or it is past retention.
        begins_with: the state of its start, where no run before says more; None where it has none.
        node: what that run, or that state, says; of no root where nothing is known.
        sent: the messages for its tree that it was sent meanwhile, the oldest first.
    """

    id: str
    run_before: str | None
    begins_with: Ledger | None
    node: NodeStatus
    sent: tuple[Message, ...] = ()

    def said(self, name: str) -> Said:
        """Its place, and the newest message of this name there.

        Raises:
            NoWorkerAnswers: nothing is known of it.
        """
        if not self.node.root:
            raise NoWorkerAnswers(
                f"workflow {self.id} has not begun, and was started without a token, so that "
                "nothing is known of it yet: set the token when it has begun, or start such "
                "workflows with TokenClient.start_workflow"
            )
        said = said_of(self.node, self.id, name)
        mine = [one for one in self.newest_first(name) if one.claims.authority == self.id]
        own = None if said.own is None else parse(said.own)
        if not mine or (own is not None and own.order >= mine[0].order):
            return said
        token = next((one.text for one in mine if one.kind == "token"), None)
        before = said.last if own is None or own.kind != "token" else said.own
        return replace(said, own=mine[0].text, last=token or before)

    def told(self, name: str) -> Message | None:
        """What it begins with, or was sent since the run before; None where that is nothing."""
        sent = self.newest_first(name)
        if sent or self.run_before is not None or self.begins_with is None:
            return sent[0] if sent else None
        return self.begins_with.in_force(name)

    def newest_first(self, name: str) -> list[Message]:
        """The messages of this name that it was sent."""
        of_name = (one for one in self.sent if one.claims.name == name)
        return sorted(of_name, key=lambda message: message.order, reverse=True)

    def status(self, because: str) -> NodeStatus:
        """What it will begin with, as far as it is known; it is still to accept what was sent.

        Args:
            because: why those below it are told nothing meanwhile.
        """
        tokens = {(one.status.name, one.authority): one for one in self.node.tokens}
        for message in sorted(self.sent, key=lambda message: message.order):
            name, authority = message.claims.name, message.claims.authority
            before = tokens.pop((name, authority), None)
            in_force = authority == self.id or (before is not None and before.in_force)
            if before is None or before.version < message.claims.version:
                before = _held(message, in_force=in_force)
            tokens = {(name, authority): before, **tokens}
        children = (replace(one, reason=one.reason or because) for one in self.node.children)
        return replace(
            self.node,
            tokens=tuple(tokens.values()),
            children=tuple(one for one in children if one.life is not Life.CLOSED),
            undelivered=(),
            replaced=(),
        )


def _node_of(ledger: Ledger, workflow_type: str) -> NodeStatus:
    """What the state of a start says: its tokens are told, and nobody has opened them yet."""
    node = View(ledger, 0).node(workflow_type)
    told = (
        one if one.kind != "token" else replace(one, status=replace(one.status, state="told"))
        for one in node.tokens
    )
    return replace(node, tokens=tuple(told))


def _held(message: Message, *, in_force: bool) -> HeldToken:
    claims = message.claims
    status = TokenStatus.of_message(message)
    if message.kind == "token":
        status = replace(status, state="told")
    return HeldToken(
        status, claims.authority, claims.version, message.kind, claims.inherit, in_force
    )


def _is_signed(message: Message, trusted: Mapping[str, Issuer]) -> bool:
    try:
        verify(message, trusted)
    except (MessageRefused, KeyError):
        return False
    return True


async def what_is_left(
    client: Client,
    workflow_id: str,
    timeout: timedelta | None = None,
    *,
    trusted: Mapping[str, Issuer] | None,
) -> Left:
    """Learn from the server, and from the run before, what a workflow will go on from.

    Args:
        client: asks them.
        workflow_id: of the workflow.
        timeout: of each question.
        trusted: the issuers one of whom must have signed what counts as sent to it, since anybody
            may signal; None where it is only shown.

    Raises:
        OperationFailed: the server, or the run before, does not say.
    """
    wait = limits.LIMITS.client_question if timeout is None else timeout
    try:
        run = await describe(client, workflow_id, timeout=wait)
        events = [one async for one in history(client, workflow_id, run.run_id, timeout=wait)]
        started = events[0].workflow_execution_started_event_attributes
        start = await start_of(client, started)
        before: str | None = started.continued_execution_run_id or None
        node = ledger = None
        if before is not None and (start is None or start.run != before):
            before, node = await _status_before(client, workflow_id, before, wait)
        sent = [one for event in events for one in await _sent(client, workflow_id, event)]
    except RPCError as error:
        raise OperationFailed(
            f"the server does not say what workflow {workflow_id} goes on from: {error.message}"
        ) from None
    if node is None and start is not None:
        try:
            ledger = Ledger.load(start.ledger)
        except (ValueError, StateTooNew) as error:
            raise NoWorkerAnswers(f"the start of workflow {workflow_id}: {error}") from None
    if node is None:
        node = _node_of(ledger or Ledger(("",), ""), run.type)
    if node.root:
        sent = [m for m in sent if (m.claims.root, m.claims.tree) == (node.root, node.tree)]
    if trusted is not None:
        sent = [message for message in sent if _is_signed(message, trusted)]
    return Left(workflow_id, before, ledger, node, tuple(sent[-_MESSAGES_LOOKED_AT:]))


async def start_of(
    client: Client, started: WorkflowExecutionStartedEventAttributes
) -> Start | None:
    """The state that a run was started with; None where there is none that can be read."""
    header = started.header.fields.get(NODE_HEADER)
    if header is not None and not is_readable(header):
        header = await decoded_payload(client, header, None)
    try:
        return None if header is None else Start.from_headers({NODE_HEADER: header})
    except (ValueError, StateTooNew, HeaderUnreadable):
        return None


async def _status_before(
    client: Client, workflow_id: str, run_id: str, wait: timedelta
) -> tuple[str | None, NodeStatus | None]:
    """The nearest closed run that ran, and its last status.

    Raises:
        NotStateful, NoWorkerAnswers: it does not answer.
    """
    try:
        run_id, said = await ask_closed(
            client, workflow_id, run_id, STATUS_QUERY, node_status, lambda: wait
        )
    except Exception as error:  # noqa: BLE001 - a codec may raise anything
        raise NoWorkerAnswers(
            f"run {run_id} of workflow {workflow_id}, the last before it fell asleep, did not "
            f"answer ({type(error).__name__}): is a worker running on its task queue?"
        ) from None
    if said is Silence.PLAIN:
        raise NotStateful(f"workflow {workflow_id} is no StatefulWorkflow")
    return (None, None) if isinstance(said, Silence) else (run_id, said)


async def _sent(client: Client, workflow_id: str, event: HistoryEvent) -> list[Message]:
    """The message that an event holds, where it holds one."""
    payloads = brought(event)
    if len(payloads) == 1:
        context = WorkflowSerializationContext(client.namespace, workflow_id)
        converter = client.data_converter.with_context(context)
        with suppress(Exception):  # a codec may raise anything
            return [parse((await converter.decode(payloads, [str]))[0])]
    return []


def brought(event: HistoryEvent) -> list[Payload]:
    """What a signal of a message, or an update that was accepted, brought."""
    signal = event.workflow_execution_signaled_event_attributes
    update = event.workflow_execution_update_accepted_event_attributes.accepted_request.input
    is_message = MESSAGE in (signal.signal_name, update.name)
    return [*signal.input.payloads, *update.args.payloads] if is_message else []


def said_of(node: NodeStatus, workflow_id: str, name: str) -> Said:
    """What a status says of a workflow's place, and of what stands there."""
    in_use = node.names()
    for held in node.tokens:
        if held.status.name == name and held.authority == workflow_id:
            return Said(node.root, node.tree, held.message, held.last, in_use=in_use)
    return Said(node.root, node.tree, in_use=in_use)
