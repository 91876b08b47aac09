"""The examples of the RFCs, through the primitives that the product calls.

Each stands beside the section it is from. Left out are the examples of algorithms that
the wire format does not have: where they are messages, the parser refuses them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

import pytest
from joserfc.errors import DecodeError
from joserfc.jwe import CompactEncryption, JWERegistry, Recipient
from joserfc.jwk import ECKey, OKPKey, RSAKey

from stateful_workflow.errors import TokenMalformed
from stateful_workflow.sealed.message import decode_base64url, encode_base64url, parse
from tests.builders import Json, keyring_of

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

hexadecimal = bytes.fromhex


# --- RFC 7515: JSON Web Signature -------------------------------------------------------


def test_rfc_7515_appendix_c_base64url() -> None:
    octets = bytes([3, 236, 255, 224, 193])

    assert encode_base64url(octets) == "A-z_4ME"
    assert decode_base64url("A-z_4ME", "example") == octets
    for padded_or_ordinary in ("A-z_4ME=", "A+z/4ME"):
        with pytest.raises(TokenMalformed):
            decode_base64url(padded_or_ordinary, "example")


JWT_CLAIMS = (
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
)
JWS_EXAMPLES = {
    "A.1": "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9." + JWT_CLAIMS + "."
    "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    "A.3": "eyJhbGciOiJFUzI1NiJ9." + JWT_CLAIMS + "."
    "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSA"
    "pmWQxfKTUJqPP3-Kg6NU1Q",
    "A.5": "eyJhbGciOiJub25lIn0." + JWT_CLAIMS + ".",
}
JWS_HEADERS = {
    "A.1": b'{"typ":"JWT",\r\n "alg":"HS256"}',
    "A.3": b'{"alg":"ES256"}',
    "A.5": b'{"alg":"none"}',
}


@pytest.mark.parametrize("section", JWS_EXAMPLES)
def test_rfc_7515_appendix_a_decodes_as_it_says_and_is_no_message(section: str) -> None:
    header, payload, _ = JWS_EXAMPLES[section].split(".")

    assert decode_base64url(header, "header") == JWS_HEADERS[section]
    assert encode_base64url(JWS_HEADERS[section]) == header
    assert json.loads(decode_base64url(payload, "payload")) == {
        "iss": "joe",
        "exp": 1300819380,
        "http://example.com/is_root": True,
    }
    with pytest.raises(TokenMalformed, match="alg, kid and typ"):
        parse(JWS_EXAMPLES[section])


def test_rfc_7515_a_1_1_the_octets_of_the_payload() -> None:
    octets = decode_base64url(JWT_CLAIMS, "payload")

    assert octets[:16] == bytes(
        [123, 34, 105, 115, 115, 34, 58, 34, 106, 111, 101, 34, 44, 13, 10, 32]
    )
    assert len(octets) == 70
    assert encode_base64url(octets) == JWT_CLAIMS


# --- RFC 7516: JSON Web Encryption ------------------------------------------------------

JWE_CONTENT_KEY = bytes(
    [177, 161, 244, 128, 84, 143, 225, 115, 63, 180, 3, 255, 107, 154, 212, 246]
) + bytes([138, 7, 110, 91, 112, 46, 34, 105, 47, 130, 203, 46, 122, 234, 64, 252])
JWE_IV = bytes([227, 197, 117, 252, 2, 219, 233, 68, 180, 225, 77, 219])
JWE_HEADER = "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ"
JWE_CIPHERTEXT = (
    "5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_A"
)
JWE_TAG = "XFBoMYUZodetZdvTiFvSkQ"


def test_rfc_7516_a_1_content_encryption_with_a256gcm() -> None:
    # A.1.1 to A.1.6; the key encryption of A.1.3 is RSA-OAEP, which the format does not have.
    plain = b"The true sign of intelligence is not knowledge but imagination."
    associated = JWE_HEADER.encode("ascii")
    assert decode_base64url(JWE_HEADER, "header") == b'{"alg":"RSA-OAEP","enc":"A256GCM"}'
    assert encode_base64url(JWE_IV) == "48V1_ALb6US04U3b"

    ciphertext, tag = CONTENT.encrypt(plain, JWE_CONTENT_KEY, JWE_IV, associated)

    assert encode_base64url(ciphertext) == JWE_CIPHERTEXT
    assert encode_base64url(tag) == JWE_TAG
    assert CONTENT.decrypt(ciphertext, tag, JWE_CONTENT_KEY, JWE_IV, associated) == plain
    with pytest.raises(DecodeError):
        CONTENT.decrypt(ciphertext, tag, JWE_CONTENT_KEY, JWE_IV, associated + b".")


# --- RFC 7518: JSON Web Algorithms ------------------------------------------------------


def test_rfc_7518_appendix_c_concat_kdf() -> None:
    # The curve is P-256 and the key is used directly: the registry's object for ECDH-ES, of
    # the same class as ECDH-ES+A256KW and with the same method.
    direct = cast("Any", JWERegistry(algorithms=["ECDH-ES"]).get_alg("ECDH-ES"))
    assert type(direct) is type(AGREEMENT)
    bob = {
        "kty": "EC",
        "crv": "P-256",
        "x": "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ",
        "y": "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck",
        "d": "VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw",
    }
    header: Json = {
        "alg": "ECDH-ES",
        "enc": "A128GCM",
        "apu": "QWxpY2U",
        "apv": "Qm9i",
        "epk": {
            "kty": "EC",
            "crv": "P-256",
            "x": "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0",
            "y": "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps",
        },
    }
    recipient = cast("Any", Recipient(CompactEncryption(header)))
    recipient.recipient_key = ECKey.import_key(cast("Any", bob))
    content = JWERegistry(algorithms=["A128GCM"]).get_enc("A128GCM")

    derived = direct.decrypt_agreed_upon_key(content, recipient)

    assert list(derived) == [86, 170, 141, 234, 248, 35, 109, 32, 92, 34, 40, 205, 113, 167, 16, 26]
    assert encode_base64url(derived) == "VqqN6vgjbSBcIijNcacQGg"


# --- RFC 8037: OKP keys in JOSE ---------------------------------------------------------

ED25519 = {
    "kty": "OKP",
    "crv": "Ed25519",
    "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
}
THUMBPRINT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
SIGNING_INPUT = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
EDDSA_SIGNATURE = (
    "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
)


def test_rfc_8037_a_1_a_2_the_public_half_of_an_issuer() -> None:
    (public,) = cast("list[Json]", json.loads(keyring_of(ED25519).public().to_json())["keys"])

    assert public["x"] == ED25519["x"]
    assert "d" not in public
    assert okp_of(ED25519).as_dict(private=False) == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": ED25519["x"],
    }


def test_rfc_8037_a_3_the_thumbprint_is_the_issuers_key_id() -> None:
    (issuer,) = keyring_of(ED25519).keys()

    assert issuer.kid == THUMBPRINT
    assert okp_of(ED25519).thumbprint() == THUMBPRINT
    # A.3 gives the hash's octets too.
    assert decode_base64url(THUMBPRINT, "kid") == hexadecimal(
        "90facafea9b1556698540f70c0117a22ea37bd5cf3ed3c47093c1707282b4b89"
    )


def test_rfc_8037_a_4_signing() -> None:
    signature = SIGNATURE.sign(SIGNING_INPUT, okp_of(ED25519))

    assert encode_base64url(signature) == EDDSA_SIGNATURE


def test_rfc_8037_a_5_verifying() -> None:
    public = okp_of({name: ED25519[name] for name in ("kty", "crv", "x")})
    signature = decode_base64url(EDDSA_SIGNATURE, "signature")

    assert SIGNATURE.verify(SIGNING_INPUT, signature, public) is True
    assert SIGNATURE.verify(SIGNING_INPUT + b"x", signature, public) is False
    # The name of the algorithm is the deprecated one, for which the format has no place.
    with pytest.raises(TokenMalformed):
        parse(f"{SIGNING_INPUT.decode()}.{EDDSA_SIGNATURE}")


ALICE = hexadecimal("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_PUBLIC = hexadecimal("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = hexadecimal("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = hexadecimal("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
SHARED = hexadecimal("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")


def test_rfc_8037_a_6_agreeing_by_x25519() -> None:
    # A.6 uses the keys of RFC 7748 section 6.1 and gives the shared secret, not the key that
    # is derived from it.
    bob = {"kty": "OKP", "crv": "X25519", "x": "3p7bfXt9wbTTW2HC7OQ1Nz-DQ8hbeGdNrfx-FG-IK08"}
    epk = {"kty": "OKP", "crv": "X25519", "x": "hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo"}
    ephemeral = okp_of({**epk, "d": encode_base64url(ALICE)})
    reader = okp_of({**bob, "d": encode_base64url(BOB)})

    assert ephemeral.exchange_derive_key(okp_of(bob)) == SHARED
    assert reader.exchange_derive_key(okp_of(epk)) == SHARED
    assert agreed_key(reader, epk) == concat_kdf(SHARED)


# --- RFC 7638: JWK thumbprints ----------------------------------------------------------


def test_rfc_7638_section_3_1_the_thumbprint() -> None:
    # The example is an RSA key, which a keyring does not take; the method is the one that
    # gives our keys their ids.
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc"
        "_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQ"
        "R0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bF"
        "TWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    jwk = {"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256"}
    key = cast("RSAKey", RSAKey.import_key(cast("Any", jwk)))

    assert key.thumbprint() == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    assert RSAKey.thumbprint is OKPKey.thumbprint


# --- RFC 3394: AES key wrap -------------------------------------------------------------

KEY_256 = hexadecimal("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F")
KEY_DATA = hexadecimal("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")


@pytest.mark.parametrize(
    ("size", "wrapped"),
    [
        pytest.param(16, "64E8C3F9CE0F5BA263E9777905818A2A93C8191E7D6E8AE7", id="4.3"),
        pytest.param(
            24, "A8F9BC1612C68B3FF6E6F4FBE30E71E4769C8B80A32CB8958CD5D17D6B254DA1", id="4.5"
        ),
        pytest.param(
            32,
            "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21",
            id="4.6",
        ),
    ],
)
def test_rfc_3394_section_4_wrapping_under_256_bits(size: int, wrapped: str) -> None:
    assert WRAPPING.wrap_cek(KEY_DATA[:size], KEY_256) == hexadecimal(wrapped)
    assert WRAPPING.unwrap_cek(hexadecimal(wrapped), KEY_256) == KEY_DATA[:size]
    with pytest.raises(DecodeError):
        WRAPPING.unwrap_cek(hexadecimal(wrapped)[::-1], KEY_256)


# --- RFC 7748: X25519 -------------------------------------------------------------------


def x25519(scalar: bytes, u: bytes) -> bytes:
    private = okp("X25519", bytes(32), scalar)
    return private.exchange_derive_key(okp("X25519", u))


@pytest.mark.parametrize(
    ("scalar", "u", "result"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_rfc_7748_section_5_2_single(scalar: str, u: str, result: str) -> None:
    assert x25519(hexadecimal(scalar), hexadecimal(u)) == hexadecimal(result)


def test_rfc_7748_section_5_2_iterated() -> None:
    # After 1 and after 1,000 iterations; the third value takes a million.
    expected = {
        1: "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
        1000: "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51",
    }
    seen: dict[int, str] = {}
    k = u = bytes([9]) + bytes(31)
    for iteration in range(1, 1001):
        k, u = x25519(k, u), k
        if iteration in expected:
            seen[iteration] = k.hex()
    assert seen == expected


def test_rfc_7748_section_6_1_diffie_hellman() -> None:
    assert x25519(ALICE, bytes([9]) + bytes(31)) == ALICE_PUBLIC
    assert x25519(BOB, bytes([9]) + bytes(31)) == BOB_PUBLIC
    assert x25519(ALICE, BOB_PUBLIC) == SHARED
    assert x25519(BOB, ALICE_PUBLIC) == SHARED


# --- RFC 8032: Ed25519 ------------------------------------------------------------------

ED25519_TESTS = {
    "TEST 1": (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        b"",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
        "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    "TEST 2": (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        hexadecimal("72"),
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da0"
        "85ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    "TEST 3": (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        hexadecimal("af82"),
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac1"
        "8ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    "TEST SHA(abc)": (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        hashlib.sha512(b"abc").digest(),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
}
"""Private key, public key, message, signature. TEST 1024, of 1,023 bytes, is in Wycheproof's."""


@pytest.mark.parametrize("name", ED25519_TESTS)
def test_rfc_8032_section_7_1_ed25519(name: str) -> None:
    private, public, message, signature = ED25519_TESTS[name]
    key = okp("Ed25519", hexadecimal(public), hexadecimal(private))

    assert cast("Any", key.public_key).public_bytes_raw() == hexadecimal(public)
    assert SIGNATURE.sign(message, key) == hexadecimal(signature)
    issuer = okp("Ed25519", hexadecimal(public))
    assert SIGNATURE.verify(message, hexadecimal(signature), issuer) is True
    assert SIGNATURE.verify(message + b"\0", hexadecimal(signature), issuer) is False
