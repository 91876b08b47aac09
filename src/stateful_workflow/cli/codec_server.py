"""`stateful codec-server`: what sealed messages say, in Temporal's Web UI and command line."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Final

import typer

from ..errors import StatefulError
from ..sealed.keyring import Keyring
from ..text.output import say
from .common import KeyringPath, needing, run

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
        typer.Option(
            metavar="URL",
            help="Of the Web UI whose pages may ask, as the browser shows it, repeatable; "
            "else that of a local server, port 8233.",
        ),
    ] = None,
    host_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Host in the URL that the Web UI asks under, such as a proxy's, repeatable; "
            "beside localhost, 127.0.0.1, [::1] and --host.",
        ),
    ] = None,
    bearer_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File with a secret that requests must carry; else ${BEARER_VARIABLE}; "
            "with neither anybody may ask.",
        ),
    ] = None,
    keyring: KeyringPath = None,
) -> None:
    """Show in the Web UI what sealed messages say: a codec server, until Ctrl-C.

    It opens no token: a public keyring is enough (`stateful keys public`).
    """
    run(_codec_server(host, port, ui_origin, host_name or [], bearer_file, keyring), stopped=0)


async def _codec_server(
    host: str,
    port: int,
    ui_origins: list[str] | None,
    host_names: list[str],
    bearer_file: Path | None,
    keyring_path: Path | None,
) -> int:
    with needing("the codec server", "cli,codec"):
        from ..web.codec_server import DEFAULT_UI_ORIGINS, codec_app, serve_codec
    keyring = Keyring.load(keyring_path)
    bearer = _read_bearer(bearer_file)
    try:
        app = codec_app(
            keyring,
            ui_origins=ui_origins or DEFAULT_UI_ORIGINS,
            host_names=[host, *host_names],
            bearer=bearer,
        )
    except ValueError as error:
        raise StatefulError(str(error)) from None
    unused = any(key.private for key in keyring.keys())
    async with serve_codec(app, host=host, port=port) as endpoint:
        for label, value in (
            ("codec endpoint", endpoint),
            ("Web UI", " ".join(ui_origins or DEFAULT_UI_ORIGINS)),
            ("keyring", f"{keyring.path}{'; its private keys are not used' if unused else ''}"),
            ("secret", "none asked for" if bearer is None else "asked for"),
        ):
            say(f"{label:16} {value}")
        # On the command line itself other users of the machine could read it.
        secret = "" if bearer is None else '  export TEMPORAL_CODEC_AUTH="Bearer …"\n'
        usage = (
            "\nIn the Web UI: the icon with the glasses at the top right, or start it with\n"
            f"  stateful dev --ui-codec-endpoint {endpoint}\n"
            f"  temporal server start-dev --ui-codec-endpoint {endpoint}\n"
            "On the command line:\n"
            f"{secret}  temporal workflow show -w ID --codec-endpoint {endpoint} --detailed\n"
            "\nCtrl-C stops it."
        )
        say(*usage.split("\n"))
        await asyncio.Event().wait()
    return 0


def _read_bearer(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(BEARER_VARIABLE)
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise StatefulError(f"the file {file} cannot be read: {reason}") from None
