"""Serve a web application beside the program that needs it, which keeps its own signals."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


def bounded(seconds: float, connections: int) -> type[H11Protocol]:
    """HTTP for strangers, who may be slow or many; uvicorn's option ``http`` takes it.

    Args:
        seconds: how long an answer may take, from the connection's start or the answer before
            it to its last byte; then the connection is cut off.
        connections: how many there may be at a time; one more is closed at once.
    """

    class Bounded(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._cut_off = self.loop.call_later(seconds, transport.abort)
            if len(self.connections) > connections:
                transport.abort()

        def on_response_complete(self) -> None:
            self._cut_off.cancel()
            self._cut_off = self.loop.call_later(seconds, self.transport.abort)
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cut_off.cancel()
            super().connection_lost(exc)

    return Bounded


@asynccontextmanager
async def served(
    app: Any, sockets: Sequence[socket.socket], **options: Any
) -> AsyncGenerator[None, None]:
    """Serve an application for the length of an ``async with``, and close its sockets then.

    Args:
        app: an ASGI application.
        sockets: bound, not listening.
        options: more of `uvicorn.Config`.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # strangers choose paths and queries
        lifespan="off",
        timeout_graceful_shutdown=1,
        **options,
    )
    server = uvicorn.Server(config)
    # In a thread of its own, where uvicorn leaves signals alone.
    serving = asyncio.create_task(asyncio.to_thread(server.run, list(sockets)))
    try:
        # uvicorn has nothing to wait for but this flag.
        while not server.started and not serving.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await serving
        for listener in sockets:
            listener.close()
