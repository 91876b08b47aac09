"""When a token expires, by what is said of it."""

from __future__ import annotations

import base64
import json

import pytest

from stateful_workflow.errors import AnswerUnusable
from stateful_workflow.source.exchange import retry_after
from stateful_workflow.source.expiry import expiry

NOW = 1_800_000_000.0


def jwt(claims: object) -> str:
    middle = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{middle}.c2lnbmF0dXJl"


def test_nobody_says_when_an_opaque_token_expires() -> None:
    assert expiry("opaque", NOW) is None
    assert expiry("three.parts.only", NOW) is None
    assert expiry(jwt({"sub": "ada"}), NOW) is None
    assert expiry(jwt({"exp": "soon"}), NOW) is None
    assert expiry(jwt(["exp"]), NOW) is None


def test_a_jwt_says_it_itself() -> None:
    assert expiry(jwt({"exp": NOW + 60}), NOW) == NOW + 60


@pytest.mark.parametrize("lasts", [3600, 3600.0, "3600"])
def test_a_provider_says_how_long_it_lasts(lasts: object) -> None:
    assert expiry("opaque", NOW, lasts=lasts) == NOW + 3600


@pytest.mark.parametrize(
    "at",
    [
        NOW,
        "1800000000",
        "2027-01-15T08:00:00Z",
        "2027-01-15T08:00:00",
        "2027-01-15T09:00:00.123456789+01:00",
    ],
)
def test_a_provider_says_when_it_ends(at: object) -> None:
    assert expiry("opaque", NOW - 60, at=at) == NOW


def test_the_earliest_counts() -> None:
    token = jwt({"exp": NOW + 30})
    assert expiry(token, NOW, lasts=60) == NOW + 30
    assert expiry(token, NOW, lasts=20) == NOW + 20
    assert expiry(token, NOW, lasts=20, at=NOW + 10) == NOW + 10


def test_a_margin_takes_half_of_what_is_left_at_most() -> None:
    assert expiry("opaque", NOW, 60, lasts=3600) == NOW + 3540
    assert expiry("opaque", NOW, 60, lasts=4) == NOW + 2
    assert expiry("opaque", NOW, 60, at=NOW - 5) == NOW - 5


@pytest.mark.parametrize(
    "said",
    [(NOW + 60) * 1000, "tomorrow", "2027-99-99T", -1, True, [], {}, "", "nan", float("inf")],
)
def test_an_expiry_that_is_none_is_refused(said: object) -> None:
    with pytest.raises(AnswerUnusable):
        expiry("opaque", NOW, at=said)
    with pytest.raises(AnswerUnusable):
        expiry("opaque", NOW, lasts=said)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("9" * 400, 86_400.0),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("-7", None),
        ("soon", None),
        ("²", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds
