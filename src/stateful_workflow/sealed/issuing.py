"""What an issuer signs next: what was asked for, and what a verified message carries on. Pure.

A workflow's answer is not signed, and whoever polls its task queue can write it. So nothing of an
answer is signed but its root and its tree, which only choose where the message counts. The origins,
types and readers of the next token come from the caller, or from the message that stands there and
that this keyring verifies now.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, TypedDict, cast

from ..errors import (
    AddressRefused,
    IssuerLimited,
    OriginsMissing,
    TokenForged,
    TokenMalformed,
    WrongAuthority,
)
from ..text.times import in_seconds
from .keys import Issuer, verify
from .message import CLOCK_TOLERANCE_MS, Claims, Message, parse
from .origins import allowed_origin, checked_address, is_allowed, is_covered
from .secret import Secret


class Terms(TypedDict, total=False):
    """What the caller asks for a token, as keyword arguments.

    ``origins``: where it may be sent; None keeps those of the token that stands there. At the first
    one, and where none stands that this keyring verifies, they must be given.

    ``expires_in``: seconds or a timedelta from now; None for no expiry, whatever the last one had.

    ``types``: workflow types whose activities may open it; None keeps those of the token that
    stands there (a rotation must not widen by saying nothing), "any" lifts the limit.

    ``readers``: likewise the audiences of the keyring's readers it is sealed for: nobody else can
    open it.

    ``api_url``: the API's address, signed with the token: workflows without an address of their own
    follow it. It has to be within the origins; where none are given and those that stand there do
    not cover it, its own origin is signed. None keeps that of the token that stands there.

    ``allow_http``: hosts of the origins asked for to which it may go in clear text, as in a mesh;
    every other origin is https, or http to a literal loopback address. Of a token that stands there
    such origins are kept as the others are.
    """

    origins: Sequence[str] | None
    expires_in: timedelta | float | None
    types: Sequence[str] | Literal["any"] | None
    readers: Sequence[str] | Literal["any"] | None
    api_url: str | None
    allow_http: Sequence[str]


class TokenTerms(Terms, total=False):
    """Those, and what may stand in the place of the token.

    ``reference``: ``PREFIX:NAME``; the reader's worker resolves it, by its `Resolver` of that
    prefix.
    """

    reference: str | None


def given_secret(token: str | None, reference: str | None) -> Secret:
    """What is to be sealed.

    Raises:
        ValueError: a token and a reference are given, or neither.
    """
    if token is not None and reference is None:
        return Secret(token)
    if token is None and reference is not None:
        return Secret(reference, is_reference=True)
    raise ValueError("give either a token or reference=, which stands in its place")


def parted(given: Mapping[str, Any], *kinds: type[Any]) -> list[Any]:
    """Keyword arguments by which of these `TypedDict`s takes them.

    Raises:
        TypeError: none does; it names the keyword.
    """
    known = set[str]().union(*(kind.__annotations__ for kind in kinds))
    for key in given.keys() - known:
        raise TypeError(f"got an unexpected keyword argument {key!r}")
    return [{key: given[key] for key in kind.__annotations__ if key in given} for kind in kinds]


@dataclass(frozen=True)
class Said:
    """What a workflow says when a message is to be set at it; nobody vouches for it.

    Attributes:
        root, tree: where it says that it stands.
        own: the message that stands there with the workflow as its authority, as it travels.
        last: where that is a revocation, the token before it.
        above: a message in force there that was set above it.
        in_use: the credential names that it knows of.
    """

    root: str
    tree: str
    own: str | None = None
    last: str | None = None
    above: str | None = None
    in_use: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Place:
    """Where a message is to be set, and the verified message that stands there.

    Attributes:
        name, namespace, root, tree, authority: as `Claims`.
        before: what stands there; None where nothing does, or nothing that this keyring verifies.
        held: claims of the token that stands there, or that was revoked there last.
        stranger: key id of the issuer whose message stands there and is not verified here.
    """

    name: str
    namespace: str
    root: str
    tree: str
    authority: str
    before: Message | None = None
    held: Claims | None = None
    stranger: str | None = None

    @property
    def is_revoked(self) -> bool:
        """Whether a verified revocation stands here that ends the search for a token."""
        return self.before is not None and self.before.claims.inherit is False

    def token(self, terms: Terms, now: float) -> Claims:
        """The claims of the next token here; `now` is Unix seconds.

        Raises:
            OriginsMissing: no origins are asked for, and no verified token has any.
            AddressRefused: the address is none, or not within the origins.
            ValueError: an origin is refused, or the expiry is not ahead.
            TokenMalformed: the version that stands here is too far ahead of the clock.
        """
        held = self.held
        origins, api_url = self._where(terms)
        return replace(
            self.claims(now),
            expires_at=_expiry(terms.get("expires_in"), now),
            origins=origins,
            types=kept("types", terms.get("types"), None if held is None else held.types),
            audiences=kept(
                "readers", terms.get("readers"), None if held is None else held.audiences
            ),
            api_url=api_url,
        )

    def _where(self, terms: Terms) -> tuple[tuple[str, ...], str | None]:
        """The origins of the next token, and its address within them."""
        held, given, url = self.held, terms.get("origins"), terms.get("api_url")
        http: Sequence[str] | None = terms.get("allow_http", ())
        if not _is_list(given) or not _is_list(http):
            raise ValueError("origins= takes a list of texts, and allow_http= takes one too")
        at = None if url is None else checked_address(url)
        if given is None and at is not None and not (held and is_allowed(at, held.origins)):
            given = [checked_address(at, http)]
        if given is None:
            if held is None:
                raise OriginsMissing(self._why_origins())
            given, http = held.origins, None  # an issuer who is trusted now has signed them
        origins = tuple(allowed_origin(origin, http) for origin in given)
        if url is None and held is not None and is_covered(held.api_url, held.origins) and origins:
            url = held.api_url
        if url is not None and not is_covered(url, origins):
            raise AddressRefused(
                f"the {self.name} for workflow {self.authority} has the address {url}, which is "
                f"not within the origins to sign ({', '.join(origins) or 'none'}): give the "
                "address within them too, by api_url= or --api-url; nothing was signed"
            )
        return origins, url

    def revocation(self, now: float, *, inherit: bool) -> Claims:
        """The claims of a revocation here; `now` is Unix seconds.

        Raises:
            TokenMalformed: as `token`.
        """
        return replace(self.claims(now), inherit=inherit)

    def claims(self, now: float) -> Claims:
        """What every message here says; raises as `revocation`."""
        newest = 0 if self.before is None else self.before.claims.version
        # One more than the newest is what the same token sealed anew takes, which must not come
        # after.
        version = capped(max(int(now * 1000), newest + 2), now)
        return Claims(self.name, self.namespace, self.root, self.tree, self.authority, version)

    def _why_origins(self) -> str:
        asked = "give origins=[…]: where it may be sent"
        if self.stranger is None:
            return (
                f"no {self.name} was set at workflow {self.authority} itself, whose origins this "
                f"one could keep; {asked}"
            )
        return (
            f"the {self.name} at workflow {self.authority} is signed by issuer {self.stranger}, "
            f"which this keyring does not trust, or not for that; {asked}"
        )


def verified_place(
    said: Said, *, name: str, namespace: str, authority: str, trusted: Mapping[str, Issuer]
) -> Place:
    """What may be signed of what a workflow says.

    Args:
        said: the workflow's answer.
        name, namespace, authority: what is asked for, the client's own, and the workflow's id.
        trusted: the keyring's issuers now.

    Raises:
        MessageRefused: a message in the answer is not what it must be; the subclass says why.
    """
    before, last, above = (
        None if text is None else _verified(parse(text), name, namespace, trusted)
        for text in (said.own, said.last, said.above)
    )
    for message in (before, last):
        if message is not None and message.claims.authority != authority:
            raise WrongAuthority(
                f"workflow {authority} answered with a message that was set at "
                f"{message.claims.authority} in the place of its own; nothing was signed"
            )
    token = next((m for m in (before, last) if m is not None and m.kind == "token"), None)
    held = None if token is None else token.claims
    known = above if before is None else before
    root, tree = (said.root, said.tree) if known is None else (known.claims.root, known.claims.tree)
    stranger = parse(said.own).issuer if said.own is not None and before is None else None
    return Place(name, namespace, root, tree, authority, before, held, stranger)


def _verified(
    message: Message, name: str, namespace: str, trusted: Mapping[str, Issuer]
) -> Message | None:
    """A message, or None where this keyring does not vouch for it here."""
    if message.issuer not in trusted or message.claims.namespace != namespace:
        return None
    try:
        verify(message, trusted)
    except IssuerLimited:
        return None
    if message.claims.name != name:
        raise TokenForged(
            f"a message for {message.claims.name} was given for {name}; nothing was signed"
        )
    return message


def _expiry(expires_in: timedelta | float | None, now: float) -> int | None:
    if expires_in is None:
        return None
    seconds = in_seconds(expires_in)
    if seconds <= 0:
        raise ValueError("expires_in must be ahead of now")
    return math.ceil(now + seconds)


def capped(version: int, now: float) -> int:
    """A version that a node takes at this time.

    Raises:
        TokenMalformed: it is more than 5 minutes ahead of `now` (Unix seconds).
    """
    if version > now * 1000 + CLOCK_TOLERANCE_MS:
        raise TokenMalformed(
            "the version that stands there is more than 5 minutes ahead of this machine's clock: "
            "set the clock, or find out who gave out such a message; nothing was signed"
        )
    return version


def kept(
    option: str, given: Sequence[str] | None, held: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """A limit of a token about to be sealed, where None keeps what is held and "any" lifts it.

    Raises:
        ValueError: another string is given in the place of a list.
    """
    if given is None:
        return held
    if given == "any":
        return None
    if not _is_list(given):
        raise ValueError(f'{option}= takes a list of texts, or "any"')
    return tuple(given)


def _is_list(given: Any) -> bool:
    """Whether an option that takes texts was given a list of them, or None."""
    if given is None:
        return True
    is_many = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    return is_many and all(isinstance(one, str) for one in cast("Iterable[Any]", given))
