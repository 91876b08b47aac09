"""The tree of the demo: a tenant, its accounts, and for each account its syncs and a cleanup.

An ordinary Temporal application but for three things: the base class `StatefulWorkflow`,
the class keyword ``withhold``, and ``auth=TokenAuth()`` in the activity.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    import ssl

    import httpx

    from stateful_workflow import (
        StatefulWorkflow,
        TokenAuth,
        TokenUnavailable,
        current_api_url,
        current_token,
    )

    # One for all clients: making it takes longer than all calls of an activity.
    _TLS: Final = ssl.create_default_context()

PAGES: Final = 8
"""Calls that one activity makes."""

_PAGE_EVERY_SECONDS: Final = 0.3
_LOOK_EVERY: Final = timedelta(seconds=2)


@dataclass(frozen=True)
class AccountPlan:
    """What an account is started with.

    Attributes:
        name: at the API.
        syncs: how many it runs.
        api_url: an address of its own; None takes its tenant's.
    """

    name: str
    syncs: int
    api_url: str | None = None


@activity.defn
async def read_items(account: str) -> int:
    """Page through an account's items at the API, with the token of the moment at every page."""
    async with httpx.AsyncClient(
        auth=TokenAuth(), base_url=current_api_url() or "", verify=_TLS, trust_env=False
    ) as http:
        for page in range(PAGES):
            response = await http.get(f"/accounts/{account}/items", params={"page": page})
            response.raise_for_status()
            await asyncio.sleep(_PAGE_EVERY_SECONDS)
    return PAGES


@activity.defn
async def has_token() -> bool:
    """Whether a token is at hand here."""
    try:
        current_token()
    except TokenUnavailable:
        return False
    return True


@workflow.defn
class Sync(StatefulWorkflow):
    """Reads an account's items over and over until it is stopped."""

    def __init__(self) -> None:
        self._stopping = False

    @workflow.run
    async def run(self, account: str) -> int:
        """Return the number of pages read."""
        pages = 0
        while not self._stopping:
            try:
                pages += await workflow.execute_activity(
                    read_items,
                    account,
                    start_to_close_timeout=timedelta(seconds=15),
                    retry_policy=RetryPolicy(
                        initial_interval=timedelta(milliseconds=200), maximum_attempts=5
                    ),
                )
            except ActivityError:
                # It stands in the history, where the report counts it; the next one is due.
                continue
        return pages

    @workflow.signal
    def stop(self) -> None:
        """Finish the pages at hand, then end."""
        self._stopping = True


@workflow.defn
class Cleanup(StatefulWorkflow):
    """Works beside the syncs without the token: it has no business at the API."""

    def __init__(self) -> None:
        self._stopping = False

    @workflow.run
    async def run(self) -> int:
        """Return how often a token was at hand: never."""
        found = 0
        while not self._stopping:
            found += await workflow.execute_activity(
                has_token, start_to_close_timeout=timedelta(seconds=10)
            )
            try:
                await workflow.wait_condition(lambda: self._stopping, timeout=_LOOK_EVERY)
            except asyncio.TimeoutError:
                continue
        return found

    @workflow.signal
    def stop(self) -> None:
        """End."""
        self._stopping = True


@workflow.defn
class Account(StatefulWorkflow, withhold=("Cleanup",)):
    """One account: its syncs get the token, its cleanup does not."""

    def __init__(self) -> None:
        self._stopping = False

    @workflow.run
    async def run(self, plan: AccountPlan) -> int:
        """Return the number of pages read by its syncs."""
        if plan.api_url is not None:
            self.api_url = plan.api_url  # before the syncs start: they begin with it
        me = workflow.info().workflow_id
        syncs = [
            await workflow.start_child_workflow(Sync.run, plan.name, id=f"{me}-sync-{number}")
            for number in range(1, plan.syncs + 1)
        ]
        cleanup = await workflow.start_child_workflow(Cleanup.run, id=f"{me}-cleanup")
        await workflow.wait_condition(lambda: self._stopping)
        await asyncio.gather(
            cleanup.signal(Cleanup.stop), *(sync.signal(Sync.stop) for sync in syncs)
        )
        await cleanup
        return sum(await asyncio.gather(*syncs))

    @workflow.signal
    def stop(self) -> None:
        """Stop the children, then end."""
        self._stopping = True


@workflow.defn
class Tenant(StatefulWorkflow):
    """The customer: the root of the tree, at which the token is set."""

    def __init__(self) -> None:
        self._stopping = False

    @workflow.run
    async def run(self, plans: list[AccountPlan]) -> int:
        """Return the number of pages read by all syncs."""
        me = workflow.info().workflow_id
        accounts = [
            await workflow.start_child_workflow(Account.run, plan, id=f"{me}-{plan.name}")
            for plan in plans
        ]
        await workflow.wait_condition(lambda: self._stopping)
        await asyncio.gather(*(account.signal(Account.stop) for account in accounts))
        return sum(await asyncio.gather(*accounts))

    @workflow.signal
    def stop(self) -> None:
        """Stop the accounts, then end."""
        self._stopping = True


WORKFLOWS: Final = (Tenant, Account, Sync, Cleanup)
ACTIVITIES: Final = (read_items, has_token)
