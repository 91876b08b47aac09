"""The lines of an audit file and the checkpoints that sign them; no I/O.

A file is JSON lines. Each has ``sequence``, ``previous`` and ``timestamp``, and beside them

- the first line of each segment, the header: ``line`` "header", ``format``, ``chain`` (a random
  id, the same in every segment of one chain) and ``key`` (the JWK that checkpoints are verified
  with);
- an event: its attributes, see `AuditEvent.attributes`;
- a checkpoint: ``line`` "checkpoint" and ``checkpoint``, a compact JWS (RFC 7515) by that key
  over the chain's id, the sequence and the hash of the line before, and the time.

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
from datetime import datetime
from typing import Any, Final, Literal, cast

from ...errors import TokenMalformed
from ...sealed.crypto import Key, verify_signature
from ...sealed.message import SIGNATURE_ALGORITHM, decode_base64url
from ...text.strict_json import json_object
from ...text.times import rfc3339
from ..event import AuditEvent

FORMAT: Final = 1
NOTHING: Final = "0" * 64
"""The hash of what comes before the first line."""

CHECKPOINT_TYP: Final = "stateful-checkpoint+jws"
MAX_LINE_BYTES: Final = 1 << 20

LineKind = Literal["header", "event", "checkpoint"]

_HASH: Final = "[0-9a-f]{64}"
_CHAIN: Final = "[0-9a-f]{32}"
_THUMBPRINT: Final = "[A-Za-z0-9_-]{43}"
_TIMESTAMP: Final = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


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
    """A line that was read: its place in the chain from 1, `members` beside it, its own hash."""

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
        kind = members.pop("line", "event")
        if kind not in ("header", "event", "checkpoint"):
            raise ValueError("it is of an unknown kind")
        return cls(
            _sequence(members.pop("sequence", None)),
            _like(_HASH, members.pop("previous", None), "a hash"),
            _like(_TIMESTAMP, members.pop("timestamp", None), "the timestamp"),
            kind,
            members,
            digest(raw),
        )

    def header(self) -> tuple[str, Key]:
        """The id of the chain that a header names, and the key that verifies its checkpoints.

        Raises:
            ValueError: the line is none, or of a format that this version does not know.
        """
        if self.kind != "header":
            raise ValueError("it is no header")
        if self.members.get("format") != FORMAT:
            raise ValueError(f"it is of the unknown format {self.members.get('format')!r}")
        jwk = self.members.get("key")
        if not isinstance(jwk, dict):
            raise ValueError("it is no header")
        chain = _like(_CHAIN, self.members.get("chain"), "the id of the chain")
        return chain, public_key(cast("dict[str, object]", jwk))

    def checkpoint(self) -> Checkpoint:
        """The checkpoint in the line; whether it covers the line before is not looked at.

        Raises:
            ValueError: the line holds none.
        """
        text = self.members.get("checkpoint")
        if self.kind != "checkpoint" or not isinstance(text, str):
            raise ValueError("it is no checkpoint")
        return Checkpoint.read(text)

    def event(self, file: str = "") -> RecordedEvent:
        """The event it tells of.

        Args:
            file: where it was read.

        Raises:
            ValueError: it is none, or one that this version does not know.
        """
        at = datetime.fromisoformat(self.timestamp[:-1] + "+00:00").timestamp()
        event = AuditEvent.from_attributes(at, self.members)
        return RecordedEvent(**vars(event), file=file, sequence=self.sequence)


@dataclass(frozen=True)
class Checkpoint:
    """What is signed: that a chain had this line, and so all the lines before it.

    Attributes:
        text: the compact JWS.
        kid: key id (RFC 7638 thumbprint) of its signer.
        sequence, head: of the last line it covers, and its hash.
    """

    text: str
    kid: str
    chain: str
    sequence: int
    head: str
    time: str

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
        kid = header.get("kid")
        if header != {"alg": SIGNATURE_ALGORITHM, "kid": kid, "typ": CHECKPOINT_TYP}:
            raise ValueError("it is no checkpoint")
        if claims.keys() != {"chain", "sequence", "head", "time"}:
            raise ValueError("it is no checkpoint")
        return cls(
            text,
            _like(_THUMBPRINT, kid, "the key id"),
            _like(_CHAIN, claims["chain"], "the id of the chain"),
            _sequence(claims["sequence"]),
            _like(_HASH, claims["head"], "a hash"),
            _like(_TIMESTAMP, claims["time"], "the time"),
        )

    def verify(self, key: Key) -> None:
        """Check who signed it.

        Raises:
            ValueError: not this key.
        """
        if self.kid != key.kid:
            raise ValueError(f"it is signed by the key {self.kid}, not by {key.kid}")
        verify_signature(self.text, key.public)

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
        signed: sequence of the last checkpoint's own line, 0 where there is none.
    """

    chain: str
    sequence: int = 0
    head: str = NOTHING
    signed: int = 0

    @property
    def unsigned(self) -> int:
        """Lines behind the last checkpoint."""
        return self.sequence - self.signed

    @classmethod
    def new(cls) -> Tip:
        """A chain without a line."""
        return cls(secrets.token_hex(16))

    def header(self, key: Key, now: float) -> bytes:
        """The first line of the next segment; the key verifies its checkpoints."""
        jwk = key.to_jwk(private=False)
        members = {"line": "header", "format": FORMAT, "chain": self.chain, "key": jwk}
        return _line(self.sequence + 1, self.head, rfc3339(now, "microseconds"), members)

    def event(self, event: AuditEvent) -> bytes:
        """The next line, for an event.

        Raises:
            ValueError: it is larger than a line may be.
        """
        at = rfc3339(event.time, "microseconds")
        raw = _line(self.sequence + 1, self.head, at, event.attributes())
        if len(raw) > MAX_LINE_BYTES:
            raise ValueError(f"the event takes {len(raw)} bytes, more than {MAX_LINE_BYTES}")
        return raw

    def sign(self, key: Key, now: float) -> Checkpoint:
        """A checkpoint of the chain as it is; `Checkpoint.line` is the next line then."""
        claims = {
            "chain": self.chain,
            "sequence": self.sequence,
            "head": self.head,
            "time": rfc3339(now, "microseconds"),
        }
        return Checkpoint.read(key.sign(CHECKPOINT_TYP, json.dumps(claims, separators=(",", ":"))))

    def after(self, raw: bytes, *, is_checkpoint: bool = False) -> Tip:
        """The tip once this line is written."""
        at = self.sequence + 1
        return Tip(self.chain, at, digest(raw), at if is_checkpoint else self.signed)


def is_mark(raw: bytes) -> bool:
    """Whether a line is a header or a checkpoint, and no event."""
    # In a JSON string a quotation mark is escaped, so this is a member of its own.
    return b',"line":"' in raw


def is_checkpoint(raw: bytes) -> bool:
    """Whether a line is a checkpoint."""
    return b',"line":"checkpoint"' in raw


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


def _line(sequence: int, previous: str, timestamp: str, members: Mapping[str, Any]) -> bytes:
    first = {"sequence": sequence, "previous": previous, "timestamp": timestamp}
    return json.dumps({**first, **members}, separators=(",", ":")).encode("ascii") + b"\n"


def _sequence(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("it has no sequence")
    return value


def _like(pattern: str, value: object, what: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError(f"{what} in it is none")
    return value
