"""`stateful keys`: make and show keyrings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..keyring import KEYRING_VARIABLE, KeyInfo, Keyring
from .common import Json, KeyringPath, out, print_json, reported

app = typer.Typer(help="Make and show keyrings.", no_args_is_help=True)


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
    typer.echo(f"\nexport {KEYRING_VARIABLE}={path.absolute()}", err=True)


@app.command("list")
def list_keys(path: KeyringPath = None, as_json: Json = False) -> None:
    """List the keys of a keyring; never their private halves."""
    with reported():
        keyring = Keyring.load(path)
    _show(keyring, as_json)


@app.command()
def public(path: KeyringPath = None) -> None:
    """Print the keyring without private halves: all that a worker of workflows only needs."""
    with reported():
        keyring = Keyring.load(path)
    typer.echo(keyring.public().to_json(), nl=False)


def _show(keyring: Keyring, as_json: bool) -> None:
    keys = keyring.keys()
    if as_json:
        print_json([asdict(key) for key in keys])
        return
    table = Table("kind", "key id", "private", "state", box=None, pad_edge=False)
    for key in keys:
        table.add_row(key.kind, key.kid, "yes" if key.private else "no", _state(key))
    out().print(table)


def _state(key: KeyInfo) -> str:
    return "revoked" if key.revoked else "retired" if key.retired else "in use"
