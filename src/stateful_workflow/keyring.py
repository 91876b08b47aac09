"""Keys, and what is done with them: seal, sign, verify, open. The one importer of joserfc.

A keyring is a JWK Set (RFC 7517) holding any subset of: issuers (Ed25519, who may
seal) and readers (X25519, who may open), each with or without its private half.
A worker that runs only workflows needs the public halves of issuers alone.

Sealing draws randomness: it belongs in clients and activities, never in workflow code.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, cast

from joserfc import jwe, jws
from joserfc.errors import JoseError
from joserfc.jwe import GeneralJSONEncryption, JWERegistry
from joserfc.jwk import OKPKey
from joserfc.jws import JWSRegistry

from .errors import (
    KeyringError,
    NoIssuerKey,
    NoReaderKey,
    TokenExpired,
    TokenForged,
    TokenMalformed,
    TokenRevoked,
    WrongNamespace,
    WrongWorkflowType,
)
from .messages import (
    CONTENT_ALGORITHM,
    KEY_ALGORITHM,
    SIGNATURE_ALGORITHM,
    TYP,
    Claims,
    Message,
    SealedToken,
    encode_base64url,
    parse,
)

KEYRING_VARIABLE: Final = "STATEFUL_KEYRING"
GROUP_READ_VARIABLE: Final = "STATEFUL_KEYRING_GROUP_READ"

_JWS = JWSRegistry(algorithms=[SIGNATURE_ALGORITHM])
_JWE = JWERegistry(algorithms=[KEY_ALGORITHM, CONTENT_ALGORITHM])
_CURVES: Final[dict[str, Literal["issuer", "reader"]]] = {"Ed25519": "issuer", "X25519": "reader"}


@dataclass(frozen=True)
class KeyInfo:
    """What may be shown of a key.

    Attributes:
        kid: RFC 7638 thumbprint.
        kind: issuer (Ed25519, signs) or reader (X25519, opens).
        private: whether the private half is here.
        retired: seals no more; what it sealed still verifies.
        revoked: what it sealed is refused.
    """

    kid: str
    kind: Literal["issuer", "reader"]
    private: bool
    retired: bool = False
    revoked: bool = False


@dataclass(frozen=True)
class _Key:
    info: KeyInfo
    okp: OKPKey

    def __repr__(self) -> str:
        return f"_Key({self.info!r})"


class Keyring:
    """A set of issuer and reader keys; immutable.

    Make one with `generate`, `load` or `from_json`. The repr names key ids only;
    pickling is refused, so that no private key leaves by accident.
    """

    def __init__(self, keys: Iterable[_Key] = (), *, path: Path | None = None) -> None:
        self._keys = tuple(keys)
        self.path = path
        """The file it was loaded from, or None."""
        kids = [key.info.kid for key in self._keys]
        if len(set(kids)) != len(kids):
            raise KeyringError("the keyring names a key id twice")

    @classmethod
    def generate(cls) -> Keyring:
        """A new keyring with one issuer and one reader, private halves included."""
        curves: tuple[Literal["Ed25519", "X25519"], ...] = ("Ed25519", "X25519")
        return cls(
            _key(cast("object", OKPKey.generate_key(curve, private=True).as_dict(private=True)))
            for curve in curves
        )

    @classmethod
    def load(
        cls, path: str | os.PathLike[str] | None = None, *, allow_group_read: bool | None = None
    ) -> Keyring:
        """Read a keyring file.

        Args:
            path: the file; None reads the one that ``$STATEFUL_KEYRING`` names.
            allow_group_read: accept a private key that the file's group may read, as a
                Kubernetes ``fsGroup`` mount makes it. None takes it from
                ``$STATEFUL_KEYRING_GROUP_READ`` (``1`` allows).

        Raises:
            KeyringError: where it is missing or malformed, or holds a private key that
                others may read; the message names the mode and the cure.
        """
        if path is None:
            path = os.environ.get(KEYRING_VARIABLE)
            if path is None:
                raise KeyringError(f"no keyring: give a path or set ${KEYRING_VARIABLE}")
        if allow_group_read is None:
            allow_group_read = os.environ.get(GROUP_READ_VARIABLE) == "1"
        file = Path(path)
        try:
            with file.open("rb") as stream:
                mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
                content = stream.read()
        except OSError as error:
            raise KeyringError(f"the keyring {file} cannot be read: {error.strerror}") from None
        text = _text(content)
        if text is None:
            raise KeyringError(f"the keyring {file} cannot be read: not UTF-8")
        try:
            keyring = cls(_parse_set(text), path=file)
        except KeyringError as error:
            raise KeyringError(f"the keyring {file}: {error}") from None
        open_to = mode & (0o037 if allow_group_read else 0o077)
        if os.name == "posix" and open_to and any(key.info.private for key in keyring._keys):
            raise KeyringError(
                f"the keyring {file} holds a private key and has mode {mode:04o}, open to others: "
                f"run `chmod 600 {file}`, or where its group must read it (a Kubernetes fsGroup "
                f"mount) set mode 0640 and ${GROUP_READ_VARIABLE}=1"
            )
        if os.name == "posix" and mode & 0o002:
            raise KeyringError(
                f"the keyring {file} has mode {mode:04o}: anybody may write to it, and so say who "
                f"is an issuer; run `chmod o-w {file}`"
            )
        return keyring

    @classmethod
    def from_json(cls, text: str) -> Keyring:
        """Read a JWK Set.

        Raises:
            KeyringError: where it is malformed.
        """
        return cls(_parse_set(text))

    def to_json(self) -> str:
        """The JWK Set, private halves included where they are here."""
        return json.dumps({"keys": [_jwk(key) for key in self._keys]}, indent=2) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a new file with mode 0600.

        Raises:
            KeyringError: where the file exists already (nothing is overwritten) or cannot
                be written.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(self.to_json())
        except FileExistsError:
            raise KeyringError(
                f"{os.fspath(path)} exists; a keyring is never overwritten"
            ) from None
        except OSError as error:
            raise KeyringError(
                f"the keyring {os.fspath(path)} cannot be written: {error.strerror}"
            ) from None

    def public(self) -> Keyring:
        """The same keys without their private halves: all that a workflow worker needs."""
        return Keyring(
            _Key(
                replace(key.info, private=False),
                _import(key.okp.as_dict(private=False)),
            )
            for key in self._keys
        )

    def keys(self) -> tuple[KeyInfo, ...]:
        """What may be shown of each key, in order."""
        return tuple(key.info for key in self._keys)

    def trusted(self) -> dict[str, str]:
        """The issuers whose messages count: key id to public key (base64url, 32 bytes)."""
        return {
            key.info.kid: str(key.okp.as_dict(private=False)["x"])
            for key in self._keys
            if key.info.kind == "issuer" and not key.info.revoked
        }

    def revoked(self) -> tuple[str, ...]:
        """Key ids of the issuers that are marked revoked."""
        return tuple(
            key.info.kid for key in self._keys if key.info.kind == "issuer" and key.info.revoked
        )

    def seal(self, claims: Claims, token: str) -> SealedToken:
        """Encrypt a token for every reader and sign it.

        Args:
            claims: of a token; bound to the ciphertext as its ``aad``.
            token: the secret.

        Raises:
            NoIssuerKey: where no private issuer key is here.
            NoReaderKey: where there is no reader to seal for.
            TokenMalformed: where the claims or the size are outside the wire format.
        """
        issuer = self._issuer()
        readers = [
            key
            for key in self._keys
            if key.info.kind == "reader" and not (key.info.retired or key.info.revoked)
        ]
        if not readers:
            raise NoReaderKey("the keyring has no reader to seal a token for")
        if not token:
            raise TokenMalformed("an empty token is not sealed")
        if token != token.strip():
            raise TokenMalformed("the token begins or ends with white space; strip it first")
        # The error of `encode` would hold the token.
        plaintext = token.encode(errors="replace")
        if plaintext.decode() != token:
            raise TokenMalformed("the token is not valid Unicode")
        encryption = GeneralJSONEncryption(
            {"enc": CONTENT_ALGORITHM}, plaintext, aad=claims.encode()
        )
        for reader in readers:
            encryption.add_recipient({"alg": KEY_ALGORITHM, "kid": reader.info.kid}, reader.okp)
        encrypted = jwe.encrypt_json(encryption, None, registry=_JWE)
        payload = json.dumps(encrypted, separators=(",", ":"))
        return SealedToken(self._sign(issuer, claims, payload))

    def revocation(self, claims: Claims) -> str:
        """Sign a revocation.

        Raises:
            NoIssuerKey: where no private issuer key is here.
            TokenMalformed: where the claims are those of a token.
        """
        if claims.kind != "revocation":
            raise TokenMalformed("the claims of a token cannot make a revocation")
        return self._sign(self._issuer(), claims, claims.encode().decode())

    def open(
        self, message: Message, *, now: float, namespace: str, workflow_type: str | None
    ) -> str:
        """Check a sealed token whole and decrypt it.

        Args:
            message: a parsed token.
            now: Unix seconds.
            namespace: the Temporal namespace it is about to be used in.
            workflow_type: type of the workflow whose activity opens it; None for a client.

        Raises:
            TokenForged: no issuer of this keyring signed it.
            TokenRevoked: it is a revocation, or its issuer was revoked here.
            TokenExpired: past its expiry.
            WrongNamespace, WrongWorkflowType: signed for other uses.
            NoReaderKey: it is sealed for other readers.
            TokenMalformed: it decrypts to nothing under its claims.
        """
        claims = message.claims
        if message.kind != "token":
            raise TokenRevoked(f"{claims.name} was revoked at workflow {claims.authority}")
        issuer = self._find(message.issuer, "issuer")
        if issuer is not None and issuer.info.revoked:
            raise TokenRevoked(
                f"{claims.name} (version {claims.version}) was signed by issuer "
                f"{message.issuer}, which is revoked; set the token again"
            )
        verify(message, self.trusted())
        if claims.namespace != namespace:
            raise WrongNamespace(
                f"{claims.name} was sealed for namespace {claims.namespace}, not {namespace}"
            )
        if claims.expires_at is not None and now >= claims.expires_at:
            raise TokenExpired(
                f"{claims.name} (version {claims.version}) set at workflow {claims.authority} "
                "has expired; set a new one"
            )
        if (
            workflow_type is not None
            and claims.types is not None
            and workflow_type not in claims.types
        ):
            raise WrongWorkflowType(
                f"{claims.name} is not signed for activities of workflow type {workflow_type}"
            )
        return self._decrypt(message)

    def _decrypt(self, message: Message) -> str:
        for kid in message.readers:
            reader = self._find(kid, "reader")
            if reader is not None and reader.info.private:
                break
        else:
            raise NoReaderKey(
                f"{message.claims.name} is sealed for readers {', '.join(message.readers)}; "
                "this process has the private key of none of them"
            )
        sealed = json.loads(message.payload)
        sealed["recipients"] = [
            recipient for recipient in sealed["recipients"] if recipient["header"]["kid"] == kid
        ]
        try:
            opened = jwe.decrypt_json(sealed, reader.okp, registry=_JWE)
        except (JoseError, ValueError):
            raise TokenMalformed(
                f"{message.claims.name} (fingerprint {message.fingerprint}) does not decrypt "
                "under its claims"
            ) from None
        if not opened.plaintext:
            raise TokenMalformed("the sealed token is empty")
        token = _text(opened.plaintext)
        if token is None:
            raise TokenMalformed("the sealed token is not text")
        return token

    def _sign(self, issuer: _Key, claims: Claims, payload: str) -> str:
        header = {"alg": SIGNATURE_ALGORITHM, "kid": issuer.info.kid, "typ": TYP[claims.kind]}
        text = jws.serialize_compact(header, payload, issuer.okp, registry=_JWS)
        parse(text)
        return text

    def _issuer(self) -> _Key:
        for key in reversed(self._keys):
            info = key.info
            if info.kind == "issuer" and info.private and not (info.retired or info.revoked):
                return key
        raise NoIssuerKey("this keyring has no issuer's private key, so it cannot seal or revoke")

    def _find(self, kid: str, kind: str) -> _Key | None:
        for key in self._keys:
            if key.info.kid == kid and key.info.kind == kind:
                return key
        return None

    def __repr__(self) -> str:
        return f"Keyring({', '.join(f'{info.kind} {info.kid}' for info in self.keys())})"

    def __reduce__(self) -> str:
        raise TypeError("a Keyring is not pickled; load it from its file where it is needed")


def verify(message: Message, issuers: Mapping[str, str]) -> None:
    """Check a message's signature.

    Args:
        message: a parsed message.
        issuers: the trusted ones: key id to public key, as `Keyring.trusted` gives them.

    Raises:
        TokenForged: where the named issuer is not among them or did not sign it.
    """
    public = issuers.get(message.issuer)
    if public is None:
        raise TokenForged(f"issuer {message.issuer} is not trusted here")
    try:
        jws.deserialize_compact(message.text, _public_key(public), registry=_JWS)
    except (JoseError, ValueError):
        raise TokenForged(f"the signature is not that of issuer {message.issuer}") from None


def self_check() -> None:
    """Verify one good and one forged message, so that a broken runtime fails early.

    Raises:
        KeyringError: where either is judged wrongly.
    """
    keyring = Keyring.generate()
    claims = Claims("check", "check", "check", "check", "check", 1)
    message = parse(keyring.seal(claims, secrets.token_urlsafe(8)))
    verify(message, keyring.trusted())
    stranger = {message.issuer: next(iter(Keyring.generate().trusted().values()))}
    try:
        verify(message, stranger)
    except TokenForged:
        return
    raise KeyringError("the cryptographic library accepts a forged signature")


@lru_cache(maxsize=256)
def _public_key(x: str) -> OKPKey:
    return _import({"kty": "OKP", "crv": "Ed25519", "x": x})


def _import(jwk: Mapping[str, object], kid: str | None = None) -> OKPKey:
    # joserfc's import_key is generic in a way that loses its type.
    return cast("OKPKey", OKPKey.import_key(cast("Any", jwk), {} if kid is None else {"kid": kid}))


def _text(content: bytes) -> str | None:
    # Raised inside the except clause, an error would carry the secret as its context.
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise KeyringError("names a member twice")
    return members


def _parse_set(text: str) -> list[_Key]:
    data = _json(text)
    if data is None:
        raise KeyringError("not JSON")
    members = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    keys: object = members.get("keys")
    if not isinstance(keys, list):
        raise KeyringError("not a JWK Set: no list 'keys' (RFC 7517 section 5)")
    return [_key(key) for key in cast("list[object]", keys)]


def _key(data: object) -> _Key:
    jwk = dict(cast("dict[str, Any]", data)) if isinstance(data, dict) else {}
    kind = _CURVES.get(str(jwk.get("crv")))
    if jwk.get("kty") != "OKP" or kind is None:
        raise KeyringError("a key is neither Ed25519 nor X25519 (RFC 8037)")
    ours: object = jwk.pop("stateful", {})
    if not isinstance(ours, dict):
        raise KeyringError("a key's member 'stateful' is not an object")
    settings = cast("dict[str, object]", ours)
    unknown = settings.keys() - {"retired", "revoked"}
    if unknown:
        raise KeyringError(f"a key has settings this version does not know: {sorted(unknown)}")
    flags = {name: settings.get(name, False) for name in ("retired", "revoked")}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise KeyringError("a key's retired or revoked is not a boolean")
    named: object = jwk.pop("kid", None)
    try:
        key_only = {name: jwk[name] for name in ("kty", "crv", "x", "d") if name in jwk}
        okp = _import(key_only)
        if okp.is_private and _public_half(okp) != jwk.get("x"):
            raise KeyringError("a key's public and private halves do not belong together")
        kid = okp.thumbprint()
    except (JoseError, ValueError, KeyError, TypeError):
        raise KeyringError("a key is malformed (RFC 8037 section 2)") from None
    if named is not None and named != kid:
        raise KeyringError(f"a key's kid is not its RFC 7638 thumbprint {kid}")
    okp = _import(key_only, kid)
    info = KeyInfo(
        kid,
        kind,
        okp.is_private,
        retired=flags["retired"] is True,
        revoked=flags["revoked"] is True,
    )
    return _Key(info, okp)


def _public_half(key: OKPKey) -> str:
    # From the private half alone; the JWK's own x is what is being checked.
    raw = key.private_key
    if raw is None:
        raise ValueError("no private half")
    return encode_base64url(raw.public_key().public_bytes_raw())


def _jwk(key: _Key) -> dict[str, object]:
    jwk: dict[str, object] = {
        **key.okp.as_dict(private=key.info.private),
        "kid": key.info.kid,
        "use": "sig" if key.info.kind == "issuer" else "enc",
    }
    flags = {name: True for name in ("retired", "revoked") if getattr(key.info, name)}
    if flags:
        jwk["stateful"] = flags
    return jwk
