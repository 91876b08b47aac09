"""What a file of events proves: `verify` checks it, `read` gives its events back.

A chain that fits together shows that nothing within it was changed, taken out, put in or
reordered, unless somebody wrote everything anew from there on. A checkpoint's signature rules
that out up to the line it covers, for everybody who has not the file's key. A checkpoint that
was kept elsewhere, an anchor, rules it out for everybody, and shows when the end was cut off.
An anchor only demands: that old segments are not there is allowed by `removed_to` alone.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...errors import AuditBroken, AuditError
from ...sealed.crypto import Key
from .chain import Checkpoint, Line, RecordedEvent, Tip, public_key
from .segments import Segment, lines, open_segment, siblings

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

_ATTEMPTS: Final = 5
_MOST_UNSIGNED: Final = 1_010
"""Lines behind the last checkpoint, with some room for headers of segments."""

_EVIDENCE: Final = "keep the files as they are, and compare them with a copy from elsewhere"


@dataclass(frozen=True)
class Verified:
    """What was found of one chain that fits together; as text, no more than that.

    Attributes:
        chain: its id.
        events: how many there are.
        first_sequence, last_sequence: of its lines.
        intact_to: up to this line an anchor shows that it is what was written; None without one.
        signed_to: up to this line a checkpoint in it is signed; None without one.
        key: thumbprint (RFC 7638) of the key that signed them.
        key_pinned: whether that is the key that was asked for; else the files name it themselves.
        torn: files that end with a part of a line, which a killed process or a loss of power
            leaves behind and is no part of the chain.
    """

    chain: str
    events: int
    first_sequence: int
    last_sequence: int
    intact_to: int | None
    signed_to: int | None
    key: str
    key_pinned: bool
    torn: tuple[str, ...] = ()

    def __str__(self) -> str:
        last = self.last_sequence
        said = [f"{self.events} events in lines {self.first_sequence} to {last}."]
        if self.first_sequence > 1:
            said.append(
                f"Lines 1 to {self.first_sequence - 1} are not here, as was allowed, and nothing "
                "is said of them."
            )
        if self.intact_to is None:
            said.append(
                "They fit together. Without an anchor for them it cannot be seen whether lines "
                "were cut off at the end, or "
                + (
                    "written anew behind what is signed."
                    if self.key_pinned
                    else "everything was written anew."
                )
            )
        elif self.intact_to < last:
            said.append(
                f"Intact to {self.intact_to}, unanchored after: the {last - self.intact_to} lines "
                "behind it fit together, and more may have been cut off."
            )
        else:
            said.append(
                f"Intact to {self.intact_to}, the end; what came after the anchor and was cut off "
                "would not be seen."
            )
        whose = "the key that was asked for" if self.key_pinned else "the key that they name"
        said.append(
            "Nothing is signed."
            if self.signed_to is None
            else f"Signed to {self.signed_to} by {whose}, {self.key}."
        )
        said += [f"{file} ends with a part of a line, which is left out." for file in self.torn]
        return " ".join(said)


def verify(
    paths: Paths,
    *,
    anchors: Iterable[str] = (),
    removed_to: str | None = None,
    key: Mapping[str, object] | None = None,
) -> Verified:
    """Check the files of one chain.

    Memory is bounded, whatever their size.

    Args:
        paths: a file, or several in any order; rotated ones are found by their names.
        anchors: checkpoints that were kept elsewhere (see `AuditFile`), of any age.
        removed_to: where old segments were deleted on purpose, the checkpoint that was the last
            line of them, kept elsewhere. That and what is before may be missing, no line more or
            less; where nothing is missing, it is one more anchor.
        key: the public JWK that signed the checkpoints, from elsewhere; None takes the one that
            the files name.

    Raises:
        AuditBroken: they are not what was written; the message says where.
        AuditError: a file cannot be read, is no audit file, or they are of several chains.
        ValueError: the key is malformed, or `paths` names no file.
    """
    pinned = None if key is None else public_key(key)
    kept, named = list(anchors), _named(paths)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            check = _Check(_one_chain(find(named)), kept, pinned, removed_to)
            for _ in check.events():
                pass
            return check.verified()
        except _Moved as moved:
            if attempt == _ATTEMPTS:
                raise moved.error from None
    raise AssertionError("unreachable")


def read(paths: Paths) -> Iterator[RecordedEvent]:
    """The events of one chain in order, each checked to fit before it is given out.

    Args:
        paths: as `verify`. Where the first lines are missing, that is no error here.

    Raises:
        AuditBroken, AuditError: as `verify`, or an event is one that this version does not know.
            What can be read up to there was given out before, also where a segment next to it
            cannot.
        ValueError: `paths` names no file.
    """
    segments, problems = _look(paths)
    if segments:
        try:
            check = _Check(_one_chain(segments), (), None, whole=False)
            for line in check.events():
                yield check.event(line)
        except _Moved as moved:
            raise moved.error from None
    for error in problems.values():
        raise error


def chains(paths: Paths) -> tuple[dict[str, list[Path]], dict[Path, AuditError]]:
    """The files of several chains, those of each by themselves, rotated ones included.

    Returns:
        by the id of a chain its files, in order; and by file why it is in none of them: it does
        not begin as it was written, cannot be read, or is not there.

    Raises:
        ValueError: `paths` names no file.
    """
    segments, problems = _look(paths)
    found: dict[str, list[Path]] = {}
    for segment in segments:
        found.setdefault(segment.header.chain, []).append(segment.path)
    return found, problems


def find(paths: Paths) -> list[Segment]:
    """The segments of files and of the rotated ones beside them, in order.

    Raises:
        AuditBroken: a file does not begin as it was written.
        AuditError: a file cannot be read, or there is none.
        ValueError: `paths` names no file.
    """
    segments, problems = _look(paths)
    for error in problems.values():
        raise error
    return segments


def _look(paths: Paths) -> tuple[list[Segment], dict[Path, AuditError]]:
    """The segments as `find` gives them, and by file why it is none of them."""
    found: dict[Path, Segment] = {}
    problems: dict[Path, AuditError] = {}
    for path in _named(paths):
        segments, wrong = _look_beside(path)
        own = next((one for one in segments if one.path == path), None)
        if own is not None:
            segments = [one for one in segments if one.header.chain == own.header.chain]
        elif not segments and not wrong:
            wrong[path] = AuditError(
                f"{path} holds no line yet" if path.exists() else f"there is no audit file {path}"
            )
        found.update((one.path, one) for one in segments)
        problems.update(wrong)
    in_order = sorted(found.values(), key=lambda one: (one.header.chain, one.line.sequence))
    return in_order, problems


def _named(paths: Paths) -> list[Path]:
    named = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not named:
        raise ValueError("paths names no file")
    return [Path(one).resolve() for one in named]


def _look_beside(path: Path) -> tuple[list[Segment], dict[Path, AuditError]]:
    """What a file and those with the names of its rotated ones begin with, of whatever chain."""
    segments: list[Segment] = []
    problems: dict[Path, AuditError] = {}
    try:
        others = siblings(path) if path.parent.is_dir() else []
    except OSError as error:
        others = []
        problems[path] = AuditError(
            f"the directory of the audit file {path} cannot be read: {error.strerror}"
        )
    for one in (*others, path):
        try:
            segment = _segment(one)
        except AuditError as error:
            problems[one] = error
        else:
            segments += [] if segment is None else [segment]
    return segments, problems


def _segment(path: Path) -> Segment | None:
    try:
        return open_segment(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise AuditBroken(
            f"{path} line 1: {error}: it is no audit file, or its beginning was changed; "
            + _EVIDENCE
        ) from None


class _Moved(Exception):
    """A segment is not where it was found, mostly since it was rotated meanwhile.

    Attributes:
        error: what that is where it stays so.
    """

    def __init__(self, error: AuditError) -> None:
        super().__init__(str(error))
        self.error = error


def _one_chain(segments: list[Segment]) -> list[Segment]:
    ids = {one.header.chain for one in segments}
    if len(ids) > 1:
        raise AuditError(f"these are the files of {len(ids)} chains: verify each by itself")
    return segments


class _Check:
    """Goes through a chain once.

    Args:
        segments: in order.
        anchors: checkpoints from elsewhere.
        pinned: the key that was asked for.
        removed_to: the checkpoint up to which lines may be missing.
        whole: whether the first lines must be there otherwise.
    """

    def __init__(
        self,
        segments: list[Segment],
        anchors: Iterable[str],
        pinned: Key | None,
        removed_to: str | None = None,
        *,
        whole: bool = True,
    ) -> None:
        self._segments = segments
        self._whole = whole
        first = segments[0]
        self._segment, self._number = first, 1
        self._tip = Tip(first.header.chain)
        self._pinned = pinned
        self._key = first.header.key
        if pinned is not None and pinned.kid != self._key.kid:
            raise self._broken(
                f"it names the checkpoint key {self._key.kid}, not {pinned.kid}: the file was "
                "written anew, or this is the key of another"
            )
        self._covered: dict[int, str] = {}
        for text in anchors:
            self._cover(text, "the anchor")
        self._removed = None if removed_to is None else self._cover(removed_to, "removed_to")
        self._events = 0
        self._intact_to: int | None = None
        self._signed_to: int | None = None
        self._torn: list[str] = []

    def events(self) -> Iterator[Line]:
        """The line of each event, once it was checked.

        Raises:
            AuditBroken, AuditError, _Moved: see `verify`.
        """
        self._start()
        for index, segment in enumerate(self._segments):
            self._segment, self._number = segment, 0
            if index and segment.line.sequence <= self._segments[index - 1].line.sequence:
                raise _Moved(
                    AuditBroken(
                        f"{segment.path} and {self._segments[index - 1].path} both begin with line "
                        f"{segment.line.sequence}: move the one away that is a copy"
                    )
                )
            with self._reading():
                for raw in lines(segment.path):
                    self._number += 1
                    if self._number == 1 and raw != segment.raw:
                        raise _Moved(
                            AuditError(f"{segment.path} was rotated while it was read; try again")
                        )
                    if not raw.endswith(b"\n"):
                        self._torn.append(str(segment.path))
                        continue
                    line = self._take(raw)
                    if line.kind == "event":
                        self._events += 1
                        yield line

    def event(self, line: Line) -> RecordedEvent:
        """The event in the line that was given out last.

        Raises:
            AuditError: it is one that this version does not know.
        """
        file = str(self._segment.path)
        try:
            return line.event(file)
        except ValueError as error:
            raise AuditError(
                f"{file} line {self._number} holds an event that this version does not know "
                f"({error}); read it with a newer one"
            ) from None

    def verified(self) -> Verified:
        """What was found, after the last event.

        Raises:
            AuditBroken: an anchor is of a line behind the last one, or less is signed by the key
                that was asked for than an `AuditFile` signs.
        """
        last, newest = self._tip.sequence, max(self._covered, default=0)
        if newest > last:
            raise self._broken(
                f"the chain ends with line {last}, and an anchor is of line {newest}: "
                f"{_lines(last + 1, newest)} missing"
            )
        unsigned = last - (self._signed_to or 0)
        if self._pinned is not None and (self._signed_to is None or unsigned > _MOST_UNSIGNED):
            raise self._broken(
                f"{unsigned} lines are not signed by the key that was asked for, and an AuditFile "
                "signs after a minute and after every thousand: they may have been written anew"
            )
        return Verified(
            chain=self._tip.chain,
            events=self._events,
            first_sequence=self._segments[0].line.sequence,
            last_sequence=last,
            intact_to=self._intact_to,
            signed_to=self._signed_to,
            key=self._key.kid,
            key_pinned=self._pinned is not None,
            torn=tuple(self._torn),
        )

    def _cover(self, text: str, name: str) -> Checkpoint:
        """Demand the lines that a checkpoint from elsewhere vouches for."""
        try:
            kept = Checkpoint.read(text.strip())
        except ValueError as error:
            raise AuditError(f"{name} {text[:40]!r} cannot be used: {error}") from None
        what = f"{name} of line {kept.sequence}"
        if kept.chain != self._tip.chain:
            raise self._broken(
                f"{what} is of another chain ({kept.chain}, this is {self._tip.chain}): the "
                "file was replaced, or this is the anchor of another"
            )
        try:
            kept.verify(self._key)
        except ValueError as error:
            raise self._broken(f"{what} does not fit the key of the file: {error}") from None
        for sequence, head in kept.heads.items():
            if self._covered.setdefault(sequence, head) != head:
                raise self._broken(f"{what} contradicts another one: the key was misused")
        return kept

    def _start(self) -> None:
        """Take the beginning for granted where it is one, or may be missing."""
        line, header = self._segments[0].line, self._segments[0].header
        at = line.sequence - 1
        tip = Tip(header.chain, at, line.previous, header.checkpoint)
        if at == 0:
            tip = Tip(header.chain)
        elif self._whole:
            self._check_removed(at, line.previous)
        self._tip = tip

    def _check_removed(self, at: int, head: str) -> None:
        """Check that what is missing is what was removed on purpose."""
        # No anchor allows it: each segment that is rotated by size ends with a checkpoint, so that
        # whatever old segments somebody deletes, an anchor would cover them.
        if self._removed is None:
            raise self._broken(
                f"{_lines(1, at)} missing: name their files too, or where they were removed on "
                f"purpose give the checkpoint in line {at} as removed_to (--removed-to)"
            )
        if self._removed.heads.get(at) != head:
            raise self._broken(
                f"{_lines(1, at)} missing, and removed_to is not the checkpoint in line {at}, but "
                f"one in line {self._removed.sequence + 1}"
            )

    def _take(self, raw: bytes) -> Line:
        """Check the next line of the chain."""
        tip = self._tip
        try:
            line = Line.read(raw)
        except ValueError as error:
            raise self._broken(f"{error}: the line was changed") from None
        if line.sequence > tip.sequence + 1:
            raise self._broken(
                f"{_lines(tip.sequence + 1, line.sequence - 1)} missing before line {line.sequence}"
            )
        if line.sequence <= tip.sequence:
            raise self._broken(
                f"line {line.sequence} of the chain comes a second time, or was moved"
            )
        if line.previous != tip.head:
            raise self._broken(
                f"it is not the line that followed line {tip.sequence}: one of the two was changed"
            )
        if (line.kind == "header") != (self._number == 1):
            raise self._broken("a header stands where there is none, or lacks where there is one")
        checkpoint: Checkpoint | None = None
        if line.kind == "header":
            self._check_header()
        elif line.kind == "checkpoint":
            checkpoint = self._checked(line, raw)
            self._signed_to = checkpoint.sequence
        self._tip = tip.after(raw, checkpoint)
        head = self._covered.get(line.sequence)
        if head is not None:
            if head != line.head:
                raise self._broken(
                    f"an anchor says that line {line.sequence} was another one: it, or one before, "
                    "was changed after the anchor was made"
                )
            self._intact_to = line.sequence
        return line

    def _check_header(self) -> None:
        header = self._segment.header
        if header.key.kid != self._key.kid:
            raise self._broken(
                f"it names the checkpoint key {header.key.kid}, and the segment before names "
                f"{self._key.kid}"
            )
        if header.checkpoint != self._tip.checkpoint:
            raise self._broken("it names another checkpoint as the last one before it")

    def _checked(self, line: Line, raw: bytes) -> Checkpoint:
        try:
            checkpoint = Checkpoint.of(line)
            checkpoint.verify(self._key)
        except ValueError as error:
            raise self._broken(f"the checkpoint is not genuine: {error}") from None
        if checkpoint.chain != self._tip.chain or checkpoint.line() != raw:
            raise self._broken("the checkpoint is not of the lines before it")
        if checkpoint.previous != self._tip.checkpoint:
            raise self._broken("the checkpoint does not follow the one before: one is missing")
        return checkpoint

    @contextmanager
    def _reading(self) -> Generator[None, None, None]:
        try:
            yield
        except FileNotFoundError:
            raise _Moved(
                AuditError(f"{self._segment.path} was rotated while it was read; try again")
            ) from None
        except ValueError as error:
            self._number += 1
            raise self._broken(str(error)) from None

    def _broken(self, what: str) -> AuditBroken:
        return AuditBroken(
            f"{self._segment.path} line {self._number} "
            f"(after line {self._tip.sequence} of the chain): {what}; {_EVIDENCE}"
        )


def _lines(first: int, last: int) -> str:
    return f"line {first} is" if first == last else f"lines {first} to {last} are"
