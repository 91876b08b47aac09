"""Serve a web application beside the program that needs it, which keeps its own signals."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn


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
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            **options,
        )
    )
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
