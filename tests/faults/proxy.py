"""A TCP proxy whose connections can be cut, or fall silent, and healed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Literal

Cut = Literal["closed", "silent"]
"""How a connection is cut: closed, and closed again when it is tried anew; or open, with
nothing coming through any more."""


class Proxy:
    """Passes TCP connections on to a port of this machine.

    Args:
        target: the port.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen; the port is returned."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self._close_all()
        self._flows.set()
        await asyncio.gather(*self._serving)

    def cut(self, how: Cut) -> None:
        """Let nothing through from now on."""
        if how == "silent":
            self._flows.clear()
        else:
            self._refuses = True
            self._close_all()

    def heal(self) -> None:
        """Let everything through again; what fell silent is closed, as after a lost route."""
        self._refuses = False
        if not self._flows.is_set():
            self._close_all()
            self._flows.set()

    def _close_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(to_server)
        try:
            await asyncio.gather(self._pump(reader, to_server), self._pump(from_server, writer))
        finally:
            self._writers -= {writer, to_server}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
