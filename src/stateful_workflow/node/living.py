"""Keep the tokens alive that a source mints for this workflow: the home of their grants.

Runs in workflow code. For each credential name with a grant one loop does what `renewal.next_step`
says, one exchange at a time. An exchange is an activity on the task queue of the source's workers,
tried once: this loop alone decides whether, when and with which grant it is tried again. Tokens
that are to be retired have a loop of their own, since that takes as long as the tree takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    FailureError,
    TimeoutError,
    TimeoutType,
)

from ..errors import AnswerMalformed, MessageRefused, NotRenewable, TokenForged
from ..sealed.grants import authorizing
from ..sealed.message import Message, parse
from . import couriers
from .contract import (
    ANNOUNCE,
    MINT,
    RETIRE,
    AnnounceRequest,
    MintRequest,
    MintResult,
    RetireRequest,
    RetireResult,
    Why,
    source_queue_of,
)
from .inbox import Inbox, now_ms
from .ledger import Ledger, Verdict
from .record import NodeRecord, warn
from .renewal import (
    AS_BEFORE,
    GOT,
    MOST_RETIRING,
    Renewing,
    Retiring,
    SourceStatus,
    Standing,
    drawn,
    next_step,
    settled,
    source_status,
)

_EXCHANGE: Final = timedelta(seconds=15)
"""Providers that take a refresh token once more after a lost answer do so for 30 s or longer."""

_RETIREMENT: Final = timedelta(minutes=3)
_RETIRED_AGAIN_AFTER: Final = (15_000, 15 * 60_000)
"""Milliseconds, from the first pause to the longest."""

_MOST_BEHIND: Final = 20


class Living:
    """The credentials of one node that a source mints.

    Args:
        ledger, inbox, record: of the node.
        reports: fingerprints of tokens that an API refused, by name.
        accepted: called after a token was accepted that was minted.
        carried: what the run before knew.
    """

    def __init__(
        self,
        ledger: Ledger,
        inbox: Inbox,
        record: NodeRecord,
        reports: Mapping[str, Collection[str]],
        accepted: Callable[[], None],
        carried: Mapping[str, Renewing],
    ) -> None:
        self._ledger = ledger
        self._inbox = inbox
        self._record = record
        self._reports = reports
        self._accepted = accepted
        self.states = dict(carried)
        """What is known of each, by name: what the next run is given."""
        self._begun = False
        self._ends = False
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._minting: dict[str, workflow.ActivityHandle[RawValue]] = {}
        self._announcing: dict[str | None, asyncio.Task[None]] = {}
        self._retirements: dict[str, asyncio.Task[None]] = {}

    # --- what is known -------------------------------------------------------

    def standing(self, name: str) -> Standing:
        """What stands at this workflow for a name."""
        own, grant = self._own(name), self._ledger.grant(name)
        if grant is not None and own is not None and own.kind == "revocation":
            # Whoever revoked the token afterwards does not want the next one.
            grant = grant if grant.order > own.order else None
        token = own if own is not None and own.kind == "token" else None
        if token is not None and token.issuer in self._ledger.revoked:
            token = None
        return Standing(grant, token, self._reports.get(name, ()))

    def _state(self, name: str) -> Renewing:
        return self.states.get(name, Renewing())

    def _own(self, name: str) -> Message | None:
        return self._ledger.held.get((name, self._ledger.path[-1]))

    def statuses(self, now: int, meant: Mapping[str, str]) -> tuple[SourceStatus, ...]:
        """What is shown of them at a time (Unix milliseconds).

        Args:
            now: the time.
            meant: sources by name that the workflow's class names, whether there is a grant or not.
        """
        grants = self._ledger.grants
        sources = {
            **meant,
            **{
                name: one.claims.source or ""
                for name, one in grants.items()
                if not self._is_given_up(name)
            },
        }
        return tuple(
            source_status(
                name,
                source,
                self._state(name),
                self.standing(name),
                now,
                renewal=grants[name].claims.renewal if name in grants else None,
                is_minting=name in self._minting,
            )
            for name, source in sorted(sources.items())
        )

    def _is_given_up(self, name: str) -> bool:
        """Whether the workflow was told since its grant to take what its ancestors have."""
        own, grant = self._own(name), self._ledger.grants[name]
        return own is not None and own.claims.inherit is True and own.order > grant.order

    # --- what others ask for -------------------------------------------------

    def renew(self, name: str, *, retire: bool) -> None:
        """Mint a new token now, once, however many ask meanwhile.

        Raises:
            MessageRefused: nothing mints this name here, or somebody has to authorize it first.
        """
        self.check_renewable(name)
        state = self._state(name)
        if state.asked_at is None and state.failures and state.outcome != "rate_limited":
            state = replace(state, retry_at=0)  # whoever asks may have mended it
        asked = state.asked_at or now_ms()
        self.states[name] = replace(
            state, asked_at=asked, asked_retire=retire or state.asked_retire, problem=None
        )

    def check_renewable(self, name: str) -> None:
        """Raise as `renew`, and change nothing."""
        at, where = self.standing(name), f"workflow {self._ledger.path[-1]}"
        if name not in self._ledger.grants:
            raise NotRenewable(
                f"{where}: no source mints {name} here: renew it at the home that `stateful token "
                "status` names, or authorize a source here"
            )
        if at.grant is None or at.is_dead(self._state(name)):
            source = self._ledger.grants[name].claims.source or ""
            command = authorizing(self._ledger.path[-1], source, name)
            raise NotRenewable(f"{where}: {name} needs authorization: run `{command}`")

    def distrust(self, why: str) -> None:
        """Send none of the grants that stand here: they need authorization, for this reason."""
        for name, grant in self._ledger.grants.items():
            self.states[name] = Renewing(dead=grant.fingerprint, detail=why)

    # --- the loops -----------------------------------------------------------

    def begin(self) -> None:
        """Keep alive from now on whatever has a grant."""
        self._begun = True
        self.granted()

    def granted(self) -> None:
        """A grant may have come that was not there before."""
        if not self._begun:
            return
        for name in sorted(self._ledger.grants):
            if name not in self._loops:
                self._loops[name] = asyncio.create_task(self._keep_alive(name))
            self._retire_soon(name)

    async def end(self) -> None:
        """Begin no exchange any more, and wait for those that are under way: a run about to close.

        One that no worker has begun is given up; of one that has the answer is awaited.
        """
        self._ends = True
        for handle in self._minting.values():
            handle.cancel()
        await workflow.wait_condition(lambda: not self._minting and not self._announcing)

    async def _keep_alive(self, name: str) -> None:
        while not self._ends:
            state, at = self._drawn(name), self.standing(name)
            step = next_step(state, at, now_ms())
            if step.what == "mint" and step.why is not None and at.grant is not None:
                await self._mint(name, at.grant, step.why)
            elif step.what == "announce":
                self.states[name] = replace(state, announced=state.dead)
                self._announcing[state.dead] = asyncio.create_task(self._announce(name, state))
            else:
                before = self._seen(name)
                timeout = None if step.until is None else _until(step.until)
                with suppress(asyncio.TimeoutError):
                    await workflow.wait_condition(
                        lambda before=before: self._ends or self._seen(name) != before,
                        timeout=timeout,
                    )

    def _drawn(self, name: str) -> Renewing:
        """The state, in which it is drawn when the token that stands here is renewed."""
        state, token = self._state(name), self.standing(name).token
        if token is not None and state.drawn != token.fingerprint:
            state = drawn(state, token, workflow.random().random())
        self.states[name] = state
        return state

    def _seen(self, name: str) -> tuple[object, ...]:
        at = self.standing(name)
        return at.grant, at.token, tuple(at.reported), self.states.get(name)

    # --- an exchange ---------------------------------------------------------

    async def _mint(self, name: str, grant: Message, why: Why) -> None:
        state, old = self.states[name], self.standing(name).token
        was_sent = state.sent == grant.fingerprint
        own, last = self._own(name), self._ledger.last.get(name)
        request = MintRequest(
            name,
            why,
            grant.text,
            None if own is None else own.text,
            None if last is None else last.text,
            was_sent,
            sorted(self._ledger.trusted),
        )
        self.states[name] = replace(state, sent=grant.fingerprint)
        queue = source_queue_of(grant.claims.source or "")
        handle = couriers.start_once(MINT, request, task_queue=queue, within=_EXCHANGE)
        self._minting[name] = handle
        try:
            # Once another grant stands here, maybe of another source, nobody waits for a worker.
            await workflow.wait_condition(
                lambda: handle.done() or self.standing(name).grant != grant
            )
            if not handle.done():
                handle.cancel()
                await workflow.wait_condition(handle.done)
            result = _result(handle)
            if result is None:  # given up before a worker had begun
                self.states[name] = replace(self.states[name], sent=state.sent)
                return
            if result.outcome == "lost_reply" and handle.exception() is not None:
                self._record.lost_reply(name, grant.claims.source or "")
            await self._settle(name, grant, old, why, result, was_sent=was_sent)
        finally:
            del self._minting[name]

    async def _settle(
        self,
        name: str,
        grant: Message,
        old: Message | None,
        why: Why,
        result: MintResult,
        *,
        was_sent: bool,
    ) -> None:
        # Of a grant that was revoked or replaced meanwhile nothing is wanted any more.
        is_wanted = self.standing(name).grant == grant
        if is_wanted and not await self._taken(name, result) and result.outcome in GOT:
            result = replace(
                result, outcome="malformed", reached=True, detail="its messages were refused here"
            )
        now, random, after = now_ms(), workflow.random().random(), self._ledger.grant(name)
        state = settled(self.states[name], grant, result, now, random, was_sent=was_sent)
        if is_wanted:
            state = replace(state, tried=None if after is None else after.fingerprint)
        is_settled = result.outcome in (*GOT, *AS_BEFORE, "refused_grant")
        if why == "refused" and old is not None and is_settled:
            state = replace(state, healed=old.fingerprint, healed_at=now)
        if result.outcome in GOT and is_wanted and old is not None:
            state = self._with_retiring(name, state, grant, old)
        self.states[name] = state
        self._retire_soon(name)

    async def _taken(self, name: str, result: MintResult) -> bool:
        """Judge what an exchange brought; whether all of it was taken."""
        texts = [result.grant, result.token, result.revocation]
        has_brought = False
        for text in filter(None, texts):
            try:
                message = parse(text)
                if message.claims.name != name:
                    raise NotRenewable(f"it is a message for {message.claims.name}")
                verdict = self._inbox.judge(message, "minted")
                if verdict is Verdict.WAITING:
                    # Its issuer's key is younger than this run. Nothing is to be minted meanwhile.
                    is_spent = result.outcome in GOT
                    verdict = await self._until_known(name, message, is_spent=is_spent)
                has_brought = has_brought or verdict is Verdict.ACCEPTED
            except MessageRefused as error:
                warn(f"What a source of workflow {self._ledger.path[-1]} gave: {error}")
                return False
        if result.outcome == "minted" and result.token is None:
            return False
        if result.outcome in GOT and not has_brought:
            return False  # or it would be asked for again, for ever and at once
        self._accepted()
        return True

    async def _until_known(self, name: str, message: Message, *, is_spent: bool) -> Verdict:
        """Judge a message once its issuer is known, or nothing waits for that any more.

        The grant that it succeeds is not sent again meanwhile where it may be spent; else this
        waits for 10 s.
        """
        grant = self.standing(name).grant
        with suppress(TokenForged):
            return await self._inbox.until_known(message)
        await workflow.wait_condition(
            lambda: (
                self._ends
                or not is_spent
                or self.standing(name).grant != grant
                or not self._inbox.is_waiting(message)
            )
        )
        verdict = self._inbox.judge(message, "minted")
        return Verdict.ACCEPTED if verdict is Verdict.KNOWN else verdict

    # --- a dead grant --------------------------------------------------------

    async def _announce(self, name: str, state: Renewing) -> None:
        grant = self._ledger.grants.get(name)
        source = "" if grant is None else grant.claims.source or ""
        request = AnnounceRequest(name, source, state.dead or "", state.after_lost, state.detail)
        handle = couriers.start(
            ANNOUNCE,
            vars(request),
            task_queue=source_queue_of(source),
            start_to_close_timeout=_EXCHANGE,
            schedule_to_close_timeout=timedelta(hours=1),
        )
        await workflow.wait_condition(lambda: handle.done() or self._ends)
        if not handle.done():
            handle.cancel()
            self.states[name] = replace(self.states[name], announced=None)  # the next run does
        elif handle.exception() is not None:
            warn(f"Nobody could be told that {name} needs authorization: {handle.exception()}")
        del self._announcing[state.dead]

    # --- retire the token before ---------------------------------------------

    def _with_retiring(self, name: str, state: Renewing, grant: Message, old: Message) -> Renewing:
        token, renewal = self.standing(name).token, grant.claims.renewal
        is_wanted = state.asked_retire or (renewal is not None and renewal.retire)
        state = replace(state, asked_retire=False)
        if not is_wanted or token is None or old.claims.source != grant.claims.source:
            return state
        one = Retiring(old, token.claims.version)
        return replace(state, retiring=(*state.retiring, one)[-MOST_RETIRING:])

    def _retire_soon(self, name: str) -> None:
        running = self._retirements.get(name)
        if self._begun and (running is None or running.done()) and self._due_retirement(name):
            self._retirements[name] = asyncio.create_task(self._retire_all(name))

    def _due_retirement(self, name: str) -> Retiring | None:
        return None if self._ends else next(iter(self._state(name).retiring), None)

    async def _retire_all(self, name: str) -> None:
        pause, longest = _RETIRED_AGAIN_AFTER
        while (one := self._due_retirement(name)) is not None:
            if one.due > now_ms():
                with suppress(asyncio.TimeoutError):
                    await workflow.wait_condition(lambda: self._ends, timeout=_until(one.due))
                continue
            result = await self._retire(name, one)
            if result is None:
                return
            state = self.states[name]
            rest = tuple(other for other in state.retiring if other.message != one.message)
            if result.done:
                state = replace(
                    state,
                    retired=one.message.fingerprint if result.problem is None else state.retired,
                    proven=result.proven,
                    problem=result.problem,
                    retiring=rest,
                )
                pause = _RETIRED_AGAIN_AFTER[0]
            else:
                behind, due = tuple(result.behind[:_MOST_BEHIND]), now_ms() + pause
                again = replace(one, due=due, behind=behind, problem=result.problem)
                state = replace(state, retiring=(*rest, again)[-MOST_RETIRING:])
                pause = min(2 * pause, longest)
            self.states[name] = state

    async def _retire(self, name: str, one: Retiring) -> RetireResult | None:
        """What came of an attempt to retire a token; None where the run ends."""
        source = one.message.claims.source or ""
        handle = couriers.start(
            RETIRE,
            vars(RetireRequest(name, source, one.message.text, one.after)),
            task_queue=source_queue_of(source),
            start_to_close_timeout=_RETIREMENT,
            heartbeat_timeout=couriers.HEARTBEAT,
            retry_policy=RetryPolicy(maximum_attempts=3),
        )
        await workflow.wait_condition(lambda: handle.done() or self._ends)
        if not handle.done():
            handle.cancel()
            return None
        try:
            return couriers.result(handle, RetireResult)
        except (FailureError, AnswerMalformed) as error:
            return RetireResult(done=False, problem=_why(error))


def _until(due: int) -> timedelta:
    return timedelta(milliseconds=max(due - now_ms(), 1))


def _result(handle: asyncio.Task[RawValue]) -> MintResult | None:
    """What an exchange came to; None where no worker had begun it."""
    try:
        return couriers.result(handle, MintResult)
    except AnswerMalformed as error:
        return MintResult("malformed", detail=str(error)[:500], reached=True)
    except FailureError as error:
        cause = error.cause if isinstance(error, ActivityError) else error
        if isinstance(cause, CancelledError):
            return None
        if isinstance(cause, TimeoutError) and cause.type in (
            TimeoutType.SCHEDULE_TO_START,
            TimeoutType.SCHEDULE_TO_CLOSE,
        ):
            return MintResult("not_ready", detail="no worker of the source has begun it")
        if isinstance(cause, ApplicationError):
            return MintResult("not_ready", detail=_why(cause))
        return MintResult("lost_reply", detail="its worker did not answer", reached=True)


def _why(error: BaseException) -> str:
    cause: Any = error.cause if isinstance(error, ActivityError) else error
    return str(getattr(cause, "message", None) or cause)[:500]
