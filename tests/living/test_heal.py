"""An API refuses a token before its time: the home renews it once, and everybody goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from stateful_workflow.node import limits
from stateful_workflow.node.contract import REPORT
from tests.living.calls import ACTIVITIES, WORKFLOWS, Family, Work
from tests.support.api import Api, start_api
from tests.support.asking import events_of, lower, start_worker
from tests.support.living import Provider, source_is, start_home
from tests.support.trees import Tree

FIFTY = 50


@pytest.fixture
def api(provider: Provider) -> Iterator[Api]:
    """It takes what the provider has not revoked."""
    with start_api() as api:
        api.valid = provider.valid
        yield api


async def reports_at(home: Tree) -> list[Any]:
    """The reports of refusals that the home has accepted."""
    updates = await events_of(home[""], "WORKFLOW_EXECUTION_UPDATE_ACCEPTED")
    requests = [one.workflow_execution_update_accepted_event_attributes for one in updates]
    signals = await events_of(home[""], "WORKFLOW_EXECUTION_SIGNALED")
    names = [one.accepted_request.input.name for one in requests]
    names += [one.workflow_execution_signaled_event_attributes.signal_name for one in signals]
    return [name for name in names if name == REPORT]


@pytest.mark.timeout(200)
async def test_fifty_workflows_that_meet_a_revoked_token_at_one_moment_have_one_exchange_made(
    unserved_home: Tree, provider: Provider, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower(monkeypatch, activity_question=timedelta(seconds=40))  # on a busy machine
    home = unserved_home
    worker = start_worker(home.client, home.queue, workflows=WORKFLOWS, activities=ACTIVITIES)
    async with worker:
        work = Work(api.url("call"), api.gate("now"), family=FIFTY - 1)
        await home.tokens.start_workflow(
            Family.run,
            work,
            id=home.root,
            task_queue=home.queue,
            source="own",
            grant=provider.first,
            origins=[api.origin],
        )
        await api.reached("now", FIFTY)
        await source_is(home.tokens, home.root, lambda status: status.counts == {"minted": 1})
        provider.valid.clear()
        api.open("now")
        seen: list[list[int]] = await home[""].result()
        assert (provider.exchanges, provider.reused) == (2, 0)
        assert len(await reports_at(home)) == 1
    # Each with the answer to the request that was sent again, in the first attempt.
    assert seen == [[200, 1]] * FIFTY


async def report(home: Tree, **changed: Any) -> None:
    """A report as an activity sends it, which proves nothing."""
    held = await home.tokens.status(home.root)
    assert held is not None
    said = {"name": "apiToken", "authority": home.root, "version": held.version}
    await home[""].signal(REPORT, {**said, "fingerprint": held.fingerprint, **changed})


async def test_a_report_of_a_token_that_the_provider_takes_has_no_exchange_made(
    home: Tree, provider: Provider
) -> None:
    await start_home(home, provider)
    await source_is(home.tokens, home.root, lambda status: status.state == "fresh")
    for _ in range(3):
        await report(home)
        await source_is(
            home.tokens, home.root, lambda status: status.counts == {"minted": 1, "alive": 1}
        )
    assert (provider.exchanges, provider.probes) == (1, 1)


async def test_refusals_have_a_token_renewed_no_more_often_than_the_interval(
    home: Tree, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower(monkeypatch, heal_every_ms=6_000)
    await start_home(home, provider)
    at: list[float] = []
    for count in (1, 2, 3):
        await source_is(
            home.tokens, home.root, lambda status, count=count: status.counts == {"minted": count}
        )
        provider.valid.clear()
        await report(home)
        at.append(asyncio.get_running_loop().time())
    status = await home.tokens.source(home.root)
    assert status is not None
    assert at[2] - at[1] > limits.LIMITS.heal_every_ms / 2000
    assert status.next_at is not None
    assert (provider.exchanges, provider.reused) == (3, 0)
