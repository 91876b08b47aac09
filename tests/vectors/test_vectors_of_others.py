"""Examples of the RFCs and of Project Wycheproof, as our parser and our keyring take them.

Each stands beside where it is from. What they say of the algorithms alone is for the tests
of `cryptography` and of joserfc.
"""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from stateful_workflow.errors import TokenMalformed
from stateful_workflow.sealed.message import (
    KEY_ALGORITHM,
    PROTECTED,
    decode_base64url,
    encode_base64url,
    parse,
)
from tests.support.builders import (
    CLAIMS,
    NAMESPACE,
    NOW,
    TOKEN,
    Json,
    header_of,
    jwks,
    keyring,
    keyring_of,
    signed,
)

# --- RFC 8037: OKP keys in JOSE ---------------------------------------------------------

ED25519: Json = {
    "kty": "OKP",
    "crv": "Ed25519",
    "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
}


def test_rfc_8037_a_1_to_a_3_the_public_half_and_the_thumbprint_of_an_issuer() -> None:
    keys = keyring_of(ED25519)
    (issuer,) = keys.keys()
    (public,) = jwks(keys.public())

    # A.3 gives the hash's octets as well. The thumbprint is that of RFC 7638.
    octets = "90facafea9b1556698540f70c0117a22ea37bd5cf3ed3c47093c1707282b4b89"
    assert issuer.kid == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert decode_base64url(issuer.kid, "kid") == bytes.fromhex(octets)
    a_2 = {"kty": "OKP", "crv": "Ed25519", "x": ED25519["x"]}
    assert public == {**a_2, "kid": issuer.kid, "use": "sig"}


# A.6 has the keys of RFC 7748 section 6.1, where the private ones are.
BOB: Json = {
    "kty": "OKP",
    "crv": "X25519",
    "d": "XasIfmJKikt54X-Lg4AO5m87sSkmGLb9HC-LJ_-I4Os",
    "x": "3p7bfXt9wbTTW2HC7OQ1Nz-DQ8hbeGdNrfx-FG-IK08",
}
ALICE = {"kty": "OKP", "crv": "X25519", "x": "hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo"}
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")


def sealed_for_bob(epk: Json, shared: bytes) -> str:
    """A token signed by our issuer, sealed with this shared secret (RFC 7518 section 4.6.2)."""
    name, aad = KEY_ALGORITHM.encode(), encode_base64url(CLAIMS.encode())
    info = len(name).to_bytes(4, "big") + name + bytes(8) + (256).to_bytes(4, "big")
    wrapping = hashlib.sha256((1).to_bytes(4, "big") + shared + info).digest()
    key, iv = bytes(range(32)), bytes(12)
    sealed = AESGCM(key).encrypt(iv, TOKEN.encode(), f"{PROTECTED}.{aad}".encode())
    (reader,) = keyring_of(BOB).keys()
    recipient = {
        "header": {"alg": KEY_ALGORITHM, "kid": reader.kid, "epk": epk},
        "encrypted_key": encode_base64url(aes_key_wrap(wrapping, key)),
    }
    jwe = {
        "protected": PROTECTED,
        "recipients": [recipient],
        "aad": aad,
        "iv": encode_base64url(iv),
        "ciphertext": encode_base64url(sealed[:-16]),
        "tag": encode_base64url(sealed[-16:]),
    }
    return signed(header_of(), jwe)


def opened_by_bob(text: str) -> str:
    (issuer,) = (key for key in jwks(keyring().public()) if key["crv"] == "Ed25519")
    message = parse(text)
    assert message.claims == CLAIMS
    keys = keyring_of(issuer, BOB)
    return keys.open(message, now=NOW / 1000, namespace=NAMESPACE, workflow_type=None)


def test_rfc_8037_a_6_a_token_sealed_with_its_shared_secret_opens() -> None:
    assert opened_by_bob(sealed_for_bob(ALICE, SHARED)) == TOKEN


# --- Project Wycheproof: x25519_jwk_test.json -------------------------------------------

LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]
"""With the unused bit and without, all that the cases of the flag ZeroSharedSecret have."""


@pytest.mark.parametrize("unused_bit", [0x00, 0x80])
@pytest.mark.parametrize("point", LOW_ORDER)
def test_with_an_epk_of_low_order_nothing_decrypts(point: str, unused_bit: int) -> None:
    # Everybody knows the shared secret, all zero (RFC 7748 section 6.1).
    octets = bytearray.fromhex(point)
    octets[31] |= unused_bit
    key: Json = {"kty": "OKP", "crv": "X25519", "x": encode_base64url(bytes(octets))}

    with pytest.raises(TokenMalformed, match="does not decrypt"):
        opened_by_bob(sealed_for_bob(key, bytes(32)))
