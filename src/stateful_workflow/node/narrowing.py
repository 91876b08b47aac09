"""Have tokens derived for children that are to do less than this workflow may.

Runs in workflow code. The parent's token is withheld from such a child. For each credential name,
and source that was named, one activity at a time on the task queue of the source's workers derives
what all of these children lack. As in `telling`, and for the same reason, what happens after an
update begins once an event is there: the telling that the update led to has ended
(docs/decisions/12-updates-and-events.md). Nor do tokens decide whether an activity is sent: one of
which there is nothing to do goes to the courier, which answers at once.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.exceptions import FailureError, is_cancelled_exception

from ..errors import AnswerMalformed
from . import couriers
from .children import Child, Life, derived_of
from .contract import NARROW, NarrowRequest, NarrowResult, source_queue_of
from .ledger import Ledger

_ATTEMPT: Final = timedelta(minutes=2)
_PAUSE: Final = timedelta(seconds=1)
_LONGEST_PAUSE: Final = timedelta(minutes=15)

_AT_ONCE: Final = 200
"""Children in one request."""

_Key = tuple[str, str | None]
"""Credential name, and the source that was named."""


@dataclass
class _Lane:
    is_due: bool = False
    is_pausing: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return self.task is not None and not self.task.done()


class Narrowing:
    """What a node's children are to be given in the place of its own tokens.

    Args:
        ledger: of the node.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._begun = False
        self._lanes: dict[_Key, _Lane] = {}
        self.reasons: dict[tuple[str, str], str] = {}
        """Why a child, by its id, could not be given a name."""
        self.resume()

    def resume(self) -> None:
        """Take over what an earlier run left undone, which is in the ledger now."""
        names = {name for child in self._ledger.children.values() for name in child.narrowed}
        for name in sorted(names):
            for child in self.lacking(name):
                self._due(child)

    def begin(self) -> None:
        """Derive from now on, what an earlier run left undone first."""
        self._begun = True
        self._run()

    def changed(self) -> None:
        """A message was accepted by an event, or an update that brought one was told."""
        for child in self._ledger.children.values():
            self._due(child)
        self._run()

    def child_started(self, child_id: str) -> None:
        """A child's start was confirmed."""
        child = self._ledger.children.get(child_id)
        if child is not None:
            self._due(child)
            self._run()

    @property
    def is_settled(self) -> bool:
        """Whether all was done that could be done at once."""
        return all(not lane.is_running or lane.is_pausing for lane in self._lanes.values())

    def lacking(self, name: str) -> list[Child]:
        """The running children that lack their own of what is in force here."""
        in_force = self._ledger.in_force(name)
        return [
            child
            for child in self._ledger.children.values()
            if child.life is Life.RUNNING
            and (narrowed := child.narrowed.get(name)) is not None
            and narrowed.is_due(in_force)
        ]

    def _due(self, child: Child) -> None:
        for name, narrowed in child.narrowed.items():
            self._lanes.setdefault((name, narrowed.source), _Lane()).is_due = True

    def _run(self) -> None:
        for key, lane in self._lanes.items() if self._begun else ():
            if lane.is_due and not lane.is_running:
                lane.task = asyncio.create_task(self._derive_all(key, lane))

    # --- the loop ------------------------------------------------------------

    async def _derive_all(self, key: _Key, lane: _Lane) -> None:
        pause = _PAUSE
        while lane.is_due:
            # Those that are started together are one batch; one that starts later holds up nobody.
            starting = self._starting(key)
            await workflow.wait_condition(
                lambda starting=starting: not starting & self._starting(key)
            )
            lane.is_due = False
            if await self._derive(key, lane):
                pause = _PAUSE
                continue
            lane.is_pausing = True
            with suppress(asyncio.TimeoutError):
                await workflow.wait_condition(lambda: lane.is_due, timeout=pause)
            lane.is_pausing, lane.is_due = False, True
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _starting(self, key: _Key) -> set[int]:
        children = self._ledger.children.values()
        return {one.start for one in children if one.life is Life.STARTING and _is_of(key, one)}

    async def _derive(self, key: _Key, lane: _Lane) -> bool:
        """Have an activity do what is due; false where some of it is to be tried again."""
        name, _ = key
        message = self._ledger.in_force(name)
        due = [child for child in self.lacking(name) if _is_of(key, child)]
        known = due[0].narrowed[name].source_of(message) if due else None
        if known is None:
            due = []
        due, more = due[:_AT_ONCE], len(due) > _AT_ONCE
        text = None if message is None else message.text
        asked = [(one.id, [*one.narrowed[name].scopes], one.narrowed[name].given) for one in due]
        request = NarrowRequest(name, text if due else None, asked, more)
        queue = couriers.courier_queue() if known is None else source_queue_of(known)
        handle = couriers.start_once(NARROW, request, task_queue=queue, within=_ATTEMPT)
        await workflow.wait_condition(lambda: handle.done() or lane.is_due)
        if not handle.done():
            handle.cancel()  # where no worker has begun it, it is about what was
            await workflow.wait_condition(handle.done)
        try:
            result = couriers.result(handle, NarrowResult)
            is_done, lane.is_due = not result.failed, lane.is_due or result.more
        except (FailureError, AnswerMalformed) as error:
            is_done = lane.is_due and is_cancelled_exception(error)
            said = "its worker did not answer" if isinstance(error, FailureError) else str(error)
            failed = () if is_done else (one.id for one in due)
            result = NarrowResult(failed=dict.fromkeys(failed, said[:500]))
        for child in due:
            if self._ledger.is_of(child.id, child.start):
                self._settle(child.id, name, result, known, derived_of(message))
        return is_done

    def _settle(
        self, child_id: str, name: str, result: NarrowResult, by: str | None, of: str
    ) -> None:
        self.reasons.pop((child_id, name), None)
        child = self._ledger.children[child_id]
        if child_id in result.plain:
            self._ledger.forget_child(child_id)
        elif child_id in result.given:
            version, given = result.given[child_id]
            now = replace(child.narrowed[name], by=by, of=of, version=version, given=given)
            narrowed = {**child.narrowed, name: now}
            self._ledger.children[child_id] = replace(child, narrowed=narrowed)
        elif child_id in result.failed:
            self.reasons[child_id, name] = result.failed[child_id]


def _is_of(key: _Key, child: Child) -> bool:
    name, source = key
    narrowed = child.narrowed.get(name)
    return narrowed is not None and narrowed.source == source
