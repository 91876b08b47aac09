"""What the commands share: options, the connection, and how errors and signals end them."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Coroutine, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError

from ..errors import OperationFailed, StatefulError
from ..sealed.keyring_file import KEYRING_VARIABLE
from ..text.output import Failed

AUDIT_VARIABLE: Final = "STATEFUL_AUDIT"
CONNECT_SECONDS: Final = 15
"""How long the server may take to answer the first call."""

Address = Annotated[
    str | None,
    typer.Option(help="host:port of the server, over $TEMPORAL_ADDRESS and the profile."),
]
Namespace = Annotated[
    str | None, typer.Option(help="Temporal namespace, over $TEMPORAL_NAMESPACE and the profile.")
]
KeyringPath = Annotated[
    Path | None, typer.Option("--keyring", envvar=KEYRING_VARIABLE, help="Keyring file.")
]
AuditPath = Annotated[
    Path | None,
    typer.Option(
        "--audit",
        envvar=AUDIT_VARIABLE,
        metavar="FILE",
        help="Put on record here what is done; where that fails, nothing but a revoke is.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Option(help="Credential name.")]
WorkflowId = Annotated[str, typer.Argument(metavar="ID", help="Workflow id.")]


def run(command: Coroutine[Any, Any, int | None], *, stopped: int | None = None) -> NoReturn:
    """Run a command to its end and exit with its status.

    SIGINT, SIGTERM and SIGHUP cancel it, so that it cleans up.

    Args:
        command: returns the exit status; None means 0.
        stopped: exit status after such a signal; None means 128 + its number.
    """
    received: list[int] = []

    async def supervised() -> int | None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def stop(number: int) -> None:
            received.append(number)
            if task is not None:
                task.cancel()

        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            with suppress(AttributeError, NotImplementedError):  # Windows
                number = int(getattr(signal, name))
                if name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                    loop.add_signal_handler(number, stop, number)
        return await command

    with reported():
        try:
            status = asyncio.run(supervised())
        except asyncio.CancelledError:
            status = 128 + received[0] if stopped is None else stopped
    raise typer.Exit(status or 0)


@contextmanager
def reported() -> Generator[None, None, None]:
    """Turn the library's errors and the server's into one line on stderr and status 1."""
    try:
        yield
    except StatefulError as error:
        raise Failed(str(error)) from None
    except RPCError as error:
        raise Failed(f"the server answered {error.status.name}: {error.message}") from None


@contextmanager
def needing(what: str, extra: str) -> Generator[None, None, None]:
    """Say which extra brings a package that an import in the block lacks.

    Raises:
        StatefulError: what it is for, and how it is installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("stateful_workflow"):
            raise
        raise StatefulError(
            f'{what} needs the package {error.name}: pip install "stateful-workflow[{extra}]"'
        ) from None


async def connect(address: str | None, namespace: str | None) -> Client:
    """Connect as Temporal's environment configuration says.

    Args:
        address, namespace: override it where not None.

    Raises:
        OperationFailed: where the configuration is wrong or no server answers.
    """
    try:
        config = ClientConfig.load_client_connect_config()
    except (RuntimeError, ValueError, OSError) as error:
        # The lines after the first quote the file, in which a key may stand.
        said = str(error).partition("\n")[0]
        raise OperationFailed(f"Temporal's environment configuration: {said}") from None
    if address is not None:
        config["target_host"] = address
    if namespace is not None:
        config["namespace"] = namespace
    target = config.setdefault("target_host", "localhost:7233")
    try:
        return await asyncio.wait_for(Client.connect(**config), CONNECT_SECONDS)
    except asyncio.TimeoutError:
        reason = f"no answer in {CONNECT_SECONDS} s"
    except (RuntimeError, ValueError, OSError) as error:
        # The SDK shows the error below it as Rust prints it; what a person needs is its message.
        reason = (re.findall(r'message: "([^"]+)"', str(error)) or [str(error)])[-1]
    raise OperationFailed(
        f"no Temporal server at {target} ({reason}); "
        "give --address or set TEMPORAL_ADDRESS, or start one with `stateful dev`"
    )
