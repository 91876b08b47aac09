"""Keep a node's children told: what each lacks, and who of them is there at all.

Runs in workflow code. A telling is an activity of the courier with the newest state. What one
leaves undone goes to the same activity again, *patiently*: the server repeats that until something
comes of it, or a newer state takes its place (docs/decisions/09-telling.md).

In a replay the SDK may let a workflow see an update earlier or later among events than at first. So
each update makes one telling, one after the other, and events make theirs beside them, any number
of events together (docs/decisions/12-updates-and-events.md).
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import FailureError

from ..errors import AnswerMalformed
from ..sealed.message import Message
from . import couriers, limits
from .contract import TELL, TellRequest, TellResult
from .ledger import Child, Ledger, Life, Starting

_ATTEMPT: Final = timedelta(seconds=60)
_HEARTBEAT: Final = timedelta(seconds=15)
"""After this the server takes the worker of a telling for dead, and repeats it elsewhere."""

_LONGEST_BACKOFF: Final = timedelta(minutes=5)
_LOOKED_FOR_AT_ONCE: Final = 200
"""Closed children that wait for the next telling, which looks for whom they leave."""


class Telling:
    """What a node owes its children, and the activities that see to it.

    Args:
        ledger: knows what each child lacks.
        since: when the node's first run began, in Unix milliseconds.
        takes_part: whether the run began with a state. Else it may have begun before its class took
            part, and to replay it does nothing before a message was accepted.
        told: called where children may lack more than a telling gives them: events accepted
            something, a telling for an update has ended, or children were found again.
    """

    def __init__(
        self, ledger: Ledger, since: int, told: Callable[[], None], *, takes_part: bool
    ) -> None:
        self._ledger = ledger
        self._told = told
        self._takes_part = takes_part
        self._begun = False
        self._is_parent = False
        self._events = _Lane()
        self._updates = _Lane()
        self._unfinished = False
        self._is_patient = False
        self._is_in_vain = False
        self._context = contextvars.copy_context()
        self._under_way: list[_Attempt] = []
        self.reasons: dict[str, str] = {}
        """For each child that could not be told, or not be found, why."""
        self.resume(since)

    def resume(self, since: int) -> None:
        """Take over what an earlier run left undone, which is in the ledger now."""
        self._since = since
        self._is_parent = bool(self._ledger.children or self._ledger.closed)
        self._joins = len(self._in_doubt(joined=True))
        if (
            self._ledger.closed
            or self._in_doubt(joined=False)
            or next(self._ledger.to_tell(), None)
        ):
            self._events.due = 1

    def begin(self) -> None:
        """Tell from now on, what an earlier run left undone first."""
        self._begun = True
        self._run()

    def changed(self) -> None:
        """An event gave cause to tell somebody something, or to look for somebody.

        Whether anybody lacks anything must not decide which commands a run emits: a changed class
        keyword would break its replay. So a node that has had a child tells after every change.
        """
        if self._is_parent and self._takes_part:
            self._events.due = 1
            self._run()

    def accepted(self, *, by_update: bool = False) -> None:
        """A message was accepted: tell it on behalf of whoever sent it.

        What a tracing interceptor keeps in context variables so goes along to the children.
        """
        self._takes_part = True
        self._context = contextvars.copy_context()
        if by_update and self._is_parent:
            self._updates.due += 1
            self._run()
        elif not by_update:
            self.changed()
            self._told()

    def child_started(self, start: Starting) -> None:
        """A child's start was confirmed; it may lack what has been accepted meanwhile."""
        self._is_parent = True
        if self._ledger.child_started(start):
            self.changed()

    def child_failed_to_start(self, start: Starting, *, may_run: bool) -> None:
        """A child's start failed, or was given up; it may run all the same."""
        if self._ledger.child_failed_to_start(start, may_run=may_run):
            self._is_parent = True
            self.changed()

    def child_in_doubt(self, start: Starting) -> None:
        """A child may run, and nothing more is heard of it: the server is asked."""
        if self._ledger.doubt_child(start):
            self.changed()

    def child_closed(self, start: Starting, *, settled: bool) -> None:
        """A child closed; one that `settled` had told its own children all that it knew."""
        if not self._ledger.close_child(start):
            return
        if not settled or len(self._ledger.closed) % _LOOKED_FOR_AT_ONCE == 0:
            self.changed()

    def joined(self) -> None:
        """Somebody has joined: it is looked for with the next change, or with many others.

        Whether it was let in follows from the class, and is not to decide which commands are sent.
        """
        self._is_parent = True
        self._joins += 1
        if self._joins % limits.LIMITS.joins_until_a_look == 0:
            self._ledger.doubt_joined()
            self.changed()

    @property
    def is_settled(self) -> bool:
        """Whether all was told that could be told at once."""
        events, updates = self._events, self._updates
        return updates.is_idle and (events.is_idle or (self._is_patient and not events.due))

    # --- the loops -----------------------------------------------------------

    def _run(self) -> None:
        if not self._begun:
            return
        events, updates = self._events, self._updates
        if not events.is_running and (events.due or self._unfinished):
            events.task = asyncio.create_task(self._after_events())
        if not updates.is_running and updates.due:
            updates.task = asyncio.create_task(self._after_updates())

    async def _after_events(self) -> None:
        while self._events.due or self._unfinished:
            self._unfinished = False
            if self._events.due:
                # Conditions are looked at once all signals of an activation have been handled.
                await workflow.wait_condition(lambda: True)
                self._events.due = 0
                await self._tell()
            elif self._is_in_vain:
                await self._pause()
            else:
                await self._tell_patiently()

    async def _pause(self) -> None:
        """Ask again much later whom nobody but a courier should answer for: see `couriers`."""
        self._is_patient, self._is_in_vain, self._unfinished = True, False, True
        with suppress(asyncio.TimeoutError):
            await workflow.wait_condition(lambda: self._events.due > 0, timeout=_LONGEST_BACKOFF)
        self._is_patient = False

    async def _after_updates(self) -> None:
        while self._updates.due:
            self._updates.due -= 1
            await self._tell()
            self._told()
            if self._is_patient:
                self.changed()  # patience with what is older is over
            self._run()

    async def _tell(self) -> None:
        attempt = self._begin(patient=False)
        await workflow.wait_condition(attempt.handle.done)
        self._settle(attempt)

    async def _tell_patiently(self) -> None:
        attempt = self._begin(patient=True)
        handle = attempt.handle
        self._is_patient = True
        await workflow.wait_condition(lambda: self._events.due > 0 or handle.done())
        self._is_patient = False
        if handle.done():
            self._settle(attempt)
        else:
            self._under_way.remove(attempt)
            handle.add_done_callback(_drop)
            handle.cancel()

    def _begin(self, *, patient: bool) -> _Attempt:
        for variable, value in self._context.items():
            variable.set(value)
        room = _Room(self.reasons)
        lacking = self._lacking()
        messages: dict[str, int] = {}
        told: dict[str, list[Message]] = {}
        targets: list[tuple[str, str, list[int]]] = []
        for child in room.that_fit(self._ledger.children[child_id] for child_id in lacking):
            told[child.id] = lacking[child.id]
            indexes = [messages.setdefault(m.text, len(messages)) for m in told[child.id]]
            targets.append((child.id, child.type, indexes))
        in_doubt = [child.id for child in room.that_fit(self._in_doubt(joined=False))]
        joined = [(child.id, child.type) for child in room.that_fit(self._in_doubt(joined=True))]
        closed = {child.id: child for child in room.that_fit(self._ledger.closed.values())}
        request = TellRequest(
            list(messages),
            targets,
            in_doubt,
            [(child.id, child.type) for child in closed.values()],
            self._since,
            patient,
            room.left_out,
            joined,
        )
        handle = couriers.start(
            TELL,
            vars(request),  # the converter would copy a dataclass deeply first, in each replay too
            start_to_close_timeout=_ATTEMPT,
            heartbeat_timeout=_HEARTBEAT,
            retry_policy=RetryPolicy(maximum_interval=_LONGEST_BACKOFF),
        )
        attempt = _Attempt(request, told, dict(self._ledger.children), closed, handle)
        self._under_way.append(attempt)
        return attempt

    def _lacking(self) -> dict[str, list[Message]]:
        """What children lack, but for what is on its way to them."""
        lacking: dict[str, list[Message]] = {}
        for child, messages in self._ledger.to_tell():
            sent = [m for attempt in self._under_way for m in attempt.told.get(child.id, ())]
            rest = [message for message in messages if message not in sent]
            if rest:
                lacking[child.id] = rest
        return lacking

    def _in_doubt(self, *, joined: bool) -> list[Child]:
        children = self._ledger.children.values()
        return [c for c in children if c.life is Life.IN_DOUBT and c.joined is joined]

    # --- what came of it -----------------------------------------------------

    def _settle(self, attempt: _Attempt) -> None:
        self._under_way.remove(attempt)
        request, told = attempt.request, attempt.told
        try:
            result = couriers.result(attempt.handle, TellResult)
        except FailureError as error:
            result = TellResult(failed={target[0]: str(error) for target in request.targets})
        except AnswerMalformed as error:
            meant = (*told, *request.in_doubt, *attempt.closed, *dict(request.joined))
            result = TellResult(failed=dict.fromkeys(meant, str(error)), more=request.more)
            self._is_in_vain = True
        ledger = self._ledger
        untold = {*result.left, *result.failed, *result.orphans, *result.plain}
        for child_id in self._same(attempt, told):
            messages = told[child_id]
            sent = result.sent.get(child_id, 0) if child_id in untold else len(messages)
            ledger.delivered(child_id, messages[:sent])
        for child_id in self._same(attempt, [*result.plain, *result.gone]):
            ledger.forget_child(child_id)
        for child_id in self._same(attempt, result.mine):
            ledger.take_back(child_id)
        if result.mine:
            self._told()
        for child_id, orphans in result.orphans.items():
            closed = ledger.closed.get(child_id)
            if child_id in attempt.closed:
                is_same = closed is not None and closed.start == attempt.closed[child_id].start
            else:
                is_same = bool(self._same(attempt, [child_id]))
            if is_same:
                ledger.adopt(child_id, orphans)
        tried = {*attempt.closed, *request.in_doubt, *dict(request.joined), *told}
        untried = {id: why for id, why in self.reasons.items() if id not in tried}
        self.reasons = {**untried, **result.failed}
        self._unfinished = self._unfinished or _is_unfinished(result)

    def _same(self, attempt: _Attempt, child_ids: Iterable[str]) -> list[str]:
        """Those who are still the children that were meant, and not later ones of their ids."""
        meant = attempt.children
        return [id for id in child_ids if id in meant and self._ledger.is_of(id, meant[id].start)]


@dataclass
class _Lane:
    """Tellings that come one after the other: how many are due, and the loop that sees to them."""

    due: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return self.task is not None and not self.task.done()

    @property
    def is_idle(self) -> bool:
        return not self.due and not self.is_running


@dataclass(frozen=True, eq=False)
class _Attempt:
    """A telling under way.

    Attributes:
        request: what was asked.
        told: the messages in it, by child.
        children, closed: the node's children as they were, and the closed ones that it is about.
        handle: of the activity.
    """

    request: TellRequest
    told: Mapping[str, list[Message]]
    children: Mapping[str, Child]
    closed: Mapping[str, Child]
    handle: workflow.ActivityHandle[RawValue]


def _is_unfinished(result: TellResult) -> bool:
    """Whether somebody is to be told or found yet: by what is recorded, and by nothing else."""
    return bool(
        result.left or result.failed or result.mine or result.more or any(result.orphans.values())
    )


class _Room:
    """As many children as one request may hold, those that failed last time after all others."""

    def __init__(self, failed: Mapping[str, str]) -> None:
        self._failed = failed
        self._bytes = limits.LIMITS.request_bytes

    @property
    def left_out(self) -> bool:
        """Whether any found no room."""
        return self._bytes < 0

    def that_fit(self, children: Iterable[Child]) -> Iterator[Child]:
        for child in sorted(children, key=lambda child: child.id in self._failed):
            # As JSON: a character may take six bytes there, and an outsider says that he joins.
            self._bytes -= len(json.dumps((child.id, child.type)))
            if self._bytes < 0:
                return
            yield child


def _drop(handle: asyncio.Task[RawValue]) -> None:
    if not handle.cancelled():
        handle.exception()  # else asyncio logs that nobody looked at it
