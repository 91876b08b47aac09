"""A real HTTP API on loopback, for the tests: it takes the tokens it is told are valid.

Every call is logged with the token it carried. It runs in a thread of its own, so that
activities may block in threads and in other processes.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from .support import WITHIN, eventually

METHODS = ["GET", "POST"]


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        path: without the query.
        token: from ``Authorization: Bearer`` or ``X-API-Key``; None where it carried none.
        status: what was answered.
        body: what was sent.
    """

    path: str
    token: str | None
    status: int
    body: bytes = b""


class Api:
    """The API of one origin.

    Attributes:
        origin: its origin, such as ``http://127.0.0.1:40001``.
        valid: the tokens it takes now; a test changes it as it likes.
        calls: every call with or without a token, in order; gates left out.

    Paths: ``/to?url=…`` redirects to that address, whatever the token; ``/gate/NAME``
    answers (without asking for a token) when the test opens the gate; any other path
    answers 200 to a valid token and 401 to everything else.
    """

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.valid: set[str] = set()
        self.calls: list[Call] = []
        self._at_gate: set[str] = set()
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

    async def reached(self, name: str) -> None:
        """Wait until somebody stands at the gate."""

        async def stands() -> bool:
            return name in self._at_gate

        await eventually(stands)

    async def _gate(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._at_gate.add(name)
        give_up = time.monotonic() + WITHIN
        while name not in self._open and time.monotonic() < give_up:
            await asyncio.sleep(0.01)
        return PlainTextResponse("open")

    async def _redirect(self, request: Request) -> Response:
        await self._log(request, 307)
        return RedirectResponse(request.query_params["url"], 307)

    async def _answer(self, request: Request) -> Response:
        status = 200 if _token(request) in self.valid else 401
        await self._log(request, status)
        return PlainTextResponse("", status)

    async def _log(self, request: Request, status: int) -> None:
        body = await request.body()
        self.calls.append(Call(request.url.path, _token(request), status, body))


def _token(request: Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme == "Bearer" else request.headers.get("X-API-Key")


@contextmanager
def start_api() -> Generator[Api, None, None]:
    """Run an API on a free port for the length of a ``with``."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        api = Api(listener.getsockname()[1])
        server = uvicorn.Server(
            uvicorn.Config(api.app, log_config=None, access_log=False, lifespan="off")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        give_up = time.monotonic() + WITHIN
        while not server.started:
            assert thread.is_alive(), "the API ended before it started"
            assert time.monotonic() < give_up, "the API did not start"
            time.sleep(0.01)
        try:
            yield api
        finally:
            server.should_exit = True
            thread.join(WITHIN)
