"""The cryptography of the wire format, and the one importer of joserfc.

Everything is pinned: the algorithms, the header members, the form of the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal, NoReturn, Protocol, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from joserfc import jwe, jws
from joserfc.errors import JoseError
from joserfc.jwe import GeneralJSONEncryption, JWERegistry
from joserfc.jwk import OKPKey
from joserfc.jws import JWSRegistry

from ..errors import KeyringError, TokenMalformed
from .message import (
    CONTENT_ALGORITHM,
    KEY_ALGORITHM,
    SIGNATURE_ALGORITHM,
    Message,
    decode_base64url,
)

Curve = Literal["Ed25519", "X25519"]

_JWS = JWSRegistry(algorithms=[SIGNATURE_ALGORITHM])
_JWE = JWERegistry(algorithms=[KEY_ALGORITHM, CONTENT_ALGORITHM])

# Of edwards25519 (RFC 8032 section 5.1): the prime of its field, and its constant d.
_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P


class Signer(Protocol):
    """The private half of an issuer that is held elsewhere, such as in a KMS or an HSM.

    Its calls may block: `TokenClient` makes them in a thread, `seal_token` where it is called.
    """

    @property
    def public(self) -> bytes:
        """The Ed25519 public key, 32 bytes."""
        ...

    def sign(self, data: bytes) -> bytes:
        """The Ed25519 signature of the data, 64 bytes."""
        ...


class Opener(Protocol):
    """The private half of a reader that is held elsewhere, such as in a KMS or an HSM.

    Each use of a token is one call of `agree`; one sealed token always gives the same argument.
    """

    @property
    def public(self) -> bytes:
        """The X25519 public key, 32 bytes."""
        ...

    def agree(self, public: bytes) -> bytes:
        """The X25519 shared secret with another public key, 32 bytes."""
        ...


class Key:
    """An Ed25519 or X25519 key (RFC 8037), with its private half, without, or with it elsewhere.

    Attributes:
        kid: RFC 7638 thumbprint.
        curve: Ed25519 signs, X25519 agrees on keys.
        public: the public key, base64url.
        has_private: whether it can sign or agree here.
    """

    def __init__(self, okp: OKPKey) -> None:
        self._okp = okp
        self.kid: str = okp.thumbprint()
        self.curve = cast("Curve", okp.curve_name)
        self.public = str(okp.as_dict(private=False)["x"])
        self.has_private = okp.is_private

    @classmethod
    def generate(cls, curve: Curve) -> Key:
        """A new key pair."""
        return cls(cast("OKPKey", OKPKey.generate_key(curve, private=True)))

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, object]) -> Key:
        """Read a JWK (RFC 8037 section 2).

        Raises:
            ValueError: it is malformed, its halves do not belong together, or `check_issuer_key`
                refuses it.
        """
        try:
            okp = _import(_members(jwk))
            # Of the private half where there is one: the JWK's own x is what is being checked.
            own = cls(okp if okp.private_key is None else _import(okp.private_key.public_key()))
            if isinstance(own._okp.raw_value, X25519PublicKey):
                X25519PrivateKey.generate().exchange(own._okp.raw_value)  # none of low order
        except (JoseError, ValueError, KeyError, TypeError):
            raise ValueError("a key is malformed (RFC 8037 section 2)") from None
        if own.public != jwk.get("x"):
            raise ValueError("a key's public and private halves do not belong together")
        if own.curve == "Ed25519":
            check_issuer_key(own.public)
        return cls(okp)

    def to_jwk(self, *, private: bool) -> dict[str, object]:
        """The JWK, its private half included where asked for and where it is here."""
        include = private and self.has_private and not self.is_held_elsewhere
        return _members(self._okp.as_dict(private=include))

    @property
    def is_held_elsewhere(self) -> bool:
        """Whether its private half is behind a `Signer` or an `Opener`."""
        return isinstance(self._okp.raw_value, _HeldSigner | _HeldOpener)

    def held_by(self, holder: Any) -> Key:
        """The same key, its private half at a `Signer` or an `Opener`."""
        held = _HeldSigner(holder) if self.curve == "Ed25519" else _HeldOpener(holder)
        # With the JWK given, joserfc does not ask the key for its private half.
        return Key(OKPKey(held, cast("Any", self.to_jwk(private=False))))

    def without_private(self) -> Key:
        """The same key, its public half alone."""
        return Key(_import(self.to_jwk(private=False)))

    def sign(self, typ: str, payload: str) -> str:
        """A compact JWS by this key (RFC 7515 section 3.1)."""
        header = {"alg": SIGNATURE_ALGORITHM, "kid": self.kid, "typ": typ}
        return jws.serialize_compact(header, payload, self._okp, registry=_JWS)

    def decrypt(self, message: Message) -> bytes:
        """Open a sealed token as one of its readers.

        Raises:
            ValueError: it does not decrypt under its claims.
        """
        sealed = json.loads(message.payload)
        every = sealed["recipients"]
        sealed["recipients"] = [each for each in every if each["header"]["kid"] == self.kid]
        try:
            return jwe.decrypt_json(sealed, self._okp, registry=_JWE).plaintext or b""
        except JoseError:
            raise ValueError("it does not decrypt") from None

    def __repr__(self) -> str:
        return f"Key({self.curve} {self.kid})"


def encrypt(plaintext: bytes, associated: bytes, readers: Sequence[Key]) -> str:
    """A General JWE for these readers, bound to the associated data."""
    encryption = GeneralJSONEncryption({"enc": CONTENT_ALGORITHM}, plaintext, aad=associated)
    for reader in readers:
        header = {"alg": KEY_ALGORITHM, "kid": reader.kid}
        encryption.add_recipient(header, _import(reader.to_jwk(private=False)))
    return json.dumps(jwe.encrypt_json(encryption, None, registry=_JWE), separators=(",", ":"))


# A node's state names the same few, again and again.
@lru_cache(maxsize=256)
def check_issuer_key(x: str) -> None:
    """Refuse an Ed25519 public key (base64url) under which a signature proves nothing.

    OpenSSL takes those of small order, which verify what nobody signed, and more than one
    encoding of a point.

    Raises:
        ValueError: it does not decode (RFC 8032 section 5.1.3), or is of small order.
    """
    try:
        encoded = decode_base64url(x, "public key")
    except TokenMalformed as error:
        raise ValueError(str(error)) from None
    y = int.from_bytes(encoded, "little") & (2**255 - 1)  # the last bit is the sign of x
    yy = y * y % _P
    # Of order 1 or 2 where y² = 1, of 4 where y = 0, of 8 where that holds for the double.
    small = (yy - 1) * y * (_D * yy * yy + 2 * yy - 1) % _P == 0
    # x² = (y² - 1) / (d·y² + 1) has a root where the product of both has (Euler's criterion).
    has_x = pow((yy - 1) * (_D * yy + 1), (_P - 1) // 2, _P) == 1
    if len(encoded) != 32 or y >= _P or small or not has_x:
        raise ValueError(
            "an Ed25519 public key is of small order or no canonical point (RFC 8032 "
            "section 5.1.3): no private key has it"
        )


# Each of a worker's nodes is sent the same one; a refusal is not remembered.
@lru_cache(maxsize=256)
def verify_signature(text: str, public: str) -> None:
    """Check a compact JWS under an Ed25519 public key (base64url).

    Raises:
        ValueError: it is not its signature.
    """
    try:
        key = _import({"kty": "OKP", "crv": "Ed25519", "x": public})
        jws.deserialize_compact(text, key, registry=_JWS)
    except JoseError:
        raise ValueError("it is not its signature") from None


def _members(jwk: Mapping[str, Any]) -> dict[str, object]:
    return {name: jwk[name] for name in ("kty", "crv", "x", "d") if name in jwk}


def _import(key: object) -> OKPKey:
    # joserfc's import_key is generic in a way that loses its type.
    return cast("OKPKey", OKPKey.import_key(cast("Any", key)))


# cryptography's key classes are interfaces, so that joserfc signs and agrees through these
# as it does through any other key.


class _Held:
    """What a key whose private half is elsewhere does not give."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise KeyringError("the private half of this key is held elsewhere")

    private_bytes = private_bytes_raw = __copy__ = __deepcopy__ = _refuse


class _HeldSigner(_Held, Ed25519PrivateKey):
    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def public_key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self._signer.public)

    def sign(self, data: Any) -> bytes:
        return self._signer.sign(data)


class _HeldOpener(_Held, X25519PrivateKey):
    def __init__(self, opener: Opener) -> None:
        self._opener = opener

    def public_key(self) -> X25519PublicKey:
        return X25519PublicKey.from_public_bytes(self._opener.public)

    def exchange(self, peer_public_key: X25519PublicKey) -> bytes:
        agreed = self._opener.agree(peer_public_key.public_bytes_raw())
        if len(agreed) != 32:
            raise KeyringError("an opener answered with something else than a secret of 32 bytes")
        # RFC 7748 section 6.1: an all-zero secret comes of a key of low order.
        if not any(agreed):
            raise ValueError("the other public key is of low order")
        return agreed
