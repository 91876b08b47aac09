"""What is sealed in a token: the token, with values of its own or without, or a reference."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, cast

from ..errors import TokenMalformed
from ..text.strict_json import json_object
from .message import MAX_LIST, Content, valid_name

_PART: Final = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~@:+=,-]+"
_REFERENCE: Final = re.compile(rf"([A-Za-z0-9][A-Za-z0-9._-]{{0,63}}):({_PART}(?:/{_PART})*)")
MAX_REFERENCE: Final = 1000


class Values(Mapping[str, str]):
    """What belongs to a token, by name: read-only, printed redacted, not pickled."""

    __slots__ = ("_held",)

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        held = dict(values or {})
        self._held = lambda: held  # as in `ApiToken`

    def __getitem__(self, name: str) -> str:
        return self._held()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held())

    def __len__(self) -> int:
        return len(self._held())

    def __repr__(self) -> str:
        return f"Values({', '.join(f'{name}=<redacted>' for name in self)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("the values of a token are not pickled or copied")


@dataclass(frozen=True)
class Secret:
    """What is sealed.

    Attributes:
        token: the token; of a reference what names it, ``PREFIX:NAME``.
        values: the token's own; none for a reference.
        is_reference: the reader's worker resolves it.
    """

    token: str = field(repr=False)
    values: Mapping[str, str] = field(default_factory=Values, repr=False)
    is_reference: bool = False

    @property
    def content(self) -> Content | None:
        """The claim that says what it is."""
        return "reference" if self.is_reference else "values" if self.values else None

    @property
    def named(self) -> tuple[str, str]:
        """Prefix and name of a reference."""
        prefix, _, name = self.token.partition(":")
        return prefix, name

    def encode(self) -> bytes:
        """The plaintext.

        Raises:
            TokenMalformed: it is outside what `decode` takes, or no header can carry the token.
        """
        if not self.token or self.token != self.token.strip():
            raise TokenMalformed("the token is empty, or begins or ends with white space")
        if "\n" in self.token or "\r" in self.token:
            raise TokenMalformed("the token has several lines, which no header can carry")
        text = self.token
        if self.content == "values":
            both = {"token": self.token, "values": dict(self.values)}
            text = json.dumps(both, separators=(",", ":"), ensure_ascii=False)
        # The error of `encode` would hold the token.
        plaintext = text.encode(errors="replace")
        if plaintext.decode() != text:
            raise TokenMalformed("the token is not valid Unicode")
        self.decode(plaintext, self.content)
        return plaintext

    @staticmethod
    def decode(plaintext: bytes, content: Content | None) -> Secret:
        """Read a plaintext.

        Raises:
            TokenMalformed: it is not what `content` says; nothing of it stands in the error.
        """
        secret: Secret | None = None
        # An error raised while this one is handled would carry the secret as its context.
        try:
            text = plaintext.decode()
            if content == "values":
                secret = _with_values(text)
            elif text and (content is None or _is_reference(text)):
                secret = Secret(text, is_reference=content is not None)
        except ValueError:
            pass
        if secret is None:
            raise TokenMalformed(_WHAT[content])
        return secret


_WHAT: Final[Mapping[Content | None, str]] = {
    None: "the sealed token is empty or no text",
    "values": "what is sealed is not a token and 1 to 64 named values of its own, texts all",
    "reference": "the reference is not PREFIX:NAME, of letters, digits and ._~@:+=,- in parts "
    f"between slashes that are neither . nor .., of {MAX_REFERENCE:,} characters at most",
}


def _with_values(text: str) -> Secret | None:
    members = json_object(text)
    token, values = members.get("token"), members.get("values")
    if members.keys() != {"token", "values"} or not isinstance(values, dict):
        return None
    named = cast("dict[str, Any]", values)
    is_whole = 1 <= len(named) <= MAX_LIST and all(map(valid_name, named))
    if not is_whole or not all(isinstance(one, str) for one in (token, *named.values())):
        return None
    "".join(map(str, (token, *named.values()))).encode()  # raises where it is half a surrogate
    return Secret(str(token), Values(named)) if token else None


def _is_reference(text: str) -> bool:
    return len(text) <= MAX_REFERENCE and _REFERENCE.fullmatch(text) is not None
