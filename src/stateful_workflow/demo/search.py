"""Search an engine's database for a secret, as bytes on disk and as values in its tables."""

from __future__ import annotations

import base64
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

_SUFFIXES: Final = ("-wal", "-shm", "")
_CHUNK_BYTES: Final = 1 << 22


def forms(needle: bytes) -> tuple[bytes, ...]:
    """The needle itself, and how it looks inside base64 and base64url text.

    What base64 makes of it depends on how many bytes stand before it, modulo three, and at
    its edges on its neighbours: for each of the three alignments, the characters that follow
    from the needle alone.
    """
    found = {needle}
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + needle)
        first = (before * 8 + 5) // 6
        inner = encoded[first : (before + len(needle)) * 8 // 6]
        found.update((inner, inner.translate(bytes.maketrans(b"+/", b"-_"))))
    return tuple(sorted(found))


class EngineFiles:
    """A copy of an engine's SQLite file, its ``-wal`` and its ``-shm``, taken while it runs.

    Args:
        db: the SQLite file.
        directory: existing one, for the copy.
    """

    def __init__(self, db: Path, directory: Path) -> None:
        self._db = directory / "copy.db"
        self._files: list[Path] = []
        # The log first: what a checkpoint moves meanwhile is then in both, never in neither.
        for suffix in _SUFFIXES:
            source = db.with_name(db.name + suffix)
            copy = self._db.with_name(self._db.name + suffix)
            if source.exists():
                shutil.copyfile(source, copy)
                self._files.append(copy)

    def occurrences(self, needles: Sequence[bytes]) -> dict[bytes, int]:
        """How often each needle is found, in any of its `forms`.

        The files are searched as bytes, which sees deleted rows too. A long value is spread
        over pages, and a needle in two pieces is not seen so: the values are searched as well.
        Of the two counts the higher one is taken.
        """
        spelled = {needle: forms(needle) for needle in needles}
        on_disk = _count(self._chunks(max(map(len, needles), default=0) * 2), spelled)
        in_tables = _count(self._values(), spelled)
        return {needle: max(on_disk[needle], in_tables[needle]) for needle in needles}

    def _chunks(self, overlap: int) -> Iterator[bytes]:
        for path in self._files:
            with path.open("rb") as file:
                before = b""
                while chunk := file.read(_CHUNK_BYTES):
                    yield before + chunk
                    before = chunk[-overlap:]

    def _values(self) -> Iterator[bytes]:
        # Read on a second copy: opening it folds the log into the file.
        with tempfile.TemporaryDirectory(dir=self._db.parent) as directory:
            for path in self._files:
                if not path.name.endswith("-shm"):
                    shutil.copyfile(path, Path(directory, path.name))
            with closing(sqlite3.connect(Path(directory, self._db.name))) as connection:
                connection.text_factory = bytes
                tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                for (table,) in tables.fetchall():
                    name = table.decode().replace('"', '""')
                    for row in connection.execute(f'SELECT * FROM "{name}"'):  # noqa: S608
                        yield from (value for value in row if isinstance(value, bytes))


def _count(haystacks: Iterable[bytes], spelled: dict[bytes, tuple[bytes, ...]]) -> dict[bytes, int]:
    counts = dict.fromkeys(spelled, 0)
    for haystack in haystacks:
        for needle, variants in spelled.items():
            counts[needle] += sum(haystack.count(variant) for variant in variants)
    return counts
