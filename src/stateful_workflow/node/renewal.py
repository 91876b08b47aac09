"""When the home of a grant does what: the pure state of one credential that a source mints.

`next_step` says what is due; what came of it is put into the state again. It takes the time as an
argument, and knows nothing of Temporal (docs/decisions/51-living-tokens.md).
"""

# ruff: noqa: RUF009 - what `member` gives is a field

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, NamedTuple, get_args

from ..sealed.grants import authorizing
from ..sealed.message import Message, Renewal
from . import limits
from .contract import OUTCOMES, MintResult, Outcome, Why, source_queue_of
from .members import (
    ANY,
    FLAG,
    ID,
    NAME,
    integer,
    list_of,
    mapping_of,
    member,
    message_of,
    one_of,
    optional,
    read,
)

GOT: Final = ("minted", "newer")
AS_BEFORE: Final = ("alive", "unchanged")

SourceState = Literal["fresh", "stale", "invalid", "needs_authorization"]
"""What is known of a credential that a source mints. fresh: nothing is due. stale: the token
serves while it is renewed. invalid: there is none to use, and one is being minted.
needs_authorization: the provider refuses the grant, or there is none; nothing is tried until
somebody authorizes the source again."""

_RENEWED_AT: Final = (0.60, 0.75)
"""Of its life a token has passed so much when it is renewed; where between is drawn."""

_BACKOFF_MS: Final = 1_000
_LONGEST_BACKOFF_MS: Final = 5 * 60_000
_LONGEST_ASKED_FOR_MS: Final = 24 * 3_600_000
_LONGEST_TIMER_MS: Final = 10 * 365 * 24 * 3_600_000
MOST_RETIRING: Final = 16
_AT_ONCE: Final = 3
"""Times that the same grant is sent again at once after a lost reply, within providers' graces."""


@dataclass(frozen=True)
class Retiring:
    """A token whose successor is there, and which is to be revoked at the provider.

    Attributes:
        message: the old one.
        after: version of its successor.
        due: Unix milliseconds from when it is tried again.
        behind: ids of workflows that do not hold the successor yet, of the last try.
        problem: why it is not done yet.
    """

    message: Message = member(message_of("token"), write=lambda message: message.text)
    after: int = member(integer(1))
    due: int = member(integer(0), 0)
    behind: tuple[str, ...] = member(list_of(ID), ())
    problem: str | None = member(optional(ANY), None)


@dataclass(frozen=True)
class Renewing:
    """What the home knows of one credential beside the grant and the tokens, which its ledger has.

    Attributes:
        counts: exchanges by what came of them, since the home began.
        failures: exchanges in a row that brought nothing.
        outcome: of the last one.
        detail: what it said, without any secret.
        retry_at: Unix milliseconds before which the provider is left alone.
        tried: fingerprint of the grant that this is for; one that somebody gives since is tried at
            once.
        sent: fingerprint of a grant that was sent and whose answer nobody has.
        dead: fingerprint of the grant that the provider refused.
        after_lost: it did so after an answer to the same grant had been lost.
        announced: fingerprint of the dead grant that was announced.
        healed: fingerprint of the token that was renewed, or found good, after a refusal.
        healed_at: Unix milliseconds of that.
        looked_at: Unix milliseconds at which the source last said that the token stays.
        drawn: fingerprint of the token for which `share` was drawn.
        share: of a token's life after which it is renewed, in thousandths.
        asked_at: Unix milliseconds at which somebody asked for a new token that is not there yet.
        asked_retire: and wants the old one retired.
        retiring: tokens that are to be retired, the oldest first.
        retired: fingerprint of the last one that was.
        proven: whether the provider was seen to refuse that one; None where it cannot be asked.
        problem: why the last one could not be, for good.
    """

    counts: Mapping[str, int] = member(mapping_of(integer(0)), factory=dict[str, int])
    failures: int = member(integer(0), 0)
    outcome: Outcome | None = member(optional(one_of(OUTCOMES)), None)
    detail: str | None = member(optional(ANY), None)
    retry_at: int = member(integer(0), 0)
    tried: str | None = member(optional(ID), None)
    sent: str | None = member(optional(ID), None)
    dead: str | None = member(optional(ID), None)
    after_lost: bool = member(FLAG, False)
    announced: str | None = member(optional(ID), None)
    healed: str | None = member(optional(ID), None)
    healed_at: int = member(integer(0), 0)
    looked_at: int = member(integer(0), 0)
    drawn: str | None = member(optional(ID), None)
    share: int = member(integer(0), 0)
    asked_at: int | None = member(optional(integer(0)), None)
    asked_retire: bool = member(FLAG, False)
    retiring: tuple[Retiring, ...] = member(list_of(partial(read, Retiring), MOST_RETIRING), ())
    retired: str | None = member(optional(ID), None)
    proven: bool | None = member(optional(FLAG), None)
    problem: str | None = member(optional(ANY), None)


class Step(NamedTuple):
    """What is due: to mint, for a reason, to announce a dead grant, or to wait until a time (Unix
    milliseconds; None until something happens)."""

    what: Literal["mint", "announce", "wait"]
    why: Why | None = None
    until: int | None = None


class Standing(NamedTuple):
    """What stands at the home for one name.

    Attributes:
        grant: None where there is none, or where it was revoked with the token, or its issuer was.
        token: in force and set at the home itself; None where none is, or none to use.
        reported: fingerprints of tokens that an API refused.
    """

    grant: Message | None
    token: Message | None
    reported: Collection[str]

    def is_dead(self, state: Renewing) -> bool:
        """Whether the provider refuses the grant, and nobody has given another."""
        is_same = self.grant is None or self.grant.fingerprint == state.dead
        return state.dead is not None and is_same

    def valid_token(self, now: int) -> Message | None:
        """The token, if it is not past its expiry."""
        token = self.token
        expires = None if token is None else token.claims.expires_at
        return None if expires is not None and now >= expires * 1000 else token


def next_step(state: Renewing, at: Standing, now: int) -> Step:
    """What is due at a time (Unix milliseconds)."""
    if at.is_dead(state):
        if state.announced != state.dead:
            return Step("announce")
        # One that an API refuses is revoked, so that nobody calls with what is dead.
        token = at.valid_token(now)
        is_out = token is not None and is_refused(state, at, token)
        why, when = "refused", now if is_out else None
    else:
        why, when = _due(state, at, now)
    if when is None or at.grant is None:
        return Step("wait")
    if state.tried in (None, at.grant.fingerprint):
        when = max(when, state.retry_at)
    if when <= now:
        return Step("mint", why)
    return Step("wait", until=min(when, now + _LONGEST_TIMER_MS))


def is_refused(state: Renewing, at: Standing, token: Message) -> bool:
    """Whether an API refused a token, and nothing was done about it yet."""
    return token.fingerprint in at.reported and token.fingerprint != state.healed


def _due(state: Renewing, at: Standing, now: int) -> tuple[Why, int | None]:
    """Why a token is to be minted next, and when; of a token that was minted the version is not
    below that of the grant that came with it."""
    token = at.valid_token(now)
    if token is None:
        return "first", now
    if state.asked_at is not None:
        return "asked", now
    if at.grant is not None and at.grant.claims.version > token.claims.version:
        return "first", now  # somebody has authorized since
    begun, grant = max(token.claims.version, state.looked_at), at.grant
    every = None if grant is None or grant.claims.renewal is None else grant.claims.renewal.every
    ends: list[tuple[int, Why]] = []
    if is_refused(state, at, token):
        ends.append((state.healed_at + limits.LIMITS.heal_every_ms, "refused"))
    if token.claims.expires_at is not None:
        life = max(token.claims.expires_at * 1000 - begun, 0)
        ends.append((begun + life * state.share // 1000, "expiry"))
    if every is not None:
        # Somewhat before, so that those that began together do not renew together.
        ends.append((begun + every * state.share, "every"))
    if not ends:
        return "expiry", None
    when, why = min(ends)
    return why, when


def drawn(state: Renewing, token: Message, random: float) -> Renewing:
    """The state in which it is drawn when this token is renewed; `random` is in [0, 1)."""
    low, high = _RENEWED_AT
    share = int(1000 * (low + (high - low) * random))
    return replace(state, drawn=token.fingerprint, share=share)


def source_state(state: Renewing, at: Standing, now: int) -> SourceState:
    """What is shown of it."""
    if at.grant is None or at.is_dead(state):
        return "needs_authorization"
    if at.valid_token(now) is None:
        return "invalid"
    return "stale" if next_step(state, at, now).what == "mint" or state.failures else "fresh"


def settled(
    state: Renewing, grant: Message, result: MintResult, now: int, random: float, *, was_sent: bool
) -> Renewing:
    """What came of an exchange.

    Args:
        grant: that was sent.
        result: what came of it.
        now: Unix milliseconds.
        random: in [0, 1).
        was_sent: an answer to this grant had been lost before.
    """
    outcome = result.outcome
    counts = {**state.counts, outcome: state.counts.get(outcome, 0) + 1}
    state = replace(state, counts=counts, outcome=outcome, detail=result.detail)
    if outcome in (*GOT, *AS_BEFORE, "refused_grant"):
        is_dead, is_alive = outcome == "refused_grant", outcome == "alive"
        return replace(
            state,
            failures=0,
            retry_at=now + _BACKOFF_MS,
            looked_at=now if outcome in AS_BEFORE else state.looked_at,
            # That a token is good says nothing of the grant, which was not sent.
            sent=state.sent if is_alive and was_sent else None,
            dead=grant.fingerprint if is_dead else state.dead if is_alive else None,
            after_lost=(is_dead and was_sent) or (is_alive and state.after_lost),
            asked_at=None,
        )
    is_lost = was_sent or result.reached
    # From the first loss on it is counted anew: the provider's grace begins with it.
    failures = 1 if is_lost and not was_sent else state.failures + 1
    pause = 0.0
    if outcome != "lost_reply" or failures > _AT_ONCE:
        longest = min(_BACKOFF_MS * 2.0 ** min(failures, 20), _LONGEST_BACKOFF_MS)
        pause = longest * (0.5 + random / 2)
    pause = max(pause, min(1000 * (result.retry_after or 0), _LONGEST_ASKED_FOR_MS))
    sent = grant.fingerprint if is_lost else None
    return replace(state, failures=failures, retry_at=now + int(pause), sent=sent)


_SHOWN: Final = (
    *("counts", "failures", "outcome", "detail", "after_lost", "retired", "proven", "problem"),
)


@dataclass(frozen=True)
class SourceStatus:
    """What may be shown of a credential that a source mints.

    Attributes:
        name: credential name.
        source: name of the source.
        state: see `SourceState`.
        grant: fingerprint of the grant; None where there is none.
        every: seconds after which tokens are renewed, whatever their expiry, or None.
        retire: each token is revoked at the provider once its successor is in use.
        next_at: Unix milliseconds at which the next exchange is due, or None.
        is_minting: one is under way, or waits for a worker of the source.
        asked: somebody asked for a new token, which is not there yet.
        counts, failures, outcome, detail, after_lost, retired, proven, problem, retiring: as
            `Renewing`; of the tokens that are to be retired only what may be shown.
        pending: it waits, and no worker of the source runs, as the server says to whoever asks
            for it; else None.
    """

    name: str = member(NAME)
    source: str = member(NAME)
    state: SourceState = member(one_of(get_args(SourceState)))
    grant: str | None = member(optional(ID), None)
    every: int | None = member(optional(integer(1)), None)
    retire: bool = member(optional(FLAG, False), False)
    next_at: int | None = member(optional(integer(0)), None)
    is_minting: bool = member(optional(FLAG, False), False)
    asked: bool = member(optional(FLAG, False), False)
    counts: Mapping[str, int] = member(optional(mapping_of(integer(0)), {}), factory=dict[str, int])
    failures: int = member(optional(integer(0), 0), 0)
    outcome: Outcome | None = member(optional(one_of(OUTCOMES)), None)
    detail: str | None = member(optional(ANY), None)
    after_lost: bool = member(optional(FLAG, False), False)
    retiring: tuple[RetiringStatus, ...] = member(
        optional(list_of(lambda value: read(RetiringStatus, value)), ()), ()
    )
    retired: str | None = member(optional(ID), None)
    proven: bool | None = member(optional(FLAG), None)
    problem: str | None = member(optional(ANY), None)
    pending: bool | None = member(None, None, omit_null=True)

    @property
    def needs_authorization(self) -> bool:
        """Whether nothing goes on until somebody authorizes the source again."""
        return self.state == "needs_authorization"

    @property
    def waits(self) -> bool:
        """Whether a worker of the source is at work for it, or is waited for."""
        return self.is_minting or bool(self.retiring)

    @property
    def amiss(self) -> str | None:
        """Why it is not fresh, or why a token is not retired yet; None where nothing is amiss."""
        if self.pending:
            queue = source_queue_of(self.source)
            return f"pending: no worker polls task queue {queue}: start one that has this source"
        is_refused = self.outcome == "refused_grant"
        if self.needs_authorization and self.grant is None and not is_refused:
            return "there is no grant, or it was revoked with the token"
        lost = " after an answer to it was lost" if self.after_lost else ""
        if self.needs_authorization:
            return f"the provider refuses the grant{lost}{_after(self.detail)}"
        if self.failures and self.outcome is not None:
            what = self.outcome.replace("_", " ")
            failed = "1 exchange" if self.failures == 1 else f"{self.failures} exchanges"
            return f"{failed} failed, the last: {what}{_after(self.detail)}"
        held_up = next((one for one in self.retiring if one.problem is not None), None)
        if held_up is None:
            return None if self.problem is None else f"the last one is not retired: {self.problem}"
        behind = ", ".join(held_up.behind[:5])
        return f"{held_up.fingerprint} is not retired: {held_up.problem}{behind and f' ({behind})'}"

    def cure(self, home: str) -> str | None:
        """The command that ends *needs authorization* at the workflow of this id.

        It has the options by which the grant before was renewed.
        """
        if not self.needs_authorization:
            return None
        every = "" if self.every is None else f" --renew-every {self.every}s"
        retire = " --retire" if self.retire else ""
        return f"{authorizing(home, self.source, self.name)}{every}{retire}"


def _after(text: str | None) -> str:
    return f": {text}" if text else ""


@dataclass(frozen=True)
class RetiringStatus:
    """A token that is to be retired: its version, and what holds that up."""

    version: int = member(integer(1))
    fingerprint: str = member(ID)
    behind: tuple[str, ...] = member(optional(list_of(ID), ()), ())
    problem: str | None = member(optional(ANY), None)


def source_status(
    name: str,
    source: str,
    state: Renewing,
    at: Standing,
    now: int,
    *,
    renewal: Renewal | None,
    is_minting: bool,
) -> SourceStatus:
    """What is shown of it at a time (Unix milliseconds); `renewal` is as the last grant has it."""
    step = next_step(state, at, now)
    shown: dict[str, Any] = {one: getattr(state, one) for one in _SHOWN}
    return SourceStatus(
        name,
        source,
        source_state(state, at, now),
        None if at.grant is None else at.grant.fingerprint,
        None if renewal is None else renewal.every,
        renewal is not None and renewal.retire,
        step.until,
        is_minting,
        state.asked_at is not None,
        retiring=tuple(map(_retiring, state.retiring)),
        **shown,
    )


def _retiring(one: Retiring) -> RetiringStatus:
    old = one.message
    return RetiringStatus(old.claims.version, old.fingerprint, one.behind, one.problem)
