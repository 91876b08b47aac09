"""Walk a tree of workflows by queries, once or until it has converged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, TypeGuard, cast

from temporalio.client import (
    Client,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.common import QueryRejectCondition
from temporalio.service import RPCError, RPCStatusCode

from .budget import FEW_ROTATIONS
from .errors import NotStateful, NoWorkerAnswers, OperationFailed, WorkflowNotFound
from .forwarding import has_no_query, never_ran
from .ledger import ALL
from .status import TokenState, TokenStatus, TokenTree, TreeNode
from .wire import STATUS_QUERY

MAX_CONCURRENT_QUERIES: Final = 50

_QUERY_TIMEOUT: Final = timedelta(seconds=10)
_FIRST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.15
_LONGEST_RESPITE_SECONDS: Final = 1.0
"""After an answer that was long in coming, as the status of 1,900 children is."""

_NEVER_RAN: Final[Mapping[str, Any]] = {
    "root": None,
    "type": "",
    "api_url": None,
    "tokens": [],
    "children": [],
    "withheld": [],
    "undelivered": [],
    "waiting": [],
    "needs_set": False,
    "recovering": False,
}

_READ_OF_EACH: Final[Mapping[str, set[str]]] = {
    "tokens": {"name", "authority", "version", "fingerprint", "in_force", "inherit"},
    "children": {"id", "type", "confirmed", "withheld", "shared", "hard"},
    "undelivered": {"id", "name"},
    "waiting": {"name"},
}

Expected = Mapping[str, int]
"""For each authority the version that stands there, as the nearest live node above says."""


@dataclass(frozen=True)
class Answer:
    """What a workflow answered to `apiTokenStatus`, and whether it is closed."""

    status: Mapping[str, Any]
    closed: bool


async def ask(client: Client, workflow_id: str) -> Answer:
    """Ask one workflow for its status.

    Raises:
        WorkflowNotFound, NotStateful, NoWorkerAnswers, OperationFailed: it cannot be asked.
    """
    handle = client.get_workflow_handle(workflow_id)
    closed = False
    try:
        try:
            status: object = await handle.query(
                STATUS_QUERY,
                reject_condition=QueryRejectCondition.NOT_OPEN,
                rpc_timeout=_QUERY_TIMEOUT,
            )
        except WorkflowQueryRejectedError:
            closed = True
            status = await _ask_closed(handle)
    except (WorkflowQueryFailedError, RPCError) as error:
        raise query_error(error, workflow_id) from None
    if not _is_status(status):
        raise NotStateful(f"workflow {workflow_id} answered {STATUS_QUERY} with something else")
    return Answer(status, closed)


def _is_status(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether an answer has what is read of it here; any workflow can have such a query."""
    if not isinstance(value, dict):
        return False
    status = cast("dict[str, Any]", value)
    return _NEVER_RAN.keys() <= status.keys() and all(
        isinstance(status[name], list)
        and all(isinstance(entry, dict) and members <= entry.keys() for entry in status[name])
        for name, members in _READ_OF_EACH.items()
    )


async def _ask_closed(handle: WorkflowHandle[Any, Any]) -> object:
    try:
        return cast(
            "object",
            await handle.query(
                STATUS_QUERY,
                reject_condition=QueryRejectCondition.NONE,
                rpc_timeout=_QUERY_TIMEOUT,
            ),
        )
    except RPCError as error:
        if never_ran(error):
            return _NEVER_RAN
        raise


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
        deadline: `time.monotonic` seconds until which nodes that are behind are asked again;
            None asks each node once.
    """

    def __init__(self, client: Client, name: str, deadline: float | None = None) -> None:
        self._client = client
        self._name = name
        self._deadline = deadline
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)
        self._nodes: dict[str, TreeNode] = {}
        self._children: dict[str, list[str]] = {}
        self._root: str | None = None

    async def run(self, workflow_id: str) -> TokenTree:
        """Walk from a workflow down.

        Raises:
            WorkflowNotFound, NotStateful, NoWorkerAnswers, OperationFailed: of the first node.
        """
        answer = await ask(self._client, workflow_id)
        await self._visit(workflow_id, None, {}, answer, withheld=False)
        return TokenTree(self._name, tuple(self._in_order(workflow_id)))

    def _in_order(self, workflow_id: str) -> Iterator[TreeNode]:
        """Parents before their children, siblings as their parent started them."""
        node = self._nodes.pop(workflow_id, None)
        if node is not None:
            yield node
            for child_id in self._children.get(workflow_id, ()):
                yield from self._in_order(child_id)

    async def _visit(
        self,
        workflow_id: str,
        parent: str | None,
        expected: Expected,
        answer: Answer | None,
        *,
        withheld: bool,
        by_update: bool = False,
    ) -> None:
        pause = _FIRST_PAUSE_SECONDS
        asked = time.monotonic()
        while True:
            if answer is None:
                try:
                    async with self._slots:
                        asked = time.monotonic()
                        answer = await ask(self._client, workflow_id)
                except (WorkflowNotFound, NotStateful):
                    return
                except OperationFailed as error:
                    if self._is_over():
                        self._nodes[workflow_id] = TreeNode(
                            workflow_id, "", parent, current=False, problem=str(error)
                        )
                        return
            if answer is not None:
                root = answer.status["root"]
                if root is not None and root != (self._root or root):
                    self._nodes[workflow_id] = _foreign(answer.status, workflow_id, parent)
                    return
                self._root = self._root or root
                node = self._node(answer, workflow_id, parent, expected, withheld=withheld)
                waiting = not answer.closed and not (node.current and self._is_done(answer))
                if not waiting or self._is_over():
                    break
            respite = min(2 * (time.monotonic() - asked), _LONGEST_RESPITE_SECONDS)
            await asyncio.sleep(max(pause, respite))
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            answer = None
        self._nodes[workflow_id] = replace(node, by_update=by_update)
        await self._visit_children(answer, workflow_id, expected)

    async def _visit_children(self, answer: Answer, parent: str, expected: Expected) -> None:
        self._children[parent] = [str(child["id"]) for child in answer.status["children"]]
        below = expected if answer.closed else {**expected, **_standing(answer.status, self._name)}
        visits = [
            self._visit(
                str(child["id"]),
                parent,
                self._expected_of(child, below, answer.status),
                None,
                withheld=_is_withheld(child, self._name),
                by_update=child.get("by_update") is True,
            )
            for child in answer.status["children"]
            if child["id"] not in self._nodes and child["confirmed"]
        ]
        # It will hold what its parent wrote into its start, which may be old by now.
        for child in answer.status["children"]:
            if not child["confirmed"]:
                self._nodes[child["id"]] = TreeNode(
                    str(child["id"]), str(child["type"]), parent, current=False, problem="starting"
                )
        await asyncio.gather(*visits)

    def _node(
        self,
        answer: Answer,
        workflow_id: str,
        parent: str | None,
        expected: Expected,
        *,
        withheld: bool,
    ) -> TreeNode:
        status = answer.status
        held = _standing(status, self._name)
        behind = any(held.get(authority, 0) < version for authority, version in expected.items())
        undelivered = tuple(
            sorted({str(u["id"]) for u in status["undelivered"] if u["name"] == self._name})
        )
        in_force = next(
            (t for t in status["tokens"] if t["name"] == self._name and t["in_force"]), None
        )
        withheld = withheld or _is_named(status["withheld"], self._name)
        return TreeNode(
            id=workflow_id,
            type=str(status["type"]),
            parent=parent,
            state=_state(in_force, status, self._name, withheld=withheld),
            version=None if in_force is None else in_force["version"],
            fingerprint=None if in_force is None else in_force["fingerprint"],
            authority=None if in_force is None else in_force["authority"],
            api_url=status["api_url"],
            withheld=withheld,
            closed=answer.closed,
            current=answer.closed or not (behind or status["recovering"]),
            undelivered=undelivered,
            rotations_left=None if answer.closed else _few_left(status),
        )

    def _expected_of(
        self, child: Mapping[str, Any], below: Expected, status: Mapping[str, Any]
    ) -> Expected:
        if not _is_withheld(child, self._name):
            return below
        if _is_named(child["hard"], self._name):
            return {}
        # A revocation goes on to a child that is withheld from now on.
        return {
            t["authority"]: int(t["version"])
            for t in status["tokens"]
            if t["name"] == self._name and t["inherit"] is False
        }

    def _is_done(self, answer: Answer) -> bool:
        """Whether a node has told its children, and none of them is still being started."""
        status = answer.status
        return not any(u["name"] == self._name for u in status["undelivered"]) and all(
            child["confirmed"] for child in status["children"]
        )

    def _is_over(self) -> bool:
        return self._deadline is None or time.monotonic() >= self._deadline


def _foreign(status: Mapping[str, Any], workflow_id: str, parent: str | None) -> TreeNode:
    # Started before its parent took part, it has no state from above and never will.
    return TreeNode(
        workflow_id,
        str(status["type"]),
        parent,
        api_url=status["api_url"],
        problem="not of this tree: it was started without its state and is a root of its own",
    )


def _few_left(status: Mapping[str, Any]) -> int | None:
    # Absent where the node's worker is of another version.
    left = status.get("budget", {}).get("rotations_left")
    return left if isinstance(left, int) and left < FEW_ROTATIONS else None


def _standing(status: Mapping[str, Any], name: str) -> dict[str, int]:
    return {t["authority"]: int(t["version"]) for t in status["tokens"] if t["name"] == name}


def _is_withheld(child: Mapping[str, Any], name: str) -> bool:
    return name not in child["shared"] and _is_named(child["withheld"], name)


def _is_named(names: list[str], name: str) -> bool:
    return ALL in names or name in names


def _state(
    in_force: Mapping[str, Any] | None, status: Mapping[str, Any], name: str, *, withheld: bool
) -> TokenState:
    if in_force is not None:
        return TokenStatus.from_json(in_force).at(time.time()).state
    if status["recovering"] or any(message["name"] == name for message in status["waiting"]):
        return "waiting"
    if status["needs_set"]:
        return "needs_set"
    return "withheld" if withheld else "none"
