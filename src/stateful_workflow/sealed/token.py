"""An opened token."""

from __future__ import annotations

from typing import NoReturn

from .message import Message


class ApiToken:
    """An opened token. `reveal` is the only way to the string.

    It prints redacted, cannot be pickled or copied into a dataclass dump, and compares
    by its fingerprint.
    """

    __slots__ = ("_message", "_reveal")

    def __init__(self, message: Message, secret: str) -> None:
        self._message = message
        # In a closure: what lists an object's members, and `object.__getstate__`, get no string.
        self._reveal = lambda: secret

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
