"""`stateful audit`: check, review and follow the files that an `AuditFile` writes."""

from __future__ import annotations

import asyncio
import heapq
import json
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from ..client.principals import principals
from ..errors import AuditBroken, AuditError
from ..record.audit.chain import Checkpoint, Line, RecordedEvent, is_checkpoint, is_mark, public_key
from ..record.audit.reviewing import BEHIND, Finding
from ..record.audit.reviewing import review as review_events
from ..record.audit.segments import Segment, chains, lines, one_chain
from ..record.audit.verification import read_chain
from ..record.audit.verification import verify as verify_files
from ..record.event import AuditEvent
from ..sealed.keyring import Keyring
from ..text.output import Escaped, out, print_json, say, unrepeated
from ..text.strict_json import json_object
from ..text.times import rfc3339
from .common import Address, AtWorkflow, Json, KeyringPath, reported, run

POLL_SECONDS: Final = 0.2

app = typer.Typer(help="Check, review and follow the record.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="File of the record.")]
Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE", help="Files of the record; rotated ones are found by their names."
    ),
]

_CLAIMED: Final = ("reject", "set", "reseal", "revoke", "inherit")
"""The actions with a message that somebody sends, so that its issuer is shown."""

_SENT: Final = ("set", "reseal", "revoke", "inherit")

_JOINED: Final = ("sequence", "action", "name", "fingerprint", "workflow_id", "by")
_COLOURS: Final = {"success": "green", "failure": "red", "unknown": "yellow"}


@app.command()
def verify(
    files: Files,
    anchor: Annotated[
        list[str] | None,
        typer.Option(
            "--anchor",
            metavar="CHECKPOINT",
            help="A checkpoint that was kept elsewhere, or a file with one a line; repeatable.",
        ),
    ] = None,
    removed_to: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="The last line of the old files that were deleted on purpose: the checkpoint, or "
            "a file with it, kept elsewhere.",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            metavar="FILE",
            help="The public JWK that must have signed the checkpoints, kept elsewhere.",
        ),
    ] = None,
    with_history: Annotated[
        bool,
        typer.Option(
            "--with-history",
            help="Also ask the server who brought each message, where it records a principal.",
        ),
    ] = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Show that the files of one record are what was written, as far as that can be known.

    Exit status 0 where nothing is wrong, 1 where a line was changed, added, moved or is missing,
    or a file cannot be read. An anchor allows no line to be missing, only --removed-to does.
    """
    files = _without_companions(files)
    with reported():
        anchors = [one for text in anchor or () for one in _checkpoints(text)]
        removed = None if removed_to is None else _checkpoints(removed_to)[-1]
        jwk = None if key is None else _jwk(key)
        found = verify_files(files, anchors=anchors, removed_to=removed, key=jwk)
        seen = asyncio.run(_joined(files, address)) if with_history else []
    if as_json:
        history = {"history": seen} if with_history else {}
        print_json({**asdict(found), "says": str(found), **history})
        return
    say(f"{files[0]}: {found}")
    for one in seen:
        what = "{action} {name} {fingerprint} at {workflow_id}".format(**one)
        by = "" if one["by"] is None else f", by {one['by']}"
        # The server's words first: what is free to choose could look like them.
        say(f"line {one['sequence']}: {one['said']}: {what}{by}")


@app.command()
def review(
    files: Files,
    keyring: KeyringPath = None,
    behind: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Report nodes that have none of the last N versions."
        ),
    ] = BEHIND,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Report what happened from then on (ISO 8601, UTC where nothing is said), and "
            "take what was before for usual; else everything, the first 24 hours for usual.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look for what deserves a look: use after revocation, new origins, refusals and more.

    With a keyring, reads by a key that is not among its readers, or is revoked, are reported
    too. Exit status 0 where nothing was found, 1 where something was, or a file is broken or
    cannot be read: then the others, and what was read of it until there, are reviewed all the
    same.
    """
    start = None if since is None else _time(since)
    with reported():
        readers = None if keyring is None else _readers(Keyring.load(keyring))
        found, problems = chains(_without_companions(files))
        streams = [_events(one, problems) for one in found]
        findings = review_events(
            heapq.merge(*streams, key=lambda event: event.time),
            known_readers=readers,
            behind=behind,
            since=start,
        )
    if as_json:
        print_json([_finding(finding) for finding in findings])
    else:
        for finding in findings:
            out().print(*_drawn(finding), sep="\n", soft_wrap=True)
        if not findings and not problems:
            say("nothing found")
    for error in problems:
        say(f"error: {unrepeated(str(error), {'FILE': files})}", err=True)
    raise typer.Exit(1 if problems or findings else 0)


@app.command()
def tail(
    file: File,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    number: Annotated[
        int, typer.Option("--number", "-n", min=0, metavar="N", help="How many of the last events.")
    ] = 10,
    as_json: Json = False,
) -> None:
    """Show the last events of a file, and with -f those that come; also after a rotation.

    Nothing is checked here, see `stateful audit verify`. With --json the lines are printed as
    they are.
    """
    run(_tail(file, follow, number, as_json), stopped=0)


@app.command()
def checkpoint(file: File) -> None:
    """Print the last checkpoint: kept off this host, it is an anchor for `verify`."""
    with reported():
        say(_last_checkpoint(file))


@app.command()
def key(file: File) -> None:
    """Print the public JWK that checkpoints are signed with: kept off this host, for `verify`."""
    with reported():
        print_json(one_chain(file)[-1].key.to_jwk(private=False))


# --- verify ------------------------------------------------------------------


async def _joined(files: list[Path], address: str | None) -> list[dict[str, Any]]:
    """For each line of a message that was sent what the server says of the same message."""
    sent: dict[tuple[str | None, str], list[RecordedEvent]] = {}
    for event in read_chain(one_chain(files)):
        is_sent = event.action in _SENT and event.outcome == "success"
        if is_sent and event.fingerprint is not None and event.workflow_id is not None:
            sent.setdefault((event.namespace, event.workflow_id), []).append(event)
    joined: list[dict[str, Any]] = []
    for (namespace, workflow_id), events in sent.items():
        at = AtWorkflow(
            workflow_id,
            address=address,
            namespace=namespace,
            codec_endpoint=os.environ.get("TEMPORAL_CODEC_ENDPOINT"),
            codec_auth=os.environ.get("TEMPORAL_CODEC_AUTH"),
        )
        client = await at.connect()
        seen = await principals(client, workflow_id, {str(event.fingerprint) for event in events})
        for event in events:
            mark = str(event.fingerprint)
            who = seen.get(mark)
            said = "it is in no history that is kept"
            if mark in seen:
                said = "the server recorded nobody" if who is None else f"the server saw {who}"
            about = {name: getattr(event, name) for name in _JOINED}
            joined.append({**about, "principal": who, "said": said})
    return sorted(joined, key=lambda one: one["sequence"])


def _without_companions(files: list[Path]) -> list[Path]:
    """Without the keys and locks beside the files, which a pattern such as ``FILE*`` names too."""
    return [file for file in files if file.suffix not in (".key", ".lock")] or files


def _checkpoints(text: str) -> list[str]:
    """The checkpoints in a text, or in the file that it names."""
    with suppress(ValueError):
        return [Checkpoint.read(text).text]
    try:
        found = [Checkpoint.read(line).text for line in Path(text).read_text().split()]
    except (OSError, ValueError):
        raise AuditError("what is given is neither a checkpoint nor a file of them") from None
    if not found:
        raise AuditError(f"the file {text} holds no checkpoint, so nothing can be shown with it")
    return found


def _jwk(path: Path) -> dict[str, object]:
    try:
        jwk = json_object(path.read_bytes())
        public_key(jwk)
    except OSError as error:
        raise AuditError(f"the key {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise AuditError(f"{path} is no public Ed25519 key as a JWK (RFC 8037)") from None
    return jwk


def _last_checkpoint(file: Path) -> str:
    for segment in reversed(one_chain(file)):
        try:
            whole = (raw for raw in lines(segment.path) if raw.endswith(b"\n"))
            for raw in deque(filter(is_checkpoint, whole), maxlen=1):
                return Line.read(raw).checkpoint().text
        except ValueError:
            raise AuditBroken(
                f"{segment.path}, or the last checkpoint in it, was changed; see `stateful audit "
                "verify`"
            ) from None
    raise AuditError(f"{file} has no checkpoint yet")


# --- review ------------------------------------------------------------------


def _events(segments: list[Segment], problems: list[AuditError]) -> Iterator[RecordedEvent]:
    try:
        yield from read_chain(segments)
    except AuditError as error:
        problems.append(error)


def _readers(keyring: Keyring) -> list[str]:
    return [key.kid for key in keyring.keys() if key.kind == "reader" and not key.revoked]


def _time(text: str) -> float:
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise typer.BadParameter("--since takes a time as in ISO 8601") from None
    return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()


def _finding(finding: Finding) -> dict[str, Any]:
    evidence = [
        {**_place(event), "timestamp": rfc3339(event.time, "microseconds"), **event.attributes()}
        for event in finding.evidence
    ]
    return {**asdict(finding), "evidence": evidence}


def _place(event: AuditEvent) -> dict[str, str | int]:
    if not isinstance(event, RecordedEvent):
        return {}
    return {"file": event.file, "sequence": event.sequence}


def _drawn(finding: Finding) -> Iterator[Escaped]:
    yield Escaped(
        (f"{finding.kind:10}", "red"), f"{finding.message} ", (f"× {finding.count}", "bold")
    )
    for event in finding.evidence:
        where = " ".join(Path(str(part)).name for part in _place(event).values())
        yield Escaped(" " * 10, (f"{where} ", "dim"), _shown(event))


# --- tail --------------------------------------------------------------------


async def _tail(file: Path, follow: bool, number: int, as_json: bool) -> None:
    try:
        stream = file.open("rb")
    except OSError as error:
        raise AuditError(f"the audit file {file} cannot be read: {error.strerror}") from None
    for raw in deque(_whole_lines(stream), maxlen=number):
        _show(raw, as_json)
    while follow:
        await asyncio.sleep(POLL_SECONDS)
        newer = _newer(file, stream)
        for raw in _whole_lines(stream):
            _show(raw, as_json)
        if newer is not None:
            stream.close()
            stream = newer
    stream.close()


def _newer(file: Path, stream: BinaryIO) -> BinaryIO | None:
    """The file that has the name now, where it is another."""
    with suppress(FileNotFoundError):  # between a renaming and the next event
        if not os.path.samestat(file.stat(), os.fstat(stream.fileno())):
            return file.open("rb")
    return None


def _whole_lines(stream: BinaryIO) -> Iterator[bytes]:
    """The lines of events that are there; what is being written comes another time."""
    while (raw := stream.readline()).endswith(b"\n"):
        if not is_mark(raw):
            yield raw
    stream.seek(-len(raw), os.SEEK_CUR)


def _show(raw: bytes, as_json: bool) -> None:
    line = raw.decode("utf-8", "replace").rstrip("\n")
    if as_json:
        # JSON's own escapes: a string in it stays the same.
        say("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line))
        return
    try:
        text = _shown(Line.read(raw).event())
    except ValueError as error:
        text = Escaped((f"no event ({error}): {line}", "red"))
    out().print(text, soft_wrap=True)


def _shown(event: AuditEvent) -> Escaped:
    """An event on one line."""
    at = rfc3339(event.time, "milliseconds")[:-1].replace("T", " ")
    line = Escaped((f"{at} ", "dim"), (f"{event.action:8}", f"bold {_COLOURS[event.outcome]}"), " ")
    parts = (
        ("", None if event.outcome == "success" else event.outcome, _COLOURS[event.outcome]),
        ("", event.reason, "red" if event.outcome == "failure" else "dim"),
        ("", None if event.count is None else f"{event.count} events", ""),
        ("", None if event.kind == "token" else event.kind, "yellow"),
        ("", event.name, "bold"),
        ("", event.fingerprint, "cyan"),
        ("by ", event.by, ""),
        ("for ", event.on_behalf_of, ""),
        ("because ", event.said_reason, "italic"),
        ("issuer ", event.issuer if event.action in _CLAIMED else None, "dim"),
        ("at ", event.workflow_id, ""),
        ("", event.workflow_type, "dim"),
        ("from " if event.action == "withhold" else "to ", event.child_id, ""),
        ("in ", event.activity_type, "dim"),
        ("attempt ", None if event.attempt == 1 else event.attempt, "dim"),
        ("", event.method, ""),
        ("", event.origin, ""),
        ("", event.status, "green" if event.outcome == "success" else "red"),
        ("key ", event.reader, "dim"),
    )
    for label, value, style in parts:
        if value is not None:
            line.append(f"{label}{value} ", style)
    line.rstrip()
    return line
