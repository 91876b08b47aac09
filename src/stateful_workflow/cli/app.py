"""The commands and what belongs to none of their groups: `stateful dev` and `stateful demo`."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from ..engine import start_engine
from ..text.output import Command, Commands, say
from . import audit, codec_server, keys, source, token, tree
from .common import Json, Namespace, reported, run
from .extras import needing

app = typer.Typer(
    name="stateful",
    cls=Commands,
    help="One API token for a tree of Temporal workflows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they can show local variables: a token may be one
)
app.add_typer(keys.app, name="keys")
app.add_typer(token.app, name="token")
token.app.command("authorize", cls=Command)(source.authorize)
token.app.command("renew")(source.renew)
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

    async def serving() -> None:
        async with start_engine(
            db,
            port=port,
            ui_port=ui_port,
            ui_codec_endpoint=ui_codec_endpoint,
            namespace=namespace or "default",
        ) as engine:
            say(
                f"Temporal server  {engine.address}",
                f"namespace        {engine.namespace}",
                f"Web UI           {engine.ui_url}",
                f"data             {engine.db or 'in memory, gone at the end'}",
                "",
                f"export TEMPORAL_ADDRESS={engine.address}",
                "",
                "Ctrl-C stops it.",
            )
            await asyncio.Event().wait()

    run(serving(), stopped=0)


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
    with reported(), needing("the demo", "demo"):
        from ..demo.main import run_demo
    run(run_demo(as_json=as_json, keep=keep))
