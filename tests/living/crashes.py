"""Workers that mint at a real authorization server and are killed at every step, and come back.

A cell is a home with two children, and a process that does all that is to be done for them: it runs
the workflows, mints with a real refresh token, tells children and retires. `killed` lets it die at
a step of a renewal, starts it anew, and sees what has become of the grant.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from temporalio.client import Client

from stateful_workflow import Keyring, SourceStatus, StatefulPlugin, TokenClient
from stateful_workflow.client.calls import send_renewal
from tests.faults.cluster import ROOT, until
from tests.faults.processes import Process
from tests.living.process import LOSES_THE_ANSWER, RETIRES, STEPS, Death
from tests.support.authorization_servers import AuthorizationServer
from tests.support.living import URL
from tests.support.workflows import Node, Plan

WITHIN: Final = 120.0


@dataclass
class Cell:
    """A home, its children and the process that does everything for them.

    Attributes:
        tokens: of whoever authorizes.
        home: id of the home; also its task queue, and the name of its source.
        directory: of what the process reads.
        server: where it mints.
        killed: how often the process died, by step.
        died: of those, how often the home needed authorization afterwards, by step.
    """

    tokens: TokenClient
    client: Client
    home: str
    directory: Path
    server: AuthorizationServer
    address: str
    killed: Counter[str] = field(default_factory=Counter[str])
    died: Counter[str] = field(default_factory=Counter[str])
    process: Process | None = None

    @property
    def death(self) -> Death:
        return Death(self.directory / "death")

    def start_process(self) -> Process:
        self.process = Process(
            [sys.executable, "-m", "tests.living.process", self.address, self.home, self.directory],
            self.directory / "output",
            cwd=ROOT,
            environment={"PYTHONPATH": str(ROOT / "src")},
        )
        return self.process

    async def authorize(self) -> None:
        """Give the home a new grant, as somebody does who has consented in a browser."""
        grant = await asyncio.to_thread(self.server.new_grant)
        await self.tokens.authorize(self.home, source=self.home, grant=grant)

    async def source(self) -> SourceStatus | None:
        return await self.tokens.source(self.home)

    async def settled(self) -> SourceStatus:
        """Wait until nothing is under way, and all hold what the home holds."""

        async def is_settled() -> SourceStatus | None:
            status = await self.source()
            if status is None or status.asked or status.is_minting or status.retiring:
                return None
            if status.state == "needs_authorization":
                return status
            tree = await self.tokens.tree(self.home)
            is_whole = tree.converged and len(tree.nodes) == 3
            return status if status.state == "fresh" and is_whole else None

        return await until(is_settled, f"{self.home} is settled", within=WITHIN)

    async def renewed(self, *, retire: bool = False) -> SourceStatus:
        """Have a new token minted, whatever becomes of it."""
        await send_renewal(self.client, self.home, "apiToken", retire=retire)
        return await self.settled()

    async def die(self, step: str) -> None:
        """Let the process die at a step of a renewal and start it anew.

        Raises:
            AssertionError: what became of the grant is not what had to.
        """
        before = await self.settled()
        self.death.told(step)
        await send_renewal(self.client, self.home, "apiToken", retire=step in RETIRES)
        assert self.process is not None
        died = time.monotonic() + WITHIN
        while self.process.is_running:
            assert time.monotonic() < died, f"it does not die {step}: {await self.source()}"
            await asyncio.sleep(0.02)
        self.killed[step] += 1
        self.start_process()
        after = await self.settled()
        await self._judge(step, before, after)

    async def _judge(self, step: str, before: SourceStatus, after: SourceStatus) -> None:
        about = f"{self.home} killed {step}: {after}"
        is_lost = step in LOSES_THE_ANSWER
        has_grace = self.server.grace > 0
        counts = Counter(after.counts)
        counts.subtract(before.counts)
        expected = {
            "minted": int(has_grace or not is_lost),
            "lost_reply": int(is_lost or step == "before the exchange"),
            "refused_grant": int(is_lost and not has_grace),
        }
        assert {one: n for one, n in counts.items() if n} == {
            one: n for one, n in expected.items() if n
        }, about
        if is_lost and not has_grace:
            self.died[step] += 1
            assert (after.state, after.after_lost) == ("needs_authorization", True), about
            await self.authorize()
            after = await self.settled()
        assert (after.state, after.after_lost) == ("fresh", False), about
        # What everybody holds is what the provider takes.
        held = await self.tokens.get(self.home)
        assert await asyncio.to_thread(self.server.is_active, held.reveal()), about


def _source(server: AuthorizationServer) -> dict[str, Any]:
    return {
        "client_id": server.client_id,
        "client_secret": server.client_secret,
        "issuer": server.issuer,
    }


@asynccontextmanager
async def start_cell(
    address: str, directory: Path, home: str, server: AuthorizationServer
) -> AsyncGenerator[Cell, None]:
    """A home that has its first token, with a process of its own."""
    directory.mkdir(parents=True)
    keyring = Keyring.generate().add_reader("sources")
    keyring.save(directory / "keyring.json")
    (directory / "source.json").write_text(json.dumps(_source(server)))
    client = await Client.connect(address, plugins=[StatefulPlugin(keyring)])
    tokens = TokenClient(client, keyring)
    cell = Cell(tokens, client, home, directory, server, address)
    cell.start_process()
    try:
        await tokens.start_workflow(
            Node.run,
            Plan({"a": Plan(), "b": Plan()}),
            id=home,
            task_queue=home,
            task_timeout=timedelta(seconds=2),
            source=home,
            grant=await asyncio.to_thread(server.new_grant),
            origins=[URL],
        )
        await cell.settled()
        yield cell
        await cell.renewed()  # the grant is good to the end
    finally:
        assert cell.process is not None
        cell.process.kill()


@dataclass(frozen=True)
class Figures:
    """What came of it.

    Attributes:
        killed: how often a process died, by step.
        died: how often the home needed authorization then, by step.
    """

    killed: Counter[str]
    died: Counter[str]

    def __str__(self) -> str:
        lines = [f"{self.killed[step]:4} {step}, {self.died[step]} of them lost" for step in STEPS]
        return "\n".join([*lines, f"{self.killed.total():4} in all, {self.died.total()} lost"])


async def crash(
    address: str,
    directory: Path,
    name: str,
    server: AuthorizationServer,
    kills: int,
    cells: int,
) -> Figures:
    """Let processes die, in so many cells at the same time, at one step after the other.

    Raises:
        AssertionError: a grant was lost that need not be.
    """
    # Where tokens outlive an exchange, revoking one ends the grant (oidc-provider).
    steps = [step for step in STEPS if not server.keeps_tokens or step not in RETIRES]
    left = [steps[n % len(steps)] for n in range(kills)][::-1]
    killed, died = Counter[str](), Counter[str]()

    async def live(number: int) -> None:
        home = f"{name}-{number}"
        async with start_cell(address, directory / home, home, server) as cell:
            while left:
                await cell.die(left.pop())
            killed.update(cell.killed)
            died.update(cell.died)

    await asyncio.gather(*[live(number) for number in range(cells)])
    return Figures(killed, died)
