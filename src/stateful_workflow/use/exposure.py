"""Find an opened secret, or a part of it, in data, however it is encoded there.

What is looked for is any run of 12 characters of the secret, since what is cut is a secret still;
of a shorter one all of it. The encodings around it are undone first: the escapes of JSON and
``repr``, percent-encoding, hexadecimal and base64. One of fewer than 8 characters is not looked
for: it would be found in anything, and keeps nothing secret. Nor is the header segment of a JWT,
which other tokens share.
"""

from __future__ import annotations

import re
from base64 import b64decode, urlsafe_b64decode
from binascii import a2b_hex
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import compress, count
from string import ascii_letters, digits, hexdigits
from typing import Final
from urllib.parse import unquote_to_bytes

SHORTEST: Final = 8
"""Characters a secret has at least that is looked for."""

RUN: Final = 12
"""Characters in a row of a secret that give it away."""

LEVELS: Final = 4
"""Encodings of bytes that are undone one around the other, each with as many levels of escapes."""

_GROUP: Final = 4  # bytes of an unsigned int
_NUMBERED: Final = re.compile(
    rb"\\(?:(x[\dA-Fa-f]{2}(?:\\x[\dA-Fa-f]{2})*|[0-3][0-7]{2})"
    rb"|U[\dA-Fa-f]{8}|u[\dA-Fa-f]{4}(?:\\u[\dA-Fa-f]{4})*)"
)
_BACKSLASH: Final = b"\xff\xfe\xff"  # in the place of one that is plain; never part of UTF-8
_JWT_HEADER: Final = re.compile(r"\AeyJ[\w-]*(?=\.[\w-]*\.)", re.ASCII)  # it begins with {"


class OpenedSecrets:
    """The secrets an activity has opened, and where they turn up."""

    def __init__(self) -> None:
        self._secrets: dict[str, str] = {}
        self._search = _Search({})

    def add(self, name: str, secret: str) -> None:
        """Note a secret under its credential name."""
        for part in _parts(secret):
            self._secrets.setdefault(part, name)

    @property
    def are_none(self) -> bool:
        """Whether there is nothing to look for."""
        return not self._secrets

    def found_in(self, data: Iterable[bytes]) -> str | None:
        """The credential name of a secret that is in the data, or None."""
        secrets = dict(self._secrets)  # a thread may open another token meanwhile
        if not secrets:
            return None
        search = self._search
        if search.secrets != secrets:
            self._search = search = _Search(secrets)
        readings = (one for part in data for one in _readings(part, search.shortest, search.text))
        return next((name for name in map(search.name_in, readings) if name is not None), None)


def _parts(secret: str) -> set[str]:
    """What gives a secret away: itself, and what it is made of where it is a pair for Basic."""
    found = {_JWT_HEADER.sub("", secret)}
    pair = secret.removeprefix("Basic ")
    for text in (pair, _from_base64(pair)):
        user, colon, password = text.partition(":")
        if colon and not password.startswith("//"):  # a URL is no pair
            found |= {text, user, password}
    return {part for part in found if len(part) >= SHORTEST}


def _from_base64(text: str) -> str:
    try:
        bare = text.rstrip("=")
        return b64decode(bare + "=" * (-len(bare) % 4), b"-_", validate=True).decode()
    except ValueError:
        return ""


class _Search:
    """What secrets are looked for by: each of their runs, and the groups of bytes in these."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self.secrets = secrets
        self.text = _ASCII if all(map(str.isascii, secrets)) else _TEXT
        self.shortest = min(RUN, *map(len, secrets)) if secrets else RUN
        """Bytes of the shortest run."""
        # Wherever a run stands, one of its groups begins at a multiple of this.
        self._step = (self.shortest - _GROUP + 1) // _GROUP * _GROUP
        self._groups: set[int] = set()
        for secret in secrets:
            for needle in _needles(secret):
                for first in range(_GROUP):
                    self._groups.update(_groups(needle[first:]))

    def name_in(self, data: bytes) -> str | None:
        """The name of a secret of which a run is in the data, or None."""
        # In C, and nearly always nothing: what follows looks at the few groups that are known.
        are_known = map(self._groups.__contains__, _groups(data)[:: self._step // _GROUP])
        for at in compress(count(0, self._step), are_known):
            for length, runs in self._runs.items():
                for first in range(max(0, at + _GROUP - length), at + 1):
                    name = runs.get(data[first : first + length])
                    if name is not None:
                        return name
        return None

    @cached_property
    def _runs(self) -> dict[int, dict[bytes, str]]:
        """The names of the secrets, by the runs that give them away, by their bytes."""
        found: dict[int, dict[bytes, str]] = {}
        for secret, name in self.secrets.items():
            for needle, encoding in _needles(secret).items():
                text = needle.decode(encoding, "surrogateescape")
                for first in range(max(1, len(text) - RUN + 1)):
                    run = text[first : first + RUN].encode(encoding, "surrogateescape")
                    found.setdefault(len(run), {})[run] = name
        return found


def _groups(data: bytes) -> memoryview[int]:
    return memoryview(data)[: len(data) // _GROUP * _GROUP].cast("I")


def _needles(secret: str) -> dict[bytes, str]:
    """What a secret is in `_readings` of its spellings, each with its encoding."""
    # Python spells a character up to U+00FF as if it were a byte.
    plain = {_unescaped(spell(secret).encode())[1:-1] for spell in (repr, ascii)}
    plain.add(secret.encode())
    plain |= {needle.replace(b" ", b"+") for needle in plain}  # as in a query
    for _ in range(LEVELS):  # what looks like an escape in it is undone along
        plain |= {undone(needle) for needle in plain for undone in _ESCAPES}
    found = {needle: "utf-8" for needle in plain if len(needle) >= SHORTEST}
    return found | {secret.encode(wide): wide for wide in ("utf-16-le", "utf-16-be")}


def _readings(data: bytes, shortest: int, text: _Alphabet) -> Iterator[bytes]:
    """The data as it is, and with the encodings in it undone.

    Args:
        shortest: bytes of the shortest run that is looked for.
        text: what every spelling of it is made of; the rest is not looked at again.
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
        return re.findall(rb"[^\0]{%d,}" % length, kept)


_ASCII: Final = _Alphabet(bytes([*b"\t\n\r", *range(0x20, 0x80)]))
_TEXT: Final = _Alphabet(bytes([*b"\t\n\r", *range(0x20, 0x100)]))
_BASE64: Final = _Alphabet((ascii_letters + digits + "+/-_").encode(), b" \t\r\n")
_HEX: Final = _Alphabet(hexdigits.encode(), b" \t\r\n+:,.-")
_ENCODINGS: Final = ((_BASE64, 4, 3, urlsafe_b64decode), (_HEX, 2, 1, a2b_hex))
_ESCAPES: Final = (_unescaped, unquote_to_bytes)
