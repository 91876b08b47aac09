"""Find an opened secret in data, however it is encoded there.

What is looked for is the secret itself. The encodings around it are undone first: the
escapes of JSON and ``repr``, percent-encoding, hexadecimal and base64. One of fewer than 8
characters is not looked for: it would be found in anything, and keeps nothing secret.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from binascii import a2b_hex
from collections.abc import Iterable, Iterator
from string import ascii_letters, digits, hexdigits
from typing import Final
from urllib.parse import unquote_to_bytes

SHORTEST: Final = 8
"""Characters a secret has at least that is looked for."""

LEVELS: Final = 4
"""Encodings of bytes that are undone one around the other, each with as many levels of escapes."""

_NUMBERED: Final = re.compile(
    rb"\\(?:(x[\dA-Fa-f]{2}(?:\\x[\dA-Fa-f]{2})*|[0-3][0-7]{2})"
    rb"|U[\dA-Fa-f]{8}|u[\dA-Fa-f]{4}(?:\\u[\dA-Fa-f]{4})*)"
)
_BACKSLASH: Final = b"\xff\xfe\xff"  # in the place of one that is plain; never part of UTF-8


class OpenedSecrets:
    """The secrets an activity has opened, and where they turn up."""

    def __init__(self) -> None:
        self._needles: dict[bytes, str] = {}
        self._is_ascii = True

    def add(self, name: str, secret: str) -> None:
        """Note a secret under its credential name."""
        if len(secret) >= SHORTEST:
            self._is_ascii = self._is_ascii and secret.isascii()
            self._needles |= dict.fromkeys(_needles(secret), name)

    @property
    def are_none(self) -> bool:
        """Whether there is nothing to look for."""
        return not self._needles

    def found_in(self, data: Iterable[bytes]) -> str | None:
        """The credential name of a secret that is in the data, or None."""
        needles = dict(self._needles)  # a thread may open another token meanwhile
        if not needles:
            return None
        text = _ASCII if self._is_ascii else _TEXT
        shortest = min(map(len, needles))
        for part in data:
            for reading in _readings(part, shortest, text):
                for needle, name in needles.items():
                    if needle in reading:
                        return name
        return None


def _needles(secret: str) -> set[bytes]:
    """What a secret is in `_readings` of its spellings."""
    # Python spells a character up to U+00FF as if it were a byte.
    plain = {_unescaped(spell(secret).encode())[1:-1] for spell in (repr, ascii)}
    plain.add(secret.encode())
    plain |= {needle.replace(b" ", b"+") for needle in plain}  # as in a query
    for _ in range(LEVELS):  # what looks like an escape in it is undone along
        plain |= {undone(needle) for needle in plain for undone in _ESCAPES}
    wide = {secret.encode("utf-16-le"), secret.encode("utf-16-be")}
    return {needle for needle in plain | wide if len(needle) >= SHORTEST}


def _readings(data: bytes, shortest: int, text: _Alphabet) -> Iterator[bytes]:
    """The data as it is, and with the encodings in it undone.

    Args:
        shortest: bytes of the shortest needle.
        text: what every spelling of them is made of; the rest is not looked at again.
    """
    yield data
    seen: set[tuple[int, bytes]] = set()
    for _ in range(LEVELS):
        decoded: list[bytes] = []
        for reading in _without_escapes(b"\0".join(text.runs(data, shortest))):
            yield reading
            for alphabet, block, size, decode in _ENCODINGS:
                runs = alphabet.runs(reading, -(-shortest * block // size))
                stream = b"".join(run for run in runs if (block, run) not in seen)
                seen.update((block, run) for run in runs)
                # At every alignment, since unrelated characters may stand before.
                for first in range(block if stream else 0):
                    padding = b"A" * ((first - len(stream)) % block)
                    decoded.append(decode(stream[first:] + padding))
        data = b"\0".join(decoded)
        yield data


def _without_escapes(data: bytes) -> Iterator[bytes]:
    yield data
    for _ in range(LEVELS):
        for undone in _ESCAPES:
            plain = undone(data)
            if plain != data:
                data = plain
                yield data


def _unescaped(data: bytes) -> bytes:
    """One level of backslashes undone, as JSON, Python and C write them."""
    if b"\\" not in data:
        return data
    data = _NUMBERED.sub(_character, data.replace(b"\\\\", _BACKSLASH))
    for letter, plain in zip(b"nrtbf", b"\n\r\t\b\f", strict=True):
        data = data.replace(b"\\%c" % letter, b"%c" % plain)
    return data.replace(b"\\", b"").replace(_BACKSLASH, b"\\")


def _character(escape: re.Match[bytes]) -> bytes:
    halves = escape[0].decode("unicode_escape", "replace").encode("utf-16-le", "surrogatepass")
    plain = halves.decode("utf-16-le", "replace")
    return plain.encode("utf-8" if escape[1] is None else "latin-1").replace(b"\\", _BACKSLASH)


class _Alphabet:
    """The characters of an encoding, and what may stand between them."""

    def __init__(self, characters: bytes, between: bytes = b"") -> None:
        self._between = between
        self._kept = bytes(code if code in characters else 0 for code in range(256))
        self._is_one = bytes(code in characters for code in range(256))

    def runs(self, text: bytes, length: int) -> list[bytes]:
        """Its characters, where so many or more come in a row."""
        # Nearly always there are none, and this is the fastest way to see it.
        if b"\1" * length not in text.translate(self._is_one, self._between):
            return []
        kept = text.translate(self._kept, self._between)
        return re.findall(rb"(?<![^\0])[^\0]{%d,}" % length, kept)


_ASCII: Final = _Alphabet(bytes([*b"\t\n\r", *range(0x20, 0x80)]))
_TEXT: Final = _Alphabet(bytes([*b"\t\n\r", *range(0x20, 0x100)]))
_BASE64: Final = _Alphabet((ascii_letters + digits + "+/-_").encode(), b" \t\r\n")
_HEX: Final = _Alphabet(hexdigits.encode(), b" \t\r\n+:,.-")
_ENCODINGS: Final = ((_BASE64, 4, 3, urlsafe_b64decode), (_HEX, 2, 1, a2b_hex))
_ESCAPES: Final = (_unescaped, unquote_to_bytes)
