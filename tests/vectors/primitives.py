"""The objects of joserfc that the product signs, verifies, agrees, wraps and encrypts with.

`test_primitives.py` shows that they are those: the vectors of others are run through
these, never through the library below them.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, cast

from joserfc.jwe import GeneralJSONEncryption, JWERegistry, Recipient
from joserfc.jwk import OKPKey
from joserfc.jws import JWSRegistry

from stateful_workflow.sealed.message import (
    CONTENT_ALGORITHM,
    KEY_ALGORITHM,
    SIGNATURE_ALGORITHM,
    encode_base64url,
)
from tests.builders import Json

_JWE = JWERegistry(algorithms=[KEY_ALGORITHM, CONTENT_ALGORITHM])

# joserfc's types for what a registry holds are the base classes of all algorithms.
SIGNATURE: Final = cast("Any", JWSRegistry(algorithms=[SIGNATURE_ALGORITHM]).get_alg("Ed25519"))
"""Ed25519: ``sign(message, key)``, ``verify(message, signature, key)``."""
AGREEMENT: Final = cast("Any", _JWE.get_alg(KEY_ALGORITHM))
"""ECDH-ES+A256KW: ``decrypt_agreed_upon_key(CONTENT, recipient)`` agrees and derives."""
WRAPPING: Final = AGREEMENT.key_wrapping
"""A256KW: ``wrap_cek(key, by)``, ``unwrap_cek(wrapped, by)``."""
CONTENT: Final = cast("Any", _JWE.get_enc(CONTENT_ALGORITHM))
"""A256GCM: ``encrypt(plain, key, iv, aad)``, ``decrypt(cipher, tag, key, iv, aad)``."""


def okp(curve: str, public: bytes, private: bytes | None = None) -> OKPKey:
    """A key as the product has it: imported as a JWK."""
    jwk: Json = {"kty": "OKP", "crv": curve, "x": encode_base64url(public)}
    if private is not None:
        jwk["d"] = encode_base64url(private)
    return okp_of(jwk)


def okp_of(jwk: Json) -> OKPKey:
    """A key as the product has it, without what it does not look at."""
    members = {name: jwk[name] for name in ("kty", "crv", "x", "d") if name in jwk}
    return cast("OKPKey", OKPKey.import_key(cast("Any", members)))


def agreed_key(reader: object, epk: Json) -> bytes:
    """The key that wraps, as the reader derives it for a recipient with this epk."""
    header: Json = {"alg": KEY_ALGORITHM, "epk": epk}
    sealed = GeneralJSONEncryption({"enc": CONTENT_ALGORITHM})
    recipient = cast("Any", Recipient(sealed, header))
    recipient.recipient_key = reader
    return cast("bytes", AGREEMENT.decrypt_agreed_upon_key(CONTENT, recipient))


def concat_kdf(shared: bytes) -> bytes:
    """The key that wraps, made of a shared secret from the text of RFC 7518 section 4.6.2."""
    name = KEY_ALGORITHM.encode()
    info = len(name).to_bytes(4, "big") + name + bytes(8) + (256).to_bytes(4, "big")
    return hashlib.sha256((1).to_bytes(4, "big") + shared + info).digest()
