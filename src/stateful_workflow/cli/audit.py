"""`stateful audit`: check, review and follow the files that an `AuditFile` writes."""

from __future__ import annotations

import asyncio
import heapq
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from ..errors import AuditBroken, AuditError
from ..record.audit import segments
from ..record.audit.chain import Checkpoint, Line, RecordedEvent, format_time, public_key
from ..record.audit.reviewing import BEHIND, Finding
from ..record.audit.reviewing import review as review_events
from ..record.audit.verification import chains, find, read
from ..record.audit.verification import verify as verify_chain
from ..record.event import AuditEvent
from ..sealed.keyring import Keyring
from ..text.output import Escaped, out, print_json, say, unrepeated
from ..text.strict_json import json_object
from .common import Json, KeyringPath, reported, run

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
        list[str] | None,
        typer.Option(
            "--removed-to",
            metavar="CHECKPOINT",
            help="The last line of the old files that were deleted on purpose: the checkpoint, or "
            "a file with it, kept elsewhere. Once for each chain.",
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
    as_json: Json = False,
) -> None:
    """Show that the files are what was written, as far as that can be known.

    Exit status 0 where nothing is wrong, 1 where a line was changed, added, moved or is missing,
    or a file cannot be read. An anchor allows no line to be missing, only --removed-to does.
    """
    with reported():
        anchors = [one for text in anchor or () for one in _checkpoints(text)]
        removed = _removed(removed_to or ())
        jwk = None if key is None else _jwk(key)
        groups, problems = chains(_without_companions(files))
        results: list[dict[str, Any]] = []
        for chain, group in groups.items():
            own = [one.text for one in anchors if one.chain == chain]
            anchors = [one for one in anchors if one.chain != chain]
            end = removed.pop(chain, None)
            results.append(_verified(group, own, None if end is None else end.text, jwk))
        said = [result.get("error") for result in results]
        results += [
            {"files": [unrepeated(str(path), {"files": files})], "error": str(error)}
            for path, error in problems.items()
            if str(error) not in said  # else it is a rotated one, which a chain lacks
        ]
        results += [
            {
                "error": f"no file that was read is of the chain {one.chain}, and {what} is: a "
                "file was taken away or replaced, or this is the checkpoint of another"
            }
            for what, some in (("an anchor", anchors), ("--removed-to", list(removed.values())))
            for one in some[:1]
        ]
    for result in results:
        if "error" in result:
            result["error"] = unrepeated(result["error"], {"files": files})
            say(f"error: {result['error']}", err=True)
        elif not as_json:
            say(f"{result['files'][-1]}: {result['says']}")
    if as_json:
        print_json(results)
    raise typer.Exit(1 if any("error" in result for result in results) else 0)


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
    broken: list[str] = []

    def events(group: list[Path]) -> Iterator[RecordedEvent]:
        try:
            yield from read(group)
        except AuditError as error:
            broken.append(str(error))

    with reported():
        readers = None if keyring is None else _readers(Keyring.load(keyring))
        groups, problems = chains(files)
        broken += map(str, problems.values())
        streams = [events(group) for group in groups.values()]
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
        if not findings and not broken:
            say("nothing found")
    for error in dict.fromkeys(broken):  # a rotated file may be found twice
        say(f"error: {unrepeated(error, {'files': files})}", err=True)
    raise typer.Exit(1 if broken or findings else 0)


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
        print_json(find(file)[-1].header.key.to_jwk(private=False))


# --- verify ------------------------------------------------------------------


def _verified(
    group: list[Path], anchors: list[str], removed_to: str | None, jwk: dict[str, object] | None
) -> dict[str, Any]:
    files = [str(path) for path in group]
    try:
        found = verify_chain(group, anchors=anchors, removed_to=removed_to, key=jwk)
    except AuditError as error:
        return {"files": files, "error": str(error)}
    return {"files": files, **asdict(found), "says": str(found)}


def _removed(texts: Iterable[str]) -> dict[str, Checkpoint]:
    """By the id of a chain, the checkpoint up to which it may be missing."""
    found: dict[str, Checkpoint] = {}
    for text in texts:
        for one in _checkpoints(text):
            if one.chain in found:
                raise AuditError(
                    f"--removed-to names several checkpoints of the chain {one.chain}: give the "
                    "one that was the last line removed"
                )
            found[one.chain] = one
    return found


def _without_companions(files: list[Path]) -> list[Path]:
    """Without the keys and locks beside the files, which a pattern such as ``FILE*`` names too."""
    return [file for file in files if file.suffix not in (".key", ".lock")] or files


def _checkpoints(text: str) -> list[Checkpoint]:
    """The checkpoints in a text, or in the file that it names."""
    try:
        return [Checkpoint.read(text)]
    except ValueError:
        pass
    try:
        lines = Path(text).read_text().split()
    except (OSError, ValueError):
        raise AuditError("what is given is neither a checkpoint nor a file of them") from None
    try:
        found = [Checkpoint.read(line) for line in lines]
    except ValueError:
        raise AuditError(f"the file {text} holds something else than checkpoints") from None
    if not found:
        raise AuditError(f"the file {text} holds no checkpoint, so nothing can be shown with it")
    return found


def _jwk(path: Path) -> dict[str, object]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AuditError(f"the key {path} cannot be read: {error.strerror}") from None
    try:
        jwk = json_object(content)
        public_key(jwk)
    except ValueError:
        raise AuditError(f"{path} is no public Ed25519 key as a JWK (RFC 8037)") from None
    return jwk


def _last_checkpoint(file: Path) -> str:
    for segment in reversed(find(file)):
        for raw in segments.lines_backwards(segment.path):
            if raw.endswith(b"\n") and segments.is_mark(raw):
                try:
                    line = Line.read(raw)
                    if line.kind != "header":
                        return Checkpoint.of(line).text
                except ValueError:
                    raise AuditBroken(
                        f"the last checkpoint in {segment.path} was changed; see "
                        "`stateful audit verify`"
                    ) from None
    raise AuditError(f"{file} has no checkpoint yet")


# --- review ------------------------------------------------------------------


def _readers(keyring: Keyring) -> list[str]:
    return [key.kid for key in keyring.keys() if key.kind == "reader" and not key.revoked]


def _time(text: str) -> float:
    try:
        at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise typer.BadParameter("--since takes a time as in ISO 8601") from None
    return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "message": finding.message,
        "count": finding.count,
        "evidence": [
            {
                **(
                    {"file": e.file, "sequence": e.sequence} if isinstance(e, RecordedEvent) else {}
                ),
                "timestamp": format_time(e.time),
                **e.attributes(),
            }
            for e in finding.evidence
        ],
    }


def _drawn(finding: Finding) -> Iterator[Escaped]:
    yield Escaped(
        (f"{finding.kind:10}", "red"), f"{finding.message} ", (f"× {finding.count}", "bold")
    )
    for event in finding.evidence:
        where = ""
        if isinstance(event, RecordedEvent):
            where = f"{Path(event.file).name} {event.sequence} "
        yield Escaped(" " * 10, (where, "dim"), _shown(event))


# --- tail --------------------------------------------------------------------


async def _tail(file: Path, follow: bool, number: int, as_json: bool) -> None:
    show = _shows(as_json)
    try:
        stream = file.open("rb")
    except OSError as error:
        raise AuditError(f"the audit file {file} cannot be read: {error.strerror}") from None
    at = stream.seek(0, os.SEEK_END)
    reading = segments.backwards(stream, at)
    at -= len(next(reading))
    last = list(islice((raw for raw in reading if not segments.is_mark(raw)), number))
    for raw in reversed(last):
        show(raw)
    while follow:
        await asyncio.sleep(POLL_SECONDS)
        newer = _newer(file, stream)
        at = _show_from(stream, at, show)
        if newer is not None:
            stream.close()
            stream, at = newer, _show_from(newer, 0, show)
    stream.close()


def _newer(file: Path, stream: BinaryIO) -> BinaryIO | None:
    """The file that has the name now, where it is another."""
    try:
        if os.path.samestat(file.stat(), os.fstat(stream.fileno())):
            return None
        return file.open("rb")
    except FileNotFoundError:  # between a renaming and the next event
        return None


def _show_from(stream: BinaryIO, at: int, show: Callable[[bytes], None]) -> int:
    """Show the whole lines from a place on, and return where they end."""
    if os.fstat(stream.fileno()).st_size < at:
        at = 0  # it was truncated
    stream.seek(at)
    while (raw := stream.readline()).endswith(b"\n"):
        at += len(raw)
        if not segments.is_mark(raw):
            show(raw)
    return at


def _shows(as_json: bool) -> Callable[[bytes], None]:
    console = out()

    def show(raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip("\n")
        if as_json:
            # JSON's own escapes: a string in it stays the same.
            say("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line))
            return
        try:
            text = _shown(Line.read(raw).event())
        except ValueError as error:
            text = Escaped((f"no event ({error}): {line}", "red"))
        console.print(text, soft_wrap=True)

    return show


def _shown(event: AuditEvent) -> Escaped:
    """An event on one line."""
    at = datetime.fromtimestamp(event.time, timezone.utc).isoformat(" ", "milliseconds")[:23]
    line = Escaped((f"{at} ", "dim"), (f"{event.action:8}", f"bold {_COLOURS[event.outcome]}"), " ")
    status = None if event.status is None else str(event.status)
    parts = (
        ("", None if event.outcome == "success" else event.outcome, _COLOURS[event.outcome]),
        ("", event.reason, "red" if event.outcome == "failure" else "dim"),
        ("", None if event.count is None else f"{event.count} events", ""),
        ("", None if event.kind == "token" else event.kind, "yellow"),
        ("", event.name, "bold"),
        ("", event.fingerprint, "cyan"),
        ("by ", event.issuer if event.action in _CLAIMED else None, "dim"),
        ("at ", event.workflow_id, ""),
        ("", event.workflow_type, "dim"),
        ("from " if event.action == "withhold" else "to ", event.child_id, ""),
        ("in ", event.activity_type, "dim"),
        ("attempt ", None if event.attempt in (None, 1) else str(event.attempt), "dim"),
        ("", event.method, ""),
        ("", event.origin, ""),
        ("", status, "green" if event.outcome == "success" else "red"),
        ("key ", event.reader, "dim"),
    )
    for label, value, style in parts:
        if value is not None:
            line.append(f"{label}{value} ", style)
    line.rstrip()
    return line
