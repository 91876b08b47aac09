"""Tokens of three seconds on thirty workflows that call an API all the while: ``./run soak``.

Three homes with nine children each mint at django-oauth-toolkit, where each exchange also ends the
token before. The API takes no token that has expired or was ended. The exit status is 1 where an
activity failed, a request was begun with a token that had expired by the sender's clock, or there
were more exchanges than renewals.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine
from stateful_workflow.source import Grant, Minted
from stateful_workflow.source.oauth import OAuthSource
from tests.living.calls import ACTIVITIES, SENT, WORKFLOWS, Family, Work
from tests.support.authorization_servers import start_oauth_toolkit

HOMES: Final = 3
CHILDREN: Final = 9
TOKEN_SECONDS: Final = 3
ACTIVITY_SECONDS: Final = 4.0
"""Longer than a token lives."""


@dataclass
class Book:
    """What is known of each token, and of each request that came to the API.

    Attributes:
        expires: Unix seconds at which a token that was minted expires.
        newest: of each home.
        ended: tokens whose home has a newer one.
        answered: statuses.
        begun_late: requests that were begun with a token that had expired.
        late: seconds by which requests ended after their token had expired for the sender.
    """

    expires: dict[str, float] = field(default_factory=dict[str, float])
    newest: dict[str, str] = field(default_factory=dict[str, str])
    ended: set[str] = field(default_factory=set[str])
    answered: Counter[int] = field(default_factory=Counter[int])
    begun_late: int = 0
    late: list[float] = field(default_factory=list[float])

    def minted(self, home: str, minted: Minted) -> None:
        before = self.newest.get(home)
        if before is not None and before != minted.token:
            self.ended.add(before)
        self.newest[home] = minted.token
        self.expires[minted.token] = minted.expires_at or 0.0

    async def answer(self, request: Request) -> Response:
        """The API: it takes what has neither expired nor been ended, and takes a while for that."""
        token = request.headers["Authorization"].removeprefix("Bearer ")
        expires, now = self.expires[token], time.time()
        # The expiry that is signed, and that the sender knows, has whole seconds.
        self.begun_late += float(request.headers[SENT]) >= int(expires)
        is_good = now < expires and token not in self.ended
        await asyncio.sleep(random.uniform(0, 0.05))
        if is_good and time.time() > int(expires):
            self.late.append(time.time() - int(expires))
        status = 200 if is_good else 401
        self.answered[status] += 1
        return Response(status_code=status)


class Noted:
    """An `OAuthSource` whose exchanges are put in a book."""

    def __init__(self, inner: OAuthSource, book: Book) -> None:
        self._inner = inner
        self._book = book

    async def mint(self, grant: Grant) -> Minted:
        minted = await self._inner.mint(grant)
        self._book.minted(str(activity.info().workflow_id), minted)
        return minted

    async def probe(self, token: str, values: Mapping[str, str]) -> None:
        await self._inner.probe(token, values)


@dataclass(frozen=True)
class Figures:
    """What came of it.

    Attributes:
        renewals: tokens that the homes have had minted, the first ones too.
        exchanges: that the authorization server has made.
        outcomes: what else exchanges came to.
        activities, again, failed: that ran, those that took more than one attempt, and those of
            which some request was not answered with 200 in the end.
        requests, refused: of the API.
        begun_late: requests that were begun with an expired token, by the sender's clock.
        ended_late: that were answered well after their token had expired for the sender.
        latest: seconds after the expiry at which the last of those ended.
    """

    renewals: int
    exchanges: int
    outcomes: dict[str, int]
    activities: int
    again: int
    failed: int
    requests: int
    refused: int
    begun_late: int
    ended_late: int
    latest: float

    @property
    def holds(self) -> bool:
        """Whether everything is as it has to be."""
        is_well = self.failed == 0 and self.begun_late == 0
        return is_well and self.exchanges == self.renewals and not self.outcomes


async def soak(seconds: float, directory: Path) -> Figures:
    """Let them call for so long."""
    book = Book()
    with (
        start_oauth_toolkit(directory / "server", token_seconds=TOKEN_SECONDS) as server,
        _api(book) as origin,
    ):
        source = OAuthSource(
            server.client_id, issuer=server.issuer, client_secret=server.client_secret
        )
        keyring = Keyring.generate().add_reader("sources")
        plugin = StatefulPlugin(keyring, sources={"soak": Noted(source, book)})
        async with start_engine(db=directory / "temporal.db", ui=False) as engine:
            client = await Client.connect(engine.address, plugins=[plugin])
            tokens = TokenClient(client, keyring)
            work = Work(
                f"{origin}/",
                family=CHILDREN,
                until=time.time() + seconds,
                seconds=ACTIVITY_SECONDS,
            )

            async def live(home: str) -> tuple[list[list[int]], Counter[str]]:
                handle = await tokens.start_workflow(
                    Family.run,
                    work,
                    id=home,
                    task_queue="soak",
                    source="soak",
                    grant=await asyncio.to_thread(server.new_grant),
                    origins=[origin],
                )
                seen: list[list[int]] = await handle.result()
                status = await tokens.source(home)
                return seen, Counter({} if status is None else status.counts)

            async with Worker(
                client, task_queue="soak", workflows=WORKFLOWS, activities=ACTIVITIES
            ):
                homes = await asyncio.gather(*[live(f"home-{n}") for n in range(HOMES)])
        exchanges = server.exchanges()
    seen = [one for family, _ in homes for one in family]
    counts = sum((counts for _, counts in homes), Counter[str]())
    return Figures(
        renewals=counts.pop("minted", 0),
        exchanges=exchanges,
        outcomes=dict(counts),
        activities=len(seen),
        again=sum(attempt > 1 for *_, attempt in seen),
        failed=sum(statuses != [200] for *statuses, _ in seen),
        requests=book.answered.total(),
        refused=book.answered[401],
        begun_late=book.begun_late,
        ended_late=len(book.late),
        latest=max(book.late, default=0.0),
    )


@contextmanager
def _api(book: Book) -> Generator[str, None, None]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = Starlette(routes=[Route("/", book.answer)])
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long (120)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        figures = asyncio.run(soak(options.seconds, Path(directory)))
    shown: dict[str, Any] = vars(figures)
    for what, value in shown.items():
        print(f"{what:11} {value:.3f}" if isinstance(value, float) else f"{what:11} {value}")
    return 0 if figures.holds else 1


if __name__ == "__main__":
    sys.exit(main())
