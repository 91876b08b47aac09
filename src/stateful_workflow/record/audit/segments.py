"""The files one chain stands in: found by name, and read from either end.

The newest segment has the name that was asked for. Older ones were renamed, by `AuditFile` to
``NAME.000001`` and so on, or by a program such as logrotate, to ``NAME.1``, ``NAME-20261125``
or ``NAME.1.gz``; their order follows from what is in them.

What follows the last newline of a segment is no line: a process was killed, or the power
failed, while it was written. It is not part of the chain and stays where it is.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from ...errors import AuditError
from .chain import MAX_LINE_BYTES, Checkpoint, Header, Line, Tip

_BLOCK_BYTES: Final = 1 << 16
_HEADER: Final = b'{"sequence":'
_ROTATED = re.compile(r"[.-][0-9][0-9.-]*(\.gz)?")
_NUMBERED = re.compile(r"\.([0-9]+)(\.gz)?")


@dataclass(frozen=True)
class Segment:
    """A file of a chain, as its first line tells.

    Attributes:
        path: the file.
        raw: its first line.
        line: the same, read.
        header: the same, as a header.
    """

    path: Path
    raw: bytes
    line: Line
    header: Header


@dataclass(frozen=True)
class End:
    """How a segment ends.

    Attributes:
        tip: of the chain after its last line.
        unsigned: lines behind its last checkpoint, or in it where it has none.
        torn: whether something follows the last line.
    """

    tip: Tip
    unsigned: int
    torn: bool


def open_segment(path: Path) -> Segment | None:
    """Read the first line of a file; None where it has no whole one.

    Raises:
        FileNotFoundError: there is none.
        AuditError: it cannot be read.
        ValueError: its first line is no header.
    """
    with _opened(path) as stream:
        raw = stream.readline(MAX_LINE_BYTES)
    if not raw.endswith(b"\n") and (
        _HEADER.startswith(raw[: len(_HEADER)]) or not raw.strip(b"\0")
    ):
        return None
    line = Line.read(raw)
    return Segment(path, raw, line, Header.of(line))


def siblings(path: Path) -> list[Path]:
    """The files beside a file that have the names of its rotated ones."""
    return [
        other
        for other in sorted(path.parent.iterdir())
        if other.name.startswith(path.name) and _ROTATED.fullmatch(other.name[len(path.name) :])
    ]


def rotated(path: Path) -> list[Segment]:
    """The rotated segments of a file; what begins with no header is left out.

    Raises:
        AuditError: one cannot be read.
    """
    found: list[Segment] = []
    for other in siblings(path):
        try:
            segment = open_segment(other)
        except (ValueError, FileNotFoundError):
            continue
        if segment is not None:
            found.append(segment)
    return found


def newest(segments: list[Segment]) -> Segment | None:
    """The segment that the chain which was begun last ends with; None where there is none.

    Clocks tell which chain that is and nothing more: one that was set back would make an older
    segment of it the newest.
    """
    if not segments:
        return None
    chain = max(segments, key=lambda one: one.line.timestamp).header.chain
    own = [one for one in segments if one.header.chain == chain]
    return max(own, key=lambda one: one.line.sequence)


def next_name(path: Path) -> Path:
    """The name that a segment is given when the next one begins."""
    numbers = [
        int(match.group(1))
        for other in siblings(path)
        if (match := _NUMBERED.fullmatch(other.name[len(path.name) :]))
    ]
    return path.with_name(f"{path.name}.{max(numbers, default=0) + 1:06d}")


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file in order; one without a newline is what follows the last.

    Raises:
        FileNotFoundError: there is none.
        AuditError: it cannot be read.
        ValueError: a line is longer than any in an audit file.
    """
    with _opened(path) as stream:
        while raw := stream.readline(MAX_LINE_BYTES):
            if not raw.endswith(b"\n"):
                while more := stream.readline(_BLOCK_BYTES):
                    if more.endswith(b"\n"):
                        raise ValueError(f"it is longer than {MAX_LINE_BYTES} bytes")
            yield raw


def backwards(stream: BinaryIO, at: int) -> Iterator[bytes]:
    """The lines before a place in a file, the last first.

    Before them comes what follows the last newline, mostly b"".

    Args:
        stream: the file, plain.
        at: bytes from its beginning.
    """
    pieces: list[bytes] = []  # of the line that is being put together, the last first
    end = b""
    while at > 0:
        size = min(_BLOCK_BYTES, at)
        at -= size
        stream.seek(at)
        *others, last = stream.read(size).split(b"\n")
        pieces.append(last)
        for piece in reversed(others):
            yield b"".join(reversed(pieces)) + end
            pieces, end = [piece], b"\n"
    yield b"".join(reversed(pieces)) + end


def lines_backwards(path: Path) -> Iterator[bytes]:
    """As `backwards`, from the end of a file; of a compressed one only back to the last mark.

    Raises:
        FileNotFoundError: there is none.
        AuditError: it cannot be read.
    """
    if path.suffix == ".gz":
        yield from _backwards_compressed(path)
        return
    with _opened(path) as stream:
        yield from backwards(stream, stream.seek(0, 2))


def is_mark(raw: bytes) -> bool:
    """Whether a line is a header or a checkpoint, and no event."""
    # In a JSON string a quotation mark is escaped, so this is a member of its own.
    return b',"line":"' in raw


def end_of(segment: Segment) -> End:
    """Read how a segment ends.

    Raises:
        AuditError: it cannot be read, or its last lines are none of an audit file.
    """
    path = segment.path
    reading = lines_backwards(path)
    torn = next(reading) != b""
    last: Line | None = None
    try:
        for raw in reading:
            if last is None:
                last = Line.read(raw)
            if is_mark(raw):
                line = Line.read(raw)
                unsigned = last.sequence - line.sequence + (line.kind == "header")
                checkpoint = (
                    Header.of(line).checkpoint
                    if line.kind == "header"
                    else Checkpoint.of(line).digest
                )
                tip = Tip(segment.header.chain, last.sequence, last.head, checkpoint)
                return End(tip, unsigned, torn)
    except ValueError:
        pass
    raise AuditError(
        f"{path} does not end as an audit file does: look at it with `stateful audit verify`, "
        "and move it away to begin a new one"
    )


def _backwards_compressed(path: Path) -> Iterator[bytes]:
    recent: list[bytes] = []
    torn = b""
    for raw in lines(path):
        if not raw.endswith(b"\n"):
            torn = raw
        elif is_mark(raw):
            recent = [raw]
        else:
            recent.append(raw)
    yield torn
    yield from reversed(recent)


@contextmanager
def _opened(path: Path) -> Generator[BinaryIO, None, None]:
    """Open a file to read, one that is called ``.gz`` as what was compressed in it.

    Raises:
        FileNotFoundError: there is none.
        AuditError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            if path.suffix == ".gz":
                yield cast("BinaryIO", gzip.GzipFile(fileobj=stream))
            else:
                yield stream
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise AuditError(f"the audit file {path} cannot be read: {why}") from None
