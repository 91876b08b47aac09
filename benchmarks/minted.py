"""The workflows and activities of `living`: minted tokens, by hand and with this library."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from datetime import timedelta
from pathlib import Path

from temporalio import activity, workflow

with workflow.unsafe.imports_passed_through():
    import arrivals
    import httpx

    from stateful_workflow import StatefulWorkflow, TokenAuth

TIMEOUT = timedelta(minutes=5)
SHARED = "shared"
ITEMS = "/accounts/bench/items"


class Gate:
    """Holds activities until the token that they have just used was revoked."""

    opened = asyncio.Event()


# --- by hand: a lock and the refresh tokens in SQLite ---------------------------------------------


class ByHand:
    """What the activities of one process share: accounts with their tokens, and who refreshes one.

    Args:
        path: of the database.
        url: of the authorization server and its API.
        secret: of its client.
    """

    current: ByHand

    def __init__(self, path: Path, url: str, client_id: str, secret: str) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("CREATE TABLE accounts (id PRIMARY KEY, refresh, token, locked_until)")
        self.url, self.client = url, (client_id, secret)
        ByHand.current = self

    def add(self, account: str, refresh: str) -> None:
        self.db.execute("INSERT INTO accounts VALUES (?, ?, '', 0)", [account, refresh])

    def of(self, account: str) -> tuple[str, str]:
        """The refresh token and the token of an account."""
        found = self.db.execute("SELECT refresh, token FROM accounts WHERE id = ?", [account])
        return found.fetchone()

    async def refresh(self, account: str, refused: str) -> str:
        """A token that is another than the refused one, by one exchange of all who ask."""
        while True:
            _, token = self.of(account)
            if token != refused:
                return token
            now = time.time()
            lock = "UPDATE accounts SET locked_until = ? WHERE id = ? AND locked_until < ?"
            if self.db.execute(lock, [now + 30, account, now]).rowcount == 1:
                break
            await asyncio.sleep(0.05)
        refresh, token = self.of(account)
        if token == refused:  # nobody was quicker
            form = {"grant_type": "refresh_token", "refresh_token": refresh}
            async with httpx.AsyncClient(auth=self.client, trust_env=False) as http:
                response = await http.post(f"{self.url}/token", data=form)
            answer = response.raise_for_status().json()
            refresh, token = answer["refresh_token"], answer["access_token"]
        self.db.execute(
            "UPDATE accounts SET refresh = ?, token = ?, locked_until = 0 WHERE id = ?",
            [refresh, token, account],
        )
        return token


@activity.defn
async def refresh_by_hand(account: str) -> None:
    hand = ByHand.current
    await hand.refresh(account, hand.of(account)[1])


@activity.defn
async def meet_by_hand() -> None:
    """Use the shared token, wait until it is revoked, and use it until it is taken again."""
    hand = ByHand.current
    token = hand.of(SHARED)[1]
    async with httpx.AsyncClient(base_url=hand.url, trust_env=False) as http:

        async def call() -> int:
            bearer = {"Authorization": f"Bearer {token}"}
            return (await http.get(ITEMS, headers=bearer)).status_code

        await call()
        arrivals.arrived(f"{activity.info().workflow_id} waits")
        await Gate.opened.wait()
        while await call() == 401:
            token = await hand.refresh(SHARED, token)
    arrivals.arrived(f"{activity.info().workflow_id} done")


@workflow.defn
class HomeByHand:
    """One account, whose token is refreshed when a signal says so."""

    def __init__(self) -> None:
        self._asked = 0

    @workflow.run
    async def run(self, account: str) -> None:
        while True:
            await workflow.wait_condition(lambda: self._asked > 0)
            self._asked -= 1
            await workflow.execute_activity(
                refresh_by_hand, account, start_to_close_timeout=TIMEOUT
            )

    @workflow.signal
    def renew(self) -> None:
        self._asked += 1


@workflow.defn
class MeetingByHand:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(meet_by_hand, start_to_close_timeout=TIMEOUT)


# --- with this library ----------------------------------------------------------------------------


@activity.defn
async def meet(url: str) -> None:
    """As `meet_by_hand`."""
    auth = TokenAuth(wait_for_newer=60)
    async with httpx.AsyncClient(base_url=url, auth=auth, trust_env=False) as http:
        (await http.get(ITEMS)).raise_for_status()
        arrivals.arrived(f"{activity.info().workflow_id} waits")
        await Gate.opened.wait()
        (await http.get(ITEMS)).raise_for_status()
    arrivals.arrived(f"{activity.info().workflow_id} done")


@workflow.defn
class Meeting(StatefulWorkflow):
    @workflow.run
    async def run(self, url: str) -> None:
        await workflow.execute_activity(meet, url, start_to_close_timeout=TIMEOUT)


@workflow.defn
class Meetings(StatefulWorkflow):
    """The home, and those below it that meet a refusal."""

    @workflow.run
    async def run(self, number: int, url: str) -> None:
        await self.token_held()
        own = workflow.info().workflow_id
        await asyncio.gather(
            *[
                workflow.execute_child_workflow(Meeting.run, url, id=f"{own}-{n}")
                for n in range(number)
            ]
        )


WORKFLOWS = [HomeByHand, MeetingByHand, Meeting, Meetings]
ACTIVITIES = [refresh_by_hand, meet_by_hand, meet]
