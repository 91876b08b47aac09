"""An outsider signals what is no message, and messages that he made or changed.

Every form that the parser refuses is in `tests/sealed/test_messages.py`. Here are those of a kind
that once got past somebody's library, sent to a node.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from temporalio.api.common.v1 import Payload
from temporalio.client import Client

from stateful_workflow.sealed.message import encode_base64url, parse
from tests.attacks.messages.unsent import Unsent, are_refused, is_healthy, send, updated
from tests.support import builders
from tests.support.asking import events_of
from tests.support.builders import compact, header_of, jwe_of, jwks, signed

Forgeries = dict[str, str]


# --- what is no string, or no single one ---------------------------------------------------------

JSON = {"encoding": b"json/plain"}

NOT_A_MESSAGE: dict[str, list[Payload]] = {
    "no argument": [],
    "three arguments": [Payload(metadata=JSON, data=b'"a"')] * 3,
    "null": [Payload(metadata={"encoding": b"binary/null"})],
    "json null": [Payload(metadata=JSON, data=b"null")],
    "a number": [Payload(metadata=JSON, data=b"7")],
    "a list": [Payload(metadata=JSON, data=b'["x"]')],
    "an object": [Payload(metadata=JSON, data=b'{"apiToken": "x"}')],
    "a string of 1.9 MB": [Payload(metadata=JSON, data=b'"' + b"x" * 1_900_000 + b'"')],
    "binary": [Payload(metadata={"encoding": b"binary/plain"}, data=b"\x00\xff\xfe")],
    "invalid UTF-8": [Payload(metadata=JSON, data=b'"\xff\xfe"')],
    "no JSON": [Payload(metadata=JSON, data=b"{")],
    "unknown encoding": [Payload(metadata={"encoding": b"x/y"}, data=b"z")],
    "a lone surrogate": [Payload(metadata=JSON, data=b'"\\ud800"')],
    "nested lists": [Payload(metadata=JSON, data=b"[" * 5000 + b"]" * 5000)],
}


async def test_arguments_of_any_kind_are_refused_by_name_and_leave_the_workflow_healthy(
    outsider: Client, unsent: Unsent
) -> None:
    tree = unsent.tree
    for signal, counted in {"apiTokenReport": 0, "apiToken": 9, "apiUrl": 18}.items():
        for payloads in NOT_A_MESSAGE.values():
            await send(outsider, tree.root, signal, payloads)
        # The SDK drops what it cannot decode before it reaches a handler, uncounted.
        refusals = await tree.refusals()
        assert sum(refusals.get(kind, 0) for kind in ("TokenMalformed", "NotSealed")) >= counted
    for args in ([], ["a", "b", "c"], [None], [7], [["x"]], [{"a": 1}], ["x" * 1_900_000], [b"\0"]):
        assert await updated(tree, "", *args) == "TokenMalformed"
    for query in ("apiToken", "apiTokenStatus", "apiUrl", "statefulState"):
        for args in (["a", "b", "c"], [7], [{"a": 1}]):
            asked = tree[""].query(query, args=args)
            [outcome] = await asyncio.gather(asked, return_exceptions=True)
            assert "first" not in str(outcome)

    await is_healthy(tree)
    accepted = await events_of(tree[""], "WORKFLOW_EXECUTION_UPDATE_ACCEPTED")
    assert len(accepted) == 1, "of all those updates only the rotation entered history"


# --- signatures ----------------------------------------------------------------------------------


def issuers_key() -> Ed25519PrivateKey:
    secret = next(key["d"] for key in jwks(builders.keyring()) if key["crv"] == "Ed25519")
    return Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(secret + "="))


def signed_over(head: str, body: str, data: str) -> str:
    """A message whose signature is the issuer's, of other data."""
    return f"{head}.{body}.{encode_base64url(issuers_key().sign(data.encode()))}"


def mac(data: str, secret: bytes, digest: str) -> str:
    return f"{data}.{encode_base64url(hmac.digest(secret, data.encode(), digest))}"


async def test_a_signature_that_is_not_the_named_issuers_is_forged(unsent: Unsent) -> None:
    head, body, sign = unsent.segments
    other = unsent.sealed().split(".")
    stranger = builders.keyring("stranger").seal(unsent.message.claims, "x").split(".")
    raw = base64.urlsafe_b64decode(sign + "==")
    order = 2**252 + 27742317777372353535851937790883648493
    above = int.from_bytes(raw[32:], "little") + order
    forged = {
        "a stranger's": f"{head}.{stranger[1]}.{stranger[2]}",
        "a stranger's of the same payload": f"{head}.{body}.{stranger[2]}",
        "of another message": f"{head}.{body}.{other[2]}",
        "under another payload": f"{head}.{other[1]}.{sign}",
        "of the payload alone": signed_over(head, body, body),
        "zeros": f"{head}.{body}.{encode_base64url(bytes(64))}",
        "a MAC of its length, the public key as secret": mac(
            f"{head}.{body}", issuers_key().public_key().public_bytes_raw(), "sha512"
        ),
        # The same to a library that does not check S against the order (RFC 8032, 5.1.7).
        "the group order added": (
            f"{head}.{body}.{encode_base64url(raw[:32] + above.to_bytes(32, 'little'))}"
        ),
    }
    await are_refused(unsent.tree, forged, "TokenForged")
    await unsent.is_taken()


# --- forms ---------------------------------------------------------------------------------------


def sizes(unsent: Unsent) -> Forgeries:
    head, body, sign = unsent.segments
    size = 1_900_000
    return {
        "letters": "x" * size,
        "dots": "." * size,
        "a genuine message and more": unsent.message.text + "A" * size,
        "a genuine message after more": " " * size + unsent.message.text,
        "a header": unsent.signed({**unsent.header, "jku": "x" * 100_000}),
        "a payload": f"{head}.{'A' * size}.{sign}",
        "a signature": f"{head}.{body}.{'A' * size}",
    }


def unsigned(unsent: Unsent) -> Forgeries:
    head, body, sign = unsent.segments
    return {
        "no signature": f"{head}.{body}.",
        "no segment for one": f"{head}.{body}",
        "a cut one": f"{head}.{body}.{sign[:-2]}",
        "two of them": f"{head}.{body}.{sign}.{sign}",
        "the payload alone": body,
        "the claims alone": unsent.message.claims.encode().decode(),
    }


def algorithms(unsent: Unsent) -> Forgeries:
    """None at all, a MAC with the public key as its secret, and others in the issuer's name."""
    _, body, sign = unsent.segments

    def under(alg: object) -> str:
        return f"{encode_base64url(compact({**unsent.header, 'alg': alg}))}.{body}"

    jwk = next(key for key in jwks(builders.keyring().public()) if key["crv"] == "Ed25519")
    key = issuers_key().public_key()
    secrets = {
        "raw": key.public_bytes_raw(),
        "JWK": compact(jwk),
        "DER": key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "PEM": key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    }
    digests = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
    none, other = ("none", "NONE", "", None), ("EdDSA", "ed25519", "Ed448", "ES256", ["Ed25519"])
    return {
        **{f"{alg}, no signature": f"{under(alg)}." for alg in none},
        **{f"{alg}, the old one": f"{under(alg)}.{sign}" for alg in none},
        **{
            f"{alg}, signed": unsent.signed({**unsent.header, "alg": alg})
            for alg in (*none, *other)
        },
        **{
            f"{alg}, {form}": mac(under(alg), secret, digest)
            for alg, digest in digests.items()
            for form, secret in secrets.items()
        },
    }


def headers(unsent: Unsent) -> Forgeries:
    header, plain = unsent.header, compact(unsent.header)
    own = next(k for k in jwks(builders.keyring("stranger").public()) if k["crv"] == "Ed25519")
    unencoded = {**header, "b64": False, "crit": ["b64"]}
    # RFC 7797: what is signed and sent is the payload itself.
    head, payload = encode_base64url(compact(unencoded)), unsent.message.payload.decode()
    changed: dict[str, object] = {
        "jku": {**header, "jku": "https://evil.example.net/keys"},
        "x5c": {**header, "x5c": ["MIIB"]},
        "crit": {**header, "crit": ["exp"]},
        "zip": {**header, "zip": "DEF"},
        "b64": unencoded,
        "no kid": {name: value for name, value in header.items() if name != "kid"},
        "kid is a path": {**header, "kid": "../../dev/null"},
        "typ of a JWT": {**header, "typ": "JWT"},
        "typ of a revocation": {**header, "typ": "stateful-revocation+jws"},
        "a list": [header],
        "white space, just above the bound": plain + b" " * (385 - len(plain)),
        "nested": b"[" * 9000,
        "alg twice": plain[:-1] + b',"alg":"Ed25519"}',
        "alg twice, escaped": plain[:-1] + b',"\\u0061lg":"none"}',
    }
    claims = unsent.message.claims
    return {
        **{what: unsent.signed(one) for what, one in changed.items()},
        "an unencoded payload": signed_over(head, payload, f"{head}.{payload}"),
        "a detached one": signed_over(head, "", f"{head}.{payload}"),
        "a key of its own that signed it": signed(
            {**header, "jwk": own}, unsent.message.payload, by="stranger"
        ),
        "a revocation as a token": signed(
            header_of("token"), replace(claims, origins=(), inherit=False).encode()
        ),
        "a token's claims as a revocation": signed(header_of("revocation"), claims.encode()),
    }


def named_twice(unsent: Unsent) -> Forgeries:
    claims, jwe = unsent.message.claims, jwe_of(unsent.message)
    aad = encode_base64url(replace(claims, origins=("https://evil.example.net",)).encode())
    payload = compact(jwe)

    def with_claim(member: bytes) -> dict[str, Any]:
        return {**jwe, "aad": encode_base64url(claims.encode()[:-1] + b"," + member + b"}")}

    twice: dict[str, object] = {
        "aad, another first": b'{"aad":"' + aad.encode() + b'",' + payload[1:],
        "aad, another last": payload[:-1] + b',"aad":"' + aad.encode() + b'"}',
        "a recipient's alg": payload.replace(b'"alg":', b'"alg":"dir","alg":', 1),
        "ver": with_claim(f'"ver":{claims.version + 1000}'.encode()),
        "ver, escaped": with_claim(b'"\\u0076er":1'),
        "origins": with_claim(b'"origins":["https://evil.example.net"]'),
    }
    return {what: signed(unsent.header, one) for what, one in twice.items()}


@pytest.mark.parametrize("forge", [sizes, unsigned, algorithms, headers, named_twice])
async def test_messages_of_any_other_form_are_malformed_though_the_issuer_signed_them(
    unsent: Unsent, forge: Callable[[Unsent], Forgeries]
) -> None:
    await are_refused(unsent.tree, forge(unsent), "TokenMalformed")

    plain = compact(unsent.header)
    at_the_bound = unsent.signed(plain + b" " * (384 - len(plain)))
    await replace(unsent, message=parse(at_the_bound)).is_taken()
