"""`stateful keys`: make keyrings, add, retire and revoke keys, and give each process its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..errors import KeyringError
from ..sealed.keyring import Keyring
from ..sealed.keyring_file import KEYRING_VARIABLE
from ..sealed.keys import DEFAULT_AUDIENCE, KeyInfo, limits_of
from ..text.output import out, print_json, say
from .common import Json, KeyringPath, reported

app = typer.Typer(help="Make keyrings and change their keys.", no_args_is_help=True)

# A key id may begin with a hyphen.
_KEY_ID = {"ignore_unknown_options": True}

KeyId = Annotated[
    str, typer.Argument(metavar="KEY", help="Key id, or its first 6 or more characters.")
]


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to make; it must not exist.")],
    as_json: Json = False,
) -> None:
    """Make a keyring with one issuer and one reader key, mode 0600."""
    with reported():
        keyring = Keyring.generate()
        keyring.save(path)
    _show(keyring, as_json)
    say("", f"export {KEYRING_VARIABLE}={path.absolute()}", err=True)


@app.command("list")
def list_keys(path: KeyringPath = None, as_json: Json = False) -> None:
    """List the keys of a keyring; never their private halves."""
    with reported():
        keyring = Keyring.load(path)
    _show(keyring, as_json)


@app.command()
def public(path: KeyringPath = None) -> None:
    """Print the keyring without private halves: enough for a worker that runs only workflows."""
    with reported():
        keyring = Keyring.load(path)
    say(*keyring.public().to_json().splitlines())


@app.command()
def export(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="File to write, mode 0600.")],
    issuers: Annotated[
        bool, typer.Option("--issuers", help="With the private keys of issuers: it may seal.")
    ] = False,
    reader: Annotated[
        list[str] | None,
        typer.Option(
            "--reader",
            metavar="AUDIENCE",
            help="With the private keys of this audience's readers, repeatable: it may open "
            "what is sealed for them.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of a keyring that is there.")
    ] = False,
    path: KeyringPath = None,
    as_json: Json = False,
) -> None:
    """Write the keyring of one process: every public key, and the private ones named here.

    Running processes take a replaced file by themselves.
    """
    with reported():

        def part() -> Keyring:
            return Keyring.load(path).only(issuers=issuers, readers=reader or ())

        if replace and target.exists():
            # Of two exports at once the one that reads the keyring last is the last to write.
            keyring = Keyring.change_file(target, lambda _: part())
        elif target.exists():
            raise KeyringError(f"{target} exists; --replace puts this keyring in its place")
        else:
            keyring = part()
            keyring.save(target)
    _show(keyring, as_json)


@app.command()
def add_issuer(
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name", metavar="NAME", help="Credential name it may sign for, repeatable; else any."
        ),
    ] = None,
    roots: Annotated[
        list[str] | None,
        typer.Option(
            "--root",
            metavar="PREFIX",
            help="How the workflow id of a root must begin whose tree it may sign for, "
            "repeatable; else any.",
        ),
    ] = None,
    origins: Annotated[
        list[str] | None,
        typer.Option(
            "--origin",
            metavar="URL",
            help="Where its tokens may be sent at most, repeatable; else anywhere.",
        ),
    ] = None,
    path: KeyringPath = None,
    as_json: Json = False,
) -> None:
    """Add an issuer; from now on it seals whatever is within its limits.

    Give the new public keyring to the workers before a token is set with it.
    """
    _change(
        path,
        lambda keyring: keyring.add_issuer(
            names=names or None, roots=roots or None, origins=origins or None
        ),
        as_json,
    )


@app.command()
def add_reader(
    audience: Annotated[
        str, typer.Option(help="Whom it stands for: a task queue, or a label of your choice.")
    ] = DEFAULT_AUDIENCE,
    path: KeyringPath = None,
    as_json: Json = False,
) -> None:
    """Add a reader; what is sealed from now on is sealed for it too."""
    _change(path, lambda keyring: keyring.add_reader(audience), as_json)


@app.command(context_settings=_KEY_ID)
def retire(key: KeyId, path: KeyringPath = None, as_json: Json = False) -> None:
    """Let a key seal, or be sealed for, no more; what there is stays good."""
    _change(path, lambda keyring: keyring.retire(_kid(keyring, key)), as_json)


@app.command(context_settings=_KEY_ID)
def revoke(key: KeyId, path: KeyringPath = None, as_json: Json = False) -> None:
    """Revoke a key that others may have, and make its successor.

    What a revoked issuer signed is refused at once wherever this keyring is: hand it to all
    workers, then set each token again. After a reader, rotate each token and revoke the old one
    at the API.
    """
    _change(path, lambda keyring: keyring.revoke(_kid(keyring, key)), as_json)


def _change(path: Path | None, change: Callable[[Keyring], Keyring], as_json: bool) -> None:
    with reported():
        after = Keyring.change_file(path, change)
    _show(after, as_json)


def _kid(keyring: Keyring, text: str) -> str:
    kids = [info.kid for info in keyring.keys() if info.kid.startswith(text)]
    if text in kids or (len(kids) == 1 and len(text) >= 6):
        return text if text in kids else kids[0]
    if len(text) < 6:
        raise KeyringError("a key id is given by its first 6 or more characters")
    raise KeyringError(
        f"{len(kids)} keys of this keyring begin with {text}; see `stateful keys list`"
    )


def _show(keyring: Keyring, as_json: bool) -> None:
    keys = keyring.keys()
    if as_json:
        print_json([asdict(key) for key in keys])
        return
    table = Table("kind", "key id", "private", "state", "for", box=None, pad_edge=False)
    for key in keys:
        table.add_row(key.kind, key.kid, "yes" if key.private else "no", _state(key), _for(key))
    out().print(table)


def _state(key: KeyInfo) -> str:
    return "revoked" if key.revoked else "retired" if key.retired else "in use"


def _for(key: KeyInfo) -> str:
    if key.audience is not None:
        return f"audience {key.audience}"
    shown = [f"{name} {' '.join(of)}" for name, of in limits_of(key).items()]
    return "; ".join(shown) or "everything"
