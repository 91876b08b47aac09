"""A secret is found and taken out in every form a program gives it."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure

from stateful_workflow.exposure import SHORTEST, OpenedSecrets

SECRET = 'cänary/5+e"7\\f1'

FORMS = {
    "as it is": SECRET,
    "JSON": json.dumps({"token": SECRET}),
    "JSON, not escaped": json.dumps([SECRET], ensure_ascii=False),
    "repr": repr({"token": SECRET}),
    "ascii": ascii(SECRET),
    "bytes": repr(SECRET.encode()),
    "a path": f"https://api.example.com/{quote(SECRET)}",
    "a query": f"https://api.example.com/?{urlencode({'token': SECRET})}",
    "hexadecimal": SECRET.encode().hex(),
    **{
        f"base64 after {n}": base64.b64encode(b"user:"[:n] + SECRET.encode()).decode()
        for n in range(4)
    },
    "base64url": base64.urlsafe_b64encode(b"u" + SECRET.encode()).decode(),
}


def opened(secret: str = SECRET) -> OpenedSecrets:
    secrets = OpenedSecrets()
    secrets.add("apiToken", secret)
    return secrets


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_secret_is_found_and_redacted_in_each_form(form: str) -> None:
    failure = Failure(message=f"it said {form}!", stack_trace=form)
    failure.cause.cause.message = form
    failure.application_failure_info.details.payloads.append(
        Payload(metadata={"encoding": b"json/plain"}, data=json.dumps({"x": form}).encode())
    )
    failure.application_failure_info.details.payloads.append(
        Payload(metadata={"encoding": b"binary/plain"}, data=form.encode())
    )

    secrets = opened()
    assert secrets.found_in([b"clean", form.encode()]) == "apiToken"
    secrets.redact(failure)

    assert secrets.found_in([failure.SerializeToString()]) is None
    assert failure.message.startswith("it said ")
    assert "<redacted: apiToken>" in failure.message
    for payload in failure.application_failure_info.details.payloads:
        assert "<redacted: " in str(json.loads(payload.data))


@given(st.text(min_size=SHORTEST, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_whatever_stands_around_it(secret: str, before: str, after: str) -> None:
    try:
        secret.encode()
        text = f"{before}{secret}{after}".encode()
    except UnicodeEncodeError:
        return
    secrets = opened(secret)
    for data in (text, json.dumps(text.decode()).encode(), base64.b64encode(text)):
        assert secrets.found_in([data]) == "apiToken"


def test_what_holds_no_secret_stays_as_it_is() -> None:
    failure = Failure(message="nothing to see", source="PythonSDK")
    before = failure.SerializeToString()

    opened().redact(failure)

    assert failure.SerializeToString() == before
    assert opened().found_in([before, b""]) is None


def test_one_too_short_to_be_a_secret_is_not_looked_for() -> None:
    assert opened("x" * (SHORTEST - 1)).are_none
    assert not opened("x" * SHORTEST).are_none
