"""What living tokens cost and take, beside a lock in SQLite around httpx in each activity.

At a small OAuth 2.0 server in this process whose refresh tokens are good once, with one worker:

- *renewals*: seconds until so many homes, each with a grant of its own, have a new token that they
  were asked for at one moment; by hand an activity that takes the lock and refreshes;
- *heal*: seconds from the moment at which activities use a token that was just revoked, until the
  last one has used the next;
- *exchanges* at the provider for each of those tokens, and *events* that a renewal which comes by
  itself, before the token expires, adds to the history of its home.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from arrivals import timed
from minted import (
    ACTIVITIES,
    SHARED,
    WORKFLOWS,
    ByHand,
    Gate,
    HomeByHand,
    MeetingByHand,
    Meetings,
)
from temporalio.client import Client
from temporalio.worker import Worker
from trees import Results, history, medians, say, say_found, start_server
from workflows import at_most

from stateful_workflow import (
    Keyring,
    NoWorkerAnswers,
    StatefulPlugin,
    TokenClient,
    TokenHome,
)
from stateful_workflow.demo.api import TokenApi, serve
from stateful_workflow.demo.provider import CLIENT_ID, AuthorizationServer
from stateful_workflow.demo.second_act import SOURCE, source_of
from stateful_workflow.node.contract import RENEW

QUEUE = "living"
HOUR = 3600.0
HAND, OURS = "by hand", "ours"
AT_ONCE = 50
RENEWALS: Final = 4
SHORT_LIFE = 4.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--homes", type=int, default=1000, help="default %(default)s")
    parser.add_argument("--refused", type=int, default=50, help="activities; default %(default)s")


async def measure(args: argparse.Namespace) -> Results:
    provider = AuthorizationServer(TokenApi(), HOUR)
    async with start_server(args.database) as server, serve(provider.app()) as url:
        keyring = Keyring.load(server.keyring).add_reader("sources")
        plugin = StatefulPlugin(keyring, sources={SOURCE: source_of(provider, url)})
        client = await Client.connect(server.address, plugins=[plugin])
        with tempfile.TemporaryDirectory() as folder:
            hand = ByHand(Path(folder, "hand.db"), url, CLIENT_ID, provider.client_secret)
            async with Worker(
                client,
                task_queue=QUEUE,
                workflows=WORKFLOWS,
                activities=ACTIVITIES,
                max_cached_workflows=10_000,
            ):
                bench = Bench(client, TokenClient(client, keyring), provider, hand, url, args)
                return await bench.run()


class Bench:
    """The server, the provider, and the homes by hand and with this library."""

    def __init__(
        self,
        client: Client,
        tokens: TokenClient,
        provider: AuthorizationServer,
        hand: ByHand,
        url: str,
        args: argparse.Namespace,
    ) -> None:
        self.client = client
        self.tokens = tokens
        self.provider = provider
        self.hand = hand
        self.url = url
        self.args = args
        self.homes = {kind: [f"{kind}-{n}" for n in range(args.homes)] for kind in (HAND, OURS)}

    async def run(self) -> Results:
        events = await self._events()
        say(f"starting {self.args.homes} homes by hand and as many with this library …")
        await at_most(AT_ONCE, map(self._start_by_hand, self.homes[HAND]))
        await at_most(AT_ONCE, map(self._start_home, self.homes[OURS]))
        self.hand.add(SHARED, self.provider.consent())
        await self.hand.refresh(SHARED, "")
        results: Results = {}
        measured = {"renewals, s": self._renewals, "heal, s": self._heal}
        for what, measure_one in measured.items():
            runs: list[dict[str, float]] = []
            for n in range(self.args.repetitions + 1):
                found: dict[str, float] = {}
                for kind in (HAND, OURS)[:: 1 if n % 2 else -1]:
                    found[kind], exchanges = await measure_one(kind, n)
                    found[f"{kind}, exchanges a token"] = exchanges
                found["ratio"] = found[OURS] / found[HAND]
                say_found(what, n, found)
                runs.append(found)
            results[what] = medians(runs[1:])
        return {**results, "events a renewal": events}

    async def _start_by_hand(self, home: str) -> None:
        self.hand.add(home, self.provider.consent())
        await self.client.start_workflow(HomeByHand.run, home, id=home, task_queue=QUEUE)

    async def _start_home(self, home: str) -> None:
        await self._start(TokenHome.run, [[]], home)

    async def _start(self, run: object, args: list[object], home: str) -> None:
        await self.tokens.start_workflow(
            run,  # pyright: ignore[reportArgumentType, reportCallIssue]
            args=args,
            id=home,
            task_queue=QUEUE,
            source=SOURCE,
            grant={"refresh_token": self.provider.consent()},
            origins=[self.url],
        )

    async def _exchanged(
        self, number: int, act: Callable[[str], Awaitable[object]], homes: list[str]
    ) -> None:
        """Act on each home, and wait until so many tokens more were exchanged and are in use."""
        until = self.provider.exchanges + number
        await at_most(AT_ONCE, map(act, homes))
        while self.provider.exchanges < until:  # noqa: ASYNC110 - the provider is asked
            await asyncio.sleep(0.02)

    async def _renewals(self, kind: str, number: int) -> tuple[float, float]:
        async def ask(home: str) -> None:
            handle = self.client.get_workflow_handle(home)
            if kind == HAND:
                await handle.signal(HomeByHand.renew)
            else:
                await handle.execute_update(RENEW, {"name": "apiToken"})

        if kind == OURS:  # what is under way is not asked for again
            await at_most(AT_ONCE, map(self._at_rest, self.homes[OURS]))
        homes, before, begun = self.homes[kind], self.provider.exchanges, time.perf_counter()
        await self._exchanged(len(homes), ask, homes)
        seconds = time.perf_counter() - begun
        return seconds, (self.provider.exchanges - before) / len(homes)

    async def _heal(self, kind: str, number: int) -> tuple[float, float]:
        root = f"heal-{kind}-{number}"
        meeting = [f"{root}-{n}" for n in range(self.args.refused)]
        Gate.opened.clear()

        async def start_all() -> None:
            if kind == OURS:
                await self._start(Meetings.run, [len(meeting), self.url], root)
                return
            for one in meeting:
                await self.client.start_workflow(MeetingByHand.run, id=one, task_queue=QUEUE)

        await timed([f"{one} waits" for one in meeting], start_all)

        async def revoke() -> None:
            token = self.hand.of(SHARED)[1]
            if kind == OURS:
                token = (await self.tokens.get(root)).reveal()
            self.provider.api.revoked.add(token)
            Gate.opened.set()

        before = self.provider.exchanges
        seconds = await timed([f"{one} done" for one in meeting], revoke)
        return seconds, self.provider.exchanges - before

    async def _events(self) -> dict[str, float]:
        """Of a home alone, which renews before its tokens expire."""
        self.provider.lives, home = SHORT_LIFE, "renews"
        await self._exchanged(1, self._start_home, [home])
        events, size = await self._settled(home)
        begun = self.provider.exchanges
        while self.provider.exchanges < begun + RENEWALS - 1:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
        self.provider.lives = HOUR
        while self.provider.exchanges < begun + RENEWALS:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)
        after, bytes_after = await self._settled(home)
        return {OURS: (after - events) / RENEWALS, "bytes": (bytes_after - size) / RENEWALS}

    async def _at_rest(self, home: str) -> None:
        """Wait until a home has its token, and mints no other."""
        while True:
            with suppress(NoWorkerAnswers):  # it has much to do
                status = await self.tokens.source(home)
                if status is not None and not status.is_minting and status.state != "invalid":
                    return
            await asyncio.sleep(0.2)

    async def _settled(self, home: str) -> tuple[int, int]:
        """Events and bytes of a home once it has taken what was exchanged last."""
        minted = 0
        while minted < self.provider.exchanges:
            await asyncio.sleep(0.05)
            status = await self.tokens.source(home)
            minted = 0 if status is None else status.counts.get("minted", 0)
        return await history(self.client, home)
