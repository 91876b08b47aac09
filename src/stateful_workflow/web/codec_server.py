"""A codec server for Temporal's Web UI and command line: shows what sealed messages say.

It speaks Temporal's remote codec protocol (``POST …/decode``, ``POST …/encode``), and runs as
``stateful codec-server``. Whoever asks it has the payloads already, and it tells nothing that
is not in them but one thing: which issuers the keyring trusts. It opens no token and needs no
private key. What it makes of a payload is `stateful_workflow.web.payloads`. Needs the extra
``codec``.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import socket
from collections.abc import AsyncGenerator, Sequence, Set
from contextlib import asynccontextmanager
from typing import Final, cast

from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from temporalio.api.common.v1 import Payload

from ..errors import StatefulError
from ..sealed.keyring import Keyring, KeyringSource
from ..text.printable import printable
from .payloads import describe_payload
from .serving import bounded, served

DEFAULT_UI_ORIGINS: Final = ("http://localhost:8233", "http://127.0.0.1:8233")
"""Where `temporal server start-dev` has its Web UI."""

MAX_REQUEST_BYTES: Final = 8_000_000
"""Twice what Temporal takes in one gRPC message (4 MB), for base64 and JSON around it."""

MAX_SECONDS: Final = 20.0
"""How long a request may take to arrive and be answered; also the time between two of them."""

MAX_CONNECTIONS: Final = 64

_HOST: Final = r"[a-z0-9_.-]+|\[[0-9a-f:.]+\]"
_ORIGIN: Final = re.compile(rf"(https?)://({_HOST})(?::(\d{{1,5}}))?/?")
_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")
# What the Web UI sends; the third and fourth where it passes its user's access token on.
_UI_HEADERS: Final = ("Content-Type", "X-Namespace", "Authorization", "Authorization-Extras")
_LONGEST_REASON: Final = 200
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


def codec_app(
    keyring: Keyring,
    *,
    ui_origins: Sequence[str],
    host_names: Sequence[str] = (),
    bearer: str | None = None,
) -> Starlette:
    """The ASGI application, to serve as it is or to mount below a path.

    ``/decode`` answers with payloads as `describe_payload` makes them, ``/encode`` with what
    came, so that a client with the endpoint set can still send input. Both may stand below any
    path, such as ``/{namespace}``. What is malformed gets status 400, what is larger than
    `MAX_REQUEST_BYTES` 413; what is asked under another host than the named ones 421, since a
    page whose name leads to this machine (DNS rebinding) is of the same origin. Each error is
    ``{"error": "…"}``.

    Args:
        keyring: says who is an issuer; public keys are enough. One that was loaded from a
            file follows that file.
        ui_origins: of the Web UIs whose pages may ask, such as ``https://temporal.example.com``.
        host_names: under which requests may ask, beside localhost, 127.0.0.1 and [::1]; each
            without port, as ``codec.example.com``.
        bearer: a secret that each request must carry as ``Authorization: Bearer …``; None asks
            for none. The Web UI sends its user's access token there and nothing else.

    Raises:
        ValueError: where an origin or a host name is none, or the secret is no visible ASCII.
    """
    if bearer is not None and not (bearer.isascii() and bearer.isprintable() and bearer.strip()):
        raise ValueError("the bearer secret must be visible ASCII characters")
    # Behind CORS: a preflight carries no secret, and a page may read why it was refused.
    cors = Middleware(
        CORSMiddleware,
        allow_origins=[_browser_origin(origin) for origin in ui_origins],
        allow_methods=["POST"],
        allow_headers=_UI_HEADERS,
        allow_credentials=True,
        allow_private_network=True,
    )
    hosts = {*_HOSTS, *(_host_name(name) for name in host_names)}
    codec = _Codec(KeyringSource(keyring), hosts, bearer)
    return Starlette(
        routes=[
            Route(f"{at}/{endpoint.__name__}", endpoint, methods=["POST"])
            for endpoint in (codec.decode, codec.encode)
            for at in ("", "/{below:path}")
        ],
        middleware=[cors],
        exception_handlers={HTTPException: _error},
    )


@asynccontextmanager
async def serve_codec(
    app: Starlette,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_seconds: float = MAX_SECONDS,
    max_connections: int = MAX_CONNECTIONS,
) -> AsyncGenerator[str, None]:
    """Serve `codec_app` for the length of an ``async with``; gives its endpoint, a URL.

    Signals are left to the caller.

    Args:
        app: what `codec_app` made.
        host: address to listen on. Without TLS, so that any other than loopback belongs behind
            a proxy that has it.
        port: TCP port; None takes a free one.
        max_seconds, max_connections: bound its clients, as `bounded` says.

    Raises:
        StatefulError: where it cannot listen there.
    """
    listener = _listener(host, port)
    http = bounded(max_seconds, max_connections)
    async with served(app, [listener], http=http, ws="none", server_header=False):
        at = f"[{host}]" if ":" in host else host
        yield f"http://{at}:{listener.getsockname()[1]}"


class _Codec:
    def __init__(self, keyring: KeyringSource, hosts: Set[str], bearer: str | None) -> None:
        self._keyring = keyring
        self._hosts = hosts
        self._bearer = bearer

    async def decode(self, request: Request) -> Response:
        body = await self._body(request)
        return _json(await run_in_threadpool(lambda: _described(body, self._keyring.current())))

    async def encode(self, request: Request) -> Response:
        return _json(await self._body(request))

    async def _body(self, request: Request) -> bytes:
        host = request.headers.get("Host", "")
        if re.sub(r":\d*$", "", host.lower()) not in self._hosts:
            raise HTTPException(421, f"not served as {host!r}: add its name with --host-name")
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        if self._bearer is not None and not (
            scheme.lower() == "bearer"
            and secrets.compare_digest(secret.encode(), self._bearer.encode())
        ):
            needed = {"WWW-Authenticate": "Bearer"}
            raise HTTPException(401, "a bearer secret is needed", headers=needed)
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_REQUEST_BYTES:
                    raise HTTPException(413, f"a request has at most {MAX_REQUEST_BYTES} bytes")
        except ClientDisconnect:
            raise HTTPException(408, "the request did not come whole") from None
        return bytes(body)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})


def _error(request: Request, error: Exception) -> Response:
    http = cast("HTTPException", error)
    return JSONResponse({"error": http.detail}, http.status_code, http.headers)


def _described(body: bytes, keyring: Keyring) -> bytes:
    """Payloads as JSON, described; the same bytes where none holds a message."""
    changed = False
    try:
        data = json.loads(body)
        for entry in data.get("payloads") or ():
            # Of each no more is read than is needed: members of a later version stay as they are.
            members = {"metadata": entry.get("metadata"), "data": entry.get("data")}
            payload = json_format.ParseDict(members, Payload())
            described = describe_payload(payload, keyring)
            if described is not payload:
                entry["data"] = base64.b64encode(described.data).decode()
                changed = True
        return json.dumps(data, allow_nan=False).encode() if changed else body
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
        form = '{"payloads": [{"metadata": {…}, "data": "…"}]}'
        reason = printable(str(error)[:_LONGEST_REASON])
        raise HTTPException(400, f"not payloads as JSON ({form}): {reason}") from None


# --- addresses -----------------------------------------------------------------------


def _browser_origin(url: str) -> str:
    """An origin as a browser writes it (RFC 6454 section 6.2)."""
    match = _ORIGIN.fullmatch(url.lower())
    if match is None:
        raise ValueError(f"a Web UI's origin is http(s)://host or http(s)://host:port: {url!r}")
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS[scheme]) else f":{port}")


def _host_name(name: str) -> str:
    """A host as a request's ``Host`` header has it before the port (RFC 9110 section 7.2)."""
    at = f"[{name}]" if name.count(":") > 1 and "[" not in name else name
    if not re.fullmatch(_HOST, at.lower()):
        raise ValueError("a host name is a name or an address, without a port")
    return at.lower()


def _listener(host: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port or 0), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "not a port number"
        raise StatefulError(f"cannot listen on {host} port {port}: {reason}") from None
