"""A customer's tree: a tenant, its accounts, and for each account its syncs and a cleanup.

An ordinary Temporal application but for three things: the base class `StatefulWorkflow`,
the class keyword ``withhold``, and ``auth=TokenAuth(…)`` in the activity.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

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

_PAGES: Final = 8
_PAGE_EVERY_SECONDS: Final = 0.3
_TIMEOUT: Final = timedelta(seconds=15)
_RETRIES: Final = RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_attempts=5)


@activity.defn
async def read_items(account: str) -> None:
    """Page through an account's items at the API, with the token of the moment at every page."""
    async with httpx.AsyncClient(
        auth=TokenAuth(wait_for_newer=10),
        base_url=current_api_url() or "",
        verify=_TLS,
        trust_env=False,
    ) as http:
        for page in range(_PAGES):
            response = await http.get(f"/accounts/{account}/items", params={"page": page})
            response.raise_for_status()
            await asyncio.sleep(_PAGE_EVERY_SECONDS)


@activity.defn
async def has_token() -> bool:
    """Whether a token is at hand here."""
    try:
        current_token()
    except TokenUnavailable:
        return False
    return True


class Stoppable(StatefulWorkflow):
    """What all of them share: they run until they are told to stop."""

    def __init__(self) -> None:
        self.stopping = False

    @workflow.signal
    def stop(self) -> None:
        """Finish what is at hand, and end."""
        self.stopping = True

    async def stop_with(self, children: Sequence[workflow.ChildWorkflowHandle[Any, Any]]) -> None:
        """Let the children run until this workflow is told to stop, and stop them first."""
        await workflow.wait_condition(lambda: self.stopping)
        await asyncio.gather(*(child.signal(Stoppable.stop) for child in children))
        await asyncio.gather(*children)


@workflow.defn
class Sync(Stoppable):
    """Reads an account's items over and over."""

    @workflow.run
    async def run(self, account: str) -> None:
        """Run until stopped."""
        while not self.stopping:
            try:
                await workflow.execute_activity(
                    read_items, account, start_to_close_timeout=_TIMEOUT, retry_policy=_RETRIES
                )
            except ActivityError:
                continue  # it stands in the history, where the report counts it


@workflow.defn
class Cleanup(Stoppable):
    """Stands beside the syncs without the token: it has no business at the API."""

    @workflow.run
    async def run(self) -> bool:
        """Return whether a token was at hand in the end: no."""
        await workflow.wait_condition(lambda: self.stopping)
        return await workflow.execute_activity(has_token, start_to_close_timeout=_TIMEOUT)


@workflow.defn
class Account(Stoppable, withhold=("Cleanup",)):
    """One account: its syncs get the token, its cleanup does not."""

    @workflow.run
    async def run(self, name: str, syncs: int) -> None:
        """Run until stopped."""
        me = workflow.info().workflow_id
        running = [
            await workflow.start_child_workflow(Sync.run, name, id=f"{me}-sync-{number}")
            for number in range(1, syncs + 1)
        ]
        cleanup = await workflow.start_child_workflow(Cleanup.run, id=f"{me}-cleanup")
        await self.stop_with([*running, cleanup])


@workflow.defn
class Tenant(Stoppable):
    """The customer: the root of the tree, at which the token is set."""

    @workflow.run
    async def run(self, accounts: list[str], syncs: int) -> None:
        """Run until stopped."""
        me = workflow.info().workflow_id
        await self.stop_with(
            [
                await workflow.start_child_workflow(
                    Account.run, args=[name, syncs], id=f"{me}-{name}"
                )
                for name in accounts
            ]
        )


WORKFLOWS: Final = (Tenant, Account, Sync, Cleanup)
ACTIVITIES: Final = (read_items, has_token)
