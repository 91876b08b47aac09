"""A process that mints and does nothing else: the only one with the keys and secrets for that."""

from __future__ import annotations

import asyncio

from temporalio.client import Client

from .plugin import StatefulPlugin


class SourceWorker:
    """Runs the sources of a client's `StatefulPlugin`, where no other worker of that client does.

    A `temporalio.worker.Worker` of a client whose plugin has sources runs them by itself.

    Args:
        client: connected with ``StatefulPlugin(sources={…})``. It may be replaced by setting
            `client`, as a worker's.

    Raises:
        ValueError: it has no such plugin.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        plugins = client.config(active_config=True)["plugins"]
        plugin = next((one for one in plugins if isinstance(one, StatefulPlugin)), None)
        if plugin is None or not plugin.has_sources:
            raise ValueError("the client has no StatefulPlugin(sources={…})")
        self._running = plugin.sources_beside(self)

    async def __aenter__(self) -> SourceWorker:
        """Begin to mint."""
        self._smalls = await self._running.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Begin no exchange any more, and wait for those that are under way."""
        await self._running.__aexit__(None, None, None)

    async def run(self) -> None:
        """Mint until the task is cancelled.

        Raises:
            temporalio.exceptions.TemporalError: the server does not let it.
        """
        async with self:
            await asyncio.gather(*(small.ended() for small in self._smalls))
