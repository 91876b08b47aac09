"""What the commands share: options, the connection, and how errors and signals end them."""

from __future__ import annotations

import asyncio
import inspect
import re
import signal
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, get_type_hints

import typer
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError

from ..errors import AnswerMalformed, OperationFailed, StatefulError
from ..sealed.keyring import Keyring
from ..sealed.keyring_file import KEYRING_VARIABLE
from ..sealed.message import DEFAULT_NAME
from ..text.output import Failed
from .payloads import RemoteCodec, converter_of

CONNECT_SECONDS: Final = 15
"""How long the server may take to answer the first call."""


def not_empty(value: str | list[str] | None) -> str | list[str] | None:
    """What is given, refused where it is an empty text or holds one."""
    if value is not None and "" in ([value] if isinstance(value, str) else value):
        raise typer.BadParameter("it is empty")
    return value


Namespace = Annotated[
    str | None, typer.Option(help="Temporal namespace, over $TEMPORAL_NAMESPACE and the profile.")
]
Timeout = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How long to wait.")]

Address = Annotated[
    str | None,
    typer.Option(help="host:port of the server, over $TEMPORAL_ADDRESS and the profile."),
]
KeyringPath = Annotated[
    Path | None, typer.Option("--keyring", envvar=KEYRING_VARIABLE, help="Keyring file.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class AtWorkflow:
    """Options of a command that looks at a workflow."""

    workflow_id: Annotated[
        str, typer.Argument(metavar="ID", callback=not_empty, help="Workflow id.")
    ]
    name: Annotated[str, typer.Option(help="Credential name.")] = DEFAULT_NAME
    address: Address = None
    namespace: Namespace = None
    codec_endpoint: Annotated[
        str | None,
        typer.Option(
            envvar="TEMPORAL_CODEC_ENDPOINT", metavar="URL", help="Codec server of the payloads."
        ),
    ] = None
    codec_auth: Annotated[
        str | None,
        typer.Option(
            envvar="TEMPORAL_CODEC_AUTH",
            metavar="HEADER",
            help="Authorization header for it; a secret is better given by the variable.",
        ),
    ] = None
    data_converter: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME", help="Python data converter of the payloads."),
    ] = None
    as_json: Json = False

    def prepare(self) -> None:
        """Do what is to be done before the event loop runs."""

    async def connect(self) -> Client:
        """Connect; raises as `connect`, and OperationFailed for a data converter that is not."""
        client = await connect(self.address, self.namespace)
        codec = None
        if self.codec_endpoint is not None:
            codec = RemoteCodec(self.codec_endpoint, client.namespace, self.codec_auth)
        config = client.config(active_config=True)
        config["data_converter"] = converter_of(self.data_converter, codec)
        return Client(**config)


def command(function: Callable[..., Coroutine[Any, Any, int | None] | None]) -> Callable[..., None]:
    """What typer takes, of a function whose first parameter is a dataclass of options.

    Each field is an option of the command beside the function's own, and a coroutine is run.
    """
    first, *own = inspect.signature(function, eval_str=True).parameters.values()
    types = get_type_hints(first.annotation, include_extras=True)
    shared = [
        field.replace(annotation=types[field.name])
        for field in inspect.signature(first.annotation).parameters.values()
    ]

    def opened(**given: Any) -> None:
        options = first.annotation(**{field.name: given.pop(field.name) for field in shared})
        options.prepare()
        running = function(options, **given)
        if running is not None:
            run(running)

    opened.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*shared, *own)]
    )
    opened.__name__, opened.__doc__ = function.__name__, function.__doc__
    return opened


def run(running: Coroutine[Any, Any, int | None], *, stopped: int | None = None) -> NoReturn:
    """Run a command to its end and exit with its status.

    SIGINT, SIGTERM and SIGHUP cancel it, so that it cleans up.

    Args:
        running: returns the exit status; None means 0.
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
        return await running

    with reported():
        try:
            status = asyncio.run(supervised())
        except asyncio.CancelledError:
            status = 128 + received[0] if stopped is None else stopped
    raise typer.Exit(status or 0)


def keyring_at_hand(path: Path | None) -> Keyring | None:
    """The keyring of the option or the variable, or None where neither names one."""
    with reported():
        return None if path is None else Keyring.load(path)


IN_OPTIONS: Final = {
    "api_url= or --api-url": "--api-url",
    "origins=[…]": "--origin",
    "allow_http=": "--allow-http",
    "give a path or set $": "give --keyring or set $",
}


def in_options(text: str) -> str:
    """The library's words in those of the command: its options in the place of arguments."""
    for argument, option in IN_OPTIONS.items():
        text = text.replace(argument, option)
    return text


@contextmanager
def reported() -> Generator[None, None, None]:
    """Turn the library's errors and the server's into one line on stderr and status 1."""
    try:
        yield
    except AnswerMalformed as error:
        raise Failed(f"{error} (--codec-endpoint, --data-converter)") from None
    except StatefulError as error:
        raise Failed(in_options(str(error))) from None
    except RPCError as error:
        raise Failed(f"the server answered {error.status.name}: {error.message}") from None


async def connect(address: str | None, namespace: str | None) -> Client:
    """Connect as Temporal's environment configuration says, but for what is given here.

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
