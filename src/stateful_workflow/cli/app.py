"""The commands and what belongs to none of their groups: `stateful dev` and `stateful demo`."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from ..engine import start_engine
from ..text.output import Commands, say
from . import audit, codec_server, keys, token, tree
from .common import Json, Namespace, needing, run

app = typer.Typer(
    name="stateful",
    cls=Commands,
    help="One API token for a tree of Temporal workflows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they can show local variables: a token may be one
)
app.add_typer(keys.app, name="keys")
app.add_typer(token.app, name="token")
app.add_typer(audit.app, name="audit")
app.command("tree")(tree.tree)
app.command("codec-server")(codec_server.codec_server)


def _version(wanted: bool) -> None:
    if wanted:
        say(version("stateful-workflow"))
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """One API token for a tree of Temporal workflows."""


@app.command()
def dev(
    db: Annotated[
        Path | None, typer.Option(help="SQLite file that keeps the data; without it: in memory.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port of the server; else a free one.")] = None,
    ui_port: Annotated[
        int | None, typer.Option(help="Port of the Web UI; else a free one.")
    ] = None,
    ui_codec_endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Codec server that the Web UI asks.")
    ] = None,
    namespace: Namespace = None,
) -> None:
    """Run the embedded Temporal server with its Web UI until Ctrl-C."""
    run(_dev(db, port, ui_port, ui_codec_endpoint, namespace or "default"), stopped=0)


async def _dev(
    db: Path | None,
    port: int | None,
    ui_port: int | None,
    ui_codec_endpoint: str | None,
    namespace: str,
) -> int:
    async with start_engine(
        db, port=port, ui_port=ui_port, ui_codec_endpoint=ui_codec_endpoint, namespace=namespace
    ) as engine:
        for label, value in (
            ("Temporal server", engine.address),
            ("namespace", engine.namespace),
            ("Web UI", engine.ui_url),
            ("data", engine.db or "in memory, gone at the end"),
        ):
            say(f"{label:16} {value}")
        say("", f"export TEMPORAL_ADDRESS={engine.address}", "", "Ctrl-C stops it.")
        await asyncio.Event().wait()
    return 0


@app.command()
def demo(
    as_json: Json = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the server and its Web UI running until Ctrl-C.")
    ] = False,
) -> None:
    """Rotate a token through a tree of 36 workflows while they call an API, and report.

    Needs no server: it runs the embedded one. With --json the report is the last line.
    """
    run(_demo(as_json, keep))


async def _demo(as_json: bool, keep: bool) -> int:
    with needing("the demo", "demo"):
        from ..demo.main import run_demo
    return await run_demo(as_json=as_json, keep=keep)
