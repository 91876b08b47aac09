"""Issuers as others see them: a public key, and what it may sign. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from ..errors import IssuerLimited, TokenForged
from .crypto import check_issuer_key, verify_signature
from .message import Claims, Message
from .origins import is_allowed

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
        """Whether these claims are within its limits.

        Raises:
            IssuerLimited: where they are not.
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
        limits = ((name, getattr(self, name)) for name in LIMITS)
        shown = [f"{name} {', '.join(of) or '(none)'}" for name, of in limits if of is not None]
        return f"its key is limited to {'; '.join(shown)}"

    def to_json(self) -> str | dict[str, Any]:
        """As it stands in a node's state: the public key alone where it has no limits."""
        limits = {name: getattr(self, name) for name in LIMITS}
        limits = {name: list(of) for name, of in limits.items() if of is not None}
        return {"x": self.public, **limits} if limits else self.public

    @classmethod
    def from_json(cls, data: object) -> Issuer:
        """Read what `to_json` wrote.

        Raises:
            ValueError: where it is malformed, or `check_issuer_key` refuses its key; a limit
                that is not known may not be left out.
        """
        given: object = {"x": data} if isinstance(data, str) else data
        members = cast("dict[str, object]", given) if isinstance(given, dict) else {}
        public = members.get("x")
        if not isinstance(public, str) or members.keys() - {"x", *LIMITS}:
            raise ValueError("an issuer has a public key x and at most names, roots and origins")
        check_issuer_key(public)
        return cls(public, **{name: texts(members[name]) for name in LIMITS if name in members})


def texts(value: object) -> tuple[str, ...]:
    """A JSON list of strings.

    Raises:
        ValueError: where it is none.
    """
    entries = cast("list[object]", value) if isinstance(value, list) else None
    if entries is None or not all(isinstance(entry, str) for entry in entries):
        raise ValueError("a list of strings is expected")
    return tuple(str(entry) for entry in entries)


def verify(message: Message, issuers: Mapping[str, Issuer]) -> None:
    """Check that a trusted issuer signed a message, and may sign it.

    Args:
        message: a parsed message.
        issuers: the trusted ones by key id, as `Keyring.trusted` gives them.

    Raises:
        TokenForged: where the named issuer is not among them or did not sign it.
        IssuerLimited: where its key is limited to other names, roots or origins.
    """
    issuer = issuers.get(message.issuer)
    if issuer is None:
        raise TokenForged(f"issuer {message.issuer} is not trusted here")
    try:
        verify_signature(message.text, issuer.public)
    except ValueError:
        raise TokenForged(f"the signature is not that of issuer {message.issuer}") from None
    issuer.check(message.claims)
