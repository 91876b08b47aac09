"""`stateful token`: set, rotate, look at and end a token at a workflow."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..audit import AuditFile
from ..client.client import TokenClient
from ..errors import AuditError, NotConverged, StatefulError
from ..node.status import TokenStatus
from ..sealed.keyring import Keyring
from ..sealed.message import DEFAULT_NAME
from ..sealed.origins import allowed_origin
from ..text.output import out, print_json, say, unrepeated
from ..text.printable import printable
from .common import (
    Address,
    AuditPath,
    Json,
    KeyringPath,
    Name,
    Namespace,
    WorkflowId,
    connect,
    run,
)
from .tree import show_tree

app = typer.Typer(help="Set, look at and end a token at a workflow.", no_args_is_help=True)


FromEnvironment = Annotated[
    str | None,
    typer.Option("--from-env", metavar="VARIABLE", help="Read the token from this variable."),
]
Origins = Annotated[
    list[str] | None,
    typer.Option(
        "--origin",
        metavar="URL",
        help="Where it may be sent (https, or http on 127.0.0.1), repeatable; "
        "else as the token held there.",
    ),
]
ExpiresIn = Annotated[
    float | None, typer.Option(min=1, metavar="SECONDS", help="From now; else never.")
]
Types = Annotated[
    list[str] | None,
    typer.Option(
        "--type",
        metavar="TYPE",
        help="Workflow types whose activities may open it, repeatable; "
        "else as the token held there.",
    ),
]
Readers = Annotated[
    list[str] | None,
    typer.Option(
        "--reader",
        metavar="AUDIENCE",
        help="Seal it for the readers of this audience only, repeatable; "
        "else as the token held there.",
    ),
]
# Taken so that a token given here by mistake is not echoed by the parser's own error.
Mistaken = Annotated[list[str] | None, typer.Argument(hidden=True)]


@app.command("set")
def set_token(
    workflow_id: WorkflowId,
    mistaken: Mistaken = None,
    from_env: FromEnvironment = None,
    name: Name = DEFAULT_NAME,
    origin: Origins = None,
    expires_in: ExpiresIn = None,
    workflow_type: Types = None,
    reader: Readers = None,
    address: Address = None,
    namespace: Namespace = None,
    keyring: KeyringPath = None,
    audit: AuditPath = None,
    as_json: Json = False,
) -> None:
    """Set a token at a workflow and all below it, and print its status.

    The token comes from stdin, or from a variable with --from-env; never from the command line,
    where other users of the machine could read it.
    """
    origins = _checked_origins(origin)
    token = _read_token(from_env, mistaken)

    async def command() -> None:
        async with _client_with_keys(address, namespace, keyring, audit) as tokens:
            status = await tokens.set(
                workflow_id,
                token,
                name=name,
                origins=origins,
                expires_in=expires_in,
                types=workflow_type or None,
                readers=reader or None,
            )
        _show(workflow_id, name, status, as_json)

    run(command())


@app.command()
def rotate(
    workflow_id: WorkflowId,
    mistaken: Mistaken = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long to wait.")
    ] = 60.0,
    from_env: FromEnvironment = None,
    name: Name = DEFAULT_NAME,
    origin: Origins = None,
    expires_in: ExpiresIn = None,
    workflow_type: Types = None,
    reader: Readers = None,
    address: Address = None,
    namespace: Namespace = None,
    keyring: KeyringPath = None,
    audit: AuditPath = None,
    as_json: Json = False,
) -> None:
    """Set a token and wait until every workflow that should have it has accepted it.

    With exit status 0 the old token may be revoked at the API; 3 says that some workflow is
    still behind, and the tree that is printed says which.
    """
    origins = _checked_origins(origin)
    token = _read_token(from_env, mistaken)

    async def command() -> int:
        async with _client_with_keys(address, namespace, keyring, audit) as tokens:
            try:
                with out(err=True).status("waiting until every workflow has accepted it …"):
                    tree = await tokens.rotate(
                        workflow_id,
                        token,
                        timeout=timeout,
                        name=name,
                        origins=origins,
                        expires_in=expires_in,
                        types=workflow_type or None,
                        readers=reader or None,
                    )
            except NotConverged as behind:
                tree = behind.tree
        return show_tree(tree, as_json=as_json)

    run(command())


@app.command()
def status(
    workflow_id: WorkflowId,
    name: Name = DEFAULT_NAME,
    address: Address = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Show what a workflow holds, without opening it."""

    async def command() -> None:
        tokens = TokenClient(await connect(address, namespace))
        _show(workflow_id, name, await tokens.status(workflow_id, name), as_json)

    run(command())


@app.command()
def reveal(
    workflow_id: WorkflowId,
    name: Name = DEFAULT_NAME,
    address: Address = None,
    namespace: Namespace = None,
    keyring: KeyringPath = None,
    audit: AuditPath = None,
    as_json: Json = False,
) -> None:
    """Print the token itself. Needs a reader key."""

    async def command() -> None:
        async with _client_with_keys(address, namespace, keyring, audit) as tokens:
            token = (await tokens.get(workflow_id, name)).reveal()
        if as_json:
            print_json({"name": name, "token": token})
        elif printable(token, keep="\n") != token:
            raise StatefulError("the token has characters that are not printed: add --json")
        else:
            say(*token.split("\n"))

    run(command())


@app.command()
def reseal(
    workflow_id: WorkflowId,
    name: Name = DEFAULT_NAME,
    reader: Readers = None,
    address: Address = None,
    namespace: Namespace = None,
    keyring: KeyringPath = None,
    audit: AuditPath = None,
    as_json: Json = False,
) -> None:
    """Seal the token a workflow holds anew, for the readers the keyring has now.

    The token stays the same, so this shuts nobody out who could open it before: after a reader
    key was stolen, rotate. Needs an issuer and a reader key.
    """

    async def command() -> None:
        async with _client_with_keys(address, namespace, keyring, audit) as tokens:
            status = await tokens.reseal(workflow_id, name, readers=reader or None)
        _show(status.authority or workflow_id, name, status, as_json)

    run(command())


@app.command()
def revoke(
    workflow_id: WorkflowId,
    name: Name = DEFAULT_NAME,
    address: Address = None,
    namespace: Namespace = None,
    keyring: KeyringPath = None,
    audit: AuditPath = None,
    as_json: Json = False,
) -> None:
    """Take the token from a workflow and all below it; one set further down stands."""

    run(_end(TokenClient.revoke, workflow_id, name, address, namespace, keyring, audit, as_json))


@app.command()
def inherit(
    workflow_id: WorkflowId,
    name: Name = DEFAULT_NAME,
    address: Address = None,
    namespace: Namespace = None,
    keyring: KeyringPath = None,
    audit: AuditPath = None,
    as_json: Json = False,
) -> None:
    """Give a workflow its ancestors' token again, after a set or a revoke of its own."""

    run(_end(TokenClient.inherit, workflow_id, name, address, namespace, keyring, audit, as_json))


def _checked_origin(text: str) -> str:
    try:
        return allowed_origin(text)
    except ValueError as error:
        raise typer.BadParameter(f"--origin: {error}") from None


async def _end(
    call: Callable[[TokenClient, str, str], Awaitable[TokenStatus]],
    workflow_id: str,
    name: str,
    address: str | None,
    namespace: str | None,
    keyring: Path | None,
    audit: Path | None,
    as_json: bool,
) -> None:
    must_record = call is not TokenClient.revoke
    async with _client_with_keys(
        address, namespace, keyring, audit, must_record=must_record
    ) as tokens:
        status = await call(tokens, workflow_id, name)
    _show(workflow_id, name, status, as_json)


@asynccontextmanager
async def _client_with_keys(
    address: str | None,
    namespace: str | None,
    path: Path | None,
    audit: Path | None,
    *,
    must_record: bool = True,
) -> AsyncGenerator[TokenClient, None]:
    keyring = Keyring.load(path)  # first: the cheaper thing to be wrong
    client = await connect(address, namespace)
    # Last, since nobody else can write to the file meanwhile.
    with _record(audit, must_record=must_record) as record:
        yield TokenClient(client, keyring, audit=record)


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


def _checked_origins(origins: list[str] | None) -> list[str] | None:
    return [_checked_origin(text) for text in origins or ()] or None


def _read_token(variable: str | None, mistaken: list[str] | None) -> str:
    if mistaken:
        raise typer.BadParameter(
            "a token is not taken from the command line: pipe it in, or use --from-env. If one "
            "was given just now, it is in the history of your shell: rotate it"
        )
    if variable is not None:
        token = os.environ.get(variable, "")
        if not token:
            raise typer.BadParameter("the variable of --from-env is not set or empty")
        return token
    if sys.stdin.isatty():
        return str(typer.prompt("Token", hide_input=True, err=True))
    try:
        token = sys.stdin.read().rstrip("\r\n")
    except UnicodeDecodeError:
        raise typer.BadParameter("stdin is not text") from None
    if not token:
        raise typer.BadParameter("no token on stdin")
    return token


def _show(workflow_id: str, name: str, status: TokenStatus | None, as_json: bool) -> None:
    if as_json:
        print_json(None if status is None else status.to_json())
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("workflow", workflow_id)
    if status is None:
        table.add_row("state", "none")
    else:
        version, expires = status.version, status.expires_at
        for label, value in (
            ("name", name),
            ("state", status.state),
            ("version", None if version is None else f"{version} ({_utc(version / 1000)})"),
            ("fingerprint", status.fingerprint),
            ("set at", status.authority),
            ("issuer", status.issuer),
            ("overtaken", _overtaken(status)),
            ("origins", " ".join(status.origins)),
            ("types", None if status.types is None else " ".join(status.types) or "none"),
            ("readers", None if status.readers is None else " ".join(status.readers)),
            ("expires", None if expires is None else _utc(expires)),
        ):
            if value:
                table.add_row(label, value)
    out().print(table)


def _overtaken(status: TokenStatus) -> str:
    return ", ".join(f"issuer {kid}, version {at}" for kid, at in status.overtaken.items())


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(" ", "seconds")
