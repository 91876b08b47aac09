"""How the command's client writes and reads payloads: as the fleet's workers do."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import httpx
from google.protobuf.json_format import MessageToJson, Parse, ParseError
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.converter import DataConverter, PayloadCodec

from ..errors import OperationFailed
from ..text.printable import printable

_TIMEOUT_SECONDS: Final = 20.0
_LARGEST_ANSWER: Final = 64 * 1024 * 1024
_SHOWN: Final = 200


class RemoteCodec(PayloadCodec):
    """A codec server, as the Web UI and `temporal` ask it (https://docs.temporal.io/codec-server).

    Args:
        endpoint: its URL; ``{namespace}`` in it stands for the namespace.
        namespace: of the payloads.
        auth: the `Authorization` header, or None.
    """

    def __init__(self, endpoint: str, namespace: str, auth: str | None) -> None:
        self._endpoint = endpoint.replace("{namespace}", namespace).rstrip("/")
        self._headers = {"X-Namespace": namespace, "Content-Type": "application/json"}
        if auth is not None:
            self._headers["Authorization"] = auth

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Have payloads encoded; raises OperationFailed where they are not."""
        return await self._converted("encode", payloads)

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Have payloads decoded; raises OperationFailed where they are not."""
        return await self._converted("decode", payloads)

    async def _converted(self, how: str, payloads: Sequence[Payload]) -> list[Payload]:
        url = f"{self._endpoint}/{how}"
        body = MessageToJson(Payloads(payloads=payloads))
        try:
            async with (
                httpx.AsyncClient(timeout=_TIMEOUT_SECONDS, headers=self._headers) as client,
                client.stream("POST", url, content=body) as response,
            ):
                answer = await _bounded(response)
            if response.is_success:
                converted = list(Parse(answer, Payloads(), ignore_unknown_fields=True).payloads)
                if len(converted) == len(payloads):
                    return converted
                why = "it answered with another number of payloads"
            else:
                why = f"it answered {response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = f"{type(error).__name__}: {error}"
        except (ParseError, UnicodeDecodeError):
            why = "it answered with what are no payloads"
        raise OperationFailed(f"the codec server at {printable(url)}: {printable(why)[:_SHOWN]}")


async def _bounded(response: httpx.Response) -> bytes:
    answer = b""
    async for part in response.aiter_bytes():
        answer += part
        if len(answer) > _LARGEST_ANSWER:
            raise httpx.DecodingError("the answer is too large")
    return answer


def converter_of(name: str | None, codec: PayloadCodec | None) -> DataConverter:
    """The data converter that ``module:name`` names, or the SDK's; with this codec, where given.

    A module is found in the current directory too.

    Raises:
        OperationFailed: there is none of this name.
    """
    converter = DataConverter.default if name is None else _imported(name)
    return converter if codec is None else replace(converter, payload_codec=codec)


def _imported(name: str) -> DataConverter:
    module, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    found: object = None
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part, None)
    except Exception as error:  # noqa: BLE001 - a module may raise anything as it is imported
        # What was given is not repeated: it may be a secret that was meant for something else.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if module and missing not in (module, module.partition(".")[0]):
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise OperationFailed(
                f"--data-converter: its module cannot be imported: {said}"
            ) from None
    if not isinstance(found, DataConverter):
        raise OperationFailed(
            "--data-converter: there is no data converter at that MODULE:NAME; give the one that "
            "the workers' client has"
        )
    return found
