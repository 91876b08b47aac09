"""What is made of a genuine message, and what shows that a tree took nothing of it.

The signature of what is *genuinely signed* is that of the issuer the tree trusts: what is refused
then is what was changed. Each test ends by sending the message that was not changed, and that one
is taken.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution
from temporalio.api.enums.v1 import TimeoutType, WorkflowTaskFailedCause
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from stateful_workflow import ApiToken
from stateful_workflow.sealed.message import Message, parse
from tests.support import builders
from tests.support.asking import events_of, eventually
from tests.support.builders import header_of, signed
from tests.support.trees import Tree


def now() -> int:
    """A version of now."""
    return int(time.time() * 1000)


@dataclass(frozen=True)
class Unsent:
    """A genuine token for a node, newer than the one held there, that nobody has sent yet."""

    tree: Tree
    message: Message

    @property
    def header(self) -> dict[str, Any]:
        return header_of()

    @property
    def segments(self) -> list[str]:
        return self.message.text.split(".")

    def signed(self, header: object) -> str:
        """The same payload under another header, genuinely signed."""
        return signed(header, self.message.payload)

    def sealed(self, **claims: Any) -> str:
        """A genuine token under other claims."""
        return builders.keyring().seal(replace(self.message.claims, **claims), "unsent")

    def revocation(self, **claims: Any) -> str:
        """A genuine revocation at the same place."""
        changed = replace(self.message.claims, origins=(), inherit=False, **claims)
        return builders.keyring().revocation(changed)

    async def is_taken(self) -> None:
        """The control: unchanged it is taken, and the tree is healthy with it."""
        await self.tree.signal("", "apiToken", self.message.text)
        await is_everywhere(self.tree, self.message)
        await is_healthy(self.tree, holding="unsent")


async def unsent_for(tree: Tree, by: str = "ours") -> Unsent:
    claims = replace(parse(await tree.sealed()).claims, version=now())
    return Unsent(tree, parse(builders.keyring(by).seal(claims, "unsent")))


# --- how it is sent ------------------------------------------------------------------------------


async def send(client: Client, workflow_id: str, signal: str, payloads: list[Payload]) -> None:
    """Signal these payloads as they are."""
    await client.workflow_service.signal_workflow_execution(
        SignalWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            signal_name=signal,
            input=Payloads(payloads=payloads),
        )
    )


async def signalled(tree: Tree, at: str, text: str) -> str:
    """Why a node refuses a message that is signalled."""
    before = await tree.refusals(at)
    await tree.signal(at, "apiToken", text)
    status = await tree.status(at)
    if sum(status["rejections"]["counts"].values()) == sum(before.values()):
        return "waiting" if status["waiting"] else "not refused"
    return str(status["rejections"]["last"][-1]["reason"])


async def updated(tree: Tree, at: str, *args: object) -> str:
    """Why a node refuses a message that is sent as an update."""
    try:
        await tree.update(at, "apiToken", *args)
    except WorkflowUpdateFailedError as error:
        cause = error.cause
        return str(cause.type) if isinstance(cause, ApplicationError) else repr(cause)
    return "not refused"


async def are_refused(tree: Tree, messages: dict[str, str], reason: str, at: str = "") -> None:
    """Each of the messages is refused for the one reason, signalled or sent as an update."""
    held = await tree.sealed(at)
    entered = len(await events_of(tree[at], "WORKFLOW_EXECUTION_UPDATE_ACCEPTED"))

    said = {
        what: (
            # A signal's has come into the history.
            (await signalled(tree, at, text)).replace("NotSealed", "TokenMalformed"),
            await updated(tree, at, text),
        )
        for what, text in messages.items()
    }

    assert said == dict.fromkeys(messages, (reason, reason))
    assert await tree.sealed(at) == held
    # What an update is refused for is judged before it enters history.
    assert len(await events_of(tree[at], "WORKFLOW_EXECUTION_UPDATE_ACCEPTED")) == entered


# --- what it left --------------------------------------------------------------------------------


async def is_everywhere(tree: Tree, message: Message) -> None:
    """Wait until every node of a tree holds a message."""

    async def so() -> None:
        nodes = (await tree.tokens.tree(tree.root)).nodes
        assert {node.fingerprint for node in nodes} == {message.fingerprint}

    await eventually(so)


async def is_healthy(tree: Tree, *, holding: str = "first") -> None:
    """Nothing was taken, a rotation converges, and no workflow task failed on the way."""
    assert {token.reveal() for token in await held(tree)} == {holding}
    seen = await tree.rotate("rotated")
    assert {token.reveal() for token in await held(tree)} == {"rotated"}
    for node in seen.nodes:
        assert await failed_tasks(tree.client.get_workflow_handle(node.id)) == []


async def held(tree: Tree) -> list[ApiToken]:
    """What an issuer who reads along opens, of each node."""
    return [await tree.tokens.get(node.id) for node in (await tree.tokens.tree(tree.root)).nodes]


async def failed_tasks(handle: WorkflowHandle[Any, Any]) -> list[Any]:
    """The workflow tasks that a worker failed, not those that the server itself took back.

    It does so with any workflow when 100 signals have come while one of its tasks runs.
    """
    taken_back = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND
    return [
        event
        for event in await events_of(handle, "WORKFLOW_TASK_FAILED")
        if event.workflow_task_failed_event_attributes.cause != taken_back
    ]


async def slow_tasks(handle: WorkflowHandle[Any, Any]) -> list[Any]:
    """The workflow tasks that a worker did not finish in time, not those it never got.

    The server takes a task back from a worker's own queue after 10 s: when that worker is gone,
    or when it is itself too busy with signals to give any task away, as six callers make it.
    """
    never_got = TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START
    return [
        event
        for event in await events_of(handle, "WORKFLOW_TASK_TIMED_OUT")
        if event.workflow_task_timed_out_event_attributes.timeout_type != never_got
    ]
