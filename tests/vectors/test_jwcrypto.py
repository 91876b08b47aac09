"""docs/vectors.json opened by a second implementation of JOSE: jwcrypto.

It shares `cryptography` with ours and nothing above it: how a message is put together, what
is signed, what is bound to the ciphertext and how the keys are derived is its own. One that
shares no code at all is in `test_jose_on_node.py`.
"""

from __future__ import annotations

import importlib
import json
from typing import Any, cast

import pytest

from stateful_workflow.sealed.keyring import Keyring
from stateful_workflow.sealed.message import (
    CONTENT_ALGORITHM,
    KEY_ALGORITHM,
    SIGNATURE_ALGORITHM,
    TYP,
    parse,
)
from tests.builders import CLAIMS, NAMESPACE, NOW, TOKEN, Json, keyring

from . import ours
from .ours import KEYS, Opening

# It has no types.
jwe: Any = importlib.import_module("jwcrypto.jwe")
jwk: Any = importlib.import_module("jwcrypto.jwk")
jws: Any = importlib.import_module("jwcrypto.jws")


def public(key: Json) -> Any:
    return jwk.JWK(**{name: value for name, value in key.items() if name != "d"})


def verified(message: str, key: Json) -> bytes:
    """The payload, where the key signed the message."""
    signed = jws.JWS()
    signed.allowed_algs = [SIGNATURE_ALGORITHM]
    signed.deserialize(message, public(key))
    return cast("bytes", signed.payload)


def decrypted(payload: bytes, reader: Json) -> tuple[str, str]:
    """The claims and the token."""
    sealed = jwe.JWE(algs=[KEY_ALGORITHM, CONTENT_ALGORITHM])
    sealed.deserialize(payload.decode(), jwk.JWK(**reader))
    return sealed.objects["aad"].decode(), sealed.payload.decode()


def opened(opening: Opening) -> tuple[str, str]:
    (issuer,) = opening.issuers
    return decrypted(verified(opening.message, KEYS[issuer]), KEYS[opening.reader])


def named(openings: list[Opening]) -> Any:
    return pytest.mark.parametrize("opening", openings, ids=[opening.name for opening in openings])


def test_every_vector_that_is_no_matter_of_parsing_is_judged() -> None:
    assert len(ours.GOOD) >= 8
    assert len(ours.REVOCATIONS) >= 3
    assert len(ours.FORGED) >= 4
    assert len(ours.SHUT) >= 7
    assert len(ours.POLICY) >= 5
    assert len(ours.UNSIGNED) + len(ours.BROKEN) >= 25
    judged = {opening.name for opening in (*ours.FORGED, *ours.SHUT, *ours.POLICY)}
    later = {name for name, entry in ours.REFUSED.items() if entry["step"] != "parse"}
    assert later - judged == {"a revocation"}


@pytest.mark.parametrize(
    ("opening", "entry"), ours.GOOD, ids=[f"{o.name} by {o.reader}" for o, _ in ours.GOOD]
)
def test_it_opens_a_token(opening: Opening, entry: Json) -> None:
    assert opened(opening) == (entry["claims"], entry["token"])


@pytest.mark.parametrize("entry", ours.REVOCATIONS, ids=lambda entry: entry["name"])
def test_it_verifies_a_revocation(entry: Json) -> None:
    assert verified(entry["message"], KEYS[entry["issuer"]]).decode() == entry["claims"]


@named(ours.POLICY)
def test_it_opens_what_only_our_policy_refuses(opening: Opening) -> None:
    claims, token = opened(opening)

    assert claims == parse(opening.message).claims.encode().decode()
    assert token in {entry["token"] for entry in ours.TOKENS}


@named([*ours.FORGED, *ours.UNSIGNED])
def test_it_refuses_a_forged_message(opening: Opening) -> None:
    for issuer in opening.issuers:
        with pytest.raises(jws.InvalidJWSSignature):
            verified(opening.message, KEYS[issuer])


@named([*ours.SHUT, *ours.BROKEN])
def test_it_verifies_but_does_not_decrypt(opening: Opening) -> None:
    (issuer,) = opening.issuers
    payload = verified(opening.message, KEYS[issuer])
    with pytest.raises(jwe.InvalidJWEData):
        decrypted(payload, KEYS[opening.reader])


def test_its_key_ids_are_ours() -> None:
    for key in KEYS.values():
        assert public(key).thumbprint() == key["kid"]
    for entry in cast("list[Json]", json.loads(Keyring.generate().to_json())["keys"]):
        assert public(entry).thumbprint() == entry["kid"]


def test_we_open_what_it_seals() -> None:
    keys = keyring()
    issuer, reader = (
        next(k for k in json.loads(keys.to_json())["keys"] if k["crv"] == curve)
        for curve in ("Ed25519", "X25519")
    )
    claims = CLAIMS.encode()
    protected = json.dumps({"enc": CONTENT_ALGORITHM}, separators=(",", ":"))
    sealing = jwe.JWE(TOKEN.encode(), protected, aad=claims, algs=[KEY_ALGORITHM, "A256GCM"])
    stranger = next(iter(k for k in KEYS.values() if k["crv"] == "X25519"))
    for key in (reader, stranger):  # of one recipient it makes the flattened form
        header = json.dumps({"alg": KEY_ALGORITHM, "kid": key["kid"]})
        sealing.add_recipient(public(key), header)
    signing = jws.JWS(sealing.serialize())
    signing.allowed_algs = [SIGNATURE_ALGORITHM]
    header = {"alg": SIGNATURE_ALGORITHM, "kid": issuer["kid"], "typ": TYP["token"]}
    signing.add_signature(jwk.JWK(**issuer), protected=json.dumps(header))

    message = parse(signing.serialize(compact=True))

    assert message.claims == CLAIMS
    opened = keys.open(message, now=NOW / 1000, namespace=NAMESPACE, workflow_type=None)
    assert opened == TOKEN
