"""Messages on their way into a node: queued, judged, or waiting for their issuer to be known.

Runs in workflow code. Reading and judging is spread over activations, so that no flood makes one
too long. An activity of the courier looks unknown issuers up in the keyring of the workflow's
workers (docs/decisions/03-judging.md to 06-looking-up-issuers.md).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import FailureError

from ..errors import (
    AnswerMalformed,
    MessageRefused,
    NotSealed,
    TokenForged,
    TokenKnown,
    TokenMalformed,
    TooManyWaiting,
)
from ..sealed.message import Message, has_message_form, named_issuer, parse
from . import couriers, limits
from .carried import read_trusted
from .contract import TRUST, TrustResult
from .ledger import Ledger, Verdict
from .record import NodeRecord, warn

# The SDK takes an activation of 2 s for a deadlock (docs/decisions/04-floods.md).
_JUDGED_AT_ONCE: Final = 1_000
_READ_AT_ONCE: Final = 4_000_000
"""Characters."""

_MOST_DOUBLINGS: Final = 6
"""Of the pause, while no worker has keys to answer with: up to 64 minutes."""

_TRUST_FOR_NEW_MS: Final = 5_000
_TRUST_FOR_UPDATE_MS: Final = 1_000
_TRUST_ATTEMPT: Final = timedelta(seconds=5)
_TRUST_AT_ONCE_BYTES: Final = 1_000_000
_TRUST_ANSWERS: Final = 10
_ASTRAY: Final = 100
"""Messages for another tree that wait while this node's place is asked for."""

_ANSWER_UPDATE_WITHIN: Final = timedelta(seconds=10)
_UPDATES_WAITING: Final = 3
"""Updates of unknown issuers that a node lets wait at a time: the server lets ten be open."""


def now_ms() -> int:
    """The workflow's clock, in Unix milliseconds."""
    return workflow.time_ns() // 1_000_000


def read_message(text: object) -> Message:
    """Read a message that a node was sent.

    Raises:
        TokenMalformed: as `parse`. `NotSealed`: it has not even the form of one.
    """
    try:
        return parse(text)
    except TokenMalformed:
        if has_message_form(text):
            raise
    raise NotSealed(
        "what was sent is no sealed message; if it is a token in clear text, give it to `stateful "
        "token set`, or seal it first: `stateful token seal`"
    )


class Inbox:
    """What a node has been sent and has not judged, and the judging of it.

    `accepted` is called after messages were accepted that had waited here. `astray` is given a
    message for another tree, and says whether this node's place is asked for again: `enter` then
    judges it once more.
    """

    def __init__(
        self,
        ledger: Ledger,
        record: NodeRecord,
        accepted: Callable[[], None],
        astray: Callable[[Message], bool],
    ) -> None:
        self._ledger = ledger
        self._record = record
        self._accepted = accepted
        self._is_astray = astray
        self._astray: list[Message] = []
        self._begun = False
        self._judging: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._is_asking = False
        self._woken = False
        self._queue: deque[str | Message] = deque()
        self._waiting: dict[str, Message] = {}
        self._answers: Counter[str] = Counter()
        self._looked_up: set[str] = set()
        self._of_updates: dict[str, Message] = {}
        self._judged = 0
        self._read = 0
        self._judged_at = 0
        self._trust_asked: int | None = None
        self._trust_soon = False
        self._failures = 0

    @property
    def waiting(self) -> list[Message]:
        """The messages that wait for their issuer to be known, or for a place in their tree."""
        astray = {message.hash: message for message in self._astray}
        return list({**self._of_updates, **self._waiting, **astray}.values())

    @property
    def _unknown(self) -> list[Message]:
        """Those whose issuer is not known yet; an update that is about to be judged is none."""
        waiting = {**self._of_updates, **self._waiting}.values()
        return [message for message in waiting if not self._is_known(message.issuer)]

    def texts(self) -> list[str]:
        """What is not judged yet, each once."""
        queued = (entry if isinstance(entry, str) else entry.text for entry in self._queue)
        return list(dict.fromkeys([*(message.text for message in self.waiting), *queued]))

    def within(self, size: int) -> tuple[str, ...]:
        """Of what is not judged yet, what is to be carried into the next run.

        They have `size` characters at most. Of each issuer one after the other, known ones first,
        and the shorter first: nobody keeps another's message out by many or long ones under one id.
        """
        places: Counter[str] = Counter()
        ranked: list[tuple[bool, int, int, str]] = []
        for text in sorted(self.texts(), key=len):
            issuer = named_issuer(text)
            ranked.append((issuer not in self._ledger.trusted, places[issuer], len(text), text))
            places[issuer] += 1
        carried: set[str] = set()
        for _, _, length, text in sorted(ranked):
            size -= length
            if size < 0:
                break
            carried.add(text)
        return tuple(text for text in self.texts() if text in carried)

    @property
    def is_settled(self) -> bool:
        """Whether all is judged that can be judged now."""
        return not self._queue and not self._trust_soon and not self._is_asking

    def begin(self) -> None:
        """Judge from now on what is queued, and look up issuers."""
        self._begun = True
        self._run()

    def pause(self) -> None:
        """Judge nothing of what is sent before `begin` is called again."""
        self._begun = False

    def enter(self, state: Ledger) -> None:
        """Take what stands in the state of a place above, and judge anew what waited for it."""
        for message in self._ledger.enter(state):
            with suppress(MessageRefused):
                if self.judge(message, "join") is Verdict.WAITING:
                    self._waiting.setdefault(message.hash, message)
        self.judge_again()

    def judge_again(self) -> None:
        """Judge anew what waits: it may be known now who signed it, or whether it is for here."""
        self._queue.extendleft(reversed([*self._waiting.values(), *self._astray]))
        self._waiting.clear()
        self._astray.clear()
        self._run()

    def queue(self, texts: Iterable[str], *, first: bool = False) -> None:
        """Take messages to be judged later, at the end of the queue or before all others."""
        if first:
            self._queue.extendleft(reversed(list(texts)))
        else:
            self._queue.extend(texts)
        self._run()

    def put(self, text: str) -> None:
        """Judge a message now, or queue it where others wait or the activation is long enough."""
        if self._queue or not self._may_judge(text):
            self._queue.append(text)
        elif self._judge(text):
            self._accepted()
        self._run()

    def judge(self, message: Message, reason: str | None = None) -> Verdict:
        """Judge a message now; a `MessageRefused` is counted, and raised.

        The reason why one that is accepted came, where it was not sent here, goes on record.
        """
        try:
            verdict = self._ledger.accept(message, now_ms())
        except MessageRefused as error:
            self.reject(error, message)
            raise
        if verdict is Verdict.ACCEPTED:
            self._record.accepted(message, reason)
        return verdict

    def reject(self, error: MessageRefused, message: Message | None = None) -> None:
        """Count a refusal, and put it on record."""
        self._ledger.reject(error, now_ms(), message)
        self._record.rejected(error, message)
        count = self._ledger.rejected.get(NotSealed.__name__, 0)
        # Anybody can send thousands.
        if isinstance(error, NotSealed) and count & (count - 1) == 0:
            warn(
                f"What came by signal to workflow {self._ledger.path[-1]} is no sealed message "
                f"(for the {count}. time). If it is a token in clear text, it stands in the "
                "history: rotate that token, and revoke the old one at the API"
            )

    def admit_update(self, message: Message) -> None:
        """Judge the message of an update before it enters history, and change nothing.

        Raises:
            TokenKnown: the node holds it already; a repetition is to use up no update.
            TooManyWaiting: its issuer is not known, and updates enough wait for theirs already.
            MessageRefused: the subclass says why.
        """
        verdict = self._ledger.check(message, now_ms())
        if verdict is Verdict.KNOWN:
            raise TokenKnown(
                f"workflow {self._ledger.path[-1]} holds this very message already; read the status"
            )
        if verdict is Verdict.WAITING and len(self._of_updates) >= _UPDATES_WAITING:
            raise TooManyWaiting(
                f"workflow {self._ledger.path[-1]}: {_UPDATES_WAITING} updates of issuers that are "
                "not known here wait already; signal the message instead"
            )

    async def until_known(self, message: Message) -> Verdict:
        """Judge an update's message once its issuer is known, within 10 s.

        It does not wait among the others: what an update gives cause to depends on no event.

        Raises:
            TokenForged: the issuer is not known by then; the message stays waiting.
            MessageRefused: the message was not taken.
        """
        self._of_updates[message.hash] = message
        self._trust_soon = True
        self._run()
        try:
            with suppress(asyncio.TimeoutError):
                await workflow.wait_condition(
                    lambda: self._is_known(message.issuer), timeout=_ANSWER_UPDATE_WITHIN
                )
        finally:
            self._of_updates.pop(message.hash, None)
        verdict = self.judge(message)
        if verdict is not Verdict.WAITING:
            return verdict
        self._waiting.setdefault(message.hash, message)
        self._run()
        raise TokenForged(
            f"workflow {self._ledger.path[-1]}: issuer {message.issuer} is not known yet, and "
            "the message waits: it counts once the workers have the new public keyring"
        )

    def is_waiting(self, message: Message) -> bool:
        """Whether a message waits for its issuer to be known, or is about to be judged anew."""
        return message.text in self.texts()

    def _is_known(self, issuer: str) -> bool:
        return issuer in self._ledger.trusted or issuer in self._ledger.revoked

    def hurry(self) -> None:
        """Look unknown issuers up soon: the run is about to close."""
        self._trust_soon = bool(self._unknown)
        self._run()

    def _judge(self, entry: str | Message) -> bool:
        """Judge what was queued or sent by signal; whether it was accepted."""
        try:
            message = read_message(entry) if isinstance(entry, str) else entry
        except MessageRefused as error:
            self.reject(error)
            return False
        if len(self._astray) < _ASTRAY and self._is_astray(message):
            self._astray.append(message)
            return False
        verdict: Verdict | None = None
        with suppress(MessageRefused):
            verdict = self.judge(message)
        answers = self._answers[message.hash]
        if verdict is Verdict.WAITING and answers < _TRUST_ANSWERS:
            self._waiting.setdefault(message.hash, message)
            return False
        if verdict is Verdict.WAITING:
            error = TokenForged(f"issuer {message.issuer} is unknown to {answers} keyrings")
            self.reject(error, message)
        self._waiting.pop(message.hash, None)  # an update brought it while it was queued
        self._answers.pop(message.hash, None)
        return verdict is Verdict.ACCEPTED

    def _may_judge(self, entry: str | Message) -> bool:
        now = workflow.time_ns()
        if now != self._judged_at:
            self._judged_at, self._judged, self._read = now, 0, 0
        self._judged += 1
        self._read += len(entry) if isinstance(entry, str) else 0
        return self._judged <= _JUDGED_AT_ONCE and self._read <= _READ_AT_ONCE

    # --- the loops behind the handlers ---------------------------------------

    def _run(self) -> None:
        self._woken = True
        if not self._begun:
            return
        if self._queue and (self._judging is None or self._judging.done()):
            self._judging = asyncio.create_task(self._judge_queue())
        # In this order: with thousands that wait, each one more would look through all of them.
        if (self._asking is None or self._asking.done()) and self._unknown:
            self._asking = asyncio.create_task(self._look_up_issuers())

    async def _judge_queue(self) -> None:
        while self._queue and self._begun:
            accepted = False
            while self._queue and self._may_judge(self._queue[0]):
                accepted = self._judge(self._queue.popleft()) or accepted
            if accepted:
                self._accepted()
            self._run()
            if self._queue:
                await workflow.sleep(timedelta(milliseconds=1))

    async def _look_up_issuers(self) -> None:
        while self._unknown:
            due = self._due()
            if due > now_ms():
                await self._rest(due)
            else:
                await self._renew_trust()
        self._trust_soon = False

    async def _rest(self, until: int) -> None:
        """Wait until a time in Unix milliseconds, or until there is news."""
        self._woken = False
        with suppress(asyncio.TimeoutError):
            await workflow.wait_condition(
                lambda: self._woken, timeout=timedelta(milliseconds=until - now_ms())
            )

    def _due(self) -> int:
        """When issuers are to be looked up, in Unix milliseconds."""
        unknown = self._unknown
        # Not again at once where no worker has keys to answer with: that would never end.
        is_much = sum(len(message.text) for message in unknown) >= _TRUST_AT_ONCE_BYTES
        if self._trust_asked is None or (is_much and not self._failures):
            return 0
        if self._trust_soon:
            return self._trust_asked + _TRUST_FOR_UPDATE_MS
        if any(message.issuer not in self._looked_up for message in unknown):
            return self._trust_asked + _TRUST_FOR_NEW_MS
        return self._trust_asked + limits.LIMITS.trust_every_ms * 2**self._failures

    async def _renew_trust(self) -> None:
        self._trust_soon = False
        self._trust_asked = now_ms()
        self._looked_up = {message.issuer for message in self._unknown}
        self._is_asking = True
        try:
            answer = await couriers.ask(
                TRUST,
                answers=TrustResult,
                start_to_close_timeout=_TRUST_ATTEMPT,
                retry_policy=RetryPolicy(
                    initial_interval=timedelta(milliseconds=200), maximum_attempts=3
                ),
            )
            trusted = read_trusted(answer.trusted)
        except (FailureError, couriers.NoAnswer, AnswerMalformed, ValueError):
            self._failures = min(self._failures + 1, _MOST_DOUBLINGS)
            return
        finally:
            self._is_asking = False
        self._failures = 0
        if self._ledger.trust(trusted, answer.revoked):
            # Keys change in the keyring alone, so this gives nobody a cheap lookup.
            self._trust_asked = None
        back: list[Message] = []
        for message in list(self._waiting.values()):
            self._answers[message.hash] += 1
            if self._is_known(message.issuer) or self._answers[message.hash] >= _TRUST_ANSWERS:
                back.append(self._waiting.pop(message.hash))
        self._queue.extendleft(reversed(back))
        self._run()
