"""What the terminal shows while the demo runs: a live tree, or plain lines where it is none."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.tree import Tree

from ..client.client import TokenClient
from ..errors import OperationFailed
from ..node.status import TokenState, TokenTree, TreeNode
from ..text.output import Escaped, Output
from .api import Call

_STYLES: Final = ("cyan", "yellow", "magenta", "green")
_LIVE_EVERY_SECONDS: Final = 0.05
_ASKED_AT_ONCE: Final = 2
_PLAIN_EVERY_SECONDS: Final = 2.0
_TURNED_SECONDS: Final = 0.8
_MESSAGES: Final = 6


class Progress:
    """Tells what happens, on stderr.

    Args:
        console: where; the picture is live when that is a terminal that can move its cursor.
    """

    def __init__(self, console: Output) -> None:
        self._console = console
        self.is_live = console.is_terminal and not console.is_dumb_terminal
        self._started = time.monotonic()
        self._log: Sequence[Call] = ()
        self._nodes: dict[str, TreeNode] = {}
        self._closely = False
        self._messages: list[Escaped] = []
        self._versions: dict[int, int] = {}
        self._turned: dict[str, float] = {}

    def say(self, message: str) -> None:
        """Tell one thing that happened."""
        line = f"{time.monotonic() - self._started:5.1f} s  {message}"
        self._messages.append(Escaped(line, no_wrap=True, overflow="ellipsis"))
        if not self.is_live:
            self._console.print(line, soft_wrap=True)

    def number(self, version: int) -> int:
        """1 for the first version that was seen, 2 for the second, and so on."""
        return self._versions.setdefault(version, len(self._versions) + 1)

    @contextmanager
    def shown(self) -> Generator[None, None, None]:
        """Redraw the picture during the block; what it was last stays on the screen."""
        if not self.is_live:
            yield
            return
        with Live(
            console=self._console,
            get_renderable=self._picture,
            refresh_per_second=12,
            redirect_stdout=False,
        ):
            yield

    @asynccontextmanager
    async def watching(
        self, tokens: TokenClient, tree: TokenTree, log: Sequence[Call]
    ) -> AsyncGenerator[None, None]:
        """Follow the nodes of a tree during the block.

        Args:
            tokens: asks them.
            tree: as it is now.
            log: the API's log, which grows meanwhile.
        """
        self._nodes = {node.id: node for node in tree.nodes}
        self._log = log
        task = asyncio.create_task(self._follow(tokens))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @contextmanager
    def closely(self) -> Generator[None, None, None]:
        """See each node turn over during the block. Outside of it nobody is asked."""
        self._closely = True
        try:
            yield
        finally:
            self._closely = False

    async def _follow(self, tokens: TokenClient) -> None:
        while not self.is_live:
            # Nothing is asked: lines would come too late to show a rotation.
            self._console.print(f"         {self._totals()}", soft_wrap=True)
            await asyncio.sleep(_PLAIN_EVERY_SECONDS)
        # Only leaves, and few at a time: two questions at once to a node that forwards can keep
        # each other waiting for a second.
        slots = asyncio.Semaphore(_ASKED_AT_ONCE)
        parents = {node.parent for node in self._nodes.values()}
        leaves = [i for i, node in self._nodes.items() if i not in parents and node.version]
        while True:
            await asyncio.sleep(_LIVE_EVERY_SECONDS)
            versions = [self._nodes[i].version or 0 for i in leaves]
            newest = max(versions, default=0)
            behind = [i for i in leaves if self._nodes[i].version != newest] or leaves
            await asyncio.gather(*(self._look(tokens, slots, node_id) for node_id in behind))

    async def _look(self, tokens: TokenClient, slots: asyncio.Semaphore, node_id: str) -> None:
        async with slots:
            if not self._closely:
                return
            try:
                status = await tokens.status(node_id)
            except OperationFailed:  # it is asked again soon
                return
        if status is None:
            return
        # What was set at the root came here through all that are above.
        above: str | None = node_id
        while above is not None:
            self._saw(above, status.version, status.state)
            above = self._nodes[above].parent

    def saw(self, tree: TokenTree) -> None:
        """Take a tree as it was seen by another."""
        for node in tree.nodes:
            self._saw(node.id, node.version, node.state)

    def _saw(self, node_id: str, version: int | None, state: TokenState) -> None:
        before = self._nodes[node_id]
        # Answers may overtake each other; versions only rise here.
        if before.version is not None and (version or 0) < before.version:
            return
        self._nodes[node_id] = replace(before, state=state, version=version)
        if version != before.version:
            self._turned[node_id] = time.monotonic()

    # --- the picture ---------------------------------------------------------

    def _picture(self) -> RenderableType:
        lines = Group(*self._messages[-_MESSAGES:])
        if not self._nodes:
            return lines
        return Group(lines, "", self._drawn(), "", self._totals())

    def _drawn(self) -> Tree:
        root, *rest = self._nodes.values()
        drawn = Tree(Escaped((f"{root.type} {root.id}", "bold"), "  ", self._version(root)))
        calls = Counter(call.account for call in tuple(self._log))
        for account in sorted((n for n in rest if n.parent == root.id), key=lambda n: n.id):
            name = account.id.removeprefix(f"{root.id}-")
            branch = drawn.add(
                Escaped(
                    (name, "bold"),
                    "  ",
                    self._version(account),
                    (f"  {account.api_url}" if account.api_url != root.api_url else "", "cyan"),
                    (f"  {calls[name]} calls", "dim"),
                )
            )
            below = sorted((n for n in rest if n.parent == account.id), key=lambda n: n.id)
            line = Escaped("syncs ", style="dim", no_wrap=True, overflow="ellipsis")
            for node in below:
                if not node.withheld:
                    line.append(self._version(node)).append(" ")
            for node in below:
                if node.withheld:
                    label = node.id.removeprefix(f"{account.id}-")
                    line.append(f"  {label} ").append(self._version(node))
            branch.add(line)
        return drawn

    def _version(self, node: TreeNode) -> Escaped:
        if node.withheld and node.version is None:
            return Escaped(("withheld", "dim italic"))
        if node.version is None:
            return Escaped((node.state, "red"))
        number = self.number(node.version)
        style = _STYLES[(number - 1) % len(_STYLES)]
        if time.monotonic() - self._turned.get(node.id, -_TURNED_SECONDS) < _TURNED_SECONDS:
            style = f"bold reverse {style}"
        return Escaped((f"v{number}", style))

    def _totals(self) -> str:
        log = tuple(self._log)
        nodes = tuple(self._nodes.values())
        numbers = Counter(self.number(n.version) for n in nodes if n.version is not None)
        held = ", ".join(f"v{number} at {count}" for number, count in sorted(numbers.items()))
        withheld = sum(node.withheld for node in nodes)
        unauthorized = sum(call.status == 401 for call in log)
        return (
            f"{held or 'no token'}, withheld from {withheld}; "
            f"{len(log)} API calls, {unauthorized} answered 401"
        )
