"""What a source of tokens is.

One of your own is one class with an async `mint`; the methods of `Retires`, `Probes` and `Narrows`
are there where its provider has such a thing. Each is one exchange with the provider: what it takes
to do it once and no more, to repeat it, and to wait for the next, is not the source's affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

Grant: TypeAlias = Mapping[str, Any]
"""What a source needs to mint the next token, as a JSON object: a refresh token, a role, a path.

It is sealed for the workers of sources. An empty one says that all is in the source itself.
"""


def _nothing() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Minted:
    """A token that a source gave, and the grant for the next one.

    Attributes:
        token: the secret.
        expires_at: Unix seconds from which it is not to be used; None where the provider says none.
        origins: where it may be sent; None takes what whoever authorized the source has given.
        api_url: the API's address that came with it, within the origins.
        values: what belongs to the token, such as the user name of a database's password. Sealed
            with it; an activity reads it as ``token.values``, `Retires` and `Probes` are given it.
        grant: for the next token, where this exchange has changed it; None keeps the one before.
    """

    token: str = field(repr=False)
    expires_at: float | None = None
    origins: Sequence[str] | None = None
    api_url: str | None = None
    values: Mapping[str, str] = field(default_factory=_nothing, repr=False)
    grant: Grant | None = field(default=None, repr=False)


@runtime_checkable
class Source(Protocol):
    """Mints tokens. Its methods run on an event loop: what blocks belongs into a thread.

    An exchange has about ten seconds; a source's own time-out is to be shorter.
    """

    async def mint(self, grant: Grant) -> Minted:
        """Get a token from the provider, in one exchange.

        Args:
            grant: as whoever authorized the source gave it, or as the last exchange left it.

        Raises:
            GrantRefused: the provider says that the grant is good no more.
            ProviderUnreachable, RateLimited, AnswerUnusable, ReplyLost: no token, this time. What
                else is raised counts as `ReplyLost`.
        """
        ...


@runtime_checkable
class Retires(Protocol):
    """A source whose provider revokes tokens."""

    async def retire(self, token: str, values: Mapping[str, str]) -> None:
        """Revoke a token at the provider; one that is revoked already is no error.

        Raises:
            SourceError: it may still be good.
        """
        ...


@runtime_checkable
class Probes(Protocol):
    """A source that can ask its provider whether a token is good."""

    async def probe(self, token: str, values: Mapping[str, str]) -> None:
        """Return where the provider takes the token.

        Raises:
            TokenRefused: it does not.
            SourceError: nobody could say.
        """
        ...


@runtime_checkable
class Narrows(Protocol):
    """A source whose provider derives tokens that may do less."""

    async def narrow(self, token: str, values: Mapping[str, str], scopes: Sequence[str]) -> Minted:
        """Derive a token from this one that may do no more than the scopes say.

        Raises:
            SourceError: there is none.
        """
        ...
