"""Keys: as JWKs of a keyring, read strictly and written, and issuers as others see them. Pure.

A JWK is as in RFC 7517 and RFC 8037. What is ours about a key stands in one member, ``stateful``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast

from ..errors import IssuerLimited, KeyringError, TokenForged
from ..text.strict_json import json_object
from .crypto import Curve, Key, check_issuer_key, verify_signature
from .message import Claims, Message, valid_name
from .origins import allowed_origin, is_allowed

LIMITS: Final = ("names", "roots", "origins")


@dataclass(frozen=True)
class Issuer:
    """The public key of an issuer and its limits; for each, None means no limit.

    Attributes:
        public: Ed25519 public key, base64url (the JWK's ``x``).
        names: credential names it may sign for.
        roots: how the workflow id of a tree's root must begin: one of these.
        origins: where its tokens may be sent at most.
    """

    public: str
    names: tuple[str, ...] | None = None
    roots: tuple[str, ...] | None = None
    origins: tuple[str, ...] | None = None

    def check(self, claims: Claims) -> None:
        """Refuse claims that are not within its limits.

        Raises:
            IssuerLimited: they are not.
        """
        if self.names is not None and claims.name not in self.names:
            raise IssuerLimited(f"the issuer may not sign for {claims.name}: {self._may()}")
        if self.roots is not None and not claims.root.startswith(self.roots):
            raise IssuerLimited(f"the issuer may not sign for root {claims.root}: {self._may()}")
        if self.origins is not None:
            for origin in claims.origins:
                if not is_allowed(origin, self.origins):
                    raise IssuerLimited(f"the issuer may not sign {origin}: {self._may()}")

    def _may(self) -> str:
        shown = [f"{name} {', '.join(of) or '(none)'}" for name, of in limits_of(self).items()]
        return f"its key is limited to {'; '.join(shown)}"

    def to_json(self) -> str | dict[str, Any]:
        """As it stands in a node's state: the public key alone where it has no limits."""
        limits = limits_of(self)
        return {"x": self.public, **limits} if limits else self.public

    @classmethod
    def from_json(cls, data: object) -> Issuer:
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is malformed, has a limit that is not known, or `check_issuer_key`
                refuses its key.
        """
        given: object = {"x": data} if isinstance(data, str) else data
        members = cast("dict[str, object]", given) if isinstance(given, dict) else {}
        public = members.get("x")
        if not isinstance(public, str) or members.keys() - {"x", *LIMITS}:
            raise ValueError("an issuer has a public key x and at most names, roots and origins")
        check_issuer_key(public)
        return cls(public, **_read_limits(members))


def limits_of(key: Issuer | KeyInfo) -> dict[str, list[str]]:
    """The limits that a key has, by name."""
    limits: dict[str, tuple[str, ...] | None] = {name: getattr(key, name) for name in LIMITS}
    return {name: list(of) for name, of in limits.items() if of is not None}


def _read_limits(members: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    return {name: _texts(members[name]) for name in LIMITS if name in members}


def _texts(value: object) -> tuple[str, ...]:
    entries = cast("list[object]", value) if isinstance(value, list) else None
    if entries is None or not all(isinstance(entry, str) for entry in entries):
        raise ValueError("a key's names, roots or origins is not a list of strings")
    return tuple(str(entry) for entry in entries)


def verify(message: Message, issuers: Mapping[str, Issuer]) -> None:
    """Check that a trusted issuer signed a message, and may sign it.

    Args:
        message: a parsed message.
        issuers: the trusted ones by key id, as `Keyring.trusted` gives them.

    Raises:
        TokenForged: the named issuer is not among them or did not sign it.
        IssuerLimited: its key is limited to other names, roots or origins.
    """
    issuer = issuers.get(message.issuer)
    if issuer is None:
        raise TokenForged(f"issuer {message.issuer} is not trusted here")
    try:
        verify_signature(message.text, issuer.public)
    except ValueError:
        raise TokenForged(f"the signature is not that of issuer {message.issuer}") from None
    issuer.check(message.claims)


KeyKind = Literal["issuer", "reader"]

CURVES: Final[dict[KeyKind, Curve]] = {"issuer": "Ed25519", "reader": "X25519"}
DEFAULT_AUDIENCE: Final = "default"

_KINDS: Final[dict[str, KeyKind]] = {"Ed25519": "issuer", "X25519": "reader"}
_USE: Final[dict[KeyKind, str]] = {"issuer": "sig", "reader": "enc"}
_MARKS: Final = ("retired", "revoked")


@dataclass(frozen=True)
class KeyInfo:
    """What may be shown of a key.

    Attributes:
        kid: RFC 7638 thumbprint.
        kind: issuer (Ed25519, signs) or reader (X25519, opens).
        private: whether its private half can be used here.
        retired: seals, or is sealed for, no more; what there is stays good.
        revoked: of an issuer: what it signed is refused. Of a reader: is sealed for no more.
        names, roots, origins: limits of an issuer, see `Issuer`; None means none.
        audience: of a reader: whom it stands for, a task queue or a label of your choice.
    """

    kid: str
    kind: KeyKind
    private: bool
    retired: bool = False
    revoked: bool = False
    names: tuple[str, ...] | None = None
    roots: tuple[str, ...] | None = None
    origins: tuple[str, ...] | None = None
    audience: str | None = None

    @property
    def is_active(self) -> bool:
        """Whether it seals, or is sealed for, from now on."""
        return not (self.retired or self.revoked)


@dataclass(frozen=True)
class Entry:
    """A key with what the keyring says of it."""

    info: KeyInfo
    key: Key

    def with_key(self, key: Key) -> Entry:
        """What is said of the key, for the same key with its private half, or without."""
        return Entry(replace(self.info, private=key.has_private), key)

    @property
    def issuer(self) -> Issuer:
        """As others see it: public key and limits."""
        info = self.info
        return Issuer(self.key.public, info.names, info.roots, info.origins)


def checked(info: KeyInfo) -> KeyInfo:
    """The same with its limits in canonical form.

    Raises:
        KeyringError: a limit or the audience is malformed.
    """
    for name in info.names or ():
        if not valid_name(name):
            raise KeyringError(f"an issuer's limit names {name!r}, which is no credential name")
    for text in (*(info.roots or ()), *(() if info.audience is None else (info.audience,))):
        if not text or not text.isprintable():
            raise KeyringError("a root's prefix or an audience is empty or not printable")
    if info.origins is None:
        return info
    try:
        origins = tuple(allowed_origin(origin, None) for origin in info.origins)
    except ValueError as error:
        raise KeyringError(f"an issuer's limit has an origin that is refused: {error}") from None
    return replace(info, origins=origins)


def read_set(text: str | bytes) -> list[Entry]:
    """Read a JWK Set (RFC 7517 section 5).

    Raises:
        KeyringError: it is malformed.
    """
    try:
        keys: object = json_object(text).get("keys")
    except ValueError as error:
        raise KeyringError(str(error)) from None
    if not isinstance(keys, list):
        raise KeyringError("it is no JWK Set: no list 'keys' (RFC 7517 section 5)")
    return [_read(key) for key in cast("list[object]", keys)]


def write_set(entries: Iterable[Entry]) -> str:
    """The JWK Set, private halves included where they are here."""
    return json.dumps({"keys": [_write(entry) for entry in entries]}, indent=2) + "\n"


def _read(data: object) -> Entry:
    jwk = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    kind = _KINDS.get(str(jwk.get("crv")))
    if jwk.get("kty") != "OKP" or kind is None:
        raise KeyringError("a key is neither Ed25519 nor X25519 (RFC 8037)")
    settings = jwk.get("stateful", {})
    if not isinstance(settings, dict):
        raise KeyringError("a key's member 'stateful' is not an object")
    try:
        key = Key.from_jwk(jwk)
        info = _info(key, kind, cast("dict[str, object]", settings))
    except ValueError as error:
        raise KeyringError(str(error)) from None
    if jwk.get("kid", key.kid) != key.kid:
        raise KeyringError(f"a key's kid is not its RFC 7638 thumbprint {key.kid}")
    return Entry(checked(info), key)


def _info(key: Key, kind: KeyKind, settings: dict[str, object]) -> KeyInfo:
    # One that is not known may be a restriction.
    unknown = settings.keys() - {*_MARKS, *(LIMITS if kind == "issuer" else ("audience",))}
    if unknown:
        raise ValueError(f"a key has settings this version does not know: {sorted(unknown)}")
    marks = {name: settings.get(name, False) for name in _MARKS}
    if not all(isinstance(mark, bool) for mark in marks.values()):
        raise ValueError("a key's retired or revoked is not a boolean")
    audience = settings.get("audience", DEFAULT_AUDIENCE) if kind == "reader" else None
    if audience is not None and not isinstance(audience, str):
        raise ValueError("a key's audience is not a string")
    return KeyInfo(
        key.kid,
        kind,
        key.has_private,
        retired=marks["retired"] is True,
        revoked=marks["revoked"] is True,
        audience=audience,
        **_read_limits(settings),
    )


def _write(entry: Entry) -> dict[str, object]:
    info = entry.info
    jwk = {**entry.key.to_jwk(private=True), "kid": info.kid, "use": _USE[info.kind]}
    settings: dict[str, object] = {name: True for name in _MARKS if getattr(info, name)}
    settings.update(limits_of(info))
    if info.audience not in (None, DEFAULT_AUDIENCE):
        settings["audience"] = info.audience
    if settings:
        jwk["stateful"] = settings
    return jwk
