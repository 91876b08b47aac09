"""`stateful token`: set, rotate, look at and end a token at a workflow."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from ..audit import AuditFile
from ..client.calls import ask
from ..client.client import TokenClient
from ..errors import AuditError, NotConverged, OperationFailed, ReferenceUnresolved, StatefulError
from ..node.renewal import SourceStatus
from ..node.status import TokenStatus
from ..record.event import MAX_NOTE, Deed, Note
from ..sealed.keyring import Keyring
from ..sealed.message import DEFAULT_NAME
from ..sealed.origins import allowed_origin
from ..text.output import Command, Escaped, out, print_json, say, unrepeated
from ..text.printable import printable
from ..text.times import utc
from .common import (
    AtWorkflow,
    KeyringPath,
    Timeout,
    command,
    in_options,
    keyring_at_hand,
    not_empty,
)
from .tree import NOT_CONVERGED, in_red, show_tree, some

AUDIT_VARIABLE: Final = "STATEFUL_AUDIT"

app = typer.Typer(help="Set, look at and end a token at a workflow.", no_args_is_help=True)

Readers = Annotated[
    list[str] | None,
    typer.Option("--reader", metavar="AUDIENCE", help="Seal it for these readers; repeatable."),
]


@dataclass(frozen=True)
class WithKeys(AtWorkflow):
    """Options of a command that needs keys, and whose deeds are put on record."""

    keyring: KeyringPath = None
    audit: Annotated[
        Path | None,
        typer.Option(
            envvar=AUDIT_VARIABLE,
            metavar="FILE",
            help="Put on record here what is done; where that fails, nothing but a revoke is.",
        ),
    ] = None

    @asynccontextmanager
    async def client(self, *, must_record: bool = True) -> AsyncGenerator[TokenClient, None]:
        """Connect, with these keys and this record."""
        keyring = Keyring.load(self.keyring)  # first: the cheaper thing to be wrong
        client = await self.connect()
        # Last, since nobody else can write to the file meanwhile.
        with _record(self.audit, must_record=must_record) as record:
            yield TokenClient(client, keyring, audit=record)


@dataclass(frozen=True)
class Noted(WithKeys):
    """Options of a command that changes something: who has it done, for whom, and why."""

    by: Annotated[
        str | None,
        typer.Option(metavar="WHO", help="Who has it done; else this system's user. On record."),
    ] = None
    on_behalf_of: Annotated[
        str | None, typer.Option(metavar="WHOM", help="For whom, such as a customer. On record.")
    ] = None
    reason: Annotated[
        str | None, typer.Option(metavar="WHY", help="Why, such as a ticket. On record.")
    ] = None

    def note(self, *secrets: str) -> Note:
        """What `TokenClient` takes of it; none of the secrets may stand in it."""
        by = self.by
        with suppress(OSError, KeyError, ImportError):  # a container may have no user
            by = getpass.getuser() if by is None else by
        note = Note(by=by, on_behalf_of=self.on_behalf_of, reason=self.reason)
        try:
            Deed("set", **note).without(*secrets)
        except ValueError:
            raise typer.BadParameter(
                "--by, --on-behalf-of and --reason go on record: each takes up to "
                f"{MAX_NOTE:,} characters, and never a secret"
            ) from None
        return note


@dataclass(frozen=True)
class GivenSecret(Noted):
    """Options of a command that is given a secret, and the terms of tokens."""

    # Taken so that a secret given here by mistake is not echoed by the parser's own error.
    mistaken: Annotated[list[str] | None, typer.Argument(hidden=True)] = None
    origin: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Where it may be sent; repeatable.")
    ] = None
    workflow_type: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            callback=not_empty,
            help="Whose activities may open it; repeatable.",
        ),
    ] = None
    reader: Readers = None
    api_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The API's address, which workflows follow.")
    ] = None

    allow_http: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Let a token go to an origin on this host in clear text; repeatable.",
        ),
    ] = None

    def checked_origins(self) -> list[str]:
        """Where it may be sent, checked before any secret is read."""
        try:
            return [allowed_origin(text, self.allow_http or ()) for text in self.origin or ()]
        except ValueError as error:
            raise typer.BadParameter(f"--origin: {in_options(str(error))}") from None

    @cached_property
    def given(self) -> dict[str, Any]:
        """What `TokenClient` takes; waits for the secret where it is typed in."""
        return {
            "workflow_id": self.workflow_id,
            "name": self.name,
            "origins": self.checked_origins() or None,
            "types": self.workflow_type or None,
            "readers": self.reader or None,
            "api_url": self.api_url,
            "allow_http": self.allow_http or (),
            **self.secret(),
        }

    def secret(self) -> dict[str, Any]:
        """What `TokenClient` takes of the secret, and of who has it done."""
        raise NotImplementedError

    def read(self, what: str, option: str, variable: str | None, mistake: str) -> str:
        """A secret from stdin, a hidden prompt or a variable, whose option is named."""
        if self.mistaken:
            raise typer.BadParameter(
                f"a {what} is not taken from the command line: pipe it in, or use {option}. If one "
                f"was given just now, it is in the history of your shell: {mistake}"
            )
        if variable is not None:
            text = os.environ.get(variable, "")
            if not text:
                raise typer.BadParameter(f"the variable of {option} is not set or empty")
            return text
        if sys.stdin.isatty():
            return str(typer.prompt(what.capitalize(), hide_input=True, err=True))
        try:
            text = sys.stdin.read().rstrip("\r\n")
        except UnicodeDecodeError:
            raise typer.BadParameter("stdin is not text") from None
        if not text:
            raise typer.BadParameter(f"no {what} on stdin")
        return text

    def prepare(self) -> None:
        """Read the secret: on the event loop Ctrl-C would not end the waiting for it."""
        _ = self.given


@dataclass(frozen=True)
class NewToken(GivenSecret):
    """Options of a command that sets a token."""

    from_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Read the token from this variable.")
    ] = None
    reference: Annotated[
        str | None,
        typer.Option(metavar="PREFIX:NAME", help="Not a token but what workers resolve to one."),
    ] = None
    expires_in: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="From now; else never.")
    ] = None

    def secret(self) -> dict[str, Any]:
        """The token."""
        if self.reference is not None and self.from_env is not None:
            raise typer.BadParameter("give either --reference or --from-env")
        given: dict[str, Any] = {"reference": self.reference, "expires_in": self.expires_in}
        if self.reference is not None and not self.mistaken:
            return {"token": None, **given, **self.note()}
        token = one_line(self.read("token", "--from-env", self.from_env, "rotate it"))
        return {"token": token, **given, **self.note(token)}


@app.command("set", cls=Command)
@command
async def set_token(options: NewToken) -> None:
    """Set a token at a workflow and all below it, and print its status.

    The token comes from stdin, or from a variable with --from-env; never from the command line,
    where other users of the machine could read it. An origin is https, or http on 127.0.0.1.
    Origins, types, readers and address that are not given stay as those of the token held there.
    """
    async with options.client() as tokens:
        status = await tokens.set(**options.given)
        await _say_what_goes_on(tokens, options)
    _show(options, status)


@app.command(cls=Command)
@command
async def rotate(
    options: NewToken,
    timeout: Timeout = 60.0,
    settle: Annotated[
        bool, typer.Option("--settle", help="Wait also for running activities to ask again.")
    ] = False,
) -> int:
    """Set a token as `set` does, and wait until every workflow that should have it has accepted it.

    With exit status 0 the old token may be revoked at the API: at once with --settle, else once
    running activities have asked again, some seconds later. 3 says that some workflow has not the
    newest, or cannot use it, and the tree that is printed says which.
    """
    async with options.client() as tokens:
        try:
            with out(err=True).status("waiting until every workflow has accepted it …"):
                tree = await tokens.rotate(**options.given, timeout=timeout, settle=settle)
        except NotConverged as behind:
            tree = behind.tree
        await _say_what_goes_on(tokens, options)
    return show_tree(tree, as_json=options.as_json)


@app.command(cls=Command)
@command
async def seal(options: NewToken) -> None:
    """Seal a token as `set` does, and print the sealed message instead of sending it.

    Whoever may update the workflow sends it, as the update that is named apiToken. It counts at
    this workflow alone, and until a newer one is set there.
    """
    async with options.client() as tokens:
        sealed = await tokens.seal(**options.given)
        await _say_what_goes_on(tokens, options)
    print_json({"name": options.name, "sealed": sealed}) if options.as_json else say(sealed)


@app.command()
@command
async def status(options: AtWorkflow, keyring: KeyringPath = None) -> None:
    """Show what a workflow holds, without opening it, and the source that mints it where one does.

    What needs authorization goes on after `stateful token authorize`.
    """
    keys = keyring_at_hand(keyring)
    client = await options.connect()
    tokens = TokenClient(client, keys)
    status = await tokens.status(options.workflow_id, options.name)
    home = (status and status.authority) or options.workflow_id
    problem: str | None = None
    source: SourceStatus | None = None
    with suppress(OperationFailed):
        answer = await ask(client, options.workflow_id)
        closed = "the workflow is closed" if answer.closed and status is not None else None
        problem = answer.node.clear_text(options.name) or closed
        source = await tokens.source(home, options.name)
    _show(options, status, problem=problem, source=None if source is None else (home, source))


@app.command("api-url")
@command
async def api_url(
    options: AtWorkflow,
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="Scheme, host and port.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Follow the token's address again.")
    ] = False,
) -> None:
    """Give one workflow an API address of its own, within the origins of a token that it holds.

    The address of a whole tree belongs to its token: --api-url of set and rotate.
    """
    if (url is None) is not follow:
        raise typer.BadParameter("give either a URL or --follow")
    tokens = TokenClient(await options.connect())
    if options.name != DEFAULT_NAME:  # the address is for every name, so this one must be known
        await tokens.status(options.workflow_id, options.name)
    await tokens.set_api_url(options.workflow_id, url)
    if options.as_json:
        print_json({"workflow": options.workflow_id, "api_url": url})
    elif url is None:
        say(f"{options.workflow_id} follows its token's address")
    else:
        say(f"{options.workflow_id} has the address {url} of its own")


@app.command()
@command
async def reveal(options: WithKeys) -> None:
    """Print the token itself, with --json also what belongs to it. Needs a reader key."""
    async with options.client() as tokens:
        try:
            opened = await tokens.get(options.workflow_id, options.name)
        except ReferenceUnresolved as error:
            if not options.as_json:
                raise StatefulError(f"it is a reference: {error.reference}") from None
            print_json({"name": options.name, "reference": error.reference})
            return
    token, values = opened.reveal(), dict(opened.values)
    if options.as_json:
        more = {"values": values} if values else {}
        print_json({"name": options.name, "token": token, **more})
    elif printable(token, keep="\n") != token:
        raise StatefulError("the token has characters that are not printed: add --json")
    else:
        say(*token.split("\n"))


@app.command()
@command
async def reseal(options: Noted, reader: Readers = None) -> None:
    """Seal the token a workflow holds anew, for the readers the keyring has now.

    The token stays the same, so this shuts nobody out who could open it before: after a reader
    key was stolen, rotate. Needs an issuer and a reader key.
    """
    async with options.client() as tokens:
        status = await tokens.reseal(
            options.workflow_id, options.name, readers=reader or None, **options.note()
        )
    _show(options, status, at=status.authority)


@app.command()
@command
async def revoke(
    options: Noted,
    below: Annotated[
        bool, typer.Option("--below", help="Also where one is set further down, or beside it.")
    ] = False,
) -> int:
    """Take the token from a workflow and all below it; one set further down stands.

    Exit status 0 when no workflow from there down holds one to use any more, 3 when one does or
    cannot be asked: the status names it.
    """
    async with options.client(must_record=False) as tokens:
        status = await tokens.revoke(
            options.workflow_id, options.name, below=below, **options.note()
        )
        try:
            tree = await tokens.tree(options.workflow_id, options.name)
        except OperationFailed as error:
            raise OperationFailed(
                f"it is revoked; who holds it yet is not known: {error}"
            ) from None
    at = {
        "revoked at": [n.id for n in tree.nodes if n.state == "revoked" and n.authority == n.id],
        "held yet at": [node.id for node in tree.holding],
        "not told yet": [node.id for node in tree.behind if not node.holds],
    }
    _show(options, status, more=at)
    return NOT_CONVERGED if tree.holding or tree.behind else 0


@app.command()
@command
async def inherit(options: Noted) -> None:
    """Give a workflow its ancestors' token again, after a set or a revoke of its own."""
    async with options.client() as tokens:
        status = await tokens.inherit(options.workflow_id, options.name, **options.note())
    _show(options, status)


def _record(path: Path | None, *, must_record: bool) -> AbstractContextManager[AuditFile | None]:
    if path is None:
        return nullcontext()
    try:
        return AuditFile(path)
    except AuditError as error:
        if must_record:
            raise
        why = unrepeated(str(error), {"--audit": path})
        say(f"warning: this is not recorded: {why}", err=True)
        return nullcontext()


def one_line(token: str) -> str:
    """The token, refused where it has several lines."""
    if "\n" in token or "\r" in token:
        raise typer.BadParameter("what was given has several lines, and a token is one")
    return token


async def _say_what_goes_on(tokens: TokenClient, options: AtWorkflow) -> None:
    """A note where a source renews what was just set."""
    source = None
    with suppress(OperationFailed):
        source = await tokens.source(options.workflow_id, options.name)
    if source is not None and not source.needs_authorization:
        at = None if source.next_at is None else utc(source.next_at / 1000)
        say(
            f"note: source {source.source} goes on minting {options.name} here, and replaces this "
            f"one {f'at {at}' if at else 'when it renews it'}; a revoke ends that",
            err=True,
        )


def _show(
    options: AtWorkflow,
    status: TokenStatus | None,
    at: str | None = None,
    more: Mapping[str, Sequence[str]] | None = None,
    problem: str | None = None,
    source: tuple[str, SourceStatus] | None = None,
) -> None:
    more = more or {}
    if options.as_json:
        shown = None if status is None else status.to_json()
        members: dict[str, Any] = {
            label.replace(" ", "_"): list(ids) for label, ids in more.items()
        }
        if problem is not None:
            members["problem"] = problem
        if source is not None:
            members["source"] = source_json(*source)
        print_json({**(shown or {}), **members} if members else shown)
        return
    rows: dict[str, str | None] = {"workflow": at or options.workflow_id}
    if status is None:
        rows["state"] = "none"
    else:
        version, expires = status.version, status.expires_at
        overtaken = (f"issuer {kid}, version {at}" for kid, at in status.overtaken.items())
        rows |= {
            "name": options.name,
            "state": f"{status.state}, refused by an API" if status.refused else status.state,
            "asleep until": None if status.asleep_until is None else _time(status.asleep_until),
            "version": None if version is None else f"{version} ({_time(version / 1000)})",
            "fingerprint": status.fingerprint,
            "set at": status.authority,
            "issuer": status.issuer,
            "overtaken": ", ".join(overtaken),
            "origins": " ".join(status.origins),
            "address": status.api_url,
            "types": None if status.types is None else " ".join(status.types) or "none",
            "readers": None if status.readers is None else " ".join(status.readers),
            "expires": None if expires is None else _time(expires),
        } | {label: some(ids) for label, ids in more.items()}
    if source is not None:
        home, minting = source
        rows |= source_rows(home, minting)
        rows["source"] = f"{rows['source']}{'' if home == rows['workflow'] else f', at {home}'}"
    rows["problem"] = problem
    table = table_of(rows)
    if status is not None and (clear := in_red(status.origins)) != ("", "red"):
        table.add_row("", Escaped(clear))
    out().print(table)


def table_of(rows: Mapping[str, str | None]) -> Table:
    """A line for each row that says something."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, value in rows.items():
        if value:
            table.add_row(label, value)
    return table


def source_rows(home: str, source: SourceStatus) -> dict[str, str | None]:
    """What is known of the source that mints a credential at a home."""
    how = [] if source.every is None else [f"every {source.every:,} s at the latest"]
    how += ["then the old one is retired"] if source.retire else []
    counts = (f"{count:,} {what.replace('_', ' ')}" for what, count in source.counts.items())
    proven = {True: ", which the provider refuses now", False: ", which the provider STILL TAKES"}
    told = proven.get(source.proven, "") if source.proven is not None else ""
    retiring = (f"{each.fingerprint}, {some(each.behind)}" for each in source.retiring)
    cure = source.cure(home)
    return {
        "source": f"{source.source}, {source.state.replace('_', ' ')}",
        "next renewal": None if source.next_at is None else _time(source.next_at / 1000),
        "renewed": ", ".join(how),
        "exchanges": ", ".join(counts),
        "to be retired": "; ".join(each.removesuffix(", ") for each in retiring),
        "retired": None if source.retired is None else f"{source.retired}{told}",
        "held up": source.amiss,
        "run": cure,
    }


def source_json(home: str, source: SourceStatus) -> dict[str, Any]:
    """The same as JSON data."""
    more = {"home": home, "amiss": source.amiss, "cure": source.cure(home)}
    return {**asdict(source), **more}


def _time(seconds: float) -> str:
    return utc(seconds) or "after the year 9999"
