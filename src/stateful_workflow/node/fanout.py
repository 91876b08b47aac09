"""Keep a node's children told: what each lacks, sent by one fan-out at a time.

Runs in workflow code. Each fan-out takes the newest state: first a local activity of
about a second, then ordinary activities for what is left (docs/decisions/09-telling.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, FailureError

from ..sealed.message import Message
from .contract import FORWARD, ForwardRequest, ForwardResult
from .describe import read_children
from .inbox import now_ms
from .ledger import Child, Ledger

_LOCAL_SECONDS: Final = 1.0
_ORDINARY_SECONDS: Final = 5.0
_LAST_CALL: Final = timedelta(seconds=7)
"""How long a delivery begun at the last moment may take: a call's own 5 s, and some room."""

_ORDINARY_TIMEOUT: Final = timedelta(seconds=60)
_PAUSE: Final = timedelta(milliseconds=200)
_FIRST_RETRY_MS: Final = 1_000
_LONGEST_RETRY_MS: Final = 300_000
_ADOPT_AT: Final = 200
_REQUEST_BYTES: Final = 500_000
"""Of ids and types of those told in one request, and of those asked: the server ends a workflow
that sends more than 2 MB."""

Told = Mapping[str, list[Message]]


class Fanout:
    """The deliveries a node owes its children.

    Args:
        ledger: knows what each child lacks.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._told_epoch = ledger.epoch
        self._again = next(ledger.to_tell(), None) is not None
        self._retry_at: int | None = None
        self._failures = 0
        self._asked = 0
        self._follows = False
        self._starts: dict[str, int] = {}
        self._ended = self._count_ended()
        self._left_out = False
        self.reasons: dict[str, str] = {}
        """For each child that could not be told, why."""
        self.by_update: set[str] = set()
        """The children whose run takes no more signals, so that they are told by update."""

    def again(self) -> None:
        """Something changed beside the messages held: look at the children once more."""
        self._again = True
        self._asked += 1

    def child_started(self, child_id: str) -> None:
        """A child's start was confirmed; it may lack what has been accepted meanwhile."""
        if not self._has_children():
            self._told_epoch = self._ledger.epoch  # what came before had nobody to be told to
        if self._ledger.confirm_child(child_id):
            self.again()

    def _has_children(self) -> bool:
        return any(child.confirmed for child in self._ledger.children.values())

    def child_ended(self) -> None:
        """A child closed; what it leaves alive is adopted with the next fan-out, or at last now."""
        self._ended += 1
        self._again = self._again or self._ended >= _ADOPT_AT

    def _count_ended(self) -> int:
        return sum(child.ended for child in self._ledger.children.values())

    @property
    def is_busy(self) -> bool:
        """Whether anything is owed."""
        return self.due is not None

    @property
    def due(self) -> int | None:
        """When there is something to do, in Unix milliseconds; None for never."""
        changed = self._again or self._told_epoch != self._ledger.epoch
        # Any child at all: who of them is told must not decide which commands a run emits.
        if changed and self._has_children():
            return 0
        return self._retry_at

    async def step(self) -> None:
        """Run one fan-out over all children that lack something."""
        first, self._follows = not self._follows, False
        before, self._asked = self._ledger.epoch - self._told_epoch + self._asked, 0
        result = await self._fan_out(_LOCAL_SECONDS, _locally)
        # Updates and events of one workflow task can come in one activation or in several, and
        # in a replay otherwise than at first. Two changes make two fan-outs either way.
        since = self._ledger.epoch - self._told_epoch + self._asked
        if first and before + since > 1:
            self._follows = self._again = True
        if result.left and result.ordinary:
            result = await self._fan_out(_ORDINARY_SECONDS, _ordinarily)
            self._again = self._again or bool(result.left)
        elif result.left:
            self._again = True
            await workflow.sleep(_PAUSE)

    async def _fan_out(
        self, seconds: float, run: Callable[[ForwardRequest], Awaitable[ForwardResult]]
    ) -> ForwardResult:
        request, told = self._begin(seconds)
        try:
            result = await run(request)
        except FailureError as error:
            result = _all_failed(request, error)
        self._settle(result, request, told)
        return result

    def _begin(self, seconds: float) -> tuple[ForwardRequest, Told]:
        self._again = False
        self._told_epoch = self._ledger.epoch
        messages: dict[str, int] = {}
        told: dict[str, list[Message]] = {}
        targets: list[tuple[str, str, list[int]]] = []
        self._left_out = False
        owed = list(self._ledger.to_tell())
        lacking_of = {child.id: lacking for child, lacking in owed}
        for child in self._that_fit(child for child, _ in owed):
            lacking = lacking_of[child.id]
            indexes = [messages.setdefault(message.text, len(messages)) for message in lacking]
            targets.append((child.id, child.type, indexes))
            told[child.id] = lacking
        # Who did not settle is asked beside the fan-outs (`questions`).
        children = self._ledger.children.values()
        ended_children = (child for child in children if child.ended and not child.unsettled)
        ended = [child.id for child in self._that_fit(ended_children)]
        self._starts = {child.id: child.start for child in self._ledger.children.values()}
        return ForwardRequest(list(messages), targets, ended, seconds), told

    def _that_fit(self, children: Iterable[Child]) -> Iterator[Child]:
        """As many as one request may hold, those that failed last time after all others.

        Of the rest, those that failed wait until a fan-out fails no more or is repeated.
        """
        room = _REQUEST_BYTES
        for child in sorted(children, key=lambda child: child.id in self.reasons):
            room -= len(child.id) + len(child.type)
            if room < 0:
                self._again = self._again or child.id not in self.reasons
                self._left_out = True
                return
            yield child

    def _is_same(self, child_id: str) -> bool:
        """Whether a child is the one that the fan-out began with, not a later one of its id."""
        return self._ledger.is_of(child_id, self._starts.get(child_id, -1))

    def _settle(self, result: ForwardResult, request: ForwardRequest, told: Told) -> None:
        for child_id in result.plain:
            if self._is_same(child_id):
                self._ledger.forget_child(child_id)
        untold = {*result.left, *result.failed, *result.closed, *result.plain}
        for child_id, messages in told.items():
            if not self._is_same(child_id):
                continue
            if child_id in untold:
                self._ledger.delivered(child_id, messages[: result.sent.get(child_id, 0)])
            else:
                self._ledger.delivered(child_id, messages)
                self.by_update.discard(child_id)
        self.by_update |= {child_id for child_id in result.by_update if self._is_same(child_id)}
        self.by_update &= self._ledger.children.keys()
        for child_id, orphans in result.closed.items():
            if not self._is_same(child_id):
                self._again = True
                continue
            self._ledger.adopt(child_id, read_children(orphans))
            self._again = self._again or bool(orphans)
        self._ended = self._count_ended()
        self.reasons = dict(result.failed)
        # A closed child that could not be asked waits for the next fan-out, without a timer.
        # Not by who was told: a changed class keyword must change no timer of an old history.
        if any(child_id not in request.ended for child_id in result.failed):
            delay = min(_FIRST_RETRY_MS * 2**self._failures, _LONGEST_RETRY_MS)
            self._failures += 1
            self._retry_at = now_ms() + delay
        else:
            self._failures = 0
            self._retry_at = None
            self._again = self._again or (self._left_out and not result.failed)


async def _locally(request: ForwardRequest) -> ForwardResult:
    return await workflow.execute_local_activity(
        FORWARD,
        vars(request),  # the converter would copy a dataclass deeply first, in each replay too
        result_type=ForwardResult,
        start_to_close_timeout=timedelta(seconds=request.seconds) + _LAST_CALL,
        retry_policy=RetryPolicy(maximum_attempts=1),
    )


async def _ordinarily(request: ForwardRequest) -> ForwardResult:
    return await workflow.execute_activity(
        FORWARD,
        vars(request),
        result_type=ForwardResult,
        start_to_close_timeout=timedelta(seconds=request.seconds) + 2 * _LAST_CALL,
        schedule_to_close_timeout=_ORDINARY_TIMEOUT,
        retry_policy=RetryPolicy(maximum_attempts=3),
    )


def _all_failed(request: ForwardRequest, error: FailureError) -> ForwardResult:
    # An ordinary activity's failure wraps its cause; a local one's is the cause itself.
    cause = error.cause if isinstance(error, ActivityError) else error
    reason = f"{type(cause).__name__}: {cause}"
    return ForwardResult(failed={target[0]: reason for target in request.targets})
