"""A real HTTP API on loopback, for the tests: it takes the tokens it is told are valid.

Every call is logged with the token it carried. It runs in a thread of its own, so that
activities may block in threads and in other processes.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.support.asking import WITHIN, eventually

METHODS = ["GET", "POST"]


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        path: without the query.
        token: from ``Authorization`` (of Basic the password, of AWS the key's id) or ``X-API-Key``;
            None where it carried none.
        status: what was answered.
        body: what was sent.
        host: the Host header.
    """

    path: str
    token: str | None
    status: int
    body: bytes = b""
    host: str = ""


class Api:
    """The API of one origin.

    Attributes:
        origin: its origin, such as ``http://127.0.0.1:40001``.
        valid: the tokens it takes now; a test changes it as it likes.
        calls: every call with or without a token, in order; gates left out.
        authorizations: the header of each of them, as it came.
        refusal: the status and the body that everything else gets.

    Paths: ``/to?url=…`` redirects to that text as it is, whatever the token; ``/gate/NAME``
    answers (without asking for a token) when the test opens the gate; any other path
    answers 200 to a valid token and `refusal` to everything else.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.valid: set[str] = set()
        self.calls: list[Call] = []
        self.authorizations: list[str] = []
        self.refusal: tuple[int, str] = (401, "")
        self._at_gate = Counter[str]()
        self._open: set[str] = set()
        self.app = Starlette(
            routes=[
                Route("/gate/{name}", self._gate),
                Route("/to", self._redirect, methods=METHODS),
                Route("/{path:path}", self._answer, methods=METHODS),
            ]
        )

    def url(self, path: str) -> str:
        return f"{self.origin}/{path}"

    def tokens(self, path: str | None = None) -> list[str | None]:
        """The tokens that calls (of one path) carried, in order."""
        return [call.token for call in self.calls if path is None or call.path == f"/{path}"]

    def gate(self, name: str) -> str:
        """The address that answers when `open` is called with this name."""
        return self.url(f"gate/{name}")

    def open(self, name: str) -> None:
        self._open.add(name)

    async def reached(self, name: str, count: int = 1) -> None:
        """Wait until so many have come to the gate."""

        async def stands() -> bool:
            return self._at_gate[name] >= count

        await eventually(stands, within=3 * WITHIN)

    async def _gate(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._at_gate[name] += 1
        give_up = time.monotonic() + WITHIN
        while name not in self._open and time.monotonic() < give_up:
            await asyncio.sleep(0.01)
        return PlainTextResponse("open")

    async def _redirect(self, request: Request) -> Response:
        await self._log(request, 307)
        response = Response(status_code=307)
        response.raw_headers.append((b"location", request.query_params["url"].encode()))
        return response

    async def _answer(self, request: Request) -> Response:
        status, text = (200, "") if _token(request) in self.valid else self.refusal
        await self._log(request, status)
        return PlainTextResponse(text, status)

    async def _log(self, request: Request, status: int) -> None:
        body = await request.body()
        host = request.headers.get("Host", "")
        self.authorizations.append(request.headers.get("Authorization", ""))
        self.calls.append(Call(request.scope["path"], _token(request), status, body, host))


def _token(request: Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme == "Basic":
        return b64decode(token).decode().partition(":")[2]
    if scheme.startswith("AWS4"):
        return token.partition("Credential=")[2].partition("/")[0]  # the id of the key
    return token if scheme == "Bearer" else request.headers.get("X-API-Key")


@contextmanager
def start_api() -> Generator[Api, None, None]:
    """Run an API on a free port for the length of a ``with``."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        api = Api(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with _served(api, listener):
            yield api


@contextmanager
def start_hosts(directory: Path, *names: str) -> Generator[Api, None, None]:
    """Run an API that is ``https://`` each of these hosts to who connects to its Unix socket.

    The socket is ``directory / "socket"``; ``directory / "certificate.pem"`` is to be trusted.
    """
    _write_certificate(directory, names)
    api = Api(f"https://{names[0]}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        files = {
            "ssl_certfile": directory / "certificate.pem",
            "ssl_keyfile": directory / "key.pem",
        }
        with _served(api, listener, **files):
            yield api


@contextmanager
def _served(api: Api, listener: socket.socket, **options: Any) -> Generator[None, None, None]:
    server = uvicorn.Server(
        uvicorn.Config(api.app, log_config=None, access_log=False, lifespan="off", **options)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    give_up = time.monotonic() + WITHIN
    while not server.started:
        assert thread.is_alive(), "the API ended before it started"
        assert time.monotonic() < give_up, "the API did not start"
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(WITHIN)


def _write_certificate(directory: Path, names: tuple[str, ...]) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hosts of the tests")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([_named(host) for host in names]), False)
        .sign(key, hashes.SHA256())
    )
    (directory / "certificate.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


def _named(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
