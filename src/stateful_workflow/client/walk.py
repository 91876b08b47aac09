"""Walk a tree of workflows by queries, once or until it has converged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import (
    Client,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import QueryRejectCondition, RawValue
from temporalio.service import RPCError, RPCStatusCode

from ..errors import (
    AnswerMalformed,
    NotStateful,
    NoWorkerAnswers,
    OperationFailed,
    WorkflowNotFound,
)
from ..node.answers import ChildStatus, NodeStatus, node_status
from ..node.contract import MANY_SIGNALS, MESSAGE, STATUS_QUERY
from ..node.ledger import Life, is_among
from ..node.status import TokenTree, TreeNode, state_without
from ..sealed.message import Message
from ..use.asking import has_no_query, never_ran, read_answer

MAX_CONCURRENT_QUERIES: Final = 50

_QUERY_TIMEOUT: Final = timedelta(seconds=10)
_FIRST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.15
_WHILE_IT_TELLS_SECONDS: Final = 0.5
_LONGEST_RESPITE_SECONDS: Final = 1.0
"""After an answer that was long in coming, as the status of 1,900 children is."""

_LAST_LOOK_SECONDS: Final = 1.0
"""For what was not seen at the deadline; and before it, for those below a node that lacks nothing
but has a child it could not tell."""

_HAND_OVER_SECONDS: Final = 5.0
_HAND_OVER_AFTER_SECONDS: Final = 10.0
"""From then on a node that is still behind is handed the message, whatever its parent says."""

_LAST_CALL: Final = timedelta(seconds=2)
_MOST_VISITS: Final = 4
"""Of one workflow that several name as their child, each expecting something else of it."""

_NEVER_RAN: Final = NodeStatus("", "", "", None, (), (), (), (), (), False, False)

_NO_COURIER: Final = (
    "its children are told by nobody: no worker polls task queue {}. Run a worker with workflows "
    "and StatefulPlugin for this workflow's task queue"
)
_FOREIGN: Final = "not of this tree: it was started without its state and is a root of its own"

_NOT_YET_SEEN: Final = {Life.STARTING: "starting", Life.IN_DOUBT: "the server is asked for it"}

Expected = Mapping[str, int]
"""For each authority the version that stands there, as the nearest live node above says."""


@dataclass(frozen=True)
class Answer:
    """What a workflow answered to `apiTokenStatus`, and whether it is closed.

    Attributes:
        node: what was answered.
        closed: the workflow has ended.
    """

    node: NodeStatus
    closed: bool


async def ask(client: Client, workflow_id: str, timeout: timedelta | None = None) -> Answer:
    """Ask one workflow for its status, each of two calls within the timeout (None: 10 s).

    Raises:
        WorkflowNotFound, NotStateful, NoWorkerAnswers, OperationFailed: it cannot be asked.
        AnswerMalformed: it does not answer with a status.
    """
    query = partial(
        client.get_workflow_handle(workflow_id).query,
        STATUS_QUERY,
        result_type=RawValue,
        rpc_timeout=_QUERY_TIMEOUT if timeout is None else timeout,
    )
    closed = False
    try:
        try:
            answer: object = await query(reject_condition=QueryRejectCondition.NOT_OPEN)
        except (WorkflowQueryRejectedError, ValueError) as error:
            # A status that the SDK does not know, such as paused, is a ValueError, and not closed.
            closed = isinstance(error, WorkflowQueryRejectedError)
            answer = await query(reject_condition=QueryRejectCondition.NONE)
    except (WorkflowQueryFailedError, RPCError) as error:
        if closed and isinstance(error, RPCError) and never_ran(error):
            return Answer(_NEVER_RAN, closed=True)
        raise query_error(error, workflow_id) from None
    except Exception as error:  # noqa: BLE001 - what a codec raises
        raise AnswerMalformed(
            f"the answer of workflow {workflow_id} cannot be decoded: {type(error).__name__}"
        ) from None
    return read_answer(
        client,
        workflow_id,
        STATUS_QUERY,
        answer,
        lambda value: Answer(node_status(value), closed),
    )


def query_error(error: WorkflowQueryFailedError | RPCError, workflow_id: str) -> OperationFailed:
    """Say what a failed query or signal means and what to do."""
    if isinstance(error, WorkflowQueryFailedError):
        if has_no_query(error):
            return NotStateful(
                f"workflow {workflow_id} is not a StatefulWorkflow (it has no such query)"
            )
        return NoWorkerAnswers(f"workflow {workflow_id} could not answer: {error}")
    if error.status == RPCStatusCode.NOT_FOUND or never_ran(error):
        return WorkflowNotFound(f"there is no open workflow {workflow_id}: {error.message}")
    if error.status in (
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.FAILED_PRECONDITION,
    ):
        return NoWorkerAnswers(
            f"no worker answered for workflow {workflow_id}: is one running on its task queue? "
            "(Just after one was killed this takes some seconds; try again.)"
        )
    return OperationFailed(
        f"workflow {workflow_id} could not be asked ({error.status.name}): {error.message}"
    )


class TreeWalk:
    """One walk over a tree, for one credential name.

    Args:
        client: asks the workflows.
        name: credential name.
        deadline: `time.monotonic` seconds until which nodes that are behind are asked again, and
            soon after which the walk ends; None asks each node once, however long that takes.
        message: what to hand by update to a node that is behind since its parent cannot signal
            it, as when its run takes no more signals, or that is behind for long.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        deadline: float | None = None,
        message: Message | None = None,
    ) -> None:
        self._client = client
        self._name = name
        self._deadline = deadline
        self._message = message
        self._begun = time.monotonic()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)
        self._nodes: dict[str, TreeNode] = {}
        self._couriers: dict[str, str | None] = {}
        self._parents: dict[str, str | None] = {}
        self._children: dict[str, list[str]] = {}
        self._visits: dict[str, list[tuple[Expected, bool]]] = {}
        self._root = ""

    async def run(self, workflow_id: str) -> TokenTree:
        """Walk from a workflow down.

        Raises:
            WorkflowNotFound, NotStateful, NoWorkerAnswers, OperationFailed: of the first node.
        """
        self._parents[workflow_id] = None
        answer = await ask(self._client, workflow_id, self._timeout())
        await self._visit(workflow_id, (), {}, answer)
        nodes = list(self._in_order(workflow_id))
        idle = await self._queues_without_courier({node.id for node in nodes if node.undelivered})
        return TokenTree(
            self._name,
            tuple(
                replace(node, problem=_NO_COURIER.format(idle[node.id]))
                if node.id in idle
                else node
                for node in nodes
            ),
        )

    async def _queues_without_courier(self, ids: Collection[str]) -> Mapping[str, str]:
        """Of nodes that have somebody to tell, whose couriers' task queue nobody polls, and it."""
        queues = {id: queue for id in ids if (queue := self._couriers.get(id)) is not None}
        names = sorted(set(queues.values()))
        polled = await asyncio.gather(*map(self._is_polled, names))
        idle = {name for name, is_polled in zip(names, polled, strict=True) if not is_polled}
        return {id: queue for id, queue in queues.items() if queue in idle}

    async def _is_polled(self, queue: str) -> bool:
        request = DescribeTaskQueueRequest(
            namespace=self._client.namespace,
            task_queue=TaskQueue(name=queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        )
        try:
            answer = await self._client.workflow_service.describe_task_queue(
                request, timeout=_LAST_CALL
            )
        except RPCError:
            return True  # nobody knows
        return len(answer.pollers) > 0

    def _in_order(self, workflow_id: str) -> Iterator[TreeNode]:
        """Parents before their children, siblings as their parent started them."""
        rest = [workflow_id]
        while rest:
            node = self._nodes.get(rest.pop())
            if node is not None:
                yield node
                rest.extend(reversed(self._children.get(node.id, ())))

    async def _visit(
        self,
        workflow_id: str,
        above: tuple[str, ...],
        expected: Expected,
        answer: Answer | None = None,
        *,
        withheld: bool = False,
        of_parent: ChildStatus | None = None,
    ) -> None:
        pause = _FIRST_PAUSE_SECONDS
        asked = time.monotonic()
        node = self._unseen(workflow_id, "not asked in time")
        reason = None if of_parent is None else of_parent.reason
        is_untold = of_parent is not None and of_parent.life is Life.UNTOLD
        handed = is_untold  # it is never handed what its parent may not tell it
        while True:
            if answer is None:
                async with self._slots:
                    asked = time.monotonic()
                    if self._left() < -_LAST_LOOK_SECONDS:
                        break
                    try:
                        answer = await ask(self._client, workflow_id, self._timeout())
                    except (WorkflowNotFound, NotStateful):
                        return
                    except OperationFailed as error:
                        node = self._unseen(workflow_id, str(error))
            if answer is not None:
                root = answer.node.root
                if root and root != (self._root or root):
                    # Started before its parent took part, it has no state from above.
                    node = self._unseen(workflow_id, _FOREIGN)
                    seen = answer.node
                    self._note(replace(node, type=seen.type, api_url=seen.api_url, current=True))
                    return
                self._root = self._root or root
                self._couriers[workflow_id] = answer.node.courier
                node = self._node(answer, workflow_id, expected, withheld=withheld)
                if not self._is_awaited(node, answer):
                    break
                is_late = time.monotonic() - self._begun > _HAND_OVER_AFTER_SECONDS
                if (reason is not None or is_late) and not handed and not node.current:
                    handed = True
                    await self._hand_over(workflow_id)
            if self._left() <= 0:
                break
            respite = min(2 * (time.monotonic() - asked), _LONGEST_RESPITE_SECONDS)
            await asyncio.sleep(min(max(pause, respite), self._left()))
            longest = _LONGEST_PAUSE_SECONDS if not node.current else _WHILE_IT_TELLS_SECONDS
            pause = min(pause * 2, longest)
            answer = None
        if is_untold and not node.closed and node.authority != workflow_id:
            node = replace(node, current=False, problem=reason)
        self._note(node)
        if answer is not None:
            await self._visit_children(answer, (*above, workflow_id), expected)

    async def _visit_children(
        self, answer: Answer, above: tuple[str, ...], expected: Expected
    ) -> None:
        status, parent = answer.node, above[-1]
        below = expected if answer.closed else {**expected, **_standing(status, self._name)}
        visits: list[Coroutine[Any, Any, None]] = []
        for child in status.children:
            if child.id in above:
                problem = f"names {child.id}, which is no child of its, as one"
                self._note(replace(self._nodes[parent], current=False, problem=problem))
                continue
            if child.id not in self._parents:
                self._parents[child.id] = parent
                self._children.setdefault(parent, []).append(child.id)
            if child.life in _NOT_YET_SEEN:
                # It will hold what its parent wrote into its start, which may be old by now.
                problem = child.reason or _NOT_YET_SEEN[child.life]
                self._note(replace(self._unseen(child.id, problem), type=child.type))
                continue
            # Several may name it, and not all of them truly: it is to be what each of them expects.
            withheld = child.is_kept_from(self._name)
            visit = self._expected_of(child, below, status), withheld
            visits_of = self._visits.setdefault(child.id, [])
            if visit in visits_of:
                continue
            if len(visits_of) == _MOST_VISITS:
                self._note(self._unseen(child.id, f"more than {_MOST_VISITS} name it as a child"))
                continue
            visits_of.append(visit)
            visits.append(
                self._visit(child.id, above, visit[0], withheld=withheld, of_parent=child)
            )
        await asyncio.gather(*visits)

    def _note(self, node: TreeNode) -> None:
        """Keep how a workflow was seen; where it was seen twice, how it was found behind."""
        before = self._nodes.get(node.id)
        if before is None or (before.current and not node.current):
            self._nodes[node.id] = node

    def _unseen(self, workflow_id: str, problem: str) -> TreeNode:
        parent = self._parents[workflow_id]
        return TreeNode(workflow_id, "", parent, current=False, problem=problem)

    def _node(
        self, answer: Answer, workflow_id: str, expected: Expected, *, withheld: bool
    ) -> TreeNode:
        status = answer.node
        held = _standing(status, self._name)
        behind = any(held.get(authority, 0) < version for authority, version in expected.items())
        of_name = (t for t in status.tokens if t.status.name == self._name and t.in_force)
        in_force = next(of_name, None)
        withheld = withheld or is_among(self._name, status.withheld)
        many = None if answer.closed or status.signals < MANY_SIGNALS else status.signals
        return TreeNode(
            id=workflow_id,
            type=status.type,
            parent=self._parents[workflow_id],
            state=(
                state_without(
                    waiting=status.recovering or self._name in {m.name for m in status.waiting},
                    needs_set=status.needs_set,
                    withheld=withheld,
                )
                if in_force is None
                else in_force.status.at(time.time()).state
            ),
            version=None if in_force is None else in_force.version,
            fingerprint=None if in_force is None else in_force.status.fingerprint,
            authority=None if in_force is None else in_force.authority,
            api_url=status.api_url,
            withheld=withheld,
            closed=answer.closed,
            current=answer.closed or not (behind or status.recovering or status.replaced),
            undelivered=tuple(
                sorted({one.id for one in status.undelivered if one.name == self._name})
            ),
            signals=many,
        )

    def _expected_of(self, child: ChildStatus, below: Expected, status: NodeStatus) -> Expected:
        if child.life is Life.UNTOLD:
            return {}
        if not child.is_kept_from(self._name):
            return below
        if is_among(self._name, child.hard):
            return {}
        # A revocation goes on to a child that is withheld from now on.
        return {
            token.authority: token.version
            for token in status.tokens
            if token.status.name == self._name and token.inherit is False
        }

    def _is_awaited(self, node: TreeNode, answer: Answer) -> bool:
        """Whether a node is to be asked again: it is behind, starts a child or has one to tell."""
        if answer.closed:
            return False
        lives = {child.life for child in answer.node.children}
        if not node.current or lives & _NOT_YET_SEEN.keys():
            return True
        # Whom it could not tell is looked at, and handed the message, all the same.
        children = answer.node.children
        failed = {child.id for child in children if child.reason is not None}
        closed = {child.id for child in children if child.life is Life.CLOSED}
        on_its_way = not failed.issuperset({*node.undelivered, *closed})
        return on_its_way and self._left() > _LAST_LOOK_SECONDS

    async def _hand_over(self, workflow_id: str) -> None:
        """Hand a node the message by update; what it says shows when it is asked again."""
        if self._message is None:
            return
        handle = self._client.get_workflow_handle(workflow_id)
        with suppress(
            RPCError,
            WorkflowUpdateFailedError,
            WorkflowUpdateRPCTimeoutOrCancelledError,
            asyncio.TimeoutError,
        ):
            update = handle.execute_update(MESSAGE, self._message.text, result_type=RawValue)
            await asyncio.wait_for(update, _HAND_OVER_SECONDS)

    def _left(self) -> float:
        """Seconds until what is behind is asked no more; 0 where each node is asked once."""
        return 0.0 if self._deadline is None else self._deadline - time.monotonic()

    def _timeout(self) -> timedelta | None:
        if self._deadline is None:
            return None
        return min(_QUERY_TIMEOUT, timedelta(seconds=max(self._left(), _LAST_LOOK_SECONDS)))


def _standing(status: NodeStatus, name: str) -> dict[str, int]:
    return {token.authority: token.version for token in status.tokens if token.status.name == name}
