"""Messages on their way into a node: queued, judged, or waiting for their issuer to be known.

Runs in workflow code. Judging is spread over activations, so that no flood of
messages makes one too long, and an unknown issuer is looked up in the worker's
keyring by the *trust* local activity (docs/design.md, decisions 3 and 4).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import FailureError

from .errors import MessageRefused, TokenForged
from .forwarding import TrustResult
from .ledger import Ledger, Verdict, read_trusted
from .messages import Message
from .node_record import NodeRecord
from .wire import TRUST

# A signature takes about 0.15 ms; the SDK takes 2 s in one activation for a deadlock. The next
# ones wait for a timer, which the server fires up to 1 s late: a run that closes has 10 s for
# the 10,000 signals it may have got.
_JUDGED_AT_ONCE: Final = 1_000
_TRUST_EVERY_MS: Final = 60_000
_TRUST_FOR_UPDATE_MS: Final = 1_000
_TRUST_AT_ONCE_BYTES: Final = 1_000_000
_TRUST_ANSWERS: Final = 10
_ANSWER_UPDATE_WITHIN: Final = timedelta(seconds=10)


def now_ms() -> int:
    """The workflow's clock, in Unix milliseconds."""
    return workflow.time_ns() // 1_000_000


class Inbox:
    """What a node has been sent and has not judged, and the judging of it.

    Args:
        ledger: holds what is accepted and counts what is not.
        record: of the node.
    """

    def __init__(self, ledger: Ledger, record: NodeRecord) -> None:
        self._ledger = ledger
        self._record = record
        self._queue: deque[Message] = deque()
        self._waiting: dict[str, Message] = {}
        self._answers: dict[str, int] = {}
        self._judged = 0
        self._judged_at = 0
        self._trust_asked: int | None = None
        self._trust_soon = False
        self._trust_failed = False

    @property
    def unjudged(self) -> list[Message]:
        """The messages that wait, for their turn or for their issuer to be known."""
        return [*self._waiting.values(), *self._queue]

    def within(self, size: int) -> tuple[list[Message], list[Message]]:
        """Of the messages that wait, those to be carried into the next run, and those left out.

        Of each issuer one after the other, known ones first, and the shorter first: nobody
        keeps another's message out by sending many or long ones under one key id.

        Args:
            size: characters the carried ones may have together.
        """
        places: Counter[str] = Counter()
        ranked: list[tuple[bool, int, int, Message]] = []
        for message in sorted(self.unjudged, key=lambda message: len(message.text)):
            unknown = message.issuer not in self._ledger.trusted
            ranked.append((unknown, places[message.issuer], len(message.text), message))
            places[message.issuer] += 1
        carried: set[str] = set()
        for *_, length, message in sorted(ranked, key=lambda entry: entry[:3]):
            size -= length
            if size < 0:
                break
            carried.add(message.hash)
        waiting = self.unjudged
        return (
            [message for message in waiting if message.hash in carried],
            [message for message in waiting if message.hash not in carried],
        )

    @property
    def is_busy(self) -> bool:
        """Whether anything waits."""
        return bool(self._queue or self._waiting)

    @property
    def is_settled(self) -> bool:
        """Whether all is judged that can be judged now."""
        return not self._queue and not self._trust_soon

    def queue(self, messages: Iterable[Message], *, first: bool = False) -> None:
        """Take messages to be judged later, at the end of the queue or before all others."""
        if first:
            self._queue.extendleft(reversed(list(messages)))
        else:
            self._queue.extend(messages)

    def put(self, message: Message) -> None:
        """Judge a message now, or queue it where others wait or the activation is long enough."""
        if self._queue or not self._may_judge():
            self._queue.append(message)
        else:
            self._judge(message)

    def judge(self, message: Message) -> Verdict:
        """Judge a message now and count a refusal.

        Raises:
            MessageRefused: the subclass says why.
        """
        try:
            verdict = self._ledger.accept(message, now_ms())
        except MessageRefused as error:
            self.reject(error, message)
            raise
        if verdict is Verdict.ACCEPTED:
            self._record.accepted(message)
        return verdict

    def reject(self, error: MessageRefused, message: Message | None = None) -> None:
        """Count a refusal, and put it on record."""
        self._ledger.reject(error, now_ms(), message)
        self._record.rejected(error, message)

    def look_up(self, message: Message) -> None:
        """Have the unknown issuer of a message looked up soon."""
        self._wait_for(message)
        self._trust_soon = True

    async def until_known(self, message: Message) -> None:
        """Wait until the issuer of a message is known, for 10 s at most.

        Raises:
            TokenForged: where it is not known by then; the message stays waiting.
            MessageRefused: where the message was not taken.
        """
        with suppress(asyncio.TimeoutError):
            await workflow.wait_condition(
                lambda: message.hash not in self._waiting, timeout=_ANSWER_UPDATE_WITHIN
            )
        if self._ledger.check(message, now_ms()) is Verdict.WAITING:
            raise TokenForged(
                f"workflow {self._ledger.path[-1]}: issuer {message.issuer} is not known yet, and "
                "the message waits; give the workers the new public keyring"
            )

    def hurry(self) -> None:
        """Look unknown issuers up soon: the run is about to close."""
        self._trust_soon = bool(self._waiting)

    def _judge(self, message: Message) -> None:
        try:
            verdict = self.judge(message)
        except MessageRefused:
            return
        if verdict is Verdict.WAITING:
            self._wait_for(message)

    def _wait_for(self, message: Message) -> None:
        self._waiting.setdefault(message.hash, message)
        self._answers.setdefault(message.hash, 0)

    def _may_judge(self) -> bool:
        now = workflow.time_ns()
        if now != self._judged_at:
            self._judged_at, self._judged = now, 0
        self._judged += 1
        return self._judged <= _JUDGED_AT_ONCE

    # --- what the node's loop calls ------------------------------------------

    @property
    def due(self) -> int | None:
        """When there is something to do, in Unix milliseconds; None for never."""
        if self._queue:
            return 0
        if not self._waiting:
            return None
        waiting = sum(len(message.text) for message in self._waiting.values())
        # Not again at once where no worker has keys to answer with: that would never end.
        at_once = waiting >= _TRUST_AT_ONCE_BYTES and not self._trust_failed
        if self._trust_asked is None or at_once:
            return 0
        return self._trust_asked + (_TRUST_FOR_UPDATE_MS if self._trust_soon else _TRUST_EVERY_MS)

    async def step(self) -> None:
        """Judge what is queued, or look up the issuers that are waited for."""
        if not self._queue:
            await self._renew_trust()
            return
        while self._queue and self._may_judge():
            self._judge(self._queue.popleft())
        if self._queue:
            await workflow.sleep(timedelta(milliseconds=1))

    async def _renew_trust(self) -> None:
        self._trust_soon = False
        self._trust_asked = now_ms()
        try:
            answer = await workflow.execute_local_activity(
                TRUST,
                result_type=TrustResult,
                schedule_to_close_timeout=timedelta(seconds=5),
                retry_policy=RetryPolicy(
                    initial_interval=timedelta(milliseconds=200), maximum_attempts=3
                ),
            )
            trusted = read_trusted(answer.trusted)
        except (FailureError, ValueError):
            self._trust_failed = True
            return
        self._trust_failed = False
        if self._ledger.trust(trusted, answer.revoked):
            # Keys change in the keyring alone, so this gives nobody a cheap lookup.
            self._trust_asked = None
        waiting, self._waiting = self._waiting, {}
        for message in waiting.values():
            answers = self._answers.pop(message.hash) + 1
            if message.issuer not in self._ledger.trusted and answers >= _TRUST_ANSWERS:
                error = TokenForged(f"issuer {message.issuer} is unknown to {answers} keyrings")
                self.reject(error, message)
                continue
            self._judge(message)
            if message.hash in self._waiting:
                self._answers[message.hash] = answers
