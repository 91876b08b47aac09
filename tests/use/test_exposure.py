"""A secret is found in every form a program gives it."""

from __future__ import annotations

import base64
import json
import textwrap
import tracemalloc
from collections.abc import Callable
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from temporalio.converter import DataConverter

from stateful_workflow.use.exposure import LEVELS, RUN, SHORTEST, OpenedSecrets

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


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_secret_is_found_in_each_form(form: str) -> None:
    assert opened().found_in([b"clean", form.encode()]) == "apiToken"


@given(
    TOKENS,
    st.lists(st.tuples(AROUND, st.sampled_from(sorted(ENCODINGS)), AROUND), max_size=3),
)
def test_whatever_encodings_stand_around_it_and_whatever_beside(
    secret: str, encodings: list[tuple[str, str, str]]
) -> None:
    text = secret
    for before, name, after in encodings:
        text = before + ENCODINGS[name](text) + after

    assert opened(secret).found_in([text.encode()]) == "apiToken"


@given(
    TOKENS.filter(lambda secret: len(secret) >= RUN),
    st.data(),
    st.lists(st.tuples(AROUND, st.sampled_from(sorted(ENCODINGS)), AROUND), max_size=2),
)
def test_a_run_of_it_is_found_as_all_of_it_is(
    secret: str, data: st.DataObject, encodings: list[tuple[str, str, str]]
) -> None:
    first = data.draw(st.integers(0, len(secret) - RUN))
    text = secret[first : first + data.draw(st.integers(RUN, len(secret)))]
    for before, name, after in encodings:
        text = before + ENCODINGS[name](text) + after

    assert opened(secret).found_in([text.encode()]) == "apiToken"


@pytest.mark.parametrize("before", range(9))
def test_a_run_is_found_wherever_it_stands_and_one_character_less_is_not(before: int) -> None:
    secret = "sk_Zq7Rt5Yw2Px9Nm1"
    for first in range(len(secret) - RUN + 1):
        run = secret[first : first + RUN]
        for text in (run, run.encode("utf-16-le").decode("latin-1")):
            assert opened(secret).found_in([b"." * before + text.encode()]) == "apiToken"
        assert opened(secret).found_in([b"." * before + run[1:].encode() + b"......"]) is None


def test_of_a_jwt_the_header_is_none_of_it() -> None:
    header, payload, signature = (
        base64.urlsafe_b64encode(part).decode().rstrip("=")
        for part in (b'{"alg":"RS256","typ":"JWT","kid":"a"}', b'{"sub":"mia","n":7}', b"x7" * 20)
    )
    jwt = opened(f"{header}.{payload}.{signature}")

    assert jwt.found_in([f"{header}.e30.c2ln".encode()]) is None
    assert jwt.found_in([payload[:RUN].encode()]) == "apiToken"
    assert jwt.found_in([signature[-RUN:].encode()]) == "apiToken"
    # What only begins like one, or has no signature, is a secret as a whole.
    for secret in (header, f"{header}.{payload}"):
        assert opened(secret).found_in([secret[:RUN].encode()]) == "apiToken"


@pytest.mark.parametrize("token", ["robot-17:pa55-w0rd", in_base64("robot-17:pa55-w0rd")])
def test_what_a_pair_for_basic_is_made_of_is_looked_for_like_it(token: str) -> None:
    for secret in (token, f"Basic {token}"):
        for part in ("robot-17", "pa55-w0rd", "robot-17:pa55-w0rd", in_base64("me:pa55-w0rd")):
            assert opened(secret).found_in([f"<{part}>".encode()]) == "apiToken"
    assert opened("postgres://me:x@db").found_in([b"postgres"]) is None


@pytest.mark.parametrize("secret", ["schlüssel-ñ-9d41", "пароль-из-хранилища", 'key 🔑 of "it"'])
def test_one_beyond_ascii_is_found_in_what_the_default_converter_makes(secret: str) -> None:
    given = [{"token": f"Bearer {secret}"}, json.dumps(secret), in_base64(secret), secret.encode()]
    for value in given:
        (payload,) = DataConverter.default.payload_converter.to_payloads([value])

        assert opened(secret).found_in([payload.SerializeToString()]) == "apiToken"


def test_a_text_made_to_be_read_in_many_ways_takes_little_memory() -> None:
    text = b"A" * 64
    while len(text) < 8_000:
        text = text.hex().encode() + b"%25252525" + b"\\" * 8
    secrets = opened()
    tracemalloc.start()
    try:
        assert secrets.found_in([text]) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 100 * len(text)


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
    text, secret = data.decode(errors="replace"), f"{secret} and more"
    assume(not any(secret[at : at + RUN] in text for at in range(len(secret) - RUN + 1)))
    for name in names:
        text = ENCODINGS[name](text)

    assert opened(secret).found_in([data, text.encode()]) is None


def test_each_of_several_secrets_is_found_and_named() -> None:
    secrets = opened("first-secret")
    secrets.add("other", "second-secret")

    assert secrets.found_in([in_base64("first-secret").encode()]) == "apiToken"
    assert secrets.found_in([b"clean", b"a second-secret"]) == "other"


def test_one_too_short_to_be_a_secret_is_not_looked_for() -> None:
    short = opened("x" * (SHORTEST - 1))
    assert short.are_none
    assert short.found_in([b"x" * 40]) is None
    assert not opened("x" * SHORTEST).are_none
