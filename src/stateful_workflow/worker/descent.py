"""Who is whose child and who runs, in the server's words: a workflow could say anything of itself.

A workflow's own words count for one thing only, and once somebody was found running below it: what
a closed one kept from its children. A lie there keeps a token back. It gives none out, since each
workflow holds to what it was started without by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeVar

from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from ..errors import AnswerMalformed
from ..node.answers import ChildStatus, kept_children, node_status
from ..node.contract import STATUS_QUERY, Orphan
from ..node.ledger import ALL, Life
from ..sealed.message import MAX_LIST
from ..use.asking import Silence, ask_closed
from ..use.server import Execution, describe, listed

RPC_TIMEOUT: Final = timedelta(seconds=5)

_PARENTS_A_QUERY: Final = 50
_MOST_CHILDREN: Final = 10_000
_DEEPEST: Final = 100
_RUNS_LOOKED_AT: Final = 20
_REASON_CHARACTERS: Final = 300

T = TypeVar("T")


class NoAnswer(Exception):
    """The server, or a closed workflow, does not say."""

    def __init__(self, why: str) -> None:
        super().__init__(why[:_REASON_CHARACTERS])


class Descent:
    """Finds a workflow's children that it has lost sight of.

    Args:
        client: asks the server, and closed workflows.
        workflow_id, run_id: of the workflow.
        since: when its first run began; what is older is another's.
        deadline: in seconds of `time.monotonic`; nothing is asked after it.

    Raises, from every call:
        NoAnswer: the server, or a closed workflow, does not say.
    """

    def __init__(
        self, client: Client, workflow_id: str, run_id: str, since: datetime, deadline: float
    ) -> None:
        self._client = client
        self._id = workflow_id
        self._run_id = run_id
        self._since = since
        self._deadline = deadline
        self._runs: dict[tuple[str, str], asyncio.Task[Execution | None]] = {}

    async def child(self, workflow_id: str) -> Execution | None:
        """A workflow that this one, or an earlier run of it, started; None where there is none."""
        described = await self._describe(workflow_id)
        if described is None:
            own = await self._describe(self._id, self._run_id)
            if own is not None and workflow_id in own.starting:
                raise NoAnswer("its start is under way")
            return None
        if described.parent_id != self._id or not described.parent_run_id:
            return None
        own_first = await self._first_run(self._id, self._run_id)
        if await self._first_run(self._id, described.parent_run_id) != own_first:
            return None  # a later workflow of the parent's id has nothing to do with it
        return described

    async def joined(self, workflow_id: str, workflow_type: str) -> Execution | None:
        """A workflow that is said to have joined; None where none of its id is of that type.

        Anybody may say so. Whom a closed one leaves is to be taken over only where it says itself
        that it joined.
        """
        described = await self._describe(workflow_id)
        if described is None or described.type != workflow_type:
            return None
        if described.is_open:
            return described
        status = await self._asked(workflow_id, described.run_id, node_status, None)
        return described if status is not None and status.parent == self._id else None

    async def listed(self, parent_ids: Sequence[str]) -> Mapping[str, list[Execution]]:
        """What the server lists as children of each of these."""
        found: dict[str, list[Execution]] = {}
        steps = range(0, len(parent_ids), _PARENTS_A_QUERY)
        left = [parent_ids[begin : begin + _PARENTS_A_QUERY] for begin in steps]
        for among in left:
            ids = ", ".join(map(_quoted, among))
            query = f"ParentWorkflowId IN ({ids}) AND ExecutionStatus != 'ContinuedAsNew'"
            rows = await self._rows(query, _MOST_CHILDREN + 1)
            if len(rows) <= _MOST_CHILDREN:
                begun = await self._begun()
                for row in rows:
                    if row.parent_id in among and row.start_time >= begun:
                        found.setdefault(row.parent_id or "", []).append(row)
            elif len(among) == 1:
                raise NoAnswer(f"more than {_MOST_CHILDREN:,} workflows are listed below it")
            else:
                left += [[parent_id] for parent_id in among]
        return found

    async def orphans(self, closed_id: str, rows: Sequence[Execution]) -> list[Orphan]:
        """The running workflows below a closed child, and what was kept from them on the way.

        Where the child runs again, those of the later workflow are left to that one. The rows are
        what `listed` has of it.
        """
        newest = await self._describe(closed_id)
        if newest is not None and newest.is_open:
            first = [await self._first_run(closed_id, row.parent_run_id or "") for row in rows]
            rows = [row for row, id in zip(rows, first, strict=True) if id != newest.first_run_id]
        answers: dict[tuple[str, str | None], Mapping[str, ChildStatus] | None] = {}
        found: list[Orphan] = []
        for way in await self._ways(closed_id, (), rows):
            orphan, asked = Orphan(way[-1].id, way[-1].type, [], {}), closed_id
            while way and orphan.soft is not None:
                key = asked, await self._first_run(asked, way[0].parent_run_id or "")
                if key not in answers:
                    answers[key] = await self._said(*key)
                said = answers[key]
                if said is None:
                    break
                # Whom it took over it speaks for alone: those between are not asked.
                place = max((n for n, row in enumerate(way) if row.id in said), default=0)
                asked, way = way[place].id, way[place + 1 :]
                orphan = _kept_from(orphan, said.get(asked))
            else:
                found.append(orphan)
        return found

    async def _ways(
        self, closed_id: str, above: tuple[Execution, ...], rows: Sequence[Execution]
    ) -> list[tuple[Execution, ...]]:
        """Each running workflow below a closed one, after the closed ones between."""
        if len(above) == _DEEPEST:
            raise NoAnswer(f"more than {_DEEPEST} closed workflows stand one below the other")
        over = {closed_id, *(row.id for row in above)}
        oldest_first = sorted(rows, key=lambda row: (row.is_open, row.start_time))
        children = {row.id: row for row in oldest_first if row.id not in over}
        listed = await self.listed([row.id for row in children.values() if not row.is_open])
        ways: list[tuple[Execution, ...]] = []
        for row in children.values():
            way = *above, row
            below = listed.get(row.id, ())
            ways += [way] if row.is_open else await self._ways(closed_id, way, below)
        return ways

    async def _said(
        self, closed_id: str, first_run: str | None
    ) -> Mapping[str, ChildStatus] | None:
        """The children of a closed workflow, as its last status has them.

        Empty where it is past retention; None where it took no part.
        """
        if first_run is None:
            return {}
        last_run = await self._last_run(closed_id, first_run)
        return await self._asked(closed_id, last_run, kept_children, {})

    async def _asked(
        self, closed_id: str, run_id: str, read: Callable[[object], T], past: T | None
    ) -> T | None:
        """The last status of a closed run; `past` where it is past retention, None of no node."""
        run, wait = (self._client, closed_id, run_id), self._time_left
        try:
            _, said = await ask_closed(*run, STATUS_QUERY, read, wait)
        except NoAnswer:
            raise
        except RPCError as error:
            raise NoAnswer(f"{error.status.name}: {error.message}") from None
        except (WorkflowQueryFailedError, AnswerMalformed) as error:
            raise NoAnswer(str(error)) from None
        except Exception as error:  # noqa: BLE001 - what a codec raises
            raise NoAnswer(type(error).__name__) from None
        if isinstance(said, Silence):
            return past if said is Silence.FORGOTTEN else None
        return said

    async def _last_run(self, workflow_id: str, first_run: str) -> str:
        """The last run of a closed workflow, whose id may run again."""
        closed = f"WorkflowId = {_quoted(workflow_id)} AND ExecutionStatus != 'Running'"
        query = f"{closed} AND ExecutionStatus != 'ContinuedAsNew'"
        for row in await self._rows(query, _RUNS_LOOKED_AT):
            # One that is open is paused, or whatever else is not running.
            if not row.is_open and await self._first_run(workflow_id, row.run_id) == first_run:
                return row.run_id
        raise NoAnswer("the server does not list its last run")

    async def _rows(self, query: str, most: int) -> list[Execution]:
        rows = listed(self._client, query, most, timeout=self._time_left())
        return await self._answered(rows) or []

    async def _begun(self) -> datetime:
        """When the workflow's first run began; one that was reset says when that was."""
        first_run = await self._first_run(self._id, self._run_id)
        first = None if first_run is None else await self._run(self._id, first_run)
        return self._since if first is None else min(self._since, first.start_time)

    async def _first_run(self, workflow_id: str, run_id: str) -> str | None:
        """The first run of the chain that a run belongs to; None where the server forgot it."""
        described = await self._run(workflow_id, run_id)
        return None if described is None else described.first_run_id

    async def _run(self, workflow_id: str, run_id: str) -> Execution | None:
        """As `_describe`, once for each run: most children share one."""
        key = workflow_id, run_id
        if key not in self._runs:
            self._runs[key] = asyncio.create_task(self._describe(workflow_id, run_id))
        return await self._runs[key]

    async def _describe(self, workflow_id: str, run_id: str | None = None) -> Execution | None:
        asked = describe(self._client, workflow_id, run_id, timeout=self._time_left())
        return await self._answered(asked)

    async def _answered(self, call: Awaitable[T]) -> T | None:
        """What the server answers; None where it does not know the workflow, or has no list."""
        try:
            return await call
        except RPCError as error:
            if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.UNIMPLEMENTED):
                return None
            raise NoAnswer(f"{error.status.name}: {error.message}") from None

    def _time_left(self) -> timedelta:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise NoAnswer("not asked in time")
        return min(RPC_TIMEOUT, timedelta(seconds=seconds))


def _kept_from(orphan: Orphan, child: ChildStatus | None) -> Orphan:
    """The same, with what a closed workflow kept from its child, the orphan or one above it."""
    if child is None or child.life in (Life.UNTOLD, Life.IN_DOUBT) or orphan.soft is None:
        return Orphan(orphan.id, orphan.type, orphan.hard, None)
    hard = {*orphan.hard, *_few(child.hard, [ALL])}
    kept = dict.fromkeys(_few(child.withheld, [ALL]), True)
    kept |= dict.fromkeys(_few(child.shared, []), False)
    soft = {
        name: any(one.get(name, one.get(ALL, False)) for one in (orphan.soft, kept))
        for name in sorted({*orphan.soft, *kept} - hard)
    }
    return Orphan(orphan.id, orphan.type, sorted(hard), soft)


def _few(names: Sequence[str], otherwise: list[str]) -> list[str]:
    """More names than a few are every name, or where they are given, none."""
    return list(names) if len(names) <= MAX_LIST else otherwise


def _quoted(workflow_id: str) -> str:
    """A workflow id in a list filter (https://docs.temporal.io/list-filter)."""
    return "'" + workflow_id.replace("\\", "\\\\").replace("'", "\\'") + "'"
