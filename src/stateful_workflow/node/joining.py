"""How a workflow comes to a place in a tree that it was not started in.

Its own code names the node to join; or its parent took part later than itself, and tells it what is
set above (docs/decisions/47-joining.md). Either way the courier asks the workflow above for the
state that such a child starts with, and the answer, which stands in the history, is the place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RetryPolicy

from ..errors import JoinFailed
from ..sealed.message import Message
from . import couriers, limits
from .carried import StateTooNew, StateUnreadable
from .contract import PLACE, PlaceRequest, PlaceResult
from .headers import Joined
from .inbox import Inbox, now_ms
from .ledger import Ledger
from .record import warn

_ATTEMPT: Final = timedelta(seconds=20)
_SOON: Final = timedelta(milliseconds=200)
_IN_A_HURRY: Final = timedelta(seconds=2)
_PATIENT: Final = timedelta(minutes=5)
"""Pauses between attempts: the first, and the longest while code waits, or nobody does."""

_ASKED_AGAIN_AFTER_MS: Final = 60_000
"""Since anybody may signal a message for another tree."""


class Joining:
    """A node's way into a tree.

    Args:
        ledger, inbox: of the node.
        entered: called with the answer once its state was taken over.
        joined: what an earlier run carried; None where none joined by its code.
        has_place: the run began with a state: it is in a tree, as a root too.
    """

    def __init__(
        self,
        ledger: Ledger,
        inbox: Inbox,
        entered: Callable[[PlaceResult], None],
        joined: Joined | None,
        *,
        has_place: bool,
    ) -> None:
        self._ledger = ledger
        self._inbox = inbox
        self._entered = entered
        self.joined = joined
        self._has_place = has_place
        info = workflow.info()
        is_here = info.parent is not None and info.parent.namespace == info.namespace
        self._parent = info.parent.workflow_id if info.parent is not None and is_here else None
        self._is_current = joined is not None
        self._registering: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._asked_at: int | None = None
        self.is_under_way = False
        """The workflow's code waits for its place; until then nothing is used."""

    def resume(self, joined: Joined) -> None:
        """Take over what a run before had joined: long ago, maybe, and nobody told it since."""
        self.joined = replace(joined, at=now_ms(), registered=False)
        self._is_current = False

    def begin(self) -> None:
        """See to it from now on that what is set later reaches a workflow that joined."""
        if self.joined is None or self.joined.registered:
            return
        if self._registering is None or self._registering.done():
            self._registering = asyncio.create_task(self._register(self.joined.at))

    # --- by its own code -----------------------------------------------------

    async def join(self, at: str, timeout: timedelta) -> None:
        """Take a place below a node; at once where an earlier run has taken it.

        Raises:
            JoinFailed: no place was given within the time; it says why.
        """
        own = self._ledger.path[-1]
        is_there = self.joined is not None and self._ledger.path[-2] == at
        if is_there and self._is_current:
            return
        if not is_there:
            self._require_no_place(at)
        if self.is_under_way:
            raise JoinFailed(f"workflow {own} joins a tree already; await that")
        self.is_under_way = True
        self._inbox.pause()
        try:
            answer = await _ask(PlaceRequest(at), timeout)
            if answer.refused is not None:
                raise JoinFailed(f"workflow {own} cannot join {at}: {answer.refused}")
            self._enter(at, answer)
        except (couriers.NoAnswer, StateUnreadable) as error:
            within = f"{timeout.total_seconds():g} s"
            raise JoinFailed(
                f"workflow {own} could not join {at} within {within}: {error}"
            ) from None
        finally:
            self.is_under_way = False
            self._inbox.begin()
        self.joined, self._is_current = Joined(now_ms()), True
        self.begin()

    def _require_no_place(self, at: str) -> None:
        *above, own = self._ledger.path
        if self._has_place or above or self._ledger.held:
            where = f"below {above[-1]}" if above else "as a root of its own"
            raise JoinFailed(
                f"workflow {own} cannot join {at}: it has its place already, {where}. Only a "
                "workflow that was started without a place, and holds nothing yet, may join"
            )

    async def _register(self, since: int) -> None:
        """Ask to be told from now on, and for what was set meanwhile, if the run is still there."""
        due = since + int(limits.LIMITS.join_seconds * 1000) - now_ms()
        await workflow.sleep(timedelta(milliseconds=max(due, 1)))
        if await self._learn(PlaceRequest(self._ledger.path[-2], register=True)):
            self.joined = Joined(now_ms(), registered=True)

    # --- told by a parent that took part later -------------------------------

    def is_astray(self, message: Message) -> bool:
        """Whether a message is for another tree, and the one above is asked whether that is ours.

        Then it is judged again once that is known.
        """
        above = self._parent if self.joined is None else self._ledger.path[-2]
        if above is None:
            return False  # first: thousands of messages may come at once
        claims, (path, tree) = message.claims, self._place
        if (claims.root, claims.tree) == (path[0], tree) or self.is_under_way:
            return False
        if path[-1] in (claims.root, claims.authority):
            return False
        if self._asking is None or self._asking.done():
            since = None if self._asked_at is None else now_ms() - self._asked_at
            if since is not None and since < _ASKED_AGAIN_AFTER_MS:
                return False
            self._asking = asyncio.create_task(self._ask_above(above))
        return True

    @property
    def _place(self) -> tuple[tuple[str, ...], str]:
        return self._ledger.path, self._ledger.tree

    async def _ask_above(self, above: str) -> None:
        place = self._place
        await self._learn(PlaceRequest(above, as_child=self.joined is None))
        self._asked_at = now_ms() if self._place == place else None
        self._asking = None
        self._inbox.judge_again()

    # --- asking --------------------------------------------------------------

    async def _learn(self, request: PlaceRequest) -> bool:
        """Ask, however long that takes, and take over what is answered; whether there was any."""
        why: object
        try:
            answer = await _ask(request)
            if answer.refused is None:
                self._enter(request.at, answer)
                return True
            why = answer.refused
        except (couriers.NoAnswer, StateUnreadable, StateTooNew) as error:
            why = error
        warn(f"Workflow {self._ledger.path[-1]} has no newer state from {request.at}: {why}")
        return False

    def _enter(self, at: str, answer: PlaceResult) -> None:
        """Verify the state of a place, as a start's header is verified, and take it over."""
        own = self._ledger.path[-1]
        state = Ledger.load({} if answer.ledger is None else answer.ledger)
        *above, last = state.path
        if last != own or above[-1:] != [at] or own in above:
            raise StateUnreadable(f"the state that {at} gave is not one for {own}")
        self._inbox.enter(state)
        self._entered(answer)


async def _ask(request: PlaceRequest, timeout: timedelta | None = None) -> PlaceResult:
    return await couriers.ask(
        PLACE,
        vars(request),
        answers=PlaceResult,
        start_to_close_timeout=_ATTEMPT,
        schedule_to_close_timeout=timeout,
        retry_policy=RetryPolicy(
            initial_interval=_SOON, maximum_interval=_PATIENT if timeout is None else _IN_A_HURRY
        ),
    )
