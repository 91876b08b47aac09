"""Walk a tree of workflows by queries, once or until it has converged."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.client import (
    Client,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import RawValue
from temporalio.service import RPCError

from ..errors import NotStateful, OperationFailed, WorkflowAsleep, WorkflowNotFound
from ..node import limits
from ..node.answers import ChildStatus, NodeStatus
from ..node.contract import MESSAGE, source_queue_of
from ..node.ledger import Life, is_among
from ..node.status import TokenStatus, TokenTree, TreeNode, state_without
from ..sealed.keyring import Keyring
from ..sealed.message import Message
from ..sealed.origins import in_clear
from .asleep import what_is_left
from .calls import Answer, ask, check_in_use, is_polled, signal

MAX_CONCURRENT_QUERIES: Final = 50

_FIRST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.15
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

_NO_COURIER: Final = (
    "its children are told by nobody: no worker polls task queue {}. Run a worker with workflows "
    "and StatefulPlugin for this workflow's task queue"
)
_BESIDE: Final = "beside this tree: it was started before its parent took part, and joins when "
_FOREIGN: Final = _BESIDE + "a token is set or rotated above it"
_JOINS: Final = _BESIDE + "it is told what is set above it"
_FAILED: Final = (
    "failed in the task in which it was told the newest: does an interceptor refuse the signal?"
)
_LAST_EVENTS: Final = 20

_NOT_YET_SEEN: Final = {Life.STARTING: "starting", Life.IN_DOUBT: "the server is asked for it"}

_FIRST: Final = ChildStatus("", "", Life.RUNNING, None, (), (), ())
"""What is said of the workflow that a walk begins with."""

Expected = Mapping[str, int]
"""For each authority the version that stands there, as the nearest live node above says."""


class TreeWalk:
    """One walk over a tree, for one credential name.

    Args:
        client: asks the workflows.
        name: credential name.
        deadline: `time.monotonic` seconds until which nodes that are behind are asked again, and
            soon after which the walk ends; None asks each node once, however long that takes.
        message: what to hand by update to a node that is behind since its parent cannot signal
            it, as when its run takes no more signals, or that is behind for long.
        keyring: of who walks, which says whose keys are revoked, and trusted.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        deadline: float | None = None,
        message: Message | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        self._client = client
        self._name = name
        self._deadline = deadline
        self._message = message
        self._revoked = () if keyring is None else keyring.revoked()
        self._trusted = None if keyring is None else keyring.trusted()
        self._names: set[str] = set()
        self._begun = time.monotonic()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)
        self._nodes: dict[str, TreeNode] = {}
        self._couriers: dict[str, str | None] = {}
        self._polled: dict[str, bool] = {}
        self._parents: dict[str, str | None] = {}
        self._visits: dict[str, list[tuple[Expected, bool]]] = {}
        self._root = ""
        self._asleep: dict[str, WorkflowAsleep] = {}

    async def run(self, workflow_id: str) -> TokenTree:
        """Walk from a workflow down.

        Raises:
            WorkflowNotFound, NotStateful, NoWorkerAnswers, OperationFailed: of the first node.
            NameNotInUse: nobody in the tree knows the name, and others are in use.
        """
        self._parents[workflow_id] = None
        answer = await self._ask(workflow_id)
        await self._visit(workflow_id, (), {}, answer=answer)
        if all(node.state == "none" for node in self._nodes.values()):
            check_in_use(self._name, self._names, workflow_id)
        nodes = [await self._with_pollers(node) for node in self._in_order()]
        return TokenTree(self._name, tuple(nodes))

    async def _with_pollers(self, node: TreeNode) -> TreeNode:
        """The same; of one that has something to be done, whether somebody polls for it: a worker
        of its source, and a courier of one that has somebody to tell."""
        source = node.source
        if source is not None and source.waits:
            is_pending = not await self._is_polled(source_queue_of(source.source))
            node = replace(node, source=replace(source, pending=is_pending or None))
        queue = self._couriers.get(node.id) if node.undelivered else None
        if queue is None or await self._is_polled(queue):
            return node
        return replace(node, problem=_NO_COURIER.format(queue))

    async def _is_polled(self, queue: str) -> bool:
        if queue not in self._polled:
            self._polled[queue] = await is_polled(self._client, queue)
        return self._polled[queue]

    def _in_order(self) -> Iterator[TreeNode]:
        """Parents before their children, siblings as their parent started them."""
        children: defaultdict[str | None, list[str]] = defaultdict(list)
        for child_id, parent in self._parents.items():
            children[parent].append(child_id)
        rest = children[None]
        while rest:
            node = self._nodes.get(rest.pop())
            if node is not None and not (node.closed and node.parent in self._asleep):
                yield node
                rest.extend(reversed(children[node.id]))

    async def _visit(
        self,
        workflow_id: str,
        above: tuple[str, ...],
        expected: Expected,
        of_parent: ChildStatus = _FIRST,
        answer: Answer | None = None,
    ) -> None:
        node, answer = await self._watch(workflow_id, expected, of_parent, answer)
        narrowed = of_parent.narrowing(self._name)
        if node is not None and narrowed is not None and not node.closed:
            # What was set there by its parent falls with the parent's.
            of_others = node.set_here and node.version != narrowed.version
            scopes = narrowed.scopes
            node = replace(node, set_here=of_others, withheld=False, narrowed=scopes)
            if narrowed.pending is not None:
                node = replace(node, current=False, problem=narrowed.pending)
        has_left = of_parent.joined and node is not None and node.closed
        if node is None or (has_left and not (answer and answer.node.children)):
            return
        is_as_started = answer is not None and not node.closed and node.authority != workflow_id
        if of_parent.life is Life.UNTOLD and is_as_started:
            node = replace(node, current=False, problem=of_parent.reason)
        self._note(node)
        if answer is not None:
            await self._visit_children(answer, (*above, workflow_id), expected)

    async def _watch(
        self,
        workflow_id: str,
        expected: Expected,
        of_parent: ChildStatus,
        answer: Answer | None,
    ) -> tuple[TreeNode | None, Answer | None]:
        """Ask a node until it is as it should be, or the time is over: what is found in the end.

        Of no node None; without an answer where nothing below it is to be looked at.
        """
        withheld = of_parent.is_kept_from(self._name)
        could_not_tell = of_parent.reason is not None
        is_kept = of_parent.life is Life.UNTOLD or of_parent.narrowing(self._name) is not None
        to_hand_over = None if is_kept else self._message
        pause, asked = _FIRST_PAUSE_SECONDS, time.monotonic()
        node = self._unseen(workflow_id, "not asked in time")
        while True:
            if answer is None:
                async with self._slots:
                    asked = time.monotonic()
                    if self._left() < -_LAST_LOOK_SECONDS:
                        return node, None
                    try:
                        answer = await self._ask(workflow_id)
                    except (WorkflowNotFound, NotStateful):
                        return None, None
                    except OperationFailed as error:
                        node = self._unseen(workflow_id, str(error))
                        if of_parent.joined and of_parent.life is Life.IN_DOUBT:  # or ended
                            return replace(node, current=True), None
            if answer is not None:
                self._root = self._root or answer.node.root
                if answer.node.root not in ("", self._root):
                    if of_parent.joined:
                        return None, None
                    node = self._foreign(answer, workflow_id)
                    if answer.closed or not expected:
                        return node, None
                    node, answer = replace(node, problem=_JOINS), None
            if answer is not None:
                self._couriers[workflow_id] = answer.node.courier
                node = self._node(answer, workflow_id, expected, withheld=withheld)
                if answer.failed and self._is_behind(answer.node, expected):
                    return await self._failed(node), answer
                if not self._is_awaited(node, answer):
                    return node, answer
                is_late = time.monotonic() - self._begun > _HAND_OVER_AFTER_SECONDS
                if to_hand_over and not node.current and (could_not_tell or is_late):
                    await self._hand_over(workflow_id, to_hand_over)
                    to_hand_over = None
            if self._left() <= 0:
                return node, answer
            respite = min(2 * (time.monotonic() - asked), _LONGEST_RESPITE_SECONDS)
            await asyncio.sleep(min(max(pause, respite), self._left()))
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            answer = None

    async def _ask(self, workflow_id: str) -> Answer:
        """What a workflow answers; of one that is asleep or paused, what it will go on from."""
        try:
            answer = await ask(self._client, workflow_id, self._timeout())
        except WorkflowAsleep as asleep:
            wait, trusted = self._timeout(), self._trusted
            left = await what_is_left(self._client, workflow_id, wait, trusted=trusted)
            self._asleep[workflow_id] = asleep
            # Nobody tells those below it now, so they are handed the message by this walk.
            return Answer(left.status(because=str(asleep)), closed=False)
        self._asleep.pop(workflow_id, None)
        return answer

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
            self._parents.setdefault(child.id, parent)
            if child.life in _NOT_YET_SEEN and not child.joined:
                # It will hold what its parent wrote into its start, which may be old by now.
                problem = child.reason or _NOT_YET_SEEN[child.life]
                self._note(replace(self._unseen(child.id, problem), type=child.type))
                continue
            # Several may name it, and not all of them truly: it is to be what each of them expects.
            visit = self._expected_of(child, below, status), child.is_kept_from(self._name)
            visits_of = self._visits.setdefault(child.id, [])
            if visit in visits_of:
                continue
            if len(visits_of) == _MOST_VISITS:
                self._note(self._unseen(child.id, f"more than {_MOST_VISITS} name it as a child"))
                continue
            visits_of.append(visit)
            visits.append(self._visit(child.id, above, visit[0], child))
        await asyncio.gather(*visits)

    def _note(self, node: TreeNode) -> None:
        """Keep how a workflow was seen; where it was seen twice, how it was found behind."""
        before = self._nodes.get(node.id)
        if before is None or (before.current and not node.current):
            self._nodes[node.id] = node

    def _unseen(self, workflow_id: str, problem: str) -> TreeNode:
        parent = self._parents[workflow_id]
        return TreeNode(workflow_id, "", parent, "unknown", current=False, problem=problem)

    def _foreign(self, answer: Answer, workflow_id: str) -> TreeNode:
        """One that was started before its parent took part, and has no state from above."""
        node = self._node(answer, workflow_id, {}, withheld=False)
        if answer.closed:
            return node
        return replace(node, current=False, beside=True, set_here=False, problem=_FOREIGN)

    async def _failed(self, node: TreeNode) -> TreeNode:
        """One that closed as failed without the newest: whether it failed when it was told.

        Its last task says so: no clock does, and children fail for many reasons.
        """
        request = GetWorkflowExecutionHistoryReverseRequest(
            namespace=self._client.namespace,
            execution=WorkflowExecution(workflow_id=node.id),
            maximum_page_size=_LAST_EVENTS,
        )
        service = self._client.workflow_service
        try:
            answer = await service.get_workflow_execution_history_reverse(
                request, timeout=_LAST_CALL
            )
        except RPCError:
            return node  # nobody knows
        tasks = 0
        for event in answer.history.events:
            tasks += event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
            signal = event.workflow_execution_signaled_event_attributes.signal_name
            if tasks < 2 and signal == MESSAGE:
                return replace(node, state="failed", current=False, problem=_FAILED)
        return node

    def _node(
        self, answer: Answer, workflow_id: str, expected: Expected, *, withheld: bool
    ) -> TreeNode:
        status = answer.node
        self._names |= status.names()
        of_name = (t for t in status.tokens if t.status.name == self._name and t.in_force)
        in_force = next(of_name, None)
        withheld = withheld or is_among(self._name, status.withheld)
        source = status.source(self._name)
        if in_force is not None:
            seen = in_force.status.at(time.time()).under(self._revoked)
        else:
            waiting = status.recovering or self._name in {m.name for m in status.waiting}
            state = state_without(waiting=waiting, needs_set=status.needs_set, withheld=withheld)
            seen = TokenStatus(self._name, state, api_url=status.api_url)
        if not status.recovering:
            seen = seen.minted_by(source)
        few = status.signals < limits.LIMITS.many_signals
        many = None if answer.closed or few else status.signals
        behind = self._is_behind(status, expected) or status.recovering or bool(status.replaced)
        parent = self._parents[workflow_id]
        node = TreeNode(
            id=workflow_id,
            type=status.type,
            parent=parent,
            state=seen.state,
            version=None if in_force is None else in_force.version,
            fingerprint=seen.fingerprint,
            authority=None if in_force is None else in_force.authority,
            api_url=seen.api_url if status.api_url is None else status.api_url,
            used_api_url=seen.api_url,
            withheld=withheld,
            closed=answer.closed,
            current=answer.closed or not behind,
            undelivered=tuple(
                sorted({one.id for one in status.undelivered if one.name == self._name})
            ),
            signals=many,
            problem=status.clear_text(self._name) or status.waits(self._name),
            set_here=(
                parent is not None and in_force is not None and in_force.authority == workflow_id
            ),
            http=tuple(filter(in_clear, seen.origins)),
            not_for_type=seen.types is not None and status.type not in seen.types,
            source=source,
        )
        asleep = self._asleep.get(workflow_id)
        return node if asleep is None else _as_asleep(node, asleep)

    def _is_behind(self, status: NodeStatus, expected: Expected) -> bool:
        held = _standing(status, self._name)
        return any(held.get(authority, 0) < version for authority, version in expected.items())

    def _expected_of(self, child: ChildStatus, below: Expected, status: NodeStatus) -> Expected:
        if child.life is Life.UNTOLD:
            return {}
        if not child.is_kept_from(self._name):
            return below
        narrowed = child.narrowing(self._name)
        if narrowed is not None:
            return {child.id: narrowed.version}
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
        children = answer.node.children
        if not node.current or node.asleep_until is not None:
            return not node.current
        if any(child.life in _NOT_YET_SEEN and not child.joined for child in children):
            return True
        narrowed = (child.narrowing(self._name) for child in children)
        if any(one is not None and one.pending is not None for one in narrowed):
            return self._left() > _LAST_LOOK_SECONDS
        # Whom it could not tell is looked at, and handed the message, all the same.
        failed = {child.id for child in children if child.reason is not None}
        closed = {child.id for child in children if child.life is Life.CLOSED}
        on_its_way = {*node.undelivered, *closed} - failed
        return bool(on_its_way) and self._left() > _LAST_LOOK_SECONDS

    async def _hand_over(self, workflow_id: str, message: Message) -> None:
        """Hand a node the message; what it says shows when it is asked again."""
        handle = self._client.get_workflow_handle(workflow_id)
        with suppress(
            OperationFailed,
            RPCError,
            WorkflowUpdateFailedError,
            WorkflowUpdateRPCTimeoutOrCancelledError,
            asyncio.TimeoutError,
        ):
            if workflow_id in self._asleep:
                await signal(self._client, workflow_id, message)
                return
            update = handle.execute_update(MESSAGE, message.text, result_type=RawValue)
            await asyncio.wait_for(update, _HAND_OVER_SECONDS)

    def _left(self) -> float:
        """Seconds until what is behind is asked no more; 0 where each node is asked once."""
        return 0.0 if self._deadline is None else self._deadline - time.monotonic()

    def _timeout(self) -> timedelta | None:
        if self._deadline is None:
            return None
        left = timedelta(seconds=max(self._left(), _LAST_LOOK_SECONDS))
        return min(limits.LIMITS.client_question, left)


def _standing(status: NodeStatus, name: str) -> dict[str, int]:
    return {token.authority: token.version for token in status.tokens if token.status.name == name}


def _as_asleep(node: TreeNode, asleep: WorkflowAsleep) -> TreeNode:
    """The same of one that is asleep, or paused: who knows for how long, and what runs there."""
    if asleep.until is None:
        return replace(node, current=False, problem=str(asleep))
    return replace(node, asleep_until=asleep.until)
