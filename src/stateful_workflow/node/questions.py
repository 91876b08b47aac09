"""Ask what only another workflow or the server knows, until it is answered.

Runs in workflow code, beside the fan-outs. A child that did not settle before it closed is asked
for the children it leaves alive, unless it goes on and only its handle was given up. Of a workflow
that ran already when it was to be started the server is asked whose child it is: a run that was
reset starts again what it has started before.

A question is asked for 20 s and then, where nothing is answered, by an activity that the server
repeats without an event for each attempt; a new question takes that one's place, so that what is
silent holds up no other (docs/decisions/16-questions.md). Where no worker takes ordinary activities
of this library, the worker at hand asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    FailureError,
    TimeoutError,
    TimeoutType,
)

from .contract import ASK, NO_ANSWER, AskRequest, AskResult
from .describe import read_children
from .ledger import Ledger

_WINDOW: Final = timedelta(seconds=20)
_ATTEMPT: Final = timedelta(seconds=20)
_LOCAL_ATTEMPT: Final = timedelta(seconds=6)
_TAKEN_WITHIN: Final = timedelta(seconds=10)
_LONGEST_BACKOFF: Final = timedelta(minutes=5)
_FIRST_PAUSE: Final = timedelta(seconds=10)
_LONGEST_PAUSE: Final = timedelta(hours=1)
_NOT_REGISTERED: Final = ["NotFoundError", "ActivityNotRegisteredError"]
"""What workers of other activities fail with: those on the SDK's core, and Go's."""


class Questions:
    """The questions a node has open.

    Args:
        ledger: of the node.
        found: called after children were found by what was answered.
    """

    def __init__(self, ledger: Ledger, found: Callable[[], None]) -> None:
        self._ledger = ledger
        self._found = found
        self._task: asyncio.Task[None] | None = None
        self._asked: dict[str, int] = {}  # a child's id, and which of the node's starts it is
        self._news = False
        self._pause = _FIRST_PAUSE

    def begin(self) -> None:
        """Ask what there is to ask, unless that is under way."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        elif not self._open().items() <= self._asked.items():
            self._news = True
            self._pause = _FIRST_PAUSE

    def _open(self) -> dict[str, int]:
        children = self._ledger.children.values()
        return {child.id: child.start for child in children if child.has_question}

    async def _work(self) -> None:
        patiently = False
        while asked := self._open():
            self._asked, self._news = asked, False
            answers = await self._ask(self._request(), patiently=patiently)
            patiently = not (answers.any or self._news)
            if self._note(answers):
                self._found()

    def _request(self) -> AskRequest:
        children = self._ledger.children.values()
        return AskRequest(
            [child.id for child in children if child.unsettled],
            [child.id for child in children if child.running],
        )

    async def _ask(self, request: AskRequest, *, patiently: bool) -> AskResult:
        """What was answered; nothing where that was not in time, or there are new questions."""
        try:
            return await self._ask_any_worker(request, patiently=patiently)
        except ActivityError as error:
            if _is_silence(error):
                return AskResult()
        try:
            answers: AskResult = await workflow.execute_local_activity(
                ASK,
                vars(request),
                result_type=AskResult,
                start_to_close_timeout=_LOCAL_ATTEMPT,
                retry_policy=RetryPolicy(maximum_attempts=1),
            )
        except FailureError:
            answers = AskResult()
        if answers.any:
            self._pause = _FIRST_PAUSE
        elif not self._news:
            await self._rest()
        return answers

    async def _ask_any_worker(self, request: AskRequest, *, patiently: bool) -> AskResult:
        handle: workflow.ActivityHandle[AskResult] = workflow.start_activity(
            ASK,
            vars(request),
            result_type=AskResult,
            schedule_to_start_timeout=_TAKEN_WITHIN,
            start_to_close_timeout=_ATTEMPT,
            schedule_to_close_timeout=None if patiently else _WINDOW,
            retry_policy=RetryPolicy(
                maximum_interval=_LONGEST_BACKOFF, non_retryable_error_types=_NOT_REGISTERED
            ),
        )
        if patiently:
            await workflow.wait_condition(lambda: self._news or handle.done())
            if not handle.done():
                handle.add_done_callback(_drop)
                handle.cancel()
                return AskResult()
        return await handle

    async def _rest(self) -> None:
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        try:
            await workflow.wait_condition(lambda: self._news, timeout=pause)
        except asyncio.TimeoutError:
            return

    def _note(self, answers: AskResult) -> bool:
        """Note what was answered; whether there is something to tell or to ask for it."""
        ledger, found = self._ledger, False
        own = workflow.info().first_execution_run_id
        for child_id in self._same(answers.closed):
            children = answers.closed[child_id]
            ledger.adopt(child_id, read_children(children))
            found = found or bool(children)
        for child_id in self._same(answers.open):
            ledger.reopen_child(child_id)
            found = True
        for child_id in self._same(answers.running):
            if answers.running[child_id] == own:
                ledger.take_back(child_id)
                found = True
            else:
                ledger.start_failed(child_id, ledger.children[child_id].start)
        return found

    def _same(self, child_ids: Collection[str]) -> list[str]:
        """Those who are still the ones that were meant, and not later ones of their ids."""
        asked = self._asked.items()
        return [id for id, start in asked if id in child_ids and self._ledger.is_of(id, start)]


def _drop(handle: asyncio.Task[AskResult]) -> None:
    """Look at what became of an activity, so that asyncio does not log that nobody did."""
    if not handle.cancelled():
        handle.exception()


def _is_silence(error: ActivityError) -> bool:
    """Whether a worker did ask and nobody answered; else no worker of ours took the activity."""
    cause = error.cause
    if isinstance(cause, TimeoutError):
        return cause.type != TimeoutType.SCHEDULE_TO_START
    return isinstance(cause, ApplicationError) and cause.type == NO_ANSWER
