"""Keep a node's children told: what each lacks, and who of them is there at all.

Runs in workflow code. One telling runs at a time, with the newest state: an activity of the courier
(`stateful_workflow.worker`), on the library's own task queue. What a telling leaves undone goes to
the same activity again, which the server repeats without an event until something comes of it; a
newer state takes that one's place (docs/decisions/09-telling.md).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import FailureError

from ..sealed.message import Message
from .contract import COURIER_QUEUE, TELL, TellRequest, TellResult
from .ledger import Child, Ledger, Life

_ATTEMPT: Final = timedelta(seconds=60)
_HEARTBEAT: Final = timedelta(seconds=10)
"""After this the server takes the worker of a telling for dead, and repeats it elsewhere."""

_LONGEST_BACKOFF: Final = timedelta(minutes=5)
_REQUEST_BYTES: Final = 500_000
"""Of ids and types in one request: the server ends a workflow that sends more than 2 MB."""

_LOOKED_FOR_AT_ONCE: Final = 200
"""Closed children that wait for the next telling, which looks for whom they leave."""

Told = Mapping[str, list[Message]]


def courier_queue() -> str:
    """The task queue of the couriers of this workflow's workers."""
    return COURIER_QUEUE.format(workflow.info().task_queue)


class Telling:
    """What a node owes its children, and the activities that see to it.

    Args:
        ledger: knows what each child lacks.
        since: when the node's first run began, in Unix milliseconds.
    """

    def __init__(self, ledger: Ledger, since: int) -> None:
        self._ledger = ledger
        self._since = since
        self._begun = False
        self._is_parent = False
        self._changes = 0
        self._follows = False
        self._unfinished = False
        self._is_patient = False
        self._task: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()
        self._starts: dict[str, int] = {}
        self.reasons: dict[str, str] = {}
        """For each child that could not be told, or not be found, why."""

    def begin(self) -> None:
        """Tell from now on, what an earlier run left undone first."""
        self._begun = True
        self._is_parent = self._is_parent or bool(self._ledger.children or self._ledger.closed)
        if self._ledger.closed or self._in_doubt() or next(self._ledger.to_tell(), None):
            self.changed()
        self._run()

    def follow(self) -> None:
        """A message was accepted: tell it on behalf of whoever sent it.

        What a tracing interceptor keeps in context variables so goes along to the children.
        """
        self._context = contextvars.copy_context()
        self.changed()

    def changed(self) -> None:
        """There may be something to tell, or somebody to look for.

        Whether anybody lacks anything must not decide which commands a run emits: a changed class
        keyword would break its replay. So a node that has had a child tells after every change.
        """
        if self._is_parent:
            self._changes += 1
            self._run()

    def child_started(self, child_id: str, start: int) -> None:
        """A child's start was confirmed; it may lack what has been accepted meanwhile."""
        self._is_parent = True
        if self._ledger.confirm_child(child_id, start):
            self.changed()

    def child_in_doubt(self, child_id: str, start: int) -> None:
        """A child's start failed, and it may run all the same."""
        if self._ledger.doubt_child(child_id, start):
            self._is_parent = True
            self.changed()

    def child_closed(self, child_id: str, start: int, *, settled: bool) -> None:
        """A child closed; one that `settled` had told its own children all that it knew."""
        if not self._ledger.close_child(child_id, start):
            return
        if not settled or len(self._ledger.closed) == _LOOKED_FOR_AT_ONCE:
            self.changed()

    @property
    def is_settled(self) -> bool:
        """Whether all was told that could be told at once."""
        idle = self._task is None or self._task.done()
        return not self._changes and (idle or self._is_patient)

    # --- the loop ------------------------------------------------------------

    def _run(self) -> None:
        if self._begun and self._changes and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._changes or self._unfinished:
            for variable, value in self._context.items():
                variable.set(value)
            if self._changes:
                await self._tell()
            else:
                await self._tell_patiently()

    async def _tell(self) -> None:
        first, self._follows = not self._follows, False
        before, self._changes = self._changes, 0
        request, told = self._request(patient=False)
        handle = self._start(request)
        await workflow.wait_condition(handle.done)
        self._settle(handle, request, told)
        # Updates and events of one workflow task can come in one activation or in several, and
        # in a replay otherwise than at first. Two changes make two tellings either way.
        if first and before + self._changes > 1:
            self._follows, self._changes = True, max(self._changes, 1)

    async def _tell_patiently(self) -> None:
        request, told = self._request(patient=True)
        handle = self._start(request)
        self._is_patient = True
        await workflow.wait_condition(lambda: self._changes > 0 or handle.done())
        self._is_patient = False
        if handle.done():
            self._settle(handle, request, told)
        else:
            handle.add_done_callback(_drop)
            handle.cancel()

    def _start(self, request: TellRequest) -> workflow.ActivityHandle[TellResult]:
        return workflow.start_activity(
            TELL,
            vars(request),  # the converter would copy a dataclass deeply first, in each replay too
            result_type=TellResult,
            task_queue=courier_queue(),
            start_to_close_timeout=_ATTEMPT,
            heartbeat_timeout=_HEARTBEAT,
            retry_policy=RetryPolicy(maximum_interval=_LONGEST_BACKOFF),
        )

    def _request(self, *, patient: bool) -> tuple[TellRequest, Told]:
        messages: dict[str, int] = {}
        told: dict[str, list[Message]] = {}
        targets: list[tuple[str, str, list[int]]] = []
        room = _Room(self.reasons)
        lacking_of = {child.id: lacking for child, lacking in self._ledger.to_tell()}
        for child in room.that_fit(self._ledger.children[child_id] for child_id in lacking_of):
            told[child.id] = lacking_of[child.id]
            indexes = [messages.setdefault(m.text, len(messages)) for m in told[child.id]]
            targets.append((child.id, child.type, indexes))
        in_doubt = [child.id for child in room.that_fit(self._in_doubt())]
        closed = [(c.id, c.type) for c in room.that_fit(self._ledger.closed.values())]
        self._unfinished = room.left_out
        self._starts = {child.id: child.start for child in self._ledger.children.values()}
        request = TellRequest(list(messages), targets, in_doubt, closed, self._since, patient)
        return request, told

    def _in_doubt(self) -> list[Child]:
        return [c for c in self._ledger.children.values() if c.life is Life.IN_DOUBT]

    # --- what came of it -----------------------------------------------------

    def _settle(
        self, handle: workflow.ActivityHandle[TellResult], request: TellRequest, told: Told
    ) -> None:
        try:
            result = handle.result()
        except FailureError as error:
            result = TellResult(failed={target[0]: str(error) for target in request.targets})
        ledger = self._ledger
        untold = {*result.left, *result.failed, *result.orphans, *result.plain}
        for child_id in self._same(told):
            messages = told[child_id]
            sent = result.sent.get(child_id, 0) if child_id in untold else len(messages)
            ledger.delivered(child_id, messages[:sent])
        for child_id in self._same([*result.plain, *result.gone]):
            ledger.forget_child(child_id)
        for child_id in self._same(result.mine):
            ledger.take_back(child_id)
        looked_for = {child_id for child_id, _ in request.closed}
        tried = {*looked_for, *request.in_doubt, *told}
        for child_id, orphans in result.orphans.items():
            if child_id in looked_for or self._same([child_id]):
                ledger.adopt(child_id, orphans)
        untried = {id: why for id, why in self.reasons.items() if id not in tried}
        self.reasons = {**untried, **result.failed}
        again = (result.left, result.failed, result.mine, *result.orphans.values())
        self._unfinished = self._unfinished or any(again)

    def _same(self, child_ids: Iterable[str]) -> list[str]:
        """Those who are still the children that were meant, and not later ones of their ids."""
        return [id for id in child_ids if self._ledger.is_of(id, self._starts.get(id, -1))]


class _Room:
    """As many children as one request may hold, those that failed last time after all others."""

    def __init__(self, failed: Mapping[str, str]) -> None:
        self._failed = failed
        self._bytes = _REQUEST_BYTES
        self.left_out = False

    def that_fit(self, children: Iterable[Child]) -> Iterator[Child]:
        for child in sorted(children, key=lambda child: child.id in self._failed):
            self._bytes -= len(child.id) + len(child.type)
            if self._bytes < 0:
                self.left_out = True
                return
            yield child


def _drop(handle: asyncio.Task[TellResult]) -> None:
    """Look at what became of an activity, so that asyncio does not log that nobody did."""
    if not handle.cancelled():
        handle.exception()
