"""What public reports of renewal that went wrong come to, where a source mints the tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import (
        ProviderUnreachable,
        StatefulWorkflow,
        TokenAuth,
        TokenClient,
    )
    from stateful_workflow.engine import EmbeddedEngine
    from stateful_workflow.source import Grant, Minted
    from tests.support.api import Api, start_api
    from tests.support.asking import eventually
    from tests.support.living import Provider, living_keyring, plugin, source_is

SOON = timedelta(seconds=60)
CHILDREN = 5


class Rotating(Provider):
    """A provider whose tokens the API takes until their time has come."""

    def __init__(self, api: Api) -> None:
        super().__init__()
        self.valid = api.valid
        self.issued: list[str] = []

    async def mint(self, grant: Grant) -> Minted:
        minted = await super().mint(grant)
        token = f"access-canary-{minted.token}"
        self.valid.discard(minted.token)
        self.valid.add(token)
        self.issued.append(token)
        if self.lives is not None:
            asyncio.get_running_loop().call_later(self.lives, self.valid.discard, token)
        return Minted(token, minted.expires_at, grant=minted.grant)


@activity.defn
async def call(url: str, wait: float) -> int:
    async with httpx.AsyncClient(auth=TokenAuth(wait_for_newer=wait), timeout=60) as http:
        answer = await http.get(url)
        answer.raise_for_status()
        return answer.status_code


@workflow.defn
class Leaf(StatefulWorkflow):
    """Calls the API so often, and pauses where there is no token to use."""

    @workflow.run
    async def run(self, url: str, calls: int, attempts: int) -> int:
        done = 0
        while done < calls:
            await self.token_held()
            try:
                await self._call(url, 0, attempts)
            except ActivityError:
                await workflow.sleep(0.5)
                continue
            done += 1
            await workflow.sleep(0.5)
        return done

    async def _call(self, url: str, wait: float, attempts: int) -> int:
        policy = RetryPolicy(
            initial_interval=timedelta(milliseconds=500), maximum_attempts=attempts
        )
        return await workflow.execute_activity(
            call, args=[url, wait], start_to_close_timeout=SOON, retry_policy=policy
        )

    @workflow.update
    async def call_in_one_attempt(self, url: str) -> int:
        return await self._call(url, 30, 1)


@workflow.defn
class Tenant(Leaf, source="own"):
    """Has children that call, and no code for tokens but that it waits for the first."""

    @workflow.run
    async def run(self, url: str, calls: int, attempts: int) -> int:
        if not calls:
            await workflow.wait_condition(lambda: False)
        await self.token_held()
        own = workflow.info().workflow_id
        leaves = [
            workflow.execute_child_workflow(Leaf.run, args=[url, calls, attempts], id=f"{own}-{n}")
            for n in range(CHILDREN)
        ]
        return sum(await asyncio.gather(*leaves))


class Place:
    """A tenant whose tokens the provider rotates, and the API that its children call."""

    def __init__(self, client: Client, tokens: TokenClient, queue: str, provider: Rotating) -> None:
        self.client = client
        self.tokens = tokens
        self.root = queue
        self.provider = provider

    @property
    def ids(self) -> list[str]:
        return [self.root, *(f"{self.root}-{n}" for n in range(CHILDREN))]

    async def start(self, api: Api, calls: int, attempts: int = 10) -> Any:
        return await self.tokens.start_workflow(
            Tenant.run,
            args=[api.url("x"), calls, attempts],
            id=self.root,
            task_queue=self.root,
            source="own",
            grant=self.provider.first,
            origins=[api.origin],
        )


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        yield api


@pytest.fixture
async def place(engine: EmbeddedEngine, api: Api, queue: str) -> AsyncIterator[Place]:
    keyring, provider = living_keyring(), Rotating(api)
    client = await Client.connect(engine.address, plugins=[plugin(keyring, provider)])
    async with Worker(client, task_queue=queue, workflows=[Tenant, Leaf], activities=[call]):
        yield Place(client, TokenClient(client, keyring), queue, provider)


async def test_a_single_use_refresh_token_in_the_home_is_spent_once_while_children_call_on(
    place: Place, api: Api
) -> None:
    provider, calls = place.provider, 15
    provider.lives = 4
    root = await place.start(api, calls)

    assert await root.result() == CHILDREN * calls

    assert (provider.reused, provider.most_at_work) == (0, 1)
    assert provider.exchanges >= 3
    histories = [await place.client.get_workflow_handle(id).fetch_history() for id in place.ids]
    written = "".join(history.to_json() for history in histories)
    assert [text for text in ("refresh-canary", *provider.issued) if text in written] == []


async def test_an_activity_that_may_wait_is_answered_though_the_renewal_comes_late(
    place: Place, api: Api
) -> None:
    """Refused by the API, or known here to be expired: in one attempt."""
    provider = place.provider
    root = await place.start(api, 0)
    await source_is(place.tokens, place.root, lambda one: one.state == "fresh")

    api.valid.clear()
    provider.failures = [ProviderUnreachable("not now")] * 2
    provider.lives = 3
    assert await root.execute_update(Leaf.call_in_one_attempt, api.url("refused")) == 200
    assert [one.status for one in api.calls if one.path == "/refused"] == [401, 200]

    provider.failures = [ProviderUnreachable("not now")] * 3
    provider.lives = 3600

    async def expired() -> bool:
        status = await place.tokens.status(place.root)
        return status is not None and status.state == "expired"

    await eventually(expired)
    assert await root.execute_update(Leaf.call_in_one_attempt, api.url("expired")) == 200
    assert [one.status for one in api.calls if one.path == "/expired"] == [200]
    assert provider.exchanges == 3


async def test_workflows_pause_once_a_grant_is_taken_back_and_go_on_when_it_is_given_anew(
    place: Place, api: Api
) -> None:
    provider = place.provider
    root = await place.start(api, 1000, attempts=1)
    await eventually(lambda: _reaches(len(api.calls), CHILDREN))

    provider.grant = "taken-back"
    api.valid.clear()
    await source_is(place.tokens, place.root, lambda one: one.needs_authorization)

    async def paused() -> None:
        for id in place.ids:
            status = await place.tokens.status(id)
            assert status is not None
            assert status.state in ("revoked", "needs_authorization")
            described = await place.client.get_workflow_handle(id).describe()
            assert not described.raw_description.pending_activities

    await eventually(paused)
    before = len(api.calls)
    await asyncio.sleep(2)
    assert len(api.calls) == before
    assert provider.exchanges == 1

    provider.grant = "given-anew"
    await place.tokens.authorize(place.root, source="own", grant=provider.first)
    answered = [one.status for one in api.calls].count(200)

    async def all_go_on() -> bool:
        return [one.status for one in api.calls].count(200) >= answered + CHILDREN

    await eventually(all_go_on)
    assert provider.exchanges == 2
    await root.terminate()


async def _reaches(count: int, least: int) -> bool:
    return count >= least


async def test_a_token_that_dies_before_its_time_is_renewed_once_and_the_call_answered(
    place: Place, api: Api
) -> None:
    root = await place.start(api, 1000)
    await eventually(lambda: _reaches(len(api.calls), CHILDREN))
    api.valid.clear()

    async def answered() -> bool:
        new = [one.token for one in api.calls if one.status == 200]
        return new.count("access-canary-tok-2") >= 3 * CHILDREN

    await eventually(answered)
    assert place.provider.exchanges == 2
    status = await place.tokens.source(place.root)
    assert status is not None
    assert status.counts == {"minted": 2}
    await root.terminate()
