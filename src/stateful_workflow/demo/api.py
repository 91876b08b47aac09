"""An HTTP API with bearer tokens, as a vendor would run it: two listeners on loopback, one log.

It knows nothing of workflows. Tokens are opaque and random; it alone decides whether one is
good, and its log is what the report counts.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..web.serving import served

_HOST: Final = "127.0.0.1"
_LATENCY_SECONDS: Final = (0.03, 0.05, 0.08, 0.04, 0.12, 0.06, 0.15)


@dataclass
class IssuedToken:
    """What the API knows of a token it issued.

    Attributes:
        serial: 1 for the first; stands for the token wherever the token must not stand.
        expires_at: reading of the API's clock from which it is refused.
        revoked: it is refused from now on.
    """

    serial: int
    expires_at: float
    revoked: bool = False


@dataclass(frozen=True)
class Call:
    """One line of the log.

    Attributes:
        serial: of the token presented; None where none was, or one the API never issued.
        status: HTTP status of the answer.
        port: listener that was asked.
        account: whose items were asked for.
    """

    serial: int | None
    status: int
    port: int
    account: str


@dataclass
class TokenApi:
    """The API's state.

    Attributes:
        clock: seconds, for expiry.
        client_secret: lets its holder issue and revoke tokens.
        issued: every token ever issued, by its string.
        log: every call for items, in the order of the answers.
    """

    clock: Callable[[], float] = time.monotonic
    client_secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    issued: dict[str, IssuedToken] = field(default_factory=dict[str, IssuedToken], repr=False)
    log: list[Call] = field(default_factory=list[Call], repr=False)

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/token", self._issue, methods=["POST"]),
                Route("/revoke", self._revoke, methods=["POST"]),
                Route("/accounts/{account}/items", self._items),
            ]
        )

    async def _issue(self, request: Request) -> Response:
        if not self._is_client(request):
            return _unauthorized()
        lifetime = float((await request.json())["expires_in"])
        token = secrets.token_urlsafe(32)
        self.issued[token] = IssuedToken(len(self.issued) + 1, self.clock() + lifetime)
        return JSONResponse(
            {"access_token": token, "token_type": "Bearer", "expires_in": lifetime},
            headers={"Cache-Control": "no-store"},
        )

    async def _revoke(self, request: Request) -> Response:
        if not self._is_client(request):
            return _unauthorized()
        # As RFC 7009: a token that is unknown is as good as revoked.
        known = self.issued.get((await request.json())["token"])
        if known is not None:
            known.revoked = True
        return Response(status_code=200)

    async def _items(self, request: Request) -> Response:
        await asyncio.sleep(_LATENCY_SECONDS[len(self.log) % len(_LATENCY_SECONDS)])
        account: str = request.path_params["account"]
        known = self.issued.get(_bearer(request))
        good = known is not None and not known.revoked and self.clock() < known.expires_at
        response = JSONResponse({"account": account, "items": [1, 2, 3]}) if good else None
        response = response or _unauthorized()
        _, port = request.scope["server"]
        self.log.append(
            Call(None if known is None else known.serial, response.status_code, port, account)
        )
        return response

    def _is_client(self, request: Request) -> bool:
        return secrets.compare_digest(_bearer(request).encode(), self.client_secret.encode())


@dataclass(frozen=True)
class RunningApi:
    """The API while it listens.

    Attributes:
        state: its tokens and its log.
        urls: its two addresses, each an origin of its own.
    """

    state: TokenApi
    urls: tuple[str, str]

    async def issue(self, *, expires_in: float) -> str:
        """Have a token issued, for so many seconds."""
        answer = await self._post("/token", {"expires_in": expires_in})
        return str(answer.json()["access_token"])

    async def revoke(self, token: str) -> None:
        """Have a token revoked."""
        await self._post("/revoke", {"token": token})

    async def _post(self, path: str, data: dict[str, Any]) -> httpx.Response:
        authorization = {"Authorization": f"Bearer {self.state.client_secret}"}
        # No proxy of the environment stands between this machine and itself.
        async with httpx.AsyncClient(base_url=self.urls[0], trust_env=False) as http:
            response = await http.post(path, json=data, headers=authorization)
        return response.raise_for_status()


@asynccontextmanager
async def serve_api() -> AsyncGenerator[RunningApi, None]:
    """Run the API on two free ports for the length of an ``async with``."""
    state = TokenApi()
    sockets = [_listener(), _listener()]
    async with served(state.app(), sockets, log_level="error"):
        yield RunningApi(state, (_url(sockets[0]), _url(sockets[1])))


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.bind((_HOST, 0))
    return listener


def _url(listener: socket.socket) -> str:
    return f"http://{_HOST}:{listener.getsockname()[1]}"


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


def _unauthorized() -> Response:
    return JSONResponse(
        {"error": "invalid_token"}, status_code=401, headers={"WWW-Authenticate": "Bearer"}
    )
