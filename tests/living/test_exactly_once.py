"""Whatever happens to the home in the middle of an exchange, no grant is sent twice.

The provider takes each grant once; a second time is counted, and would end the grant at a real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import ResetReapplyExcludeType
from temporalio.client import Client
from temporalio.common import RetryPolicy

from stateful_workflow import SourceStatus, TokenClient
from tests.faults.cluster import Cluster
from tests.support.asking import delete_run, eventually, next_run, reset, run_id, tasks_of
from tests.support.living import URL, Provider, living_keyring, plugin, source_is, start_home
from tests.support.trees import Tree
from tests.support.workflows import QUICK, Flaky, Plan

EVERYTHING = [
    ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_SIGNAL,
    ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_UPDATE,
]
"""A reset that repeats neither signals nor updates, so that nobody asks for a token again."""


def is_fresh(status: SourceStatus) -> bool:
    return status.state == "fresh" and not status.asked and not status.is_minting


@dataclass
class Held:
    """An exchange whose answer the provider holds back."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def before_reply(self) -> None:
        self.begun.set()
        await self.answer.wait()


@asynccontextmanager
async def in_the_middle(home: Tree, provider: Provider) -> AsyncGenerator[Held, None]:
    """In the middle of the exchange of a renewal; afterwards the provider answers."""
    await source_is(home.tokens, home.root, is_fresh)
    held = Held()
    provider.before_reply = held.before_reply
    asking = asyncio.create_task(home.tokens.renew(home.root))
    await asyncio.wait_for(held.begun.wait(), 40)
    try:
        yield held
    finally:
        provider.before_reply = None
        held.answer.set()
        await asyncio.gather(asking, return_exceptions=True)


async def minted_twice(home: Tree, provider: Provider, *below: str) -> None:
    """All hold the second token, and there were two exchanges; the next grant is good."""
    await source_is(home.tokens, home.root, is_fresh)
    await home.opens("tok-2", "", *below)
    assert (provider.exchanges, provider.reused) == (2, 0)
    await home.tokens.renew(home.root)
    await home.opens("tok-3", "", *below)
    assert (provider.exchanges, provider.reused, provider.most_at_work) == (3, 0, 1)


async def test_a_run_that_continues_as_new_takes_the_answer_along(
    home: Tree, provider: Provider
) -> None:
    await start_home(home, provider, Plan({"a": Plan()}))
    before = await run_id(home.client, home.root)
    async with in_the_middle(home, provider):
        await home.signal("", "go_on")
    await next_run(home.client, home.root, before)
    await minted_twice(home, provider, "a")


async def test_a_run_that_is_retried_takes_the_answer_along(home: Tree, provider: Provider) -> None:
    await start_home(home, provider, Plan({"a": Plan()}), run=Flaky.run, retry_policy=QUICK)
    before = await run_id(home.client, home.root)
    async with in_the_middle(home, provider):
        await home.signal("", "break_down")
    await next_run(home.client, home.root, before)
    await minted_twice(home, provider, "a")


async def test_a_worker_that_stops_waits_for_the_answer(
    unserved_home: Tree, provider: Provider
) -> None:
    home, worker = unserved_home, unserved_home.worker()
    await worker.__aenter__()
    await start_home(home, provider, Plan({"a": Plan()}))
    async with in_the_middle(home, provider):
        stopping = asyncio.create_task(worker.__aexit__(None, None, None))

        async def stops() -> bool:
            return not worker.is_running

        await eventually(stops)
    await stopping
    async with home.worker():
        await minted_twice(home, provider, "a")


async def test_a_server_that_is_killed_and_started_anew_gets_the_answer(
    tmp_path: Path, provider: Provider, queue: str
) -> None:
    cluster = Cluster(tmp_path)
    try:
        await cluster.start()
        keyring = living_keyring()
        address = cluster.client.service_client.config.target_host
        client = await Client.connect(address, plugins=[plugin(keyring, provider)])
        home = Tree(client, TokenClient(client, keyring), queue, queue)
        async with home.worker(sticky_queue_schedule_to_start_timeout=timedelta(seconds=1)):
            await start_home(home, provider, Plan({"a": Plan()}))
            async with in_the_middle(home, provider):
                cluster.kill_server()
                await cluster.start_server()
            await minted_twice(home, provider, "a")
    finally:
        await cluster.stop()


# --- reset ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["its start", "the token before"])
async def test_a_run_that_is_reset_goes_on_with_the_newest_grant(
    home: Tree, provider: Provider, first: bool
) -> None:
    await start_home(home, provider)
    await source_is(home.tokens, home.root, is_fresh)
    tasks = await tasks_of(home.client, home.root)
    await home.tokens.renew(home.root)
    await reset(home.client, home.root, tasks[0 if first else -1], exclude=EVERYTHING)
    if not first:  # it has a token that is good for all that it knows
        await renewed(home)
    await minted_twice(home, provider)


async def test_so_does_one_that_is_reset_twice(home: Tree, provider: Provider) -> None:
    """The run between has minted nothing: the newest is that of the run before it."""
    await start_home(home, provider)
    await source_is(home.tokens, home.root, is_fresh)
    tasks = await tasks_of(home.client, home.root)
    await home.tokens.renew(home.root)
    for _ in range(2):
        await reset(home.client, home.root, tasks[-1], exclude=EVERYTHING)
    await renewed(home)
    await minted_twice(home, provider)


async def test_so_does_the_run_after_one_that_is_reset(home: Tree, provider: Provider) -> None:
    await start_home(home, provider)
    await source_is(home.tokens, home.root, is_fresh)
    tasks = await tasks_of(home.client, home.root)
    await home.tokens.renew(home.root)
    await reset(home.client, home.root, tasks[-1], exclude=EVERYTHING)
    for _ in range(2):
        await home.goes_on()
    await renewed(home)
    await minted_twice(home, provider)


async def renewed(home: Tree) -> None:
    """A run that was reset is asked for a new token: it takes over the one that is there."""
    await source_is(home.tokens, home.root, is_fresh)
    await home.tokens.renew(home.root)


# --- what cannot be known ------------------------------------------------------------------------


async def test_a_retry_that_cannot_ask_the_run_before_sends_no_grant_that_it_began_with(
    unserved_home: Tree, provider: Provider
) -> None:
    home = unserved_home
    retry = RetryPolicy(initial_interval=timedelta(seconds=4))
    async with home.worker():
        await start_home(home, provider, run=Flaky.run, retry_policy=retry)
        await source_is(home.tokens, home.root, is_fresh)
        before = await run_id(home.client, home.root)
        await home.signal("", "break_down")

        async def failed() -> bool:
            return await run_id(home.client, home.root) != before

        await eventually(failed)
    await delete_run(home.client, home.root, str(before))
    async with home.worker():
        await source_is(home.tokens, home.root, lambda status: status.needs_authorization)
        await home.tokens.authorize(home.root, source="own", grant=provider.first, origins=[URL])
        await source_is(home.tokens, home.root, is_fresh)
        await home.opens("tok-2", "")
        assert (provider.exchanges, provider.reused) == (2, 0)
