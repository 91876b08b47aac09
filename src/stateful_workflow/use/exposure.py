"""Find an opened secret in data, however it is encoded there.

What is looked for is the secret itself. The encodings around it are undone first: the
escapes of JSON and ``repr``, percent-encoding, hexadecimal and base64. One of fewer than 8
characters is not looked for: it would be found in anything, and keeps nothing secret.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode
from binascii import a2b_hex
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import unquote_to_bytes

SHORTEST: Final = 8
"""Characters a secret has at least that is looked for."""

LEVELS: Final = 4
"""Encodings of bytes that are undone one around the other, each with as many levels of escapes."""


class OpenedSecrets:
    """The secrets an activity has opened, and where they turn up."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}

    def add(self, name: str, secret: str) -> None:
        """Note a secret under its credential name."""
        if len(secret) < SHORTEST:
            return
        forms = [secret]
        if not secret.isascii():  # no escapes are undone beyond ASCII: as it stands in JSON too
            forms += [json.dumps(secret, ensure_ascii=escaped)[1:-1] for escaped in (True, False)]
        for form in forms:
            self._names[form.encode()] = name

    @property
    def are_none(self) -> bool:
        """Whether there is nothing to look for."""
        return not self._names

    def found_in(self, data: Iterable[bytes]) -> str | None:
        """The credential name of a secret that is in the data, or None."""
        needles = dict(self._names)  # a thread may open another token meanwhile
        if not needles:
            return None
        shortest = min(map(len, needles))
        for part in data:
            for reading in _readings(part, shortest):
                for needle, name in needles.items():
                    if needle in reading:
                        return name
        return None


def _readings(data: bytes, shortest: int) -> Iterator[bytes]:
    """The data as it is, and with the encodings in it undone; `shortest`: bytes of a secret."""
    yield data
    # No run is decoded twice: escapes in escapes would multiply what there is to read.
    seen: dict[bytes, set[bytes]] = defaultdict(set)
    for _ in range(LEVELS):
        decoded: list[bytes] = []
        # Nothing but text holds an encoding.
        texts = _runs(_TEXT, data, shortest, seen[_TEXT])
        for reading in _without_escapes(b"\0".join(texts)):
            yield reading
            for alphabet, between, block, size, decode in _ENCODINGS:
                length = shortest * block // size
                stripped = reading.translate(None, between)
                stream = b"".join(_runs(alphabet, stripped, length, seen[alphabet]))
                # At every alignment, since unrelated characters may stand before.
                for first in range(block if stream else 0):
                    padding = b"A" * ((first - len(stream)) % block)
                    decoded.append(decode(stream[first:] + padding))
        data = b"\0".join(decoded)
        yield data


def _runs(alphabet: bytes, text: bytes, length: int, seen: set[bytes]) -> list[bytes]:
    """Where so many or more of these characters come in a row, as they did nowhere before."""
    runs = dict.fromkeys(re.findall(rb"[%b]{%d,}" % (alphabet, length), text))
    new = [run for run in runs if run not in seen]
    seen.update(new)
    return new


def _without_escapes(data: bytes) -> Iterator[bytes]:
    yield data
    for _ in range(LEVELS):
        for undone in (_unescaped, unquote_to_bytes):
            plain = undone(data)
            if plain != data:
                data = plain
                yield data


def _unescaped(data: bytes) -> bytes:
    """One level of backslashes undone, as JSON and Python write them."""
    return _ESCAPE.sub(_character, data)


def _character(escape: re.Match[bytes]) -> bytes:
    number, letter = escape.groups()
    return _CONTROLS.get(letter, letter) if number is None else bytes.fromhex(number.decode())


_ESCAPE: Final = re.compile(rb"\\(?:(?:x|u00)([\dA-Fa-f]{2})|(.))", re.DOTALL)
_CONTROLS: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_TEXT: Final = rb"\t\n\r -\x7e"
_ENCODINGS: Final = (
    (rb"A-Za-z0-9+/_-", b" \t\r\n", 4, 3, urlsafe_b64decode),
    (rb"0-9A-Fa-f", b" \t\r\n+:,.-", 2, 1, a2b_hex),
)
