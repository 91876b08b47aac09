"""An event and its attributes are the same thing said twice."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateful_workflow.record.event import (
    ACTIONS,
    ATTRIBUTES,
    MAX_NOTE,
    OUTCOMES,
    AuditEvent,
    Deed,
    Scene,
)
from stateful_workflow.sealed.message import parse
from tests.support.builders import CLAIMS, TOKEN, keyring

NUMBERS = {"version", "expires_at", "attempt", "status", "count"}
VALUES = {
    "action": st.sampled_from(ACTIONS),
    "outcome": st.sampled_from(OUTCOMES),
    **{
        field: st.none() | (st.integers() if field in NUMBERS else st.text())
        for field in ATTRIBUTES.keys() - {"action", "outcome"}
    },
}


def test_every_field_but_the_time_has_an_attribute_of_its_own() -> None:
    assert ATTRIBUTES.keys() == {field.name for field in fields(AuditEvent)} - {"time"}
    assert len(set(ATTRIBUTES.values())) == len(ATTRIBUTES)


@given(st.fixed_dictionaries(VALUES))
def test_an_event_comes_back_from_its_attributes(values: dict[str, Any]) -> None:
    event = AuditEvent(time=1.5, **values)

    assert AuditEvent.from_attributes(1.5, event.attributes()) == event
    assert None not in event.attributes().values()


@pytest.mark.parametrize(
    "wrong",
    [
        {"event.action": "steal"},
        {"event.outcome": "perhaps"},
        {"stateful.token.version": "1"},
        {"stateful.token.version": True},
        {"temporal.workflow.id": 1},
    ],
)
def test_attributes_of_another_kind_are_no_event(wrong: dict[str, Any]) -> None:
    genuine = AuditEvent(time=1.0, action="set", outcome="success").attributes()
    assert AuditEvent.from_attributes(1.0, {**genuine, "unknown": 1})

    with pytest.raises(ValueError, match=r"unknown|is no "):
        AuditEvent.from_attributes(1.0, {**genuine, **wrong})


def test_what_an_event_says_of_a_message_is_no_secret_and_not_the_message() -> None:
    message = parse(keyring().seal(CLAIMS, TOKEN))
    said = Scene().event("set", "success", message)

    assert (said.fingerprint, said.kind) == (message.fingerprint, "token")
    assert TOKEN not in str(said)
    assert message.text not in str(said)
    assert Scene().event("set", "success", None, "billing").name == "billing"


def test_what_is_set_is_on_record_with_all_that_it_is_limited_to() -> None:
    url = f"{CLAIMS.origins[0]}/v2"
    claims = replace(
        CLAIMS, expires_at=2_000_000_000, types=("Node",), audiences=("default",), api_url=url
    )
    said = Scene().event("set", "success", parse(keyring().seal(claims, TOKEN)))

    assert (said.expires_at, said.types, said.readers) == (2_000_000_000, "Node", "default")
    assert (said.origins, said.api_url) == (" ".join(CLAIMS.origins), url)


@pytest.mark.parametrize("part", ["by", "on_behalf_of", "reason"])
@pytest.mark.parametrize("wrong", [7, "x" * (MAX_NOTE + 1), f"for {TOKEN}"])
def test_a_note_is_a_short_text_without_the_token(part: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match="reason="):
        Deed("set", **{part: wrong}).without(TOKEN)
    assert Deed("set", **{part: "Mia"}).without(TOKEN)
