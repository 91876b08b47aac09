"""An opened token, and the claims of one about to be sealed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, NoReturn

from .errors import OriginsMissing
from .messages import Claims, Message
from .origins import allowed_origin, origin_of


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


def next_version(newest: int, now: float) -> int:
    """The version after `newest`: Unix milliseconds, or two more where clocks disagree.

    Two, since one more is what the same token sealed anew takes, which must not come after.

    Args:
        newest: the version that stands, 0 where none does.
        now: Unix seconds.
    """
    return max(int(now * 1000), newest + 2)


def token_claims(
    *,
    name: str,
    namespace: str,
    root: str,
    tree: str,
    authority: str,
    newest: int,
    now: float,
    origins: Sequence[str] | None,
    held_origins: Sequence[str] | None,
    api_url: str | None,
    expires_in: timedelta | float | None,
    types: Sequence[str] | Literal["any"] | None,
    held_types: Sequence[str] | None,
    readers: Sequence[str] | Literal["any"] | None,
    held_readers: Sequence[str] | None,
) -> Claims:
    """The claims of a token to be set at `authority`.

    Args:
        newest: the version that stands there, 0 where none does; the new one is higher.
        now: Unix seconds.
        origins: where it may be sent; None keeps `held_origins`, or at the first token
            takes the origin of `api_url`.
        expires_in: seconds or a timedelta from now; None for no expiry.
        types: workflow types whose activities may open it; None keeps `held_types` (a rotation
            must not widen by saying nothing), "any" lifts the limit.
        readers: audiences of the readers it is sealed for; None keeps `held_readers`, "any"
            seals for every reader of the keyring.

    Raises:
        OriginsMissing: where no origin is given or known.
        ValueError: for an origin that is refused, or an expiry that is not ahead.
    """
    if origins is None:
        origins = held_origins
    if origins is None:
        if api_url is None:
            raise OriginsMissing(
                f"the first token at workflow {authority} needs origins=[…] (where it may be "
                "sent), or an apiUrl there whose origin is taken"
            )
        origins = [origin_of(api_url)]
    if isinstance(origins, str):
        raise ValueError("origins= takes a list of origins")
    seconds = expires_in.total_seconds() if isinstance(expires_in, timedelta) else expires_in
    if seconds is not None and seconds <= 0:
        raise ValueError("expires_in must be ahead of now")
    return Claims(
        name=name,
        namespace=namespace,
        root=root,
        tree=tree,
        authority=authority,
        version=next_version(newest, now),
        expires_at=None if seconds is None else math.ceil(now + seconds),
        origins=tuple(allowed_origin(origin) for origin in origins),
        types=kept("types", types, held_types),
        audiences=kept("readers", readers, held_readers),
    )


def kept(
    option: str, given: Sequence[str] | None, held: Sequence[str] | None
) -> tuple[str, ...] | None:
    """A limit of a token about to be sealed, where None keeps what is held and "any" lifts it.

    Raises:
        ValueError: where another string is given in the place of a list.
    """
    if given is None:
        return None if held is None else tuple(held)
    if given == "any":
        return None
    if isinstance(given, str):
        raise ValueError(f'{option}= takes a list, or "any"')
    return tuple(given)
