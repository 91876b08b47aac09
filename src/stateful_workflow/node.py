"""One workflow's live part in a tree: it queues and judges messages, and keeps its children told.

Runs inside workflow code, so everything here follows from the run's history: the
header it was started with, the signals and updates it got, and recorded results of
the activities in `stateful_workflow.forwarding`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, cast

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError

from .errors import MessageRefused, TokenForged, TokenMalformed
from .forwarding import (
    FORWARD,
    RECOVER,
    TRUST,
    ForwardRequest,
    ForwardResult,
    RecoverResult,
    TrustResult,
)
from .headers import NODE_HEADER, Start, Use
from .ledger import ALL, Child, Ledger, Place, StateUnreadable, Verdict
from .messages import Message, parse
from .origins import is_allowed, origin_of
from .status import TokenState, TokenStatus

# A signature takes about 0.1 ms; the SDK takes 2 s in one activation for a deadlock.
_JUDGED_AT_ONCE: Final = 300
_LOCAL_SECONDS: Final = 1.0
_ORDINARY_SECONDS: Final = 5.0
_DRAIN: Final = timedelta(seconds=10)
_TRUST_EVERY_MS: Final = 60_000
_TRUST_FOR_UPDATE_MS: Final = 1000
_TRUST_AT_ONCE_BYTES: Final = 1_000_000
_TRUST_ANSWERS: Final = 10
_LONGEST_RETRY_MS: Final = 300_000
_ADOPT_AT: Final = 200
_HEADER_BYTES_A_TASK: Final = 1_000_000
_CARRIED_WAITING_BYTES: Final = 500_000
_USE_BYTES: Final = 4096


@dataclass(frozen=True)
class Settings:
    """What a workflow class says of its node; acts when a child or a run starts, never after.

    Attributes:
        share: workflow types the tokens are passed to; None means all that `withhold` leaves.
        withhold: workflow types they are not passed to.
        api_url: the address a workflow has when it is started without one.
    """

    share: tuple[str, ...] | None = None
    withhold: tuple[str, ...] = ()
    api_url: str | None = None

    def withholds(self, child_type: str) -> bool:
        """Whether a child of this type is started without the tokens."""
        if self.share is not None and child_type not in self.share:
            return True
        return child_type in self.withhold


class Node:
    """The state of one run and what keeps it true.

    Args:
        settings: of the workflow's class.
        headers: the ones the run was started with.
    """

    def __init__(self, settings: Settings, headers: Mapping[str, Payload]) -> None:
        info = workflow.info()
        self._settings = settings
        start = self._read_start(headers)
        if start is None:
            self.ledger = Ledger((info.workflow_id,), info.first_execution_run_id)
            self.api_url = settings.api_url
        else:
            self.ledger = Ledger.load(start.ledger)
            own = start.api_url if start.api_url is not None else settings.api_url
            self.api_url = own if own is not None else start.parent_api_url
        written_by = None if start is None else start.run
        # Retries and cron runs wake with the header of the first start (decision 7).
        self.recovering = info.continued_run_id is not None and info.continued_run_id != written_by
        self._carried_before: dict[Place, Message] = {}
        if self.recovering:
            self._carried_before, self.ledger.held = self.ledger.held, {}
        self.lost = False
        self.reports: dict[str, dict[str, int]] = {}
        self._queue: deque[Message] = deque()
        self._waiting: dict[str, Message] = {}
        self._answers: dict[str, int] = {}
        for text in () if start is None else start.waiting:
            self._queue.append(parse(text))
        self._changed = next(self.ledger.to_tell(), None) is not None
        self._trust_asked: int | None = None
        self._trust_now = False
        self._failed: dict[str, str] = {}
        self._failures = 0
        self._retry_at: int | None = None
        self._judged = 0
        self._judged_at = 0
        self._header_bytes = 0
        self._header_at = 0
        self._woken = False
        self._resting = False
        self._task: asyncio.Task[None] | None = None
        self.judging_updates = 0

    def _read_start(self, headers: Mapping[str, Payload]) -> Start | None:
        start = Start.from_headers(headers)
        if start is None:
            return None
        info = workflow.info()
        path: object = start.ledger.get("path")
        chain = [str(part) for part in cast("list[object]", path)] if isinstance(path, list) else []
        above = [] if info.parent is None else [info.parent.workflow_id]
        if not chain or chain[-1] != info.workflow_id or chain[:-1][-1:] not in ([], above):
            workflow.logger.warning(
                "The header %s was not written for this workflow; it is taken for a root",
                NODE_HEADER,
            )
            return None
        return start

    # --- messages in ---------------------------------------------------------

    def on_signal(self, args: Sequence[Any]) -> None:
        """Take a message from the `apiToken` signal; whatever it is, nothing is raised."""
        try:
            message = parse(argument(args))
        except TokenMalformed as error:
            self.ledger.reject(error, _now())
            return
        if self.recovering or self._queue or not self._may_judge():
            self._queue.append(message)
        else:
            self._judge(message)
        self.wake()

    def validate_update(self, args: Sequence[Any]) -> None:
        """Turn down an update before it enters history.

        Raises:
            MessageRefused: the subclass is the named error of the contract.
        """
        message = parse(argument(args))
        if not self.recovering:
            self.ledger.check(message, _now())

    async def on_update(self, args: Sequence[Any]) -> dict[str, Any]:
        """Take a message from the `apiToken` update and answer with the status.

        Raises:
            MessageRefused: where it was turned down after all.
        """
        return (await self.take(parse(argument(args)))).to_json()

    async def take(self, message: Message) -> TokenStatus:
        """Judge a message, waiting for its issuer to become known, and return the status.

        Raises:
            MessageRefused: the state is unchanged but for the record of the refusal.
        """
        self.judging_updates += 1
        try:
            await self.ready()
            if self._verdict(message) is Verdict.WAITING:
                self._wait_for(message)
                self._trust_now = True
                self.wake()
                await workflow.wait_condition(lambda: message.hash not in self._waiting)
                if self.ledger.check(message, _now()) is Verdict.WAITING:
                    raise TokenForged(f"issuer {message.issuer} is not known to any keyring asked")
            self.wake()
        finally:
            self.judging_updates -= 1
        return self.status(message.claims.name)

    def _verdict(self, message: Message) -> Verdict:
        try:
            verdict = self.ledger.accept(message, _now())
        except MessageRefused as error:
            self.ledger.reject(error, _now(), message)
            raise
        if verdict is Verdict.ACCEPTED:
            self._changed = True
            self.lost = False
        return verdict

    def _judge(self, message: Message) -> None:
        try:
            verdict = self._verdict(message)
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

    def on_report(self, args: Sequence[Any]) -> None:
        """Note that an API refused a token this node is the authority of; raises nothing."""
        try:
            report: object = argument(args)
        except TokenMalformed:
            return
        if not isinstance(report, dict):
            return
        members = cast("dict[str, Any]", report)
        name = members.get("name")
        held = self.ledger.held.get((name, self.ledger.path[-1])) if isinstance(name, str) else None
        if held is not None and members.get("fingerprint") == held.fingerprint:
            seen = self.reports.get(held.claims.name, {}).get(held.fingerprint, 0)
            self.reports[held.claims.name] = {held.fingerprint: seen + 1}

    def on_url(self, args: Sequence[Any]) -> None:
        """Take an API address from a signal; only one whose origin a held token is signed for."""
        try:
            url = argument(args)
            if not isinstance(url, str):
                raise TokenMalformed("the API address is not a string")
            try:
                origin = origin_of(url)
            except ValueError as error:
                raise TokenMalformed(f"the API address is refused: {error}") from None
            tokens = [self.ledger.in_force(name) for name in self.ledger.names()]
            if not any(
                token is not None and is_allowed(origin, token.claims.origins) for token in tokens
            ):
                raise TokenMalformed(f"{origin} is among the signed origins of no token held here")
        except TokenMalformed as error:
            self.ledger.reject(error, _now())
        else:
            self.api_url = url

    # --- what is shown -------------------------------------------------------

    def status(self, name: str) -> TokenStatus:
        """What is known of a credential here."""
        message = self.ledger.in_force(name)
        if message is None:
            return TokenStatus(name, self._state_without(name))
        return _status_of(message, _now())

    def _state_without(self, name: str) -> TokenState:
        if self.recovering or any(m.claims.name == name for m in self._unjudged()):
            return "waiting"
        if self.lost:
            return "needs_set"
        return "withheld" if self.ledger.is_withheld(name) else "none"

    def _unjudged(self) -> list[Message]:
        return [*self._waiting.values(), *self._queue]

    def describe(self, name: str) -> dict[str, Any] | None:
        """The answer of the `apiToken` query: status and sealed token, or None."""
        status = self.status(name)
        if status.state == "none":
            return None
        message = self.ledger.in_force(name)
        sealed = message.text if message is not None and message.kind == "token" else None
        return {**status.to_json(), "sealed": sealed}

    def describe_all(self) -> dict[str, Any]:
        """The answer of the `apiTokenStatus` query; never a sealed token."""
        info = workflow.info()
        ledger = self.ledger
        return {
            "id": ledger.path[-1],
            "root": ledger.path[0],
            "parent": ledger.path[-2] if len(ledger.path) > 1 else None,
            "tree": ledger.tree,
            "type": info.workflow_type,
            "api_url": self.api_url,
            "tokens": [
                {
                    **_status_of(message, _now()).to_json(),
                    "kind": message.kind,
                    "inherit": message.claims.inherit,
                    "in_force": ledger.in_force(message.claims.name) is message,
                }
                for message in ledger.held.values()
            ],
            "children": [
                {
                    "id": child.id,
                    "type": child.type,
                    "confirmed": child.confirmed,
                    "ended": child.ended,
                    "withheld": list(ledger.withheld_from(child.id)),
                    "hard": sorted(child.withheld),
                }
                for child in ledger.children.values()
            ],
            "withheld": sorted(name for name, index in ledger.boundary.items() if index > 0),
            "undelivered": [
                {
                    "id": child.id,
                    "name": message.claims.name,
                    "authority": message.claims.authority,
                    "version": message.claims.version,
                    "reason": self._failed.get(child.id, "on its way"),
                }
                for child, messages in ledger.to_tell()
                for message in messages
            ],
            "waiting": [
                {
                    "name": message.claims.name,
                    "issuer": message.issuer,
                    "version": message.claims.version,
                    "fingerprint": message.fingerprint,
                }
                for message in self._unjudged()
            ],
            "needs_set": self.lost,
            "reports": self.reports,
            "rejections": {
                "counts": ledger.rejected,
                "last": [
                    {
                        "at": rejection.at,
                        "reason": rejection.reason,
                        "fingerprint": rejection.fingerprint,
                        "issuer": rejection.issuer,
                    }
                    for rejection in ledger.rejections
                ],
            },
        }

    def newest(self, name: str, authority: str) -> int:
        """The newest version that stands for a name at an authority, 0 where none does."""
        floor = self.ledger.floor(name, authority)
        return 0 if floor is None else floor[0]

    def use(self) -> Use:
        """What an activity of this node may open, as it stands now."""
        ledger = self.ledger
        own = ledger.path[-1]
        tokens: dict[str, Mapping[str, str | None]] = {}
        room = _USE_BYTES
        for name in ledger.names():
            message = ledger.in_force(name)
            sealed = message.text if message is not None and message.kind == "token" else None
            if sealed is not None:
                room -= len(sealed)
            tokens[name] = {
                "state": self.status(name).state,
                "sealed": sealed if room >= 0 else None,
            }
        names = {name for name, authority in ledger.held if authority == own}
        return Use(
            root=ledger.path[0],
            tree=ledger.tree,
            authority=own,
            api_url=self.api_url,
            tokens=tokens,
            newest={name: self.newest(name, own) for name in names},
            origins={name: list(ledger.held[(name, own)].claims.origins) for name in names},
        )

    # --- children ------------------------------------------------------------

    def start_child(
        self, child_id: str, child_type: str, withheld: frozenset[str], *, dies_with_run: bool
    ) -> Payload:
        """Register a child about to start and return its header."""
        if self._settings.withholds(child_type):
            withheld |= {ALL}
        now = workflow.time_ns()
        if now != self._header_at:
            self._header_at, self._header_bytes = now, 0
        self._header_bytes += sum(len(message.text) for message in self.ledger.held.values())
        # The server terminates a parent whose one task carries too much (decision 7).
        fits = self._header_bytes <= _HEADER_BYTES_A_TASK
        child = Child(child_id, child_type, dies_with_run=dies_with_run, withheld=withheld)
        state = self.ledger.start_child(child, with_messages=fits)
        if not fits:
            entry = self.ledger.children[child_id]
            self.ledger.children[child_id] = replace(entry, epoch=-1)
        return Start(state, parent_api_url=self.api_url).to_payload()

    def child_started(self, child_id: str) -> None:
        """A child's start was confirmed."""
        if self.ledger.confirm_child(child_id):
            self._changed = True
        self.wake()

    def child_failed_to_start(self, child_id: str, before: Child | None) -> None:
        """A child's start failed; a live one of the same id, known before, stays."""
        if before is None:
            self.ledger.forget_child(child_id)
        else:
            self.ledger.children[child_id] = before

    def child_ended(self, child_id: str) -> None:
        """A child closed; what it leaves alive is adopted with the next fan-out."""
        self.ledger.end_child(child_id)
        ended = sum(child.ended for child in self.ledger.children.values())
        if ended >= _ADOPT_AT:
            self._changed = True
            self.wake()

    def withhold(self, child_id: str, name: str | None) -> None:
        """Pass a name (None: all) to this child no more."""
        self.ledger.withhold(child_id, name)

    def share(self, child_id: str, name: str | None) -> None:
        """Pass it again, the newest at once."""
        self.ledger.share(child_id, name)
        self._changed = True
        self.wake()

    # --- the worker behind the handlers --------------------------------------

    def wake(self) -> None:
        """Let the forwarder look again; it runs only while there is something to do."""
        self._woken = True
        if not self.recovering and self._busy() and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._work())

    def _busy(self) -> bool:
        return bool(self._queue or self._waiting or self._retry_at is not None) or (
            self._changed and self._has_children()
        )

    def _has_children(self) -> bool:
        return any(child.confirmed for child in self.ledger.children.values())

    async def _work(self) -> None:
        while self._busy():
            self._woken = False
            if self._queue:
                await self._judge_some()
            elif self._trust_due():
                await self._renew_trust()
            elif (self._changed and self._has_children()) or self._past(self._retry_at):
                await self._forward()
            else:
                await self._sleep_until_woken()

    async def _judge_some(self) -> None:
        while self._queue and self._may_judge():
            self._judge(self._queue.popleft())
        if self._queue:
            await workflow.sleep(timedelta(milliseconds=1))

    async def _sleep_until_woken(self) -> None:
        due = [at for at in (self._retry_at, self._next_trust()) if at is not None]
        delay = timedelta(milliseconds=max(min(due) - _now(), 1)) if due else None
        self._resting = True
        try:
            await workflow.wait_condition(lambda: self._woken, timeout=delay)
        except asyncio.TimeoutError:
            return
        finally:
            self._resting = False

    @staticmethod
    def _past(at: int | None) -> bool:
        return at is not None and _now() >= at

    # --- trust ---------------------------------------------------------------

    def _next_trust(self) -> int | None:
        if not self._waiting:
            return None
        if self._trust_asked is None:
            return 0
        return self._trust_asked + (_TRUST_FOR_UPDATE_MS if self._trust_now else _TRUST_EVERY_MS)

    def _trust_due(self) -> bool:
        if not self._waiting:
            return False
        waiting = sum(len(message.text) for message in self._waiting.values())
        return self._past(self._next_trust()) or waiting >= _TRUST_AT_ONCE_BYTES

    async def _renew_trust(self) -> None:
        self._trust_now = False
        self._trust_asked = _now()
        try:
            answer = await workflow.execute_local_activity(
                TRUST,
                result_type=TrustResult,
                schedule_to_close_timeout=timedelta(seconds=5),
                retry_policy=RetryPolicy(
                    initial_interval=timedelta(milliseconds=200), maximum_attempts=3
                ),
            )
        except ActivityError:
            return
        self.ledger.trust(answer.trusted, answer.revoked)
        waiting, self._waiting = self._waiting, {}
        for message in waiting.values():
            answers = self._answers.pop(message.hash, 0) + 1
            if message.issuer not in self.ledger.trusted and answers >= _TRUST_ANSWERS:
                error = TokenForged(f"issuer {message.issuer} is unknown to {answers} keyrings")
                self.ledger.reject(error, _now(), message)
                continue
            self._answers[message.hash] = answers
            self._judge(message)
            if message.hash not in self._waiting:
                del self._answers[message.hash]

    # --- fan-out -------------------------------------------------------------

    async def _forward(self) -> None:
        self._changed = False
        request, told = self._request(_LOCAL_SECONDS)
        try:
            result = await workflow.execute_local_activity(
                FORWARD,
                request,
                result_type=ForwardResult,
                start_to_close_timeout=timedelta(seconds=8),
                retry_policy=RetryPolicy(maximum_attempts=1),
            )
        except ActivityError as error:
            result = _all_failed(request, error)
        self._settle(result, told)
        if result.left and result.ordinary:
            await self._forward_rest()
        elif result.left:
            self._changed = True
            await workflow.sleep(timedelta(milliseconds=200))

    async def _forward_rest(self) -> None:
        request, told = self._request(_ORDINARY_SECONDS)
        try:
            result = await workflow.execute_activity(
                FORWARD,
                request,
                result_type=ForwardResult,
                start_to_close_timeout=timedelta(seconds=_ORDINARY_SECONDS + 15),
                schedule_to_close_timeout=timedelta(seconds=60),
                retry_policy=RetryPolicy(maximum_attempts=3),
            )
        except ActivityError as error:
            result = _all_failed(request, error)
        self._settle(result, told)
        if result.left:
            self._changed = True

    def _request(self, seconds: float) -> tuple[ForwardRequest, dict[str, list[Message]]]:
        messages: dict[str, int] = {}
        told: dict[str, list[Message]] = {}
        targets: list[tuple[str, str, list[int]]] = []
        for child, lacking in self.ledger.to_tell():
            indexes = [messages.setdefault(message.text, len(messages)) for message in lacking]
            targets.append((child.id, child.type, indexes))
            told[child.id] = lacking
        ended = [child.id for child in self.ledger.children.values() if child.ended]
        return ForwardRequest(list(messages), targets, ended, seconds), told

    def _settle(self, result: ForwardResult, told: Mapping[str, list[Message]]) -> None:
        for child_id in result.plain:
            self.ledger.forget_child(child_id)
        untold = {*result.left, *result.failed, *result.closed, *result.plain}
        for child_id, messages in told.items():
            if child_id not in untold:
                self.ledger.delivered(child_id, messages)
        for child_id, orphans in result.closed.items():
            self.ledger.adopt(child_id, [_orphan(orphan) for orphan in orphans])
            self._changed = self._changed or bool(orphans)
        self._failed = dict(result.failed)
        # A closed child that could not be asked waits for the next fan-out, without a timer.
        if any(child_id in told for child_id in result.failed):
            self._failures += 1
            delay = min(1000 * 2 ** (self._failures - 1), _LONGEST_RETRY_MS)
            self._retry_at = _now() + delay
        else:
            self._failures = 0
            self._retry_at = None

    # --- the run's ends ------------------------------------------------------

    async def ready(self) -> None:
        """Wait until the state of a run before this one is recovered: nothing is used before."""
        if self.recovering:
            await workflow.wait_condition(lambda: not self.recovering)

    async def recover(self) -> None:
        """Ask the closed run before this one for its state; until then nothing is used."""
        info = workflow.info()
        try:
            answer = await self._ask_closed_run()
            if answer.state is not None:
                self._resume(Start.from_json(answer.state))
            elif answer.asked:
                self.ledger.held = self._carried_before
            self.lost = not answer.asked
        except ValueError as error:
            workflow.logger.warning("The state of run %s: %s", info.continued_run_id, error)
            self.lost = True
        if self.lost:
            workflow.logger.warning(
                "Run %s could not be asked for its state; set the token of workflow %s again",
                info.continued_run_id,
                info.workflow_id,
            )
        self._carried_before = {}
        self.recovering = False
        self.wake()

    async def _ask_closed_run(self) -> RecoverResult:
        info = workflow.info()
        args = [info.workflow_id, info.continued_run_id]
        try:
            answer = await workflow.execute_local_activity(
                RECOVER,
                args=args,
                result_type=RecoverResult,
                start_to_close_timeout=timedelta(seconds=8),
                retry_policy=RetryPolicy(maximum_attempts=1),
            )
            if answer.asked or not answer.ordinary:
                return answer
            return await workflow.execute_activity(
                RECOVER,
                args=args,
                result_type=RecoverResult,
                start_to_close_timeout=timedelta(seconds=8),
                schedule_to_close_timeout=timedelta(seconds=30),
                retry_policy=RetryPolicy(maximum_attempts=3),
            )
        except ActivityError:
            return RecoverResult(asked=False)

    def _resume(self, start: Start) -> None:
        ledger = Ledger.load(start.ledger)
        if ledger.path != self.ledger.path:
            raise StateUnreadable("the run before stood at another place in the tree")
        self.ledger = ledger
        if start.api_url is not None:
            self.api_url = start.api_url
        self._queue.extendleft(parse(text) for text in reversed(start.waiting))
        self._changed = True

    def carry(self) -> Payload:
        """The header of the next run."""
        return self._carried(workflow.info().run_id).to_payload()

    def describe_state(self) -> dict[str, Any]:
        """The answer of the `statefulState` query: what the next run would be given."""
        start = self._carried(None)
        return {
            "ledger": start.ledger,
            "run": start.run,
            "api_url": start.api_url,
            "parent_api_url": None,
            "waiting": list(start.waiting),
        }

    def _carried(self, run: str | None) -> Start:
        waiting: list[str] = []
        room = _CARRIED_WAITING_BYTES
        for message in self._unjudged():
            room -= len(message.text)
            if room < 0:
                break
            waiting.append(message.text)
        return Start(self.ledger.dump(), run, self.api_url, None, tuple(waiting))

    def dying_children(self) -> list[str]:
        """Ids of live children whose close policy ends them with this run."""
        return [
            child.id
            for child in self.ledger.children.values()
            if child.dies_with_run and not child.ended
        ]

    async def drain(self) -> None:
        """Finish judging and forwarding before the run closes, within 10 s."""
        self._trust_now = bool(self._waiting)
        self.wake()
        if self._settled():
            return
        try:
            await workflow.wait_condition(self._settled, timeout=_DRAIN)
        except asyncio.TimeoutError:
            return

    def _settled(self) -> bool:
        if self.judging_updates or self._queue or self._trust_now:
            return False
        if any(not child.confirmed for child in self.ledger.children.values()):
            return False
        idle = self._task is None or self._task.done()
        return idle or (self._resting and not self._woken)


def _now() -> int:
    return workflow.time_ns() // 1_000_000


def argument(args: Sequence[Any]) -> object:
    """The one argument of a handler, decoded.

    Raises:
        TokenMalformed: where there is not exactly one, or it cannot be decoded.
    """
    if len(args) != 1:
        raise TokenMalformed(f"exactly one argument is expected, not {len(args)}")
    value: object = args[0]
    if not isinstance(value, RawValue):
        return value
    try:
        return cast("object", workflow.payload_converter().from_payload(value.payload))
    except Exception as error:  # noqa: BLE001 - the converter is the user's, and may raise anything
        raise TokenMalformed(f"the argument cannot be decoded: {type(error).__name__}") from None


def _status_of(message: Message, now: int) -> TokenStatus:
    claims = message.claims
    state: TokenState = "held"
    if message.kind == "revocation":
        state = "revoked"
    elif claims.expires_at is not None and now >= claims.expires_at * 1000:
        state = "expired"
    return TokenStatus(
        name=claims.name,
        state=state,
        version=claims.version,
        fingerprint=message.fingerprint,
        authority=claims.authority,
        issuer=message.issuer,
        origins=claims.origins,
        types=claims.types,
        expires_at=claims.expires_at,
    )


def _orphan(data: Mapping[str, Any]) -> Child:
    return Child(
        id=str(data.get("id")),
        type=str(data.get("type")),
        confirmed=True,
        ended=data.get("ended") is True,
        withheld=frozenset(str(name) for name in data.get("hard", ())),
    )


def _all_failed(request: ForwardRequest, error: ActivityError) -> ForwardResult:
    reason = f"{type(error.cause).__name__}: {error.cause}" if error.cause else str(error)
    return ForwardResult(failed={target[0]: reason for target in request.targets})
