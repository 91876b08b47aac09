"""Whatever comes is refused by name, and of what is made from a genuine message nothing is taken.

In `test_messages.py` each rule of the format has its test, and each bit of a message is flipped by
itself. Here genuine messages are changed in many ways at once, with the signature they had and with
a genuine one over the change.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from stateful_workflow.errors import MessageRefused, StatefulError, TokenMalformed
from stateful_workflow.sealed.keys import verify
from stateful_workflow.sealed.message import (
    MAX_MESSAGE_BYTES,
    PROTECTED,
    SIGNATURE_ALGORITHM,
    TYP,
    Message,
    encode_base64url,
    parse,
)
from tests.support.builders import (
    CLAIMS,
    NAMESPACE,
    NOW,
    TOKEN,
    claims_of,
    header_of,
    keyring,
    revocation,
    signed,
    token,
    trusted,
)

SECONDS = NOW // 1000

GENUINE: list[Message] = [
    token(),
    parse(
        keyring().seal(
            replace(CLAIMS, expires_at=SECONDS + 60, types=("Sync", "Export"), root="Ämter/1"),
            TOKEN,
        )
    ),
    revocation(),
    revocation(inherit=True),
]
TEXTS = {message.text for message in GENUINE}

genuine = st.sampled_from(GENUINE)


# --- what is shown of every text ---------------------------------------------------


def parses_exactly(value: object) -> Message | None:
    """Show that a text is refused by name, or says one thing only to whoever reads it."""
    try:
        message = parse(value)
    except TokenMalformed:
        return None
    assert isinstance(value, str)
    assert message.text == value
    header, payload, signature = (lenient(segment) for segment in value.split("."))
    assert ".".join(map(encode_base64url, (header, payload, signature))) == value
    assert message.hash == hashlib.sha256(value.encode()).hexdigest()
    said = {"alg": SIGNATURE_ALGORITHM, "kid": message.issuer, "typ": TYP[message.kind]}
    claims = payload
    for first in (True, False):
        assert read(header, first) == said
        if message.kind == "token":
            jwe = read(payload, first)
            claims = lenient(jwe["aad"])
            assert jwe["protected"] == PROTECTED
            assert tuple(r["header"]["kid"] for r in jwe["recipients"]) == message.readers
        assert read(claims, first) == claims_of(message.claims)
    return message


def lenient(text: str) -> bytes:
    """Decode base64url as most libraries do: any padding, any unused bits."""
    return base64.urlsafe_b64decode(text + "===")


def read(encoded: bytes, first: bool) -> Any:
    """Read JSON as a library does that keeps the first, or the last, of members named twice."""
    return json.loads(
        encoded, object_pairs_hook=lambda pairs: dict(pairs[::-1] if first else pairs)
    )


def verified(text: object) -> Message | None:
    """The message that a node which trusts the genuine issuer takes, or None where it refuses."""
    message = parses_exactly(text)
    if message is None:
        return None
    try:
        verify(message, trusted("ours"))
    except MessageRefused:
        return None
    return message


def opened(message: Message) -> str | None:
    """What a reader opens, with everything about it right; None where it refuses by name."""
    try:
        return keyring().open(message, now=SECONDS, namespace=NAMESPACE, workflow_type="Sync")
    except StatefulError as error:
        said = str(error)
    assert TOKEN not in said
    return None


def test_the_genuine_messages_are_taken() -> None:
    """The control: what is made from them below is refused for what was changed."""
    for message in GENUINE:
        assert verified(message.text) == message
        assert opened(message) == (TOKEN if message.kind == "token" else None)


# --- anything at all ---------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**53, 10**400, 1.0, float("nan"), float("inf")])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "\ud800", "A" * 43, "none", "HS256", "EdDSA", "JWT", "../../dev/null"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.text() | st.binary() | JSON | st.text("eyJ.-_=+/ \n\x00", max_size=60))
@example("." * 100_000)
@example("x" * 1_900_000)
@example(".".join([encode_base64url(b"[" * 4000)] * 3))
@example(f"{encode_base64url(b'{' * 300)}..")
@settings(max_examples=300, deadline=None)
def test_any_value_is_refused_by_name(value: object) -> None:
    assert parses_exactly(value) is None


# --- bits --------------------------------------------------------------------------


Place = tuple["str | int", ...]

BYTES: list[Place] = [
    ("iv",),
    ("tag",),
    ("ciphertext",),
    ("aad",),
    ("recipients", 0, "encrypted_key"),
    ("recipients", 0, "header", "epk", "x"),
    ("recipients", 0, "header", "kid"),
]
"""Where in a JWE bytes stand, each in base64url of their own."""


@st.composite
def with_inner_bits_flipped(draw: st.DrawFn) -> tuple[Message, object]:
    """A token, and its JWE with bits flipped in what is encoded twice."""
    message = draw(st.sampled_from([m for m in GENUINE if m.kind == "token"]))
    jwe = json.loads(message.payload)
    *steps, last = draw(st.sampled_from(BYTES))
    holder = jwe
    for step in steps:
        holder = holder[step]
    data = bytearray(lenient(holder[last]))
    for _ in range(draw(st.integers(1, 3))):
        data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    holder[last] = encode_base64url(bytes(data))
    assume(jwe != json.loads(message.payload))
    return message, jwe


@given(with_inner_bits_flipped())
@settings(max_examples=400, deadline=None)
def test_no_token_with_bits_flipped_in_its_parts_is_taken_or_opens(
    changed: tuple[Message, object],
) -> None:
    message, jwe = changed
    header, _, signature = message.text.split(".")
    payload = encode_base64url(json.dumps(jwe, separators=(",", ":")).encode())
    assert verified(f"{header}.{payload}.{signature}") is None

    # Even where a trusted issuer signs it so, it opens to nothing but what was sealed.
    again = verified(signed(header_of(), jwe))
    if again is not None and opened(again) is not None:
        assert opened(again) == TOKEN
        assert again.claims == message.claims


# --- structure ---------------------------------------------------------------------


class Members(list["tuple[str, Any]"]):
    """A JSON object as the list of its members, so that one can be named twice."""


def members(encoded: bytes) -> Members:
    """Read JSON and keep every member."""
    return cast("Members", json.loads(encoded, object_pairs_hook=Members))


def write(value: Any, space: str = "") -> str:
    """Write JSON with what `Members` can say."""
    if isinstance(value, Members):
        inner = (f"{json.dumps(name)}{space}:{write(item, space)}" for name, item in value)
        return f"{{{space}{f'{space},'.join(inner)}}}"
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return f"[{','.join(write(item, space) for item in items)}{space}]"
    return json.dumps(value)


def containers(value: Any) -> Iterator[list[Any]]:
    """Every object and list inside a JSON value, from the outermost."""
    if isinstance(value, list):
        items = cast("list[Any]", value)
        yield items
        for item in items:
            yield from containers(item[1] if isinstance(value, Members) else item)


NAMES = st.sampled_from(
    [
        *("alg", "kid", "typ", "b64", "crit", "jku", "jwk", "x5u", "cty", "zip", "epk", "enc"),
        *("unprotected", "header", "apu", "apv", "p2c", "d", "v", "name", "ns", "root", "tree"),
        *("auth", "ver", "exp", "origins", "types", "aud", "inherit", "iat", "", "__proto__"),
    ]
) | st.text(max_size=6)

PLAUSIBLE: list[object] = [[], {}, [*CLAIMS.origins], ["Sync"], CLAIMS.root, NOW + 1, 1, False]

VALUES = (
    JSON
    | st.sampled_from([0, 12, 16, 32, 40, 64]).map(bytes).map(encode_base64url)
    | st.sampled_from(PLAUSIBLE)
).map(deepcopy)  # it is changed in its turn


@st.composite
def restructured(draw: st.DrawFn, source: Members) -> Members:
    """A JSON object with members replaced, removed, added, named twice or moved."""
    for _ in range(draw(st.integers(1, 3))):
        target = draw(st.sampled_from(list(containers(source))))
        if not isinstance(target, Members):
            target.append(target[0] if target and draw(st.booleans()) else draw(VALUES))
            continue
        at = draw(st.integers(0, max(len(target) - 1, 0)))
        change = draw(st.sampled_from(["replace", "remove", "add", "twice", "rename", "move"]))
        if change == "add" or not target:
            target.insert(at, (draw(NAMES), draw(VALUES)))
            continue
        name, value = target.pop(at)
        if change == "replace":
            target.insert(at, (name, draw(VALUES)))
        elif change == "rename":
            target.insert(at, (draw(NAMES), value))
        elif change == "move":
            target.append((name, value))
        elif change == "twice":
            target += [(name, value), (name, value if draw(st.booleans()) else draw(VALUES))]
    return source


@st.composite
def parts(draw: st.DrawFn) -> tuple[Message, bytes, bytes]:
    """A genuine message, and its header and payload with one or more of them changed."""
    message = draw(genuine)
    header = members(lenient(message.text.split(".")[0]))
    payload = members(message.payload)
    what = draw(st.sampled_from(["header", "payload", "claims", "white space"]))
    space = draw(st.sampled_from(["", " ", "\n", "\t \r"]))
    if what == "header":
        header = draw(restructured(header))
    elif what == "payload" or (what == "claims" and message.kind == "revocation"):
        payload = draw(restructured(payload))
    elif what == "claims":
        at = [name for name, _ in payload].index("aad")
        claims = draw(restructured(members(lenient(payload[at][1]))))
        payload[at] = ("aad", encode_base64url(write(claims, space).encode()))
    return message, write(header, space).encode(), write(payload, space).encode()


@st.composite
def variant(draw: st.DrawFn, text: str) -> str:
    """The same bytes in another base64, or nearly the same."""
    at = draw(st.integers(0, len(text)))
    return draw(
        st.sampled_from(
            [
                text,
                text + "=" * (-len(text) % 4),
                text.replace("-", "+").replace("_", "/"),
                text[:-1] + chr(ord(text[-1]) + 1) if text else "A",
                text[:at] + draw(st.sampled_from("\n .=é\x00")) + text[at:],
                text[:at],
                text + "A",
            ]
        )
    )


@given(parts(), st.data())
@settings(max_examples=500, deadline=None)
def test_no_message_with_its_structure_changed_is_taken(
    changed: tuple[Message, bytes, bytes], data: st.DataObject
) -> None:
    message, header, payload = changed
    segments = [encode_base64url(header), encode_base64url(payload), message.text.split(".")[2]]
    at = data.draw(st.integers(0, 2), "which segment is encoded otherwise")
    segments[at] = data.draw(variant(segments[at]), "segment")
    text = ".".join(segments)
    assume(text not in TEXTS)

    assert verified(text) is None


@given(genuine, genuine, st.data())
@settings(max_examples=200, deadline=None)
def test_no_message_put_together_from_two_is_taken(
    one: Message, other: Message, data: st.DataObject
) -> None:
    both = [message.text.split(".") for message in (one, other, token(by="stranger"))]
    text = ".".join(data.draw(st.sampled_from(both))[at] for at in range(3))
    assume(text not in TEXTS)

    assert verified(text) is None


@given(parts())
@settings(max_examples=800, deadline=None)
def test_what_a_trusted_issuer_signed_says_one_thing_and_opens_to_what_was_sealed(
    changed: tuple[Message, bytes, bytes],
) -> None:
    message, header, payload = changed
    text = signed(header, payload)
    again = verified(text)

    if again is None:
        assume(len(text) <= MAX_MESSAGE_BYTES)
        return
    secret = opened(again)
    if secret is not None:
        assert secret == TOKEN
        assert again.claims == message.claims
