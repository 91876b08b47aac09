"""Ask what only another workflow knows, until it answers.

Runs in workflow code, beside the fan-outs. A child that did not settle before it closed is asked
for the children it leaves alive. A workflow that ran already when it was to be started is asked
whose child it is: a run that was reset starts again what it has started before. The server
repeats an ordinary activity, without an event for each attempt (docs/design.md, decision 6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

from .describe import read_children
from .forwarding import AskRequest, AskResult
from .ledger import Ledger
from .wire import ASK

_ATTEMPT: Final = timedelta(seconds=20)
_LONGEST_PAUSE: Final = timedelta(minutes=5)


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

    def begin(self) -> None:
        """Ask what there is to ask, unless that is under way."""
        if self._request() is not None and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._ask())

    def _request(self) -> AskRequest | None:
        children = self._ledger.children.values()
        closed = [child.id for child in children if child.unsettled]
        running = [child.id for child in children if child.running]
        return AskRequest(closed, running) if closed or running else None

    async def _ask(self) -> None:
        while (request := self._request()) is not None:
            starts = {child.id: child.start for child in self._ledger.children.values()}
            try:
                answers = await workflow.execute_activity(
                    ASK,
                    request,
                    result_type=AskResult,
                    start_to_close_timeout=_ATTEMPT,
                    retry_policy=RetryPolicy(maximum_interval=_LONGEST_PAUSE),
                )
            except ActivityError:
                return  # it was cancelled; the next run has the same questions
            if self._note(answers, starts):
                self._found()

    def _note(self, answers: AskResult, starts: dict[str, int]) -> bool:
        """Note what was answered; whether children were found."""
        ledger, found = self._ledger, False
        same = {
            child.id for child in ledger.children.values() if child.start == starts.get(child.id)
        }
        for child_id, children in answers.closed.items():
            if child_id in same:
                ledger.adopt(child_id, read_children(children))
                found = found or bool(children)
        for child_id, parent_run in answers.running.items():
            if child_id not in same:
                continue
            if parent_run == workflow.info().first_execution_run_id:
                ledger.take_back(child_id)
                found = True
            else:
                ledger.start_failed(child_id, starts[child_id])
        return found
