"""Text that others chose, shown so that no terminal acts upon it and no line is forged with it."""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    r"""The text with a visible escape such as ``\x1b`` for each character that does not print.

    Those are what `str.isprintable` refuses: controls (C0, DEL, C1), line ends, what changes the
    direction of writing or has no width, surrogates, and what Unicode has not assigned; not those
    to `keep`, such as the line ends of a text that has several.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)
