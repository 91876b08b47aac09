"""A secret is found and taken out in every form a program gives it."""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Callable
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure

from stateful_workflow.use.exposure import LEVELS, SHORTEST, OpenedSecrets

SECRET = 'cänary/5+e"7\\f1 %41~9Zz+é&<' + 31 * "0aF"


def in_lines(text: str, width: int = 64) -> str:
    return "\n".join(textwrap.wrap(text, width))


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def escaped_throughout(text: str) -> str:
    units = text.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


ESCAPES: dict[str, Callable[[str], str]] = {
    "JSON": json.dumps,
    "JSON, not escaped": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON with \\/": lambda text: json.dumps(text).replace("/", "\\/"),
    "JSON for HTML": lambda text: json.dumps(text).replace("&", "\\u0026").replace("<", "\\u003C"),
    "JSON, all of it escaped": lambda text: f'"{escaped_throughout(text)}"',
    "repr": repr,
    "ascii": ascii,
    "repr of bytes": lambda text: repr(text.encode()),
    "bytes in octal": lambda text: "".join(f"\\{byte:03o}" for byte in text.encode()),
    "a path": quote,
    "a path, lower case": lambda text: "".join(
        char if char.isalnum() and char.isascii() else f"%{char.encode().hex('%')}" for char in text
    ),
    "a query": lambda text: urlencode({"token": text}),
    "percent throughout": lambda text: f"%{text.encode().hex('%').upper()}",
}
BINARY: dict[str, Callable[[str], str]] = {
    "hexadecimal": lambda text: text.encode().hex(),
    "hexadecimal, upper case": lambda text: text.encode().hex().upper(),
    "hexadecimal with spaces": lambda text: text.encode().hex(" "),
    "hexadecimal with colons": lambda text: text.encode().hex(":"),
    "hexadecimal in lines": lambda text: in_lines(text.encode().hex(), 32),
    "base64": in_base64,
    "base64url": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "base64 in lines (MIME)": lambda text: base64.encodebytes(text.encode()).decode(),
    "base64 in lines (PEM)": lambda text: in_lines(in_base64(text)),
    "base64 in CRLF lines": lambda text: in_lines(in_base64(text)).replace("\n", "\r\n"),
    "base64 in a URL": lambda text: quote(in_base64(text), safe=""),
    "Basic": lambda text: f"Basic {in_base64(f'user:{text}')}",
}
# Nothing but what they hold themselves is found in them.
WIDE: dict[str, Callable[[str], str]] = {
    "base64 of UTF-16-LE": lambda text: base64.b64encode(text.encode("utf-16-le")).decode(),
    "base64 of UTF-16-BE": lambda text: base64.b64encode(text.encode("utf-16-be")).decode(),
}
ENCODINGS = {**ESCAPES, **BINARY}
FORMS = {
    "as it is": SECRET,
    "in a document": repr({"a": [{"token": SECRET}]}),
    **{name: spell(SECRET) for name, spell in {**ENCODINGS, **WIDE}.items()},
    **{f"base64 after {n}": in_base64("user:"[:n] + SECRET) for n in range(4)},
    **{f"{n} characters, base64": "token"[:n] + in_base64(SECRET) for n in range(4)},
    "a digit, hexadecimal": "e" + SECRET.encode().hex(),
    "base64, indented": textwrap.indent(in_lines(in_base64(SECRET)), "    "),
    "URL twice": quote(quote(SECRET, safe=""), safe=""),
    "query in a query": quote_plus(quote_plus(SECRET)),
    "JSON thrice": json.dumps(json.dumps(json.dumps(SECRET))),
    "repr of repr": repr(repr(SECRET)),
    "repr in repr": repr({"a": repr({"token": SECRET})}),
    "repr of bytes twice": repr(repr(SECRET.encode())),
    "base64 of JSON": in_base64(json.dumps({"token": SECRET})),
    "base64 of base64": in_base64(in_base64(SECRET)),
    "hexadecimal of base64": in_base64(SECRET).encode().hex(),
    "lines of base64 in JSON": json.dumps(in_lines(in_base64(SECRET))),
    "CRLF lines of base64 in JSON twice": json.dumps(
        json.dumps(in_lines(in_base64(SECRET)).replace("\n", "\r\n"))
    ),
}
# One that looks like an escape itself is found too, as above, but not in every combination.
TOKENS = st.text(
    st.characters(codec="utf-8", exclude_characters="\\%"), min_size=SHORTEST, max_size=40
)
# What neither begins nor ends an escape.
AROUND = st.text("abcdef0189XYZ \"':{}[],=/-_.<>&\n", max_size=8)


def opened(secret: str = SECRET) -> OpenedSecrets:
    secrets = OpenedSecrets()
    secrets.add("apiToken", secret)
    return secrets


def parts_of(form: str) -> set[str]:
    return {form[at : at + 6] for at in range(len(form) - 5)}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_secret_is_found_and_redacted_in_each_form(form: str) -> None:
    failure = Failure(message=f"it said {form}!", stack_trace=form)
    failure.cause.cause.message = form
    failure.application_failure_info.details.payloads.append(
        Payload(
            metadata={"encoding": b"json/plain"},
            data=json.dumps({"x": [form, 1], form: "kept"}).encode(),
        )
    )
    failure.application_failure_info.details.payloads.append(
        Payload(metadata={"encoding": b"binary/plain"}, data=form.encode())
    )

    secrets = opened()
    assert secrets.found_in([b"clean", form.encode()]) == "apiToken"
    secrets.redact(failure)

    assert secrets.found_in([failure.SerializeToString()]) is None
    details, binary = failure.application_failure_info.details.payloads
    for text in (failure.message, failure.cause.cause.message, failure.stack_trace):
        assert "<redacted: apiToken>" in text
    assert "a payload that held a token" in str(json.loads(binary.data))
    assert list(json.loads(details.data).values())[1:] == ["kept"]
    for text in (str(failure), details.data.decode()):
        assert not {part for part in parts_of(form.removeprefix("Basic ")) if part in text}


def test_what_stands_beside_an_encoded_secret_stays() -> None:
    failure = Failure(message=f"the API said {in_base64(SECRET)} is bad")
    failure.cause.message = f"the API said:\n{in_lines(in_base64(SECRET))}"

    opened().redact(failure)

    assert failure.message == "the API said <redacted: apiToken> is bad"
    assert failure.cause.message == "<redacted: apiToken>"  # of its lines none holds it whole


def test_a_payload_that_is_no_json_or_hides_a_secret_between_its_strings_goes_whole() -> None:
    digits = "8675309867530986"
    for secret, data in ((SECRET, f'"{SECRET}'), (digits, f'{{"x": {digits}}}')):
        payload = Payload(metadata={"encoding": b"json/plain"}, data=data.encode())
        opened(secret).redact(payload)
        assert json.loads(payload.data) == "<redacted: a payload that held a token>"


@given(
    TOKENS,
    st.lists(st.tuples(AROUND, st.sampled_from(sorted(ENCODINGS)), AROUND), max_size=3),
    st.sampled_from([None, *WIDE]),
)
def test_whatever_encodings_stand_around_it_and_whatever_beside(
    secret: str, encodings: list[tuple[str, str, str]], wide: str | None
) -> None:
    text = secret if wide is None else WIDE[wide](secret)
    for before, name, after in encodings:
        text = before + ENCODINGS[name](text) + after

    assert opened(secret).found_in([text.encode()]) == "apiToken"


@pytest.mark.parametrize("encode", [in_base64, json.dumps])
def test_so_many_encodings_are_undone_and_no_more(encode: Callable[[str], str]) -> None:
    text = 'secret of "quotes"'
    secrets = opened(text)
    for _ in range(LEVELS):
        text = encode(text)

    assert secrets.found_in([text.encode()]) == "apiToken"
    assert secrets.found_in([encode(text).encode()]) is None


@given(
    TOKENS,
    st.one_of(st.binary(max_size=400), st.text(max_size=200).map(str.encode)),
    st.lists(st.sampled_from(sorted(ENCODINGS)), max_size=3),
)
def test_what_is_unrelated_is_not_taken_for_it(secret: str, data: bytes, names: list[str]) -> None:
    text = data.decode(errors="replace")
    for name in names:
        text = ENCODINGS[name](text)

    assert opened(f"{secret} and more").found_in([data, text.encode()]) is None


def test_what_holds_no_secret_stays_as_it_is() -> None:
    failure = Failure(message="nothing to see", source="PythonSDK")
    before = failure.SerializeToString()

    opened().redact(failure)

    assert failure.SerializeToString() == before
    assert opened().found_in([before, b""]) is None


def test_each_of_several_secrets_is_found_and_named() -> None:
    secrets = opened("first-secret")
    secrets.add("other", "first-secret-and-more")
    failure = Failure(message=f"first-secret-and-more {in_base64('first-secret')}")

    assert secrets.found_in([in_base64("first-secret-and-more").encode()]) in ("apiToken", "other")
    secrets.redact(failure)

    assert failure.message == "<redacted: other> <redacted: apiToken>"


def test_one_too_short_to_be_a_secret_is_not_looked_for() -> None:
    short = opened("x" * (SHORTEST - 1))
    assert short.are_none
    assert short.found_in([b"x" * 40]) is None
    assert not opened("x" * SHORTEST).are_none
