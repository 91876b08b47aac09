"""The files that chains stand in, found by name, in order.

The newest segment has the name that was asked for. Older ones were renamed, by `AuditFile` to
``NAME.000001`` and so on, or by a program such as logrotate, to ``NAME.1`` or
``NAME-20261125``; their order follows from what is in them.

What follows the last newline of a segment is no line: a process was killed, or the power
failed, while it was written. It is not part of the chain and stays where it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from ...errors import AuditBroken, AuditError
from ...sealed.crypto import Key
from .chain import MAX_LINE_BYTES, Line, Tip, is_checkpoint

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

EVIDENCE: Final = "keep the files as they are, and compare them with a copy from elsewhere"

_HEADER: Final = b'{"sequence":'
_ROTATED = re.compile(r"[.-][0-9][0-9.-]*")


@dataclass(frozen=True)
class Segment:
    """A file of a chain, as its first line tells.

    Attributes:
        path: the file.
        raw: its first line.
        line: the same, read.
        chain: the id of the chain.
        key: verifies the chain's checkpoints.
    """

    path: Path
    raw: bytes
    line: Line
    chain: str
    key: Key

    @property
    def before(self) -> Tip:
        """Where the chain ended before the segment, as the segment has it."""
        return Tip(self.chain, self.line.sequence - 1, self.line.previous)


def open_segment(path: Path) -> Segment | None:
    """Read the first line of a file; None where it has no whole one.

    Raises:
        FileNotFoundError: there is none.
        AuditError: it cannot be read.
        AuditBroken: its first line is no header.
    """
    with _opened(path) as stream:
        raw = stream.readline(MAX_LINE_BYTES)
    if not raw.endswith(b"\n") and (
        _HEADER.startswith(raw[: len(_HEADER)]) or not raw.strip(b"\0")
    ):
        return None
    try:
        line = Line.read(raw)
        return Segment(path, raw, line, *line.header())
    except ValueError as error:
        raise AuditBroken(
            f"{path} line 1: {error}: it is no audit file, or its beginning was changed; {EVIDENCE}"
        ) from None


def chains(paths: Paths) -> tuple[list[list[Segment]], list[AuditError]]:
    """The segments of each chain in order, those of rotated files beside the named ones included.

    Returns:
        beside them, why files are in none: their beginning was changed, they cannot be read, or
        are not there.

    Raises:
        AuditError: a directory cannot be read.
        ValueError: `paths` names no file.
    """
    named = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not named:
        raise ValueError("paths names no file")
    found: dict[Path, Segment] = {}
    problems: dict[str, AuditError] = {}
    for path in (Path(one).resolve() for one in named):
        segments, wrong = _beside(path)
        found.update((one.path, one) for one in segments)
        problems.update((str(error), error) for error in wrong)
    groups: dict[str, list[Segment]] = {}
    for one in sorted(found.values(), key=lambda one: (one.chain, one.line.sequence)):
        groups.setdefault(one.chain, []).append(one)
    return list(groups.values()), list(problems.values())


def one_chain(paths: Paths) -> list[Segment]:
    """As `chains`, where all that is named is to be of one.

    Raises:
        AuditError: it is not, or a file cannot be read.
        AuditBroken: the beginning of a file was changed.
        ValueError: `paths` names no file.
    """
    found, problems = chains(paths)
    for error in problems:
        raise error
    if len(found) > 1:
        firsts = ", ".join(str(segments[0].path) for segments in found)
        raise AuditError(
            f"these are the files of {len(found)} chains, which begin with {firsts}: verify each "
            "by itself, or the first line of one was changed"
        )
    return found[0]


def _beside(path: Path) -> tuple[list[Segment], list[AuditError]]:
    """The segments of a file and of those with the names of its rotated ones."""
    while True:
        segments: list[Segment] = []
        wrong: list[AuditError] = []
        others = rotated(path)
        for one in (*others, path):
            try:
                segment = open_segment(one)
            except FileNotFoundError:
                continue
            except AuditError as error:
                wrong.append(error)
            else:
                segments += [] if segment is None else [segment]
        if rotated(path) == others:  # else one was rotated meanwhile, and would be missed
            break
    if not segments and not wrong:
        there_is = "holds no line yet" if path.exists() else "is not there: there is no audit file"
        wrong.append(AuditError(f"{path} {there_is}"))
    return segments, wrong


def rotated(path: Path) -> list[Path]:
    """The files beside a file that have the names of its rotated ones.

    Raises:
        AuditError: their directory cannot be read.
    """
    try:
        others = sorted(path.parent.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise AuditError(
            f"the directory of the audit file {path} cannot be read: {error.strerror}"
        ) from None
    named = [other for other in others if other.name.startswith(path.name)]
    return [other for other in named if _ROTATED.fullmatch(other.name[len(path.name) :])]


def newest(path: Path) -> Segment | None:
    """The rotated segment of a file with which its chain ends; None where there is none.

    Raises:
        AuditError: one cannot be read, or its beginning was changed.
    """
    segments = [segment for one in rotated(path) if (segment := open_segment(one)) is not None]
    return max(segments, key=lambda one: one.line.sequence, default=None)


def next_name(path: Path) -> Path:
    """The name that a segment is given when the next one begins."""
    suffixes = [other.name[len(path.name) + 1 :] for other in rotated(path)]
    last = max((int(suffix) for suffix in suffixes if suffix.isdecimal()), default=0)
    return path.with_name(f"{path.name}.{last + 1:06d}")


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
                while more := stream.readline(MAX_LINE_BYTES):
                    if more.endswith(b"\n"):
                        raise ValueError(f"it is longer than {MAX_LINE_BYTES} bytes")
            yield raw


def end_of(segment: Segment) -> tuple[Tip, bool]:
    """The tip of the chain after a segment, and whether something follows its last line.

    Raises:
        AuditError: it cannot be read, or its last line is none of an audit file.
    """
    last, behind, torn = segment.raw, 0, False
    try:
        for raw in lines(segment.path):
            if raw.endswith(b"\n"):
                last, behind = raw, 0 if is_checkpoint(raw) else behind + 1
            else:
                torn = True
        line = Line.read(last)
    except ValueError:
        raise AuditError(
            f"{segment.path} does not end as an audit file does: look at it with `stateful audit "
            "verify`, and move it away to begin a new one"
        ) from None
    return Tip(segment.chain, line.sequence, line.head, line.sequence - behind), torn


@contextmanager
def _opened(path: Path) -> Generator[BinaryIO, None, None]:
    try:
        with path.open("rb") as stream:
            yield stream
    except FileNotFoundError:
        raise
    except OSError as error:
        raise AuditError(f"the audit file {path} cannot be read: {error.strerror}") from None
