"""Text that a terminal, or a reader of a log, would take for something else."""

from __future__ import annotations

from typing import Final

HOSTILE: Final = (
    "id\x1b]52;c;ZXZpbA==\x07\x1b[2A\x9b31m\x9d0;evil\x9c\x7f\b\v\f\t\r\nerror: forged"
    "\x85\u2028\u2029\u202e\u202a\u2066\u2069\u200e\u200f\u061c\u200b\u200d\ufeff\xa0\xad"
    "\ue000\udc9b\U000e0041 [red]:key:"
)
"""Clipboard, cursor, colour, title, C1, DEL; line ends; direction, no width; no character."""

VISIBLE: Final = (
    r"id\x1b]52;c;ZXZpbA==\x07\x1b[2A\x9b31m\x9d0;evil\x9c\x7f\x08\x0b\x0c\t\r\nerror: forged"
    r"\x85\u2028\u2029\u202e\u202a\u2066\u2069\u200e\u200f\u061c\u200b\u200d\ufeff\xa0\xad"
    r"\ue000\udc9b\U000e0041 [red]:key:"
)
"""The same as it is shown."""


def unprintable(text: str) -> set[str]:
    """The characters of an output that a terminal could act upon, line ends apart."""
    return {char for char in text if char != "\n" and not char.isprintable()}
