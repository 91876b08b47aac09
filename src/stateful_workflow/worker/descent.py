"""Who is whose child and who runs, in the server's words: a workflow could say anything of itself.

Of what other workflows say only one thing is believed, and asked for only once a running workflow
was found below a closed child: what the closed one kept from it. A lie there keeps a token back;
it gives none out, since each workflow holds to what it was started without by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeVar

from temporalio.client import (
    Client,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowQueryFailedError,
)
from temporalio.common import RawValue
from temporalio.service import RPCError, RPCStatusCode

from ..errors import AnswerMalformed
from ..node.answers import ChildStatus, kept_children
from ..node.contract import STATUS_QUERY, Orphan
from ..node.ledger import ALL, Life
from ..sealed.message import MAX_LIST
from ..use.asking import has_no_query, never_ran, read_answer

RPC_TIMEOUT: Final = timedelta(seconds=5)

_PARENTS_A_QUERY: Final = 50
_MOST_BELOW_ONE: Final = 10_000
_RUNS_LOOKED_AT: Final = 20
_REASON_CHARACTERS: Final = 300

_UNSURE: Final = (Life.UNTOLD, Life.IN_DOUBT)
"""What was kept from such a child, its closed parent did not know either."""

T = TypeVar("T")


class NoAnswer(Exception):
    """The server, or a closed workflow, does not say."""

    def __init__(self, why: str) -> None:
        super().__init__(why[:_REASON_CHARACTERS])


@dataclass
class _Below:
    """What the server lists below a closed child: workflows by id, of each the last run."""

    running: dict[str, WorkflowExecution] = field(default_factory=dict[str, WorkflowExecution])
    closed: dict[str, WorkflowExecution] = field(default_factory=dict[str, WorkflowExecution])


class Descent:
    """Finds a workflow's children that it has lost sight of.

    Args:
        client: asks the server, and closed workflows.
        workflow_id, run_id: of the workflow.
        since: when its first run began; what is older is another's.
        deadline: in seconds of `time.monotonic`; nothing is asked after it.
    """

    def __init__(
        self, client: Client, workflow_id: str, run_id: str, since: datetime, deadline: float
    ) -> None:
        self._client = client
        self._id = workflow_id
        self._run_id = run_id
        self._since = since
        self._deadline = deadline
        self._runs: dict[tuple[str, str], asyncio.Task[WorkflowExecutionDescription | None]] = {}
        self._kept: dict[tuple[str, str], asyncio.Task[Mapping[str, ChildStatus] | None]] = {}

    async def child(self, workflow_id: str) -> WorkflowExecutionStatus | None:
        """The state of a workflow that this one, or an earlier run of it, started.

        None where there is none of this id, or it is another's.

        Raises:
            NoAnswer: the server does not say.
        """
        described = await self._describe(workflow_id)
        if described is None and workflow_id in await self._starting():
            raise NoAnswer("its start is under way")
        if described is None or described.parent_id != self._id or not described.parent_run_id:
            return None
        own = await self._first_run(self._id, self._run_id)
        if await self._first_run(self._id, described.parent_run_id) != own:
            return None  # a later workflow of the parent's id has nothing to do with it
        return described.status

    async def _starting(self) -> frozenset[str]:
        """Children whose start the server has yet to bring about, and those that run."""
        described = await self._run(self._id, self._run_id)
        if described is None:
            return frozenset()
        return frozenset(child.workflow_id for child in described.raw_description.pending_children)

    async def listed(self, closed_ids: Sequence[str]) -> Mapping[str, list[WorkflowExecution]]:
        """What the server lists as children of each of these; of many at once.

        Raises:
            NoAnswer: the server does not say.
        """
        found: dict[str, list[WorkflowExecution]] = {}
        for begin in range(0, len(closed_ids), _PARENTS_A_QUERY):
            for row in await self._list(closed_ids[begin : begin + _PARENTS_A_QUERY]):
                found.setdefault(row.parent_id or "", []).append(row)
        return found

    async def orphans(self, closed_id: str, children: Sequence[WorkflowExecution]) -> list[Orphan]:
        """The running workflows below a closed child, and what was kept from them on the way.

        Those of a later workflow of that id are left to that one.

        Args:
            closed_id: workflow id of the closed child.
            children: what `listed` has of it.

        Raises:
            NoAnswer: the server does not say, or a closed workflow does not answer.
        """
        described = await self._describe(closed_id)
        if described is not None and described.status == WorkflowExecutionStatus.RUNNING:
            later = described.raw_info.first_run_id
            children = [
                row
                for row in children
                if row.parent_run_id
                and await self._first_run(closed_id, row.parent_run_id) != later
            ]
        below = await self._all_below(closed_id, children)
        found = [self._orphan(row, closed_id, below) for row in below.running.values()]
        return [orphan for orphan in await asyncio.gather(*found) if orphan is not None]

    async def _all_below(self, closed_id: str, children: Sequence[WorkflowExecution]) -> _Below:
        below, seen = _Below(), 0
        level: Iterable[WorkflowExecution] = children
        while rows := list(level):
            seen += len(rows)
            if seen > _MOST_BELOW_ONE:
                raise NoAnswer(f"more than {_MOST_BELOW_ONE:,} workflows are listed below it")
            for row in rows:
                is_running = row.status == WorkflowExecutionStatus.RUNNING
                (below.running if is_running else below.closed).setdefault(row.id, row)
            parents = [
                row.id for row in rows if row.id not in below.running and row.id != closed_id
            ]
            listed = await self.listed(list(dict.fromkeys(parents)))
            level = [
                row
                for of_parent in listed.values()
                for row in of_parent
                if row.id not in below.running and row.id not in below.closed
            ]
        return below

    async def _orphan(self, row: WorkflowExecution, closed_id: str, below: _Below) -> Orphan | None:
        """What is known of one; None where a workflow between takes no part in the tree."""
        way = [row]
        while way[-1].parent_id != closed_id:
            way.append(below.closed[way[-1].parent_id or ""])
        hard, soft = set[str](), dict[str, bool]()
        asked = closed_id
        while way:
            said = await self._kept_by(asked, way[-1].parent_run_id or "")
            if said is None:
                return None
            # Who closed before the one that is asked has left its children to that one.
            known = next((between.id for between in way if between.id in said), None)
            if known is None or said[known].life in _UNSURE:
                return Orphan(row.id, row.workflow_type, sorted(hard), None)
            while way.pop().id != known:
                continue
            asked = known
            hard |= set(_few(said[known].hard, [ALL]))
            kept = dict.fromkeys(_few(said[known].withheld, [ALL]), True)
            kept.update(dict.fromkeys(_few(said[known].shared, []), False))
            soft = {
                name: any(one.get(name, one.get(ALL, False)) for one in (soft, kept))
                for name in {*soft, *kept}
            }
        return Orphan(
            row.id,
            row.workflow_type,
            sorted(hard),
            {name: kept for name, kept in sorted(soft.items()) if name not in hard},
        )

    async def _kept_by(self, closed_id: str, run_id: str) -> Mapping[str, ChildStatus] | None:
        """As `_ask`, once for all children of a run."""
        key = closed_id, run_id
        if key not in self._kept:
            self._kept[key] = asyncio.create_task(self._ask(closed_id, run_id))
        return await self._kept[key]

    async def _ask(self, closed_id: str, run_id: str) -> Mapping[str, ChildStatus] | None:
        """The children in the last status of a closed workflow; None where it takes no part.

        Args:
            closed_id: its workflow id.
            run_id: of the run that started the child which is asked for; another may follow it.

        Raises:
            NoAnswer: it does not answer; past retention there is nobody to.
        """
        first_run = await self._first_run(closed_id, run_id)
        if first_run is None:
            return {}
        run_id = await self._last_run(closed_id, first_run)
        handle = self._client.get_workflow_handle(closed_id, run_id=run_id)
        try:
            raw: object = await handle.query(
                STATUS_QUERY, result_type=RawValue, rpc_timeout=self._time_left()
            )
            return read_answer(self._client, closed_id, STATUS_QUERY, raw, kept_children)
        except AnswerMalformed as error:
            raise NoAnswer(str(error)) from None
        except WorkflowQueryFailedError as error:
            if has_no_query(error):
                return None
            raise NoAnswer(error.message) from None
        except RPCError as error:
            if never_ran(error):
                return None
            if error.status == RPCStatusCode.NOT_FOUND:
                return {}
            raise NoAnswer(f"{error.status.name}: {error.message}") from None
        except Exception as error:  # noqa: BLE001 - what a codec raises
            raise NoAnswer(type(error).__name__) from None

    async def _last_run(self, workflow_id: str, first_run: str) -> str:
        """The last run of a closed workflow, of which the first is known; its id may run again.

        Raises:
            NoAnswer: the server does not list it, or not yet.
        """
        newest = await self._describe(workflow_id)
        if (
            newest is not None
            and newest.status != WorkflowExecutionStatus.RUNNING
            and newest.raw_info.first_run_id == first_run
        ):
            return newest.run_id
        closed = f"WorkflowId = {_quoted(workflow_id)} AND ExecutionStatus != 'Running'"
        for row in await self._rows(
            f"{closed} AND ExecutionStatus != 'ContinuedAsNew'", _RUNS_LOOKED_AT
        ):
            if await self._first_run(workflow_id, row.run_id) == first_run:
                return row.run_id
        raise NoAnswer("the server does not list its last run")

    # --- the server ----------------------------------------------------------

    async def _list(self, parent_ids: Sequence[str]) -> list[WorkflowExecution]:
        among = ", ".join(map(_quoted, parent_ids))
        rows = await self._rows(
            f"ParentWorkflowId IN ({among}) AND ExecutionStatus != 'ContinuedAsNew'",
            _MOST_BELOW_ONE + 1,
        )
        if len(rows) > _MOST_BELOW_ONE and len(parent_ids) > 1:  # one may have them all
            return [row for parent_id in parent_ids for row in await self._list([parent_id])]
        wanted = frozenset(parent_ids)
        return [row for row in rows if row.parent_id in wanted and row.start_time >= self._since]

    async def _rows(self, query: str, most: int) -> list[WorkflowExecution]:
        rows = self._client.list_workflows(query, limit=most, rpc_timeout=self._time_left())

        async def all_of_them() -> list[WorkflowExecution]:
            return [row async for row in rows]

        try:
            return await self._answered(all_of_them()) or []
        except RPCError as error:
            if error.status == RPCStatusCode.UNIMPLEMENTED:
                return []  # the time-skipping server has no list: nobody more is known
            raise

    async def _first_run(self, workflow_id: str, run_id: str) -> str | None:
        """The first run of the chain that a run belongs to; None where the server forgot it."""
        described = await self._run(workflow_id, run_id)
        return None if described is None else described.raw_info.first_run_id

    async def _run(self, workflow_id: str, run_id: str) -> WorkflowExecutionDescription | None:
        """As `_describe`, once for each run: most children share one."""
        key = workflow_id, run_id
        if key not in self._runs:
            self._runs[key] = asyncio.create_task(self._describe(workflow_id, run_id))
        return await self._runs[key]

    async def _describe(
        self, workflow_id: str, run_id: str | None = None
    ) -> WorkflowExecutionDescription | None:
        handle = self._client.get_workflow_handle(workflow_id, run_id=run_id)
        return await self._answered(handle.describe(rpc_timeout=self._time_left()))

    async def _answered(self, call: Awaitable[T]) -> T | None:
        """What the server answers; None where it does not know the workflow."""
        try:
            return await call
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return None
            if error.status == RPCStatusCode.UNIMPLEMENTED:
                raise
            raise NoAnswer(f"{error.status.name}: {error.message}") from None
        except Exception as error:  # noqa: BLE001 - an interceptor's, or a status not known here
            raise NoAnswer(type(error).__name__) from None

    def _time_left(self) -> timedelta:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise NoAnswer("not asked in time")
        return min(RPC_TIMEOUT, timedelta(seconds=seconds))


def _few(names: Sequence[str], otherwise: list[str]) -> list[str]:
    """More names than a few are every name, or where they are given, none."""
    return list(names) if len(names) <= MAX_LIST else otherwise


def _quoted(workflow_id: str) -> str:
    """A workflow id in a list filter (https://docs.temporal.io/list-filter)."""
    return "'" + workflow_id.replace("\\", "\\\\").replace("'", "\\'") + "'"
