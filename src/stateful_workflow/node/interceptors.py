"""Carry a node's state into children, the next run and activities, in the headers of SDK calls.

Workflows that are no `StatefulWorkflow` pass through untouched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.exceptions import (
    CancelledError,
    ChildWorkflowError,
    TerminatedError,
    TimeoutError,
    WorkflowAlreadyStartedError,
)
from temporalio.worker import (
    ContinueAsNewInput,
    ExecuteWorkflowInput,
    HandleQueryInput,
    HandleSignalInput,
    HandleUpdateInput,
    StartActivityInput,
    StartChildWorkflowInput,
    StartLocalActivityInput,
    WorkflowInboundInterceptor,
    WorkflowOutboundInterceptor,
)

from ..errors import TokenMalformed
from ..sealed.message import DEFAULT_NAME, parse, valid_name
from .contract import (
    ACTIVITIES,
    JOIN,
    MESSAGE,
    METADATA_QUERY,
    NODE_HEADER,
    RENEW,
    REPORT,
    STATE_QUERY,
    STATUS_QUERY,
    URL,
    USE_HEADER,
)
from .ledger import Starting
from .members import to_json
from .node import Node, argument
from .workflow import narrowed_here, node_of, withheld_here

T = TypeVar("T")


def _node() -> Node | None:
    return node_of(workflow.instance())


Args = Sequence[Any]

_SIGNALS: Final[Mapping[str, Callable[[Node, Args], None]]] = {
    MESSAGE: Node.on_signal,
    REPORT: Node.on_report,
    URL: Node.on_url,
    JOIN: Node.on_join,
}
_VALIDATORS: Final[Mapping[str, Callable[[Node, Args], None]]] = {
    MESSAGE: Node.validate_update,
    REPORT: Node.validate_report,
    URL: Node.validate_url,
    RENEW: Node.validate_renew,
}
_QUERIES: Final[Mapping[str, Callable[[Node, Args], object]]] = {
    MESSAGE: lambda node, args: node.view().token(_name(args)),
    STATUS_QUERY: lambda node, _: node.describe(),
    JOIN: Node.answer_join,
    STATE_QUERY: lambda node, _: node.carried().to_json(),
    URL: lambda node, _: node.view().shown_url,
}


class NodeInbound(WorkflowInboundInterceptor):
    """Answers the contract's signals, updates and queries, and sees a run through its end."""

    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        """See the base class."""
        self._outbound = NodeOutbound(outbound)
        super().init(self._outbound)

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        """Recover what a retry lost, run, and finish telling before the run closes."""
        node = _node()
        if node is None:
            return await super().execute_workflow(input)
        if node.recovering:
            await node.recover()
        node.begin()
        try:
            result = await self._until_continued(
                node, lambda: super(NodeInbound, self).execute_workflow(input)
            )
        except Exception as error:
            if workflow.is_failure_exception(error):
                await node.drain()
            raise
        await node.drain()
        return result

    async def _until_continued(self, node: Node, run: Callable[[], Awaitable[T]]) -> T:
        try:
            return await run()
        except workflow.ContinueAsNewError:
            await node.drain()
            self._outbound.write_next_run(node)
            raise

    async def handle_signal(self, input: HandleSignalInput) -> None:
        """Take the contract's signals; no input of theirs raises."""
        node = _node()
        if node is None:
            return await super().handle_signal(input)
        node.count_signal()
        if input.signal not in (MESSAGE, REPORT):
            await node.ready()
        if input.signal in _SIGNALS:
            return _SIGNALS[input.signal](node, input.args)
        return await self._until_continued(
            node, lambda: super(NodeInbound, self).handle_signal(input)
        )

    def handle_update_validator(self, input: HandleUpdateInput) -> None:
        """Turn a bad message down before it enters history."""
        node = _node()
        if node is not None and input.update in _VALIDATORS:
            return _VALIDATORS[input.update](node, input.args)
        return super().handle_update_validator(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:
        """Take a message and answer with the status."""
        node = _node()
        if node is None:
            return await super().handle_update_handler(input)
        if input.update == MESSAGE:
            return (await node.take(parse(argument(input.args)))).to_json()
        await node.ready()
        if input.update == REPORT:
            return node.on_report(input.args)
        if input.update == URL:
            return node.take_url(input.args)
        if input.update == RENEW:
            return to_json(node.renew(input.args))
        return await super().handle_update_handler(input)

    async def handle_query(self, input: HandleQueryInput) -> Any:
        """Answer the contract's queries."""
        node = _node()
        if node is None:
            return await super().handle_query(input)
        if input.query in _QUERIES:
            return to_json(_QUERIES[input.query](node, input.args))
        answer = await super().handle_query(input)
        if input.query == METADATA_QUERY and isinstance(answer, WorkflowMetadata):
            answer.current_details = node.view().details(answer.current_details)
        return answer


class NodeOutbound(WorkflowOutboundInterceptor):
    """Writes the headers of children, of the next run and of activities."""

    def __init__(self, next: WorkflowOutboundInterceptor) -> None:
        super().__init__(next)
        self._continued: list[ContinueAsNewInput] = []

    def continue_as_new(self, input: ContinueAsNewInput) -> NoReturn:
        """Keep the input; its header is written once telling has settled."""
        node = _node()
        if node is not None:
            self._continued.append(input)
        super().continue_as_new(input)

    def write_next_run(self, node: Node) -> None:
        """Put the node's state into the header of the run that continues this one."""
        for continued in self._continued:
            continued.headers = {**continued.headers, NODE_HEADER: node.carry()}

    async def start_child_workflow(
        self, input: StartChildWorkflowInput
    ) -> workflow.ChildWorkflowHandle[Any, Any]:
        """Give the child its state and follow it from start to end."""
        node = _node()
        if node is None:
            return await super().start_child_workflow(input)
        asked = withheld_here(), narrowed_here()
        header, child = node.start_child(input.id, input.workflow, *asked)
        input.headers = {**input.headers, NODE_HEADER: header}
        try:
            handle = await super().start_child_workflow(input)
        except BaseException as error:
            may_run = isinstance(error, asyncio.CancelledError | WorkflowAlreadyStartedError)
            node.telling.child_failed_to_start(child, may_run=may_run)
            raise
        node.telling.child_started(child)
        node.narrowing.child_started(child.id)
        handle.add_done_callback(lambda handle: _note_end(node, child, handle))
        return handle

    def start_activity(self, input: StartActivityInput) -> workflow.ActivityHandle[Any]:
        """Give the activity what it may open."""
        node = _node()
        if node is not None and input.activity not in ACTIVITIES:
            use = node.view().use(local=False)
            input.headers = {**input.headers, USE_HEADER: use.to_payload()}
        return super().start_activity(input)

    def start_local_activity(self, input: StartLocalActivityInput) -> workflow.ActivityHandle[Any]:
        """Give the local activity what it may open."""
        node = _node()
        if node is not None:
            input.headers = _LocalHeaders(input.headers, node)
        return super().start_local_activity(input)


class _LocalHeaders(Mapping[str, Payload]):
    """Of a local activity: what it may open is written when the SDK schedules it.

    Where a retry waits for a timer, the SDK schedules it anew with the same input. It could not ask
    for what came meanwhile, since its query would wait for the workflow task that waits for it.
    """

    def __init__(self, theirs: Mapping[str, Payload], node: Node) -> None:
        self._theirs = theirs
        self._node = node

    def __getitem__(self, name: str) -> Payload:
        if name == USE_HEADER:
            return self._node.view().use(local=True).to_payload()
        return self._theirs[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._theirs, USE_HEADER: None})

    def __len__(self) -> int:
        return len(set(self))


def _name(args: Sequence[Any]) -> str:
    """The credential name that a query asks for.

    Raises:
        TokenMalformed: where it is none.
    """
    name = argument(args) if args else DEFAULT_NAME
    if not isinstance(name, str) or not valid_name(name):
        raise TokenMalformed("the query takes a credential name")
    return name


def _note_end(node: Node, child: Starting, handle: asyncio.Task[Any]) -> None:
    error = None if handle.cancelled() else handle.exception()
    cause = error.cause if isinstance(error, ChildWorkflowError) else None
    if handle.cancelled() or isinstance(cause, CancelledError):
        node.telling.child_in_doubt(child)  # only its handle may have been given up
    else:
        node.telling.child_closed(
            child, settled=not isinstance(cause, TerminatedError | TimeoutError)
        )
