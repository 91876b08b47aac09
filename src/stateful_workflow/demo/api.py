"""A vendor's HTTP API on loopback: it answers calls with a token that is good.

It knows nothing of workflows, and its log is what the report counts.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..web.serving import served

_LATENCY_SECONDS: Final = 0.08


class Call(NamedTuple):
    """One line of the log: the number of the token, None for a strange one, and the status."""

    number: int | None
    status: int


@dataclass
class TokenApi:
    """The API.

    Attributes:
        issued: the tokens, each with its number, from 1 up, that stands for it in the log.
        expires: Unix seconds from when a token is answered 401.
        revoked: those that are answered 401 as well.
        log: every call, in the order of the answers.
    """

    issued: dict[str, int] = field(default_factory=dict[str, int], repr=False)
    expires: dict[str, float] = field(default_factory=dict[str, float], repr=False)
    revoked: set[str] = field(default_factory=set[str], repr=False)
    log: list[Call] = field(default_factory=list[Call])

    def issue(self, expires: float = math.inf) -> str:
        """A new token, which is good until it expires or is revoked."""
        token = secrets.token_urlsafe(32)
        self.issued[token] = len(self.issued) + 1
        self.expires[token] = expires
        return token

    def is_good(self, token: str) -> bool:
        """Whether calls with it are answered."""
        return time.time() < self.expires.get(token, 0) and token not in self.revoked

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(routes=[Route("/accounts/{account}/items", self._items)])

    async def _items(self, request: Request) -> Response:
        await asyncio.sleep(_LATENCY_SECONDS)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        response = JSONResponse({"items": [1, 2, 3]}, 200 if self.is_good(token) else 401)
        self.log.append(Call(self.issued.get(token), response.status_code))
        return response


@asynccontextmanager
async def serve(app: Starlette) -> AsyncGenerator[str, None]:
    """Serve it for the length of an ``async with``; gives its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    async with served(app, [listener], log_level="error"):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
