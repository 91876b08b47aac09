"""Ninety days of renewals, on Temporal's time-skipping server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.api.testservice.v1 import LockTimeSkippingRequest, UnlockTimeSkippingRequest
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import (
        SourceStatus,
        StatefulWorkflow,
        TokenClient,
        TokenHome,
        current_token,
        current_token_async,
    )
    from stateful_workflow.node.contract import NODE_HEADER
    from stateful_workflow.source import Grant, Minted, now
    from tests.support.asking import eventually, status_of
    from tests.support.living import Provider, living_keyring, plugin, source_is

DAY = 86_400
DAYS = 90
ORIGINS = ["https://api.example.com"]
SOON = timedelta(seconds=30)


@dataclass
class Api(Provider):
    """A provider of tokens that live a day, and the API that takes them, by the server's time.

    Attributes:
        ends: of each token Unix seconds from which it is refused.
        runs: of each workflow id the runs that have called, in their order.
        refused: calls that came with a token of another day.
    """

    ends: dict[str, float] = field(default_factory=dict[str, float])
    runs: dict[str, dict[str, int]] = field(
        default_factory=lambda: defaultdict[str, dict[str, int]](dict)
    )
    refused: int = 0

    def __post_init__(self) -> None:
        super().__init__(lives=DAY)

    async def mint(self, grant: Grant) -> Minted:
        minted = await super().mint(grant)
        self.ends[minted.token] = now() + DAY
        return minted

    @activity.defn
    async def call(self) -> str:
        """Call with the token of an async activity."""
        return self._called((await current_token_async()).reveal())

    @activity.defn
    async def call_with_what_came_along(self) -> str:
        """The same, which is not asked for first."""
        return self._called(current_token().reveal())

    def _called(self, token: str) -> str:
        info = activity.info()
        calls = self.runs[info.workflow_id or ""]
        calls[info.workflow_run_id or ""] = calls.get(info.workflow_run_id or "", 0) + 1
        if self.ends[token] <= info.started_time.timestamp():
            self.refused += 1
            raise ApplicationError("the token has expired")
        return token


@workflow.defn
class Tenant(StatefulWorkflow):
    """Calls an API every so many hours, and goes on in another run every so many calls."""

    @workflow.run
    async def run(self, home: str | None, child: str | None, hours: int, calls: int) -> None:
        if home is not None:
            await self.join(home)
        await self.token_held()
        if child is not None:
            await workflow.start_child_workflow(
                Tenant.run,
                args=[None, None, hours - 3, calls],
                id=child,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            )
        for call in range(15):
            if calls == 0:
                await workflow.wait_condition(lambda: False)
            await workflow.sleep(timedelta(hours=hours))
            await self._call(call % 2 == 1)
            calls -= 1
        workflow.continue_as_new(args=[home, None, hours, calls])

    @workflow.update
    async def call(self, along: bool) -> str:
        return await self._call(along)

    async def _call(self, along: bool) -> str:
        what: Any = Api.call_with_what_came_along if along else Api.call
        called: str = await workflow.execute_activity_method(what, start_to_close_timeout=SOON)
        return called


@dataclass
class Street:
    """A client and worker on the time-skipping server, and what they mint with."""

    client: Client
    tokens: TokenClient
    api: Api

    async def skip(self, calls: int, *ids: str) -> None:
        """Let time go on until each of these workflows has called so often.

        They are not asked: this server may stop skipping where a run is queried as it ends.
        """

        async def have_called() -> bool:
            return all(sum(self.api.runs[id].values()) >= calls for id in ids)

        service = self.client.test_service
        await service.unlock_time_skipping(UnlockTimeSkippingRequest())
        try:
            await eventually(have_called, within=120)
        finally:
            await service.lock_time_skipping(LockTimeSkippingRequest())

    async def holds_the_newest(self, home: str, *ids: str) -> SourceStatus:
        """Wait until every workflow calls with what the home has minted last."""
        status = await source_is(
            self.tokens, home, lambda one: not one.is_minting and one.state == "fresh"
        )

        async def newest() -> None:
            held = f"tok-{self.api.exchanges}"
            for id in ids:
                handle = self.client.get_workflow_handle(id)
                assert await handle.execute_update("call", False) == held

        await eventually(newest)
        return status

    async def sizes(self, id: str) -> tuple[list[int], list[int]]:
        """Of each run of a workflow the events, and the bytes of the state that it began with."""
        events, states = list[int](), list[int]()
        for run in self.api.runs[id]:
            history = await self.client.get_workflow_handle(id, run_id=run).fetch_history()
            events.append(len(history.events))
            started = history.events[0].workflow_execution_started_event_attributes
            states.append(len(started.header.fields[NODE_HEADER].data))
        return events, states


@pytest.fixture
async def street(skipping: Client) -> AsyncIterator[Street]:
    keyring, api = living_keyring(), Api()
    client = await Client.connect(
        skipping.service_client.config.target_host, plugins=[plugin(keyring, api)]
    )
    tokens = TokenClient(client, keyring)
    activities = [api.call, api.call_with_what_came_along]
    async with Worker(client, task_queue="q", workflows=[Tenant, TokenHome], activities=activities):
        yield Street(client, tokens, api)


def is_kept(api: Api, status: SourceStatus) -> None:
    """What ninety days have to come to."""
    assert api.exchanges == status.counts["minted"]
    assert status.counts == {"minted": api.exchanges}
    assert api.exchanges > DAYS * 1 / 0.75
    assert (api.reused, api.refused, api.most_at_work) == (0, 0, 1)


@pytest.mark.timeout(200)
async def test_a_root_renews_for_ninety_days_and_its_tree_calls_all_the_while(
    street: Street,
) -> None:
    api = street.api
    calls = DAYS * 24 // 8
    await street.tokens.start_workflow(
        Tenant.run,
        args=[None, "root-child", 8, calls],
        id="root",
        task_queue="q",
        source="own",
        grant=api.first,
        origins=ORIGINS,
    )
    await street.skip(calls, "root", "root-child")
    is_kept(api, await street.holds_the_newest("root", "root", "root-child"))

    for id in ("root", "root-child"):
        events, states = await street.sizes(id)
        assert len(events) == calls // 15 + 1
        # A run lives 5 days: some 8 renewals, and 15 calls.
        assert max(events) < 400
        assert abs(states[-1] - states[2]) < 64


@pytest.mark.timeout(200)
async def test_a_home_of_the_librarys_own_renews_for_ninety_days_for_who_joined_it(
    street: Street,
) -> None:
    api = street.api
    await street.tokens.start_workflow(
        TokenHome.run,
        ["Tenant"],
        id="home",
        task_queue="q",
        source="own",
        grant=api.first,
        origins=ORIGINS,
    )
    await source_is(street.tokens, "home", lambda one: one.state == "fresh")
    await street.client.start_workflow(
        Tenant.run, args=["home", None, 8, DAYS * 3], id="guest", task_queue="q"
    )
    await street.skip(DAYS * 3, "guest")
    is_kept(api, await street.holds_the_newest("home", "guest"))

    events, states = await street.sizes("guest")
    assert max(events) < 400
    assert abs(states[-1] - states[2]) < 64
    home = await street.client.get_workflow_handle("home").fetch_history()
    assert len(home.events) < 25 * api.exchanges
    assert (await status_of(street.client, "home"))["undelivered"] == []
