"""When the home of a grant mints, as a function of what it knows and the time."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import cache
from typing import Any, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stateful_workflow.errors import AnswerMalformed
from stateful_workflow.node import limits
from stateful_workflow.node.contract import OUTCOMES, MintResult, Outcome, Why
from stateful_workflow.node.members import read, to_json
from stateful_workflow.node.renewal import (
    AS_BEFORE,
    GOT,
    Renewing,
    Retiring,
    SourceStatus,
    Standing,
    drawn,
    next_step,
    settled,
    source_state,
    source_status,
)
from stateful_workflow.sealed.message import MAX_VERSION, Message, Renewal, parse
from tests.support.builders import CLAIMS, NOW, keyring
from tests.support.builders import token as never_expiring

UNREACHABLE: Outcome = "unreachable"
SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
LONGEST = 5 * MINUTE

PASSING: tuple[Outcome, ...] = (
    "unreachable",
    "rate_limited",
    "malformed",
    "lost_reply",
    "not_ready",
)
"""What came of an exchange without the provider's word on the grant."""


@cache
def grant(version: int = NOW, every: int | None = None, retire: bool = False) -> Message:
    claims = replace(
        CLAIMS,
        version=version,
        origins=(),
        source="own",
        renewal=Renewal(every, retire),
        audiences=("sources",),
    )
    return parse(keyring().add_reader("sources").seal(claims, "{}"))


@cache
def token(life: int | None, version: int = NOW) -> Message:
    """One that lives so many seconds from its version on."""
    if life is None:
        return never_expiring(version)
    claims = replace(CLAIMS, version=version, expires_at=version // 1000 + life)
    return parse(keyring().seal(claims, "secret"))


GRANT = grant()


def standing(token: Message | None, *refused: Message, grant: Message | None = GRANT) -> Standing:
    return Standing(grant, token, {one.fingerprint for one in refused})


def once(
    state: Renewing,
    *outcomes: Outcome,
    now: int = NOW,
    random: float = 0.5,
    after: int | None = None,
) -> Renewing:
    """What is known once exchanges with the same grant came to this."""
    for outcome in outcomes:
        was_sent = state.sent == GRANT.fingerprint
        reached = outcome == "lost_reply"
        one = MintResult(outcome, reached=reached, retry_after=after)
        state = replace(state, sent=GRANT.fingerprint)
        state = settled(state, GRANT, one, now, random, was_sent=was_sent)
        state = replace(state, tried=GRANT.fingerprint)
    return state


randoms = st.floats(0, 1, exclude_max=True)
passing = st.sampled_from(PASSING)
lives = st.integers(2, 90 * 86_400)


# --- what passes, and what does not ------------------------------------------------


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("was_sent", [False, True])
def test_only_a_refused_grant_is_dead(outcome: Outcome, was_sent: bool) -> None:
    before = once(Renewing(), "lost_reply") if was_sent else Renewing()
    state = once(before, outcome)
    assert (state.dead == GRANT.fingerprint) == (outcome == "refused_grant")
    assert state.after_lost == (outcome == "refused_grant" and was_sent)
    shown = source_state(state, standing(token(3600)), NOW)
    assert (shown == "needs_authorization") == (outcome == "refused_grant")


@given(st.lists(passing, min_size=1, max_size=12), randoms, lives, st.integers(0, 10**6))
def test_after_what_passes_the_token_serves_and_the_home_comes_back_within_five_minutes(
    outcomes: list[Outcome], random: float, life: int, spent: int
) -> None:
    state = drawn(once(Renewing(), *outcomes, random=random), token(life), random)
    assert state.retry_at <= NOW + LONGEST
    for held in (token(life), None):
        now = NOW + spent % (life * SECOND)
        at = standing(held)
        assert at.valid_token(now) is held
        step = next_step(state, at, now)
        while step.what == "wait":
            assert step.until is not None
            assert now < step.until
            now = step.until
            step = next_step(state, at, now)
        assert step.what == "mint"
        assert now <= max(NOW + LONGEST, NOW + life * SECOND)


@given(st.lists(passing, min_size=8, max_size=8), randoms)
def test_pauses_grow_and_are_drawn(outcomes: list[Outcome], random: float) -> None:
    state = once(Renewing(), *outcomes, random=random)
    if "lost_reply" not in outcomes:
        assert state.retry_at > NOW + LONGEST * 0.4
    assert once(Renewing(), "unreachable", random=0.0).retry_at < (
        once(Renewing(), "unreachable", random=0.9).retry_at
    )


@pytest.mark.parametrize("seconds", [1, 3600, 10**15])
def test_the_provider_is_left_alone_as_long_as_it_asks_for_yet_no_longer_than_a_day(
    seconds: int,
) -> None:
    state = once(Renewing(), "rate_limited", after=seconds)
    step = next_step(state, standing(None), NOW)
    assert step.until is not None
    assert min(seconds, 86_400) * SECOND <= step.until - NOW <= 24 * HOUR


@given(randoms, st.integers(0, 12))
def test_after_a_lost_reply_the_same_grant_goes_at_once_again_three_times_at_most(
    random: float, before: int
) -> None:
    """However long the provider was not there before: its grace begins with the loss."""
    state = once(Renewing(), *(UNREACHABLE,) * before, random=random)
    at_once = 0
    for _ in range(10):
        state = once(state, "lost_reply", random=random)
        assert state.sent == GRANT.fingerprint
        at_once += next_step(state, standing(None), NOW).what == "mint"
    assert at_once == 3


def test_a_grant_that_is_given_anew_is_tried_at_once_however_long_the_pause_was() -> None:
    state = once(Renewing(), *(UNREACHABLE,) * 10)
    given = standing(None, grant=grant(NOW + 1))
    assert next_step(state, standing(None), NOW).what == "wait"
    assert next_step(state, given, NOW) == ("mint", "first", None)


# --- before expiry, and regularly -----------------------------------------------


@given(lives, randoms, st.sampled_from([None, *AS_BEFORE]), randoms)
def test_a_token_is_renewed_before_it_expires(
    life: int, random: float, looked: Outcome | None, share: float
) -> None:
    state, at = drawn(Renewing(), token(life), random), standing(token(life))
    now = NOW + int(share * life * SECOND)
    if looked is not None:
        state = once(state, looked, now=now)
    step = next_step(state, at, now)
    if step.what == "wait":
        assert step.until is not None
        # A source that gave the same token again is asked no more than once a second.
        assert now < step.until < max(NOW + life * SECOND, now + SECOND + 1)
        step = next_step(state, at, step.until)
    assert step.what == "mint"


def test_a_renewed_token_is_used_for_more_than_half_of_its_life() -> None:
    for random in (0.0, 0.5, 0.999):
        state = drawn(Renewing(), token(3600), random)
        step = next_step(state, standing(token(3600)), NOW)
        assert step.until is not None
        assert 0.6 * HOUR <= step.until - NOW < 0.75 * HOUR


def test_ten_thousand_homes_that_began_together_do_not_renew_together() -> None:
    minutes: dict[int, int] = {}
    for n in range(10_000):
        state = drawn(Renewing(), token(3600), n * 0.6180339887 % 1)
        until = next_step(state, standing(token(3600)), NOW).until
        assert until is not None
        minute = (until - NOW) // MINUTE
        minutes[minute] = minutes.get(minute, 0) + 1
    assert len(minutes) == 9
    assert max(minutes.values()) < 1_200


@given(st.integers(1, 400 * 86_400), randoms)
def test_a_token_that_never_expires_is_renewed_within_its_interval_and_without_one_never(
    every: int, random: float
) -> None:
    state = drawn(Renewing(), token(None), random)
    assert next_step(state, standing(token(None)), NOW) == ("wait", None, None)
    regular = standing(token(None), grant=grant(NOW, every))
    step = next_step(state, regular, NOW)
    assert step.until is not None
    assert NOW < step.until < NOW + every * SECOND
    assert next_step(state, regular, step.until) == ("mint", "every", None)


@given(
    st.lists(st.sampled_from([*GOT, *AS_BEFORE]), min_size=1, max_size=5),
    st.sampled_from([None, 1, 3600]),
    st.sampled_from([None, 1, 3600]),
    st.booleans(),
)
def test_an_answer_that_changes_nothing_is_not_asked_for_again_within_a_second(
    outcomes: list[Outcome], life: int | None, every: int | None, is_refused: bool
) -> None:
    held = token(life)
    at = standing(held, *([held] if is_refused else []), grant=grant(NOW, every))
    state = once(drawn(Renewing(), held, 0.0), *outcomes)
    state = replace(state, tried=grant(NOW, every).fingerprint)
    for passed in range(0, 5 * SECOND, 100):
        step = next_step(state, at, NOW + passed)
        if step.what == "mint":
            assert passed >= SECOND
            break


# --- asked, and refused ----------------------------------------------------------


def test_whoever_asks_gets_a_token_once() -> None:
    held = token(3600)
    asked = replace(drawn(Renewing(), held, 0.5), asked_at=NOW)
    assert next_step(asked, standing(held), NOW) == ("mint", "asked", None)
    for outcome in PASSING:
        assert once(asked, outcome).asked_at == NOW
    for outcome in (*GOT, *AS_BEFORE, "refused_grant"):
        assert once(asked, outcome).asked_at is None


@given(st.integers(0, 10 * HOUR), st.integers(2, 10 * 3600))
def test_a_refused_token_is_healed_once_and_not_more_often_than_the_interval(
    healed: int, life: int
) -> None:
    every = limits.LIMITS.heal_every_ms
    held, other = token(life), token(life, NOW + 1)
    state = drawn(Renewing(), held, 0.5)
    assert next_step(state, standing(held, held), NOW) == ("mint", "refused", None)

    healed_at = NOW + healed
    state = replace(state, healed=held.fingerprint, healed_at=healed_at)
    unhealed = next_step(state, standing(held, held), NOW)
    assert unhealed == next_step(state, standing(held), NOW)

    state = drawn(state, other, 0.5)
    step = next_step(state, standing(other, other), healed_at)
    if step.what == "mint":
        assert step.why != "refused"
    else:
        assert step.until is not None
        assert step.until <= healed_at + every
        # That it was refused never has it renewed later than its expiry does.
        plain = next_step(state, standing(other), healed_at)
        assert plain.until is not None
        assert step.until <= plain.until


def test_a_refusal_that_nothing_could_be_done_about_is_tried_again() -> None:
    held = token(3600)
    at = standing(held, held)
    state = once(drawn(Renewing(), held, 0.5), "unreachable")
    step = next_step(state, at, NOW)
    assert step.until == state.retry_at
    assert next_step(state, at, state.retry_at) == ("mint", "refused", None)


# --- dead, and revoked ------------------------------------------------------------

DEAD = once(Renewing(), "refused_grant")
TOLD = replace(DEAD, announced=DEAD.dead)


@given(st.sampled_from([None, 2, 3600]), st.integers(-10, 10**9), st.booleans())
def test_a_dead_grant_is_announced_once_and_mints_nothing(
    life: int | None, passed: int, asked: bool
) -> None:
    held = None if life is None else token(life)
    at, now = standing(held), NOW + passed
    state = replace(TOLD, asked_at=NOW if asked else None)
    assert next_step(replace(state, announced=None), at, now).what == "announce"
    assert next_step(state, at, now) == ("wait", None, None)
    assert source_state(state, at, now) == "needs_authorization"


@given(st.lists(passing, max_size=6), randoms)
def test_of_a_dead_grant_only_the_token_that_an_api_refuses_is_revoked_with_patience_and_once(
    outcomes: list[Outcome], random: float
) -> None:
    held = token(3600)
    at, state = standing(held, held), once(TOLD, *outcomes, random=random)
    assert state.dead == GRANT.fingerprint
    step = next_step(state, at, NOW)
    assert step in [("mint", "refused", None), ("wait", None, state.retry_at)]
    assert next_step(state, at, NOW + LONGEST) == ("mint", "refused", None)

    for outcome in ("alive", "refused_grant"):
        healed = replace(once(state, outcome), healed=held.fingerprint, healed_at=NOW)
        assert healed.dead == GRANT.fingerprint
        assert next_step(healed, at, NOW + HOUR // 2) == ("wait", None, None)


def test_a_grant_that_the_provider_takes_after_all_or_that_is_given_anew_is_alive() -> None:
    assert once(TOLD, "minted").dead is None
    anew = standing(token(3600), grant=grant(NOW + 1))
    assert next_step(TOLD, anew, NOW + LONGEST) == ("mint", "first", None)
    assert source_state(TOLD, anew, NOW) == "stale"


@given(
    st.integers(0, 10**9),
    st.booleans(),
    st.sampled_from([Renewing(), TOLD, once(Renewing(), "lost_reply")]),
)
def test_without_a_grant_or_once_it_is_revoked_nothing_is_minted(
    passed: int, is_asked: bool, state: Renewing
) -> None:
    state = replace(state, asked_at=NOW if is_asked else None)
    for held in (None, token(3600)):
        at = standing(held, *([] if held is None else [held]), grant=None)
        assert next_step(state, at, NOW + passed) == ("wait", None, None)
        assert source_state(state, at, NOW + passed) == "needs_authorization"


# --- what is carried, and shown -------------------------------------------------

texts = st.text(max_size=20)
ids = st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=20)
times = st.integers(0, MAX_VERSION)
retirings = st.builds(
    Retiring,
    st.just(token(2)),
    st.integers(1, 2**50),
    times,
    st.lists(ids, max_size=3).map(tuple),
    st.none() | texts,
)
states = st.builds(
    Renewing,
    counts=st.dictionaries(st.sampled_from(OUTCOMES), st.integers(0, 10**6)),
    failures=st.integers(0, 10**6),
    outcome=st.none() | st.sampled_from(OUTCOMES),
    detail=st.none() | texts,
    retry_at=times,
    tried=st.none() | ids,
    sent=st.none() | ids,
    dead=st.none() | ids,
    after_lost=st.booleans(),
    announced=st.none() | ids,
    healed=st.none() | ids,
    healed_at=times,
    looked_at=times,
    drawn=st.none() | ids,
    share=st.integers(0, 1000),
    asked_at=st.none() | times,
    asked_retire=st.booleans(),
    retiring=st.lists(retirings, max_size=3).map(tuple),
    retired=st.none() | ids,
    proven=st.none() | st.booleans(),
)


@given(states)
def test_what_the_next_run_reads_is_what_this_one_knows(state: Renewing) -> None:
    assert read(Renewing, json.loads(json.dumps(to_json(state)))) == state


@given(states, st.data())
def test_a_carried_state_that_is_not_what_it_must_be_is_refused(
    state: Renewing, data: st.DataObject
) -> None:
    written: dict[str, Any] = to_json(state)
    name = data.draw(st.sampled_from([one.name for one in fields(Renewing)]))
    wrong = data.draw(st.sampled_from([-1, "no", {"no": -1}, ["no"], 1.5]))
    may_be_text = {"detail", "tried", "sent", "dead", "announced", "healed", "drawn", "retired"}
    may_be_text.add("problem")
    assume(wrong != "no" or name not in may_be_text)
    with pytest.raises(AnswerMalformed):
        read(Renewing, {**written, name: wrong})


@given(states, st.sampled_from([None, token(2), token(3600)]), times)
def test_whatever_is_known_can_be_shown_and_asked_without_a_fault(
    state: Renewing, held: Message | None, now: int
) -> None:
    for granted in (None, GRANT, grant(NOW, 60)):
        at = standing(held, grant=granted)
        shown = source_status("apiToken", "own", state, at, now, renewal=None, is_minting=False)
        assert read(SourceStatus, json.loads(json.dumps(to_json(shown)))) == shown
        assert token(2).text not in json.dumps(to_json(shown))
        step = next_step(state, at, now)
        assert step.why in (None, *get_args(Why))
        assert step.until is None or step.until > now


def test_a_grant_that_was_refused_is_said_to_be_so_after_its_token_was_revoked_with_it() -> None:
    dead = GRANT.fingerprint
    state = Renewing(outcome="refused_grant", detail="no such grant", dead=dead)
    renewal = Renewal(3600, retire=True)
    for at in (standing(None, grant=GRANT), standing(None, grant=None)):
        shown = source_status("apiToken", "own", state, at, NOW, renewal=renewal, is_minting=False)
        assert shown.amiss == "the provider refuses the grant: no such grant"
        assert shown.cure("acme") == (
            "stateful token authorize acme --source own --renew-every 3600s --retire"
        )
