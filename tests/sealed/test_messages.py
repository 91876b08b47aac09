"""The wire format: one form of everything, and nothing else is a message.

What docs/vectors.json shows to be refused is not shown again.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stateful_workflow.errors import MessageRefused, TokenMalformed
from stateful_workflow.sealed.keys import verify
from stateful_workflow.sealed.message import (
    MAX_LIST,
    MAX_MESSAGE_BYTES,
    MAX_RECIPIENTS,
    MAX_VERSION,
    Claims,
    Message,
    decode_base64url,
    encode_base64url,
    parse,
)
from tests.support.builders import (
    CLAIMS,
    TOKEN,
    Json,
    claims_of,
    compact,
    header_of,
    issuer,
    jwe_of,
    keyring,
    revocation,
    signed,
    token,
    trusted,
    with_claims,
)

REVOCATION = replace(CLAIMS, origins=(), inherit=False)


def refused(text: object) -> str:
    """Show that a text is no message, and return why."""
    with pytest.raises(TokenMalformed) as caught:
        parse(text)
    return str(caught.value)


# --- what a message says ---------------------------------------------------------


def test_a_sealed_token_parses_into_what_was_sealed() -> None:
    text = keyring().seal(CLAIMS, TOKEN)

    message = parse(text)

    assert message.text == text
    assert message.kind == "token"
    assert message.claims == CLAIMS
    assert message.issuer == issuer()
    assert message.readers == tuple(k.kid for k in keyring().keys() if k.kind == "reader")
    assert message.hash == hashlib.sha256(text.encode()).hexdigest()
    assert message.fingerprint == hashlib.sha256(text.encode()).digest()[:8].hex()
    assert message.order == (CLAIMS.version, message.hash)


@pytest.mark.parametrize("inherit", [False, True])
def test_a_revocation_parses_into_what_was_signed(inherit: bool) -> None:
    claims = replace(REVOCATION, inherit=inherit)
    message = parse(keyring().revocation(claims))
    assert (message.kind, message.claims, message.readers) == ("revocation", claims, ())


def test_the_claims_of_a_token_stand_in_its_aad_and_nowhere_else() -> None:
    message = token()
    jwe = jwe_of(message)

    assert json.loads(decode_base64url(jwe.pop("aad"), "aad")) == claims_of(message.claims)
    assert message.claims.root not in json.dumps(jwe)
    assert json.loads(decode_base64url(message.text.split(".")[0], "header")) == header_of()


def test_optional_claims_are_left_out_when_they_are_not_given() -> None:
    required = {"v", "name", "ns", "root", "tree", "auth", "ver"}

    assert claims_of().keys() == required | {"origins"}
    assert claims_of(replace(CLAIMS, expires_at=1, types=())).keys() == required | {
        "origins",
        "exp",
        "types",
    }
    assert claims_of(REVOCATION).keys() == required | {"inherit"}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
NUMBERS = st.integers(1, MAX_VERSION)
TOKEN_CLAIMS = st.builds(
    Claims,
    name=NAMES,
    namespace=TEXT,
    root=TEXT,
    tree=TEXT,
    authority=TEXT,
    version=NUMBERS,
    expires_at=st.none() | NUMBERS,
    origins=st.lists(TEXT, max_size=4).map(tuple),
    types=st.none() | st.lists(TEXT, max_size=4).map(tuple),
)
REVOCATION_CLAIMS = st.builds(
    Claims,
    name=NAMES,
    namespace=TEXT,
    root=TEXT,
    tree=TEXT,
    authority=TEXT,
    version=NUMBERS,
    inherit=st.booleans(),
)


@given(TOKEN_CLAIMS | REVOCATION_CLAIMS)
@settings(max_examples=100, deadline=None)
def test_claims_of_any_text_come_back_as_they_were(claims: Claims) -> None:
    assert Claims.decode(claims.encode(), claims.kind) == claims


def test_white_space_and_order_in_the_signed_header_and_claims_are_the_issuers_business() -> None:
    header = json.dumps(dict(reversed(header_of("revocation").items())), indent=1).encode()
    claims = json.dumps(dict(reversed(claims_of(REVOCATION).items())), indent=1).encode()

    message = parse(signed(header, claims))

    assert message.claims == REVOCATION
    verify(message, trusted("ours"))


def test_the_repr_of_a_message_does_not_hold_the_message() -> None:
    assert token().text not in repr(token())


# --- what is no message ----------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [None, 0, 1.5, True, [token().text], {"sealed": token().text}, token().text.encode()],
    ids=lambda value: type(value).__name__,
)
def test_only_a_string_is_a_message(value: object) -> None:
    assert "not a string" in refused(value)


def test_a_message_may_be_as_long_as_the_bound_and_no_longer() -> None:
    assert "larger" not in refused("A" * MAX_MESSAGE_BYTES)
    assert "larger" in refused("A" * (MAX_MESSAGE_BYTES + 1))
    assert "larger" in refused("A" * 1_900_000)


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "..", "...", "apiToken"),
        "." + token().text,
        token().text.rsplit(".", 1)[0] + ".",  # unsigned
        token().text.replace(".", ". ", 1),
        " " + token().text,
        token().text[:-1] + "é",
        token().text[:-1] + "\u0661",  # a digit, not an ASCII one
        token().text + "\ud800",
        token().text + "\x00",
    ],
)
def test_anything_but_three_base64url_segments_is_refused(text: str) -> None:
    refused(text)


HEADERS: dict[str, Any] = {
    "another curve": {**header_of(), "alg": "Ed448"},
    "another case": {**header_of(), "alg": "ed25519"},
    "no alg": {k: v for k, v in header_of().items() if k != "alg"},
    "alg is a list": {**header_of(), "alg": ["Ed25519"]},
    "a key of its own": {**header_of(), "jwk": {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43}},
    "a huge member": {**header_of(), "x": "A" * 8000},
    "kid is null": {**header_of(), "kid": None},
    "kid with padding": {**header_of(), "kid": issuer() + "="},
    "no typ": {k: v for k, v in header_of().items() if k != "typ"},
    "a typ with a media type prefix": {**header_of(), "typ": "application/stateful-token+jws"},
    "another case of typ": {**header_of(), "typ": "STATEFUL-TOKEN+JWS"},
    "typ is a list": {**header_of(), "typ": ["stateful-token+jws"]},
    "typ is a lone surrogate": {**header_of(), "typ": "\ud800"},
    "a list": [header_of()],
    "null": None,
    "no JSON": b"{",
    "empty": b"",
    "no UTF-8": b'{"alg":"\xff"}',
    "a byte order mark": b"\xef\xbb\xbf" + compact(header_of()),
    "UTF-16": json.dumps(header_of()).encode("utf-16"),
    "two JSON values": compact(header_of()) + b"{}",
    "nested beyond any stack": b"[" * 9000,
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_with_anything_but_the_pinned_alg_kid_and_typ_is_refused(header: object) -> None:
    refused(signed(header, token().payload))


def test_a_revocation_cannot_pass_as_a_token_nor_a_token_as_a_revocation() -> None:
    refused(signed(header_of("token"), claims_of(REVOCATION)))
    refused(signed(header_of("revocation"), claims_of(CLAIMS)))
    refused(signed(header_of("revocation"), jwe_of(token())))


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    unsigned = token().text.rsplit(".", 1)[0]
    refused(f"{unsigned}.{encode_base64url(bytes(length))}")


JWES: dict[str, Callable[[Json], Any]] = {
    "no recipients": lambda jwe: {k: v for k, v in jwe.items() if k != "recipients"},
    "an unknown member": lambda jwe: {**jwe, "comment": ""},
    "another content algorithm": lambda jwe: protected(jwe, b'{"enc":"A128GCM"}'),
    "a line end in the protected header": lambda jwe: protected(jwe, b'{"enc":"A256GCM"}\n'),
    "an escape in the protected header": lambda jwe: protected(jwe, b'{"enc":"A256\\u0047CM"}'),
    "a member twice in the protected header": lambda jwe: protected(
        jwe, b'{"enc":"A256GCM","enc":"A256GCM"}'
    ),
    "a protected header that is an object": lambda jwe: {**jwe, "protected": {"enc": "A256GCM"}},
    "an iv that is a number": lambda jwe: {**jwe, "iv": 0},
    "no tag bytes": lambda jwe: {**jwe, "tag": ""},
    "a ciphertext that is no base64url": lambda jwe: {**jwe, "ciphertext": "a+b/"},
    "an aad that is an object": lambda jwe: {**jwe, "aad": claims_of()},
    "recipients that are an object": lambda jwe: {**jwe, "recipients": jwe["recipients"][0]},
    "a recipient that is a string": lambda jwe: {**jwe, "recipients": ["reader"]},
    "a recipient without a key": lambda jwe: recipient(jwe, encrypted_key=None),
    "an unknown member of a recipient": lambda jwe: recipient(jwe, comment=""),
    "a recipient's header that is null": lambda jwe: recipient(jwe, header=None),
    "direct encryption": lambda jwe: recipient_header(jwe, alg="dir"),
    "a password": lambda jwe: recipient_header(jwe, alg="PBES2-HS256+A128KW", p2c=10**9),
    "a recipient without a kid": lambda jwe: recipient_header(jwe, kid=None),
    "an ephemeral key on another curve": lambda jwe: epk(jwe, crv="Ed25519"),
    "an ephemeral key of another type": lambda jwe: epk(jwe, kty="EC"),
    "a short ephemeral key": lambda jwe: epk(jwe, x=encode_base64url(bytes(31))),
    "an ephemeral key that is a number": lambda jwe: epk(jwe, x=9),
}


def protected(jwe: Json, header: bytes) -> Json:
    return {**jwe, "protected": encode_base64url(header)}


def recipient(jwe: Json, **changes: object) -> Json:
    return {**jwe, "recipients": [{**jwe["recipients"][0], **changes}]}


def recipient_header(jwe: Json, **changes: object) -> Json:
    return recipient(jwe, header={**jwe["recipients"][0]["header"], **changes})


def epk(jwe: Json, **changes: object) -> Json:
    return recipient_header(jwe, epk={**jwe["recipients"][0]["header"]["epk"], **changes})


@pytest.mark.parametrize("change", JWES.values(), ids=JWES)
def test_a_jwe_in_any_other_form_is_refused(change: Callable[[Json], Any]) -> None:
    refused(signed(header_of(), change(jwe_of(token()))))


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"[]", b'"jwe"', b"{}", b"\xff", b"{" * 5000, b'{"a":' * 2000]
)
def test_a_payload_that_is_no_json_object_is_refused(payload: bytes) -> None:
    refused(signed(header_of("token"), payload))
    refused(signed(header_of("revocation"), payload))


def test_members_named_twice_are_refused_at_every_depth() -> None:
    text = json.dumps(jwe_of(token()), separators=(",", ":"))
    for member in ('"protected":', '"header":', '"alg":', '"x":', '"encrypted_key":', '"aad":'):
        twice = text.replace(member, f"{member}null,{member}", 1)
        assert twice != text
        assert "twice" in refused(signed(header_of(), twice.encode())), member


def test_a_message_names_at_most_as_many_readers_as_the_format_allows() -> None:
    jwe = jwe_of(token())

    def with_readers(count: int) -> str:
        kids = [encode_base64url(bytes([index]) * 32) for index in range(count)]
        many = [recipient_header(jwe, kid=kid)["recipients"][0] for kid in kids]
        return signed(header_of(), {**jwe, "recipients": many})

    assert len(parse(with_readers(MAX_RECIPIENTS)).readers) == MAX_RECIPIENTS
    refused(with_readers(MAX_RECIPIENTS + 1))


HUGE = 2**53

CLAIM_CHANGES: dict[str, Json] = {
    "a boolean as format": {"v": True},
    "an empty name": {"name": ""},
    "a name that is a path": {"name": "../billing"},
    "a name with a line end": {"name": "apiToken\n"},
    "a name of other letters": {"name": "schlüssel"},
    "every name": {"name": "*"},
    "a name of 65 letters": {"name": "n" * 65},
    "a name that is a number": {"name": 1},
    "an empty namespace": {"ns": ""},
    "a namespace that is a list": {"ns": ["default"]},
    "an empty root": {"root": ""},
    "a root of 1001 letters": {"root": "r" * 1001},
    "an empty tree": {"tree": ""},
    "a tree of 101 letters": {"tree": "t" * 101},
    "an authority with a lone surrogate": {"auth": "acme\udfff"},
    "version 0": {"ver": 0},
    "a float as version": {"ver": 1.5},
    "a version of 4000 digits": {"ver": 10**3999},
    "an infinite version": {"ver": float("inf")},
    "an expiry that is null": {"exp": None},
    "a float as expiry": {"exp": 1.5},
    "an expiry beyond the bound": {"exp": HUGE},
    "an origin that is null": {"origins": [None]},
    "an empty origin": {"origins": [""]},
    "an origin of 1001 letters": {"origins": ["o" * 1001]},
    "too many origins": {"origins": ["https://api.example.com"] * (MAX_LIST + 1)},
    "types that are null": {"types": None},
    "types that are an object": {"types": {"Sync": True}},
    "too many types": {"types": ["Sync"] * (MAX_LIST + 1)},
}


@pytest.mark.parametrize("change", CLAIM_CHANGES.values(), ids=CLAIM_CHANGES)
def test_a_claim_of_another_type_or_outside_its_bounds_is_refused(change: Json) -> None:
    refused(with_claims({**claims_of(), **change}))


@pytest.mark.parametrize("claim", [*claims_of(), "inherit"])
def test_a_message_without_a_required_claim_is_refused(claim: str) -> None:
    of_token, of_revocation = claims_of(), claims_of(REVOCATION)
    if of_token.pop(claim, None) is not None:
        refused(with_claims(of_token))
    if of_revocation.pop(claim, None) is not None:
        refused(signed(header_of("revocation"), of_revocation))


@pytest.mark.parametrize(
    "change", [{"inherit": None}, {"inherit": "false"}, {"origins": []}, {"types": []}], ids=str
)
def test_a_revocation_has_inherit_and_nothing_of_a_token(change: Json) -> None:
    refused(signed(header_of("revocation"), {**claims_of(REVOCATION), **change}))


def test_a_claim_named_twice_is_refused() -> None:
    claims = CLAIMS.encode()
    for twice in (b',"ver":1}', b',"\\u0076er":1}', b',"origins":["https://evil.example"]}'):
        assert "twice" in refused(with_claims(claims[:-1] + twice))


def test_the_bounds_themselves_are_taken() -> None:
    claims = replace(
        CLAIMS,
        name="n" * 64,
        tree="t" * 100,
        version=MAX_VERSION,
        expires_at=MAX_VERSION,
        origins=("o",) * MAX_LIST,
        types=("Sync",) * MAX_LIST,
    )
    assert parse(with_claims(claims_of(claims))).claims == claims
    for long in ("ns", "root", "auth"):
        assert parse(with_claims({**claims_of(), long: "x" * 1000}))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "*"},
        {"version": 0},
        {"version": HUGE},
        {"version": True},
        {"expires_at": 1.5},
        {"authority": ""},
        {"origins": ("",)},
        {"types": ("Sync",) * (MAX_LIST + 1)},
        {"namespace": "\ud800"},
    ],
    ids=ascii,
)
def test_claims_that_would_not_be_taken_are_not_encoded(change: Json) -> None:
    with pytest.raises(TokenMalformed):
        replace(CLAIMS, **change).encode()


# --- one encoding ----------------------------------------------------------------


@pytest.mark.parametrize("text", ["A", "AA==", "AAA=", "AB", "AAB", "A+A/", "AA A", "AA\n", "ÄÄ"])
def test_base64url_has_one_form(text: str) -> None:
    with pytest.raises(TokenMalformed):
        decode_base64url(text, "text")


@given(st.text("AQgwBx-_=+/ .", max_size=12) | st.text(max_size=12))
@settings(max_examples=200, deadline=None)
def test_base64url_decodes_only_what_it_would_encode(text: str) -> None:
    try:
        decoded = decode_base64url(text, "text")
    except TokenMalformed:
        return
    assert encode_base64url(decoded) == text


def base64url_members() -> Iterator[tuple[str, Callable[[str], str]]]:
    """Every base64url text inside a token, with a function that signs it changed."""
    jwe = jwe_of(token())
    own = jwe["recipients"][0]
    yield jwe["tag"], lambda text: signed(header_of(), {**jwe, "tag": text})
    yield own["encrypted_key"], lambda text: signed(header_of(), recipient(jwe, encrypted_key=text))
    yield own["header"]["epk"]["x"], lambda text: signed(header_of(), epk(jwe, x=text))
    yield own["header"]["kid"], lambda text: signed(header_of(), recipient_header(jwe, kid=text))
    yield issuer(), lambda text: signed({**header_of(), "kid": text}, jwe)
    for padding in range(3):
        claims = encode_base64url(CLAIMS.encode() + b" " * padding)
        yield claims, lambda text: signed(header_of(), {**jwe, "aad": text})


def test_unused_bits_that_are_not_zero_are_refused_everywhere() -> None:
    checked = 0
    for text, changed in base64url_members():
        parse(changed(text))
        if len(text) % 4 == 0:
            continue
        twin = text[:-1] + chr(ord(text[-1]) + 1)  # the same bytes to a lenient decoder
        assert base64.urlsafe_b64decode(twin + "==") == base64.urlsafe_b64decode(text + "==")
        refused(changed(twin))
        checked += 1
    assert checked >= 6


def test_unused_bits_of_the_signature_that_are_not_zero_are_refused() -> None:
    text = token().text
    assert "canonical" in refused(text[:-1] + chr(ord(text[-1]) + 1))


@pytest.mark.parametrize("message", [token(), revocation()], ids=["token", "revocation"])
def test_a_message_with_any_one_bit_flipped_is_refused(message: Message) -> None:
    issuers = trusted("ours")
    verify(parse(message.text), issuers)
    for index, letter in enumerate(message.text):
        for bit in range(8):
            flipped = message.text[:index] + chr(ord(letter) ^ 1 << bit) + message.text[index + 1 :]
            with pytest.raises(MessageRefused):
                verify(parse(flipped), issuers)
