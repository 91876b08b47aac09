"""What a file of events proves: `verify` checks it, `read` gives its events back.

A chain that fits together shows that nothing within it was changed, taken out, put in or
reordered, unless somebody wrote everything anew from there on. A checkpoint's signature rules
that out up to the line it covers, for everybody who has not the file's key. A checkpoint that
was kept elsewhere, an anchor, rules it out for everybody, and shows when the end was cut off.
An anchor only demands: that old segments are not there is allowed by `removed_to` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ...errors import AuditBroken, AuditError
from ...sealed.crypto import Key
from .chain import Checkpoint, Line, RecordedEvent, public_key
from .segments import EVIDENCE, Paths, Segment, lines, one_chain

_MOST_UNSIGNED: Final = 1_010
"""Lines behind the last checkpoint, with some room for headers of segments."""


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
        last, first = self.last_sequence, self.first_sequence
        whose = "the key that was asked for" if self.key_pinned else "the key that they name"
        said = [f"{self.events} events in lines {first} to {last}."]
        if first > 1:
            said.append(
                f"Lines 1 to {first - 1} are not here, as was allowed: they may be anything."
            )
        if self.intact_to is None:
            anew = "behind what is signed" if self.key_pinned else "as a whole"
            said.append(
                "They fit together. Without an anchor for them it cannot be seen whether lines "
                f"were cut off at the end, or written anew {anew}."
            )
        elif self.intact_to < last:
            said.append(
                f"Intact to {self.intact_to}, unanchored after: the {last - self.intact_to} lines "
                "behind it fit together, and more may have been cut off."
            )
        else:
            said.append(f"Intact to {last}, the end; what was cut off behind it is not seen.")
        if self.signed_to is None:
            said.append("Nothing is signed.")
        else:
            said.append(f"Signed to {self.signed_to} by {whose}, {self.key}.")
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
        AuditError: a file cannot be read, is no audit file, was rotated meanwhile, or they are
            of several chains.
        ValueError: the key is malformed, or `paths` names no file.
    """
    pinned = None if key is None else public_key(key)
    walk = _Walk(one_chain(paths), anchors, removed_to, pinned)
    for _ in walk.lines():
        pass
    return walk.verified()


def read(paths: Paths) -> Iterator[RecordedEvent]:
    """The events of one chain in order, each checked to fit before it is given out.

    Args:
        paths: as `verify`. Where the first lines are missing, that is no error here.

    Raises:
        AuditBroken, AuditError: as `verify`, or an event is one that this version does not know.
            What can be read up to there was given out before.
        ValueError: `paths` names no file.
    """
    yield from read_chain(one_chain(paths))


def read_chain(segments: Sequence[Segment]) -> Iterator[RecordedEvent]:
    """As `read`, of the segments of a chain in order."""
    walk = _Walk(segments, (), None, None, whole=False)
    for line in walk.lines():
        if line.kind == "event":
            yield walk.event(line)


class _Walk:
    """Goes through a chain once.

    Args:
        segments: in order.
        anchors: checkpoints from elsewhere.
        removed_to: the checkpoint up to which lines may be missing.
        pinned: the key that was asked for.
        whole: whether the first lines must be there otherwise.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        anchors: Iterable[str],
        removed_to: str | None,
        pinned: Key | None,
        *,
        whole: bool = True,
    ) -> None:
        self._segments = segments
        first = segments[0]
        self._segment, self._number = first, 1
        self._tip = first.before
        self._key, self._pinned = first.key, pinned
        if pinned is not None and pinned.kid != first.key.kid:
            raise self._broken(
                f"it names the checkpoint key {first.key.kid}, not {pinned.kid}: the file was "
                "written anew, or this is the key of another"
            )
        self._covered: dict[int, set[str]] = {}
        for text in anchors:
            self._cover(text, "the anchor")
        removed = None if removed_to is None else self._cover(removed_to, "removed_to")
        if whole and self._tip.sequence:
            self._check_removed(removed)
        self._events = 0
        self._intact_to: int | None = None
        self._torn: list[str] = []

    def lines(self) -> Iterator[Line]:
        """Each line, once it was checked.

        Raises:
            AuditBroken, AuditError: see `verify`.
        """
        for segment in self._segments:
            self._segment, self._number = segment, 0
            for raw in self._raw_lines():
                self._number += 1
                if self._number == 1 and raw != segment.raw:
                    raise self._moved()
                if raw.endswith(b"\n"):
                    yield self._take(raw)
                else:
                    self._torn.append(str(segment.path))

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
        """What was found, after the last line.

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
        unsigned = self._tip.unsigned
        if self._pinned is not None and (not self._tip.signed or unsigned > _MOST_UNSIGNED):
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
            signed_to=self._tip.signed - 1 if self._tip.signed else None,
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
            self._covered.setdefault(sequence, set()).add(head)
        return kept

    def _check_removed(self, removed: Checkpoint | None) -> None:
        """Check that what is missing at the beginning is what was removed on purpose."""
        # No anchor allows it: each segment that is rotated by size ends with a checkpoint, so that
        # whatever old segments somebody deletes, an anchor would cover them.
        at = self._tip.sequence
        if removed is None:
            raise self._broken(
                f"{_lines(1, at)} missing: name their files too, or where they were removed on "
                f"purpose give the checkpoint in line {at} as removed_to (--removed-to)"
            )
        if removed.heads.get(at) != self._tip.head:
            raise self._broken(
                f"{_lines(1, at)} missing, and removed_to is not the checkpoint in line {at}, but "
                f"one in line {removed.sequence + 1}"
            )

    def _raw_lines(self) -> Iterator[bytes]:
        try:
            yield from lines(self._segment.path)
        except FileNotFoundError:
            raise self._moved() from None
        except ValueError as error:
            self._number += 1
            raise self._broken(str(error)) from None

    def _take(self, raw: bytes) -> Line:
        """Check the next line of the chain."""
        try:
            line = Line.read(raw)
        except ValueError as error:
            raise self._broken(f"{error}: the line was changed") from None
        self._check_place(line)
        if line.kind == "checkpoint":
            self._check_checkpoint(line, raw)
        self._events += line.kind == "event"
        self._tip = self._tip.after(raw, is_checkpoint=line.kind == "checkpoint")
        heads = self._covered.get(line.sequence)
        if heads is not None:
            if heads != {line.head}:
                raise self._broken(
                    f"an anchor says that line {line.sequence} was another one: it, or one before, "
                    "was changed after the anchor was made"
                )
            self._intact_to = line.sequence
        return line

    def _check_place(self, line: Line) -> None:
        last = self._tip.sequence
        if line.sequence > last + 1:
            raise self._broken(
                f"{_lines(last + 1, line.sequence - 1)} missing before line {line.sequence}"
            )
        if line.sequence <= last:
            raise self._broken(
                f"line {line.sequence} of the chain comes a second time: it was moved, or the file "
                "is a copy of another one here"
            )
        if line.previous != self._tip.head:
            raise self._broken(
                f"it is not the line that followed line {last}: one of the two was changed"
            )

    def _check_checkpoint(self, line: Line, raw: bytes) -> None:
        try:
            checkpoint = line.checkpoint()
            checkpoint.verify(self._key)
        except ValueError as error:
            raise self._broken(f"the checkpoint is not genuine: {error}") from None
        if checkpoint.chain != self._tip.chain or checkpoint.line() != raw:
            raise self._broken("the checkpoint is not of the lines before it")

    def _moved(self) -> AuditError:
        return AuditError(f"{self._segment.path} was rotated while it was read; try again")

    def _broken(self, what: str) -> AuditBroken:
        return AuditBroken(
            f"{self._segment.path} line {self._number} "
            f"(after line {self._tip.sequence} of the chain): {what}; {EVIDENCE}"
        )


def _lines(first: int, last: int) -> str:
    return f"line {first} is" if first == last else f"lines {first} to {last} are"
