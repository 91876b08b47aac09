"""Search an engine's database for a secret, as bytes on disk and as values in its tables."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path


def forms(needle: bytes) -> tuple[bytes, ...]:
    """The needle itself, and how it looks inside base64 and base64url text (RFC 4648).

    What base64 makes of it depends on how many bytes stand before, modulo three, and at the
    edges on its neighbours: for each of the three alignments, the characters that follow from
    the needle alone.
    """
    found = {needle}
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + needle)
        inner = encoded[(before * 8 + 5) // 6 : (before + len(needle)) * 8 // 6]
        found.update((inner, inner.translate(bytes.maketrans(b"+/", b"-_"))))
    return tuple(sorted(found))


def occurrences(db: Path, needles: Sequence[bytes]) -> dict[bytes, int]:
    """How often each needle is found in the database of a running engine, in any of its `forms`.

    The files are searched as bytes, which sees deleted rows too, and so are the values in the
    tables: a long one is spread over pages. What is found both ways counts twice.

    Args:
        db: the SQLite file; its journal or log beside it is searched too.
        needles: what to look for; not empty.
    """
    spelled = {needle: forms(needle) for needle in needles}
    counts = dict.fromkeys(needles, 0)
    for haystack in _haystacks(db):
        for needle, variants in spelled.items():
            counts[needle] += sum(haystack.count(variant) for variant in variants)
    return counts


def _haystacks(db: Path) -> Iterator[bytes]:
    # The logs first: what is moved from them meanwhile is then seen twice, not missed.
    for suffix in ("-journal", "-wal", ""):
        with suppress(FileNotFoundError):
            yield db.with_name(db.name + suffix).read_bytes()
    with closing(sqlite3.connect(f"{db.as_uri()}?mode=ro", uri=True, timeout=30)) as engine:
        engine.text_factory = bytes
        tables = engine.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            rows = engine.execute(f'SELECT * FROM "{table.decode()}"')  # noqa: S608 - their own
            yield b"\0".join(value for row in rows for value in row if isinstance(value, bytes))
