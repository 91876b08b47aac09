"""`stateful codec-server`: what sealed messages say, in Temporal's Web UI and command line."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from ..errors import StatefulError
from ..sealed.keyring import Keyring
from ..text.output import say
from .common import KeyringPath, reported, run
from .extras import needing

BEARER_VARIABLE: Final = "STATEFUL_CODEC_BEARER"
"""Holds the secret that requests must carry, where no file is given."""

DEFAULT_PORT: Final = 8234
"""Next to 8233, where `temporal server start-dev` has its Web UI."""


def codec_server(
    host: Annotated[
        str,
        typer.Option(help="Address to listen on, without TLS: beyond loopback, behind a proxy."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = DEFAULT_PORT,
    ui_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Of the Web UI whose pages may ask; repeatable."),
    ] = None,
    host_name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Host that it is asked under, as a proxy's; repeatable."),
    ] = None,
    bearer_file: Annotated[
        typer.FileText | None,
        typer.Option(
            errors="replace",
            metavar="FILE",
            help=f"File to read a secret from that requests must carry; else ${BEARER_VARIABLE}.",
        ),
    ] = None,
    keyring: KeyringPath = None,
) -> None:
    """Show in the Web UI what sealed messages say: a codec server, until Ctrl-C.

    It opens no token: a public keyring is enough (`stateful keys public`). It answers pages of a
    Web UI at port 8233 of this machine, or of those named, as the browser shows their address; and
    under localhost, 127.0.0.1, [::1], --host and the host names that are given. Without a secret
    anybody may ask.
    """
    with reported(), needing("the codec server", "cli,codec"):
        from ..web.codec_server import DEFAULT_UI_ORIGINS, codec_app, serve_codec
    origins = ui_origin or DEFAULT_UI_ORIGINS
    with reported():
        keys = Keyring.load(keyring)
        bearer = (
            os.environ.get(BEARER_VARIABLE) if bearer_file is None else bearer_file.read().strip()
        )
        try:
            hosts = [host, *(host_name or ())]
            app = codec_app(keys, ui_origins=origins, host_names=hosts, bearer=bearer)
        except ValueError as error:
            raise StatefulError(str(error)) from None

    async def serving() -> None:
        async with serve_codec(app, host=host, port=port) as endpoint:
            unused = (
                "; its private keys are not used" if any(k.private for k in keys.keys()) else ""
            )
            say(
                f"codec endpoint   {endpoint}",
                f"Web UI           {' '.join(origins)}",
                f"keyring          {keys.path}{unused}",
                f"secret           {'none asked for' if bearer is None else 'asked for'}",
                "",
                *_how_to_use(endpoint, with_secret=bearer is not None),
                "",
                "Ctrl-C stops it.",
            )
            await asyncio.Event().wait()

    run(serving(), stopped=0)


def _how_to_use(endpoint: str, *, with_secret: bool) -> Iterator[str]:
    yield "In the Web UI: the icon with the glasses at the top right, or start it with"
    yield f"  stateful dev --ui-codec-endpoint {endpoint}"
    yield f"  temporal server start-dev --ui-codec-endpoint {endpoint}"
    yield "On the command line:"
    if with_secret:  # on the command line itself other users of the machine could read it
        yield '  export TEMPORAL_CODEC_AUTH="Bearer …"'
    yield f"  temporal workflow show -w ID --codec-endpoint {endpoint} --detailed"
