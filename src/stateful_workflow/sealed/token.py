"""An opened token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

from ..errors import OriginNotAllowed
from .message import Message
from .origins import is_allowed, origin_or_none
from .secret import Secret, Values


class ApiToken:
    """An opened token. `for_url` and `reveal` are the only ways to the string.

    It prints redacted, cannot be pickled or copied into a dataclass dump, and compares
    by its fingerprint.

    Args:
        message: what it was opened from.
        secret: the string, and the values that belong to it.
        note: hears of each `for_url`: the token, the URL's origin (None where it has none), and
            why it was refused there, or None.
    """

    __slots__ = ("_message", "_note", "_reveal", "_values")

    def __init__(
        self,
        message: Message,
        secret: Secret,
        note: Callable[[ApiToken, str | None, OriginNotAllowed | None], None] | None = None,
    ) -> None:
        self._message = message
        self._note = note
        # In a closure: what lists an object's members, and `object.__getstate__`, get no string.
        self._reveal = lambda: secret.token
        self._values = Values(secret.values)

    @property
    def message(self) -> Message:
        """The sealed message it was opened from."""
        return self._message

    @property
    def name(self) -> str:
        """Credential name."""
        return self._message.claims.name

    @property
    def version(self) -> int:
        """Version (Unix milliseconds at issue)."""
        return self._message.claims.version

    @property
    def fingerprint(self) -> str:
        """Names the version; 16 hex characters; says nothing of the secret."""
        return self._message.fingerprint

    @property
    def authority(self) -> str:
        """Workflow id at which it was set."""
        return self._message.claims.authority

    @property
    def origins(self) -> tuple[str, ...]:
        """Where it may be sent."""
        return self._message.claims.origins

    @property
    def expires_at(self) -> int | None:
        """Unix seconds from which it is refused, or None."""
        return self._message.claims.expires_at

    @property
    def values(self) -> Mapping[str, str]:
        """What belongs to it, such as the user name of a database's password; as secret as it."""
        return self._values

    def for_url(self, url: str) -> str:
        """The secret, for a client of another library that connects to this URL.

        In an activity it goes on record as a use. Nobody sees what the client does with it: see
        to it that it follows no redirect to elsewhere. A server that speaks no HTTP is named as
        its issuer signed it, such as ``https://db.example.com:5432``.

        Raises:
            OriginNotAllowed: the URL's origin is not among the token's signed ones.
        """
        origin = origin_or_none(url)
        try:
            require_signed(self, origin, "a URL without an origin")
        except OriginNotAllowed as error:
            self._noted(origin, error)
            raise
        self._noted(origin, None)
        return self._reveal()

    def _noted(self, origin: str | None, error: OriginNotAllowed | None) -> None:
        if self._note is not None:
            self._note(self, origin, error)

    def reveal(self) -> str:
        """The secret. Whoever calls this answers for where it goes."""
        return self._reveal()

    def __repr__(self) -> str:
        return f"ApiToken(name={self.name!r}, version={self.version}, secret=<redacted>)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ApiToken) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __getstate__(self) -> NoReturn:
        self.__reduce__()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an ApiToken is not pickled or copied; ask for it where it is used")


def require_signed(token: ApiToken, origin: str | None, shown: str) -> None:
    """Let a token go to a canonical origin that its issuer signed it for.

    Args:
        token: that is to go there.
        origin: as `stateful_workflow.sealed.origins.origin_of` gives it; None where there is none.
        shown: the place, where it has no origin.

    Raises:
        OriginNotAllowed: it may not.
    """
    if origin is None or not is_allowed(origin, token.origins):
        raise OriginNotAllowed(
            f"{token.name} may not be sent to {origin or shown}; its issuer "
            f"signed it for {', '.join(token.origins) or 'no origin at all'}"
        )
