"""The lines of an audit file and the checkpoints that sign them; no I/O.

A file is JSON lines. Each has ``sequence``, ``previous`` and ``timestamp``, and beside them

- the first line of each segment, the header: ``line`` "header", ``format``, ``chain`` (a random
  id, the same in every segment of one chain), ``key`` (the JWK that checkpoints are verified
  with) and ``checkpoint`` (the SHA-256 of the last checkpoint before it);
- an event: its attributes, see `AuditEvent.attributes`;
- a checkpoint: ``line`` "checkpoint" and ``checkpoint``, a compact JWS (RFC 7515) by that key
  over the chain's id, the sequence and the hash of the line before, the time, and the SHA-256
  of the checkpoint before.

``previous`` is the SHA-256, in hex, of the line before as it was written, its newline
included: what ``head -n 1 | sha256sum`` says of the first. Before the first it is 64 zeros.
A checkpoint's line follows from its JWS alone, so that a JWS vouches for that line as well.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final, Literal, cast

from ...errors import TokenMalformed
from ...sealed.crypto import Key, verify_signature
from ...sealed.message import SIGNATURE_ALGORITHM, decode_base64url
from ...text.strict_json import json_object
from ..event import AuditEvent

FORMAT: Final = 1
NOTHING: Final = "0" * 64
"""The hash of what comes before the first line, and before the first checkpoint."""

CHECKPOINT_TYP: Final = "stateful-checkpoint+jws"
MAX_LINE_BYTES: Final = 1 << 20

LineKind = Literal["header", "event", "checkpoint"]

_HASH = re.compile(r"[0-9a-f]{64}")
_CHAIN = re.compile(r"[0-9a-f]{32}")
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@dataclass(frozen=True)
class RecordedEvent(AuditEvent):
    """An event as it was read back from a file.

    Attributes:
        file: the segment it stands in.
        sequence: its place in the chain.
    """

    file: str = ""
    sequence: int = 0


@dataclass(frozen=True)
class Line:
    """A line that was read.

    Attributes:
        sequence: its place in the chain, from 1.
        previous: hash of the line before.
        timestamp: RFC 3339, UTC.
        kind: what it is.
        members: everything else in it.
        head: its own hash.
    """

    sequence: int
    previous: str
    timestamp: str
    kind: LineKind
    members: Mapping[str, Any]
    head: str

    @classmethod
    def read(cls, raw: bytes) -> Line:
        """Read a line, its newline included.

        Raises:
            ValueError: it is none of an audit file.
        """
        members = json_object(raw)
        sequence, previous = members.pop("sequence", None), members.pop("previous", None)
        timestamp, kind = members.pop("timestamp", None), members.pop("line", "event")
        if type(sequence) is not int or sequence < 1:
            raise ValueError("it has no sequence")
        if not isinstance(timestamp, str) or not _TIMESTAMP.fullmatch(timestamp):
            raise ValueError("it has no timestamp")
        if kind not in ("header", "event", "checkpoint"):
            raise ValueError("it is of an unknown kind")
        return cls(sequence, _hash(previous), timestamp, kind, members, digest(raw))

    def event(self, file: str = "") -> RecordedEvent:
        """The event it tells of.

        Args:
            file: where it was read.

        Raises:
            ValueError: it is none, or one that this version does not know.
        """
        event = AuditEvent.from_attributes(parse_time(self.timestamp), self.members)
        return RecordedEvent(**vars(event), file=file, sequence=self.sequence)


@dataclass(frozen=True)
class Header:
    """What the first line of a segment says.

    Attributes:
        chain: id of the chain.
        key: verifies the chain's checkpoints.
        checkpoint: hash of the last checkpoint before the segment.
    """

    chain: str
    key: Key
    checkpoint: str

    @classmethod
    def of(cls, line: Line) -> Header:
        """Read a header.

        Raises:
            ValueError: the line is none, or of a format that this version does not know.
        """
        members = line.members
        if line.kind != "header":
            raise ValueError("it is no header")
        if members.get("format") != FORMAT:
            raise ValueError(f"it is of the unknown format {members.get('format')!r}")
        chain, jwk = members.get("chain"), members.get("key")
        if not isinstance(jwk, dict):
            raise ValueError("it is no header")
        return cls(
            _chain(chain),
            public_key(cast("dict[str, object]", jwk)),
            _hash(members.get("checkpoint")),
        )


@dataclass(frozen=True)
class Checkpoint:
    """What is signed: that a chain had this line, and so all the lines before it.

    Attributes:
        text: the compact JWS.
        kid: key id (RFC 7638 thumbprint) of its signer.
        chain: id of the chain.
        sequence: of the last line it covers.
        head: hash of that line.
        time: RFC 3339, UTC.
        previous: hash of the checkpoint before.
    """

    text: str
    kid: str
    chain: str
    sequence: int
    head: str
    time: str
    previous: str

    @classmethod
    def read(cls, text: str) -> Checkpoint:
        """Read a checkpoint; `verify` says whether it is genuine.

        Raises:
            ValueError: it is malformed.
        """
        try:
            protected, payload, signature = text.split(".")
            header = json_object(decode_base64url(protected, "header"))
            claims = json_object(decode_base64url(payload, "payload"))
            decode_base64url(signature, "signature")
        except (ValueError, TokenMalformed):
            raise ValueError("it is no checkpoint") from None
        if header != {"alg": SIGNATURE_ALGORITHM, "kid": header.get("kid"), "typ": CHECKPOINT_TYP}:
            raise ValueError("it is no checkpoint")
        if claims.keys() != {"chain", "sequence", "head", "time", "previous"}:
            raise ValueError("it is no checkpoint")
        if type(claims["sequence"]) is not int or claims["sequence"] < 1:
            raise ValueError("it is no checkpoint")
        return cls(
            text,
            _thumbprint(header["kid"]),
            _chain(claims["chain"]),
            claims["sequence"],
            _hash(claims["head"]),
            _text(claims["time"]),
            _hash(claims["previous"]),
        )

    @classmethod
    def of(cls, line: Line) -> Checkpoint:
        """Read the checkpoint in a line; whether it covers the line before is not looked at.

        Raises:
            ValueError: the line holds none.
        """
        text = line.members.get("checkpoint")
        if line.kind != "checkpoint" or not isinstance(text, str):
            raise ValueError("it is no checkpoint")
        return cls.read(text)

    def verify(self, key: Key) -> None:
        """Check who signed it.

        Raises:
            ValueError: not this key.
        """
        if self.kid != key.kid:
            raise ValueError(f"it is signed by the key {self.kid}, not by {key.kid}")
        verify_signature(self.text, key.public)

    @property
    def digest(self) -> str:
        """Its own hash."""
        return digest(self.text.encode())

    @property
    def heads(self) -> dict[int, str]:
        """The hash of the last line it covers and of its own, by their sequence."""
        return {self.sequence: self.head, self.sequence + 1: digest(self.line())}

    def line(self) -> bytes:
        """The line it stands in, right behind the last one it covers."""
        members = {"line": "checkpoint", "checkpoint": self.text}
        return _line(self.sequence + 1, self.head, self.time, members)


@dataclass(frozen=True)
class Tip:
    """Where a chain ends, and so how it goes on.

    Attributes:
        chain: its id.
        sequence: of the last line, 0 where there is none.
        head: hash of the last line.
        checkpoint: hash of the last checkpoint.
    """

    chain: str
    sequence: int = 0
    head: str = NOTHING
    checkpoint: str = NOTHING

    @classmethod
    def new(cls) -> Tip:
        """A chain without a line."""
        return cls(secrets.token_hex(16))

    def header(self, key: Key, now: float) -> bytes:
        """The first line of the next segment.

        Args:
            key: verifies its checkpoints.
            now: Unix seconds.
        """
        members: dict[str, Any] = {
            "line": "header",
            "format": FORMAT,
            "chain": self.chain,
            "key": key.to_jwk(private=False),
            "checkpoint": self.checkpoint,
        }
        return _line(self.sequence + 1, self.head, format_time(now), members)

    def event(self, event: AuditEvent) -> bytes:
        """The next line, for an event.

        Raises:
            ValueError: it is larger than a line may be.
        """
        raw = _line(self.sequence + 1, self.head, format_time(event.time), event.attributes())
        if len(raw) > MAX_LINE_BYTES:
            raise ValueError(f"the event takes {len(raw)} bytes, more than {MAX_LINE_BYTES}")
        return raw

    def sign(self, key: Key, now: float) -> Checkpoint:
        """A checkpoint of the chain as it is; `Checkpoint.line` is the next line then.

        Args:
            key: signs.
            now: Unix seconds.
        """
        claims = {
            "chain": self.chain,
            "sequence": self.sequence,
            "head": self.head,
            "time": format_time(now),
            "previous": self.checkpoint,
        }
        text = key.sign(CHECKPOINT_TYP, json.dumps(claims, separators=(",", ":")))
        return Checkpoint.read(text)

    def after(self, raw: bytes, checkpoint: Checkpoint | None = None) -> Tip:
        """The tip once this line is written.

        Args:
            checkpoint: the one that stands in it.
        """
        last = self.checkpoint if checkpoint is None else checkpoint.digest
        return Tip(self.chain, self.sequence + 1, digest(raw), last)


def public_key(jwk: Mapping[str, object]) -> Key:
    """The public half of a key that checkpoints are signed with.

    Raises:
        ValueError: the JWK is malformed, or of no Ed25519 key.
    """
    key = Key.from_jwk(jwk).without_private()
    if key.curve != "Ed25519":
        raise ValueError("the key is not an Ed25519 key (RFC 8037)")
    return key


def digest(raw: bytes) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(raw).hexdigest()


def format_time(seconds: float) -> str:
    """RFC 3339, UTC, with microseconds."""
    at = datetime.fromtimestamp(seconds, timezone.utc)
    return at.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_time(text: str) -> float:
    """Unix seconds.

    Raises:
        ValueError: the text is not as `format_time` writes it, or no time.
    """
    if not _TIMESTAMP.fullmatch(text):
        raise ValueError(f"{text!r} is no timestamp")
    return datetime.fromisoformat(text[:-1] + "+00:00").timestamp()


def _line(sequence: int, previous: str, timestamp: str, members: Mapping[str, Any]) -> bytes:
    first = {"sequence": sequence, "previous": previous, "timestamp": timestamp}
    return json.dumps({**first, **members}, separators=(",", ":")).encode("ascii") + b"\n"


def _hash(value: object) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ValueError("a hash in it is none")
    return value


def _chain(value: object) -> str:
    if not isinstance(value, str) or not _CHAIN.fullmatch(value):
        raise ValueError("the id of the chain in it is none")
    return value


def _thumbprint(value: object) -> str:
    if not isinstance(value, str) or not _THUMBPRINT.fullmatch(value):
        raise ValueError("the key id in it is no thumbprint (RFC 7638)")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a text in it is none")
    return value
