"""Search an engine's database for a secret, as bytes on disk and as values in its tables."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

_SUFFIXES: Final = ("-journal", "-wal", "-shm", "")
_CHUNK_BYTES: Final = 1 << 22


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

    The files are searched as bytes, which sees deleted rows too. A long value is spread over
    pages, and a needle in two pieces is not seen so: the values are searched as well. Of the
    two counts the higher one is taken.

    Args:
        db: the SQLite file; its journal or log beside it is searched too.
        needles: what to look for; not empty.
    """
    spelled = {needle: forms(needle) for needle in needles}
    on_disk = _count(_chunks(db, 2 * max(map(len, needles))), spelled)
    in_tables = _count(_values(db), spelled)
    return {needle: max(on_disk[needle], in_tables[needle]) for needle in needles}


def _chunks(db: Path, overlap: int) -> Iterator[bytes]:
    # The logs first: what is moved from them meanwhile is then seen twice, not missed.
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError), db.with_name(db.name + suffix).open("rb") as file:
            before = b""
            while chunk := file.read(_CHUNK_BYTES):
                yield before + chunk
                before = chunk[-overlap:]


def _values(db: Path) -> Iterator[bytes]:
    # From a copy in memory, taken under SQLite's own locks, so that the engine waits for
    # milliseconds only.
    with closing(sqlite3.connect(":memory:")) as copy:
        with closing(sqlite3.connect(f"{db.as_uri()}?mode=ro", uri=True, timeout=30)) as engine:
            engine.backup(copy)
        copy.text_factory = bytes
        tables = copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            name = table.decode().replace('"', '""')
            for row in copy.execute(f'SELECT * FROM "{name}"'):  # noqa: S608 (their own names)
                yield from (value for value in row if isinstance(value, bytes))


def _count(haystacks: Iterable[bytes], spelled: dict[bytes, tuple[bytes, ...]]) -> dict[bytes, int]:
    counts = dict.fromkeys(spelled, 0)
    for haystack in haystacks:
        for needle, variants in spelled.items():
            counts[needle] += sum(haystack.count(variant) for variant in variants)
    return counts
