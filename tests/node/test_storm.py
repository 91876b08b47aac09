"""A storm of rotations: more than a tree can be told of one by one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

from stateful_workflow import Keyring, TokenClient
from tests.support.asking import nodes_run, start_worker
from tests.support.workflows import Node, Plan

URL = "https://api.example.com"
NODES = 111
ROTATIONS = 60
"""So many in a row, and then as many at once; the last of these waits for convergence."""

PAUSE = 0.05
"""Seconds from one of a row to the next."""


def tellings_of(events: list[HistoryEvent]) -> list[tuple[float, float]]:
    """The tellings of a history that ended, in Unix seconds from schedule to end, in order."""
    scheduled = {event.event_id: seconds(event) for event in events}
    return sorted(
        (
            scheduled[event.activity_task_completed_event_attributes.scheduled_event_id],
            seconds(event),
        )
        for event in events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
    )


def seconds(event: HistoryEvent) -> float:
    return event.event_time.seconds + event.event_time.nanos / 1e9


def count(events: list[HistoryEvent], kind: str) -> int:
    wanted = EventType.Value(f"EVENT_TYPE_{kind}")
    return sum(event.event_type == wanted for event in events)


@dataclass(frozen=True)
class Storm:
    """What one has left.

    Attributes:
        before: events of each history when it began.
        in_burst: tellings of the root for the rotations that came at once.
        histories: each node's events now, by workflow id.
        versions: what the nodes hold.
        newest: the version of the last rotation.
    """

    before: dict[str, int]
    in_burst: int
    histories: dict[str, list[HistoryEvent]]
    versions: set[int | None]
    newest: int


@pytest.fixture(scope="module")
async def storm(client: Client, tokens: TokenClient, keyring: Keyring) -> AsyncIterator[Storm]:
    root = "storm"
    async with start_worker(client, root):
        plan = Plan({f"k{n}": Plan({f"k{m}": Plan() for m in range(10)}) for n in range(10)})
        await tokens.start_workflow(
            Node.run, plan, id=root, task_queue=root, api_token="first", api_url=URL
        )
        await nodes_run(tokens, root, NODES)
        ids = [node.id for node in (await tokens.tree(root)).nodes]

        async def history(workflow_id: str) -> list[HistoryEvent]:
            return list((await client.get_workflow_handle(workflow_id).fetch_history()).events)

        before = {workflow_id: len(await history(workflow_id)) for workflow_id in ids}
        held = await tokens.get(root)
        handle = client.get_workflow_handle(root)
        messages = [
            keyring.seal(replace(held.message.claims, version=held.version + 2 * n), f"token-{n}")
            for n in range(1, 2 * ROTATIONS)
        ]
        for message in messages[:ROTATIONS]:
            await handle.signal("apiToken", message)
            await asyncio.sleep(PAUSE)
        before_burst = len(tellings_of(await history(root)))
        await asyncio.gather(*[handle.signal("apiToken", m) for m in messages[ROTATIONS:]])
        tree = await tokens.rotate(root, "the last", timeout=20)
        newest = (await tokens.get(root)).version
        histories = {workflow_id: await history(workflow_id) for workflow_id in ids}
        in_burst = len(tellings_of(histories[root])) - before_burst
        yield Storm(before, in_burst, histories, {node.version for node in tree.nodes}, newest)


def test_every_node_holds_the_last_one(storm: Storm) -> None:
    assert storm.versions == {storm.newest}
    assert len(storm.histories) == NODES


def test_no_node_has_two_tellings_in_flight_but_for_those_of_updates(storm: Storm) -> None:
    for workflow_id, events in storm.histories.items():
        tellings = itertools.pairwise(tellings_of(events))
        overlapping = sum(ended > begun for (_, ended), (begun, _) in tellings)
        assert overlapping <= count(events, "WORKFLOW_EXECUTION_UPDATE_ACCEPTED"), workflow_id


def test_a_node_tells_its_children_no_more_often_than_it_was_told(storm: Storm) -> None:
    tellings = {
        workflow_id: len(tellings_of(events[storm.before[workflow_id] :]))
        for workflow_id, events in storm.histories.items()
    }
    assert tellings["storm"] <= 2 * ROTATIONS
    for workflow_id, events in storm.histories.items():
        parent, _, _ = workflow_id.rpartition("-")
        if parent:
            told = count(events[storm.before[workflow_id] :], "WORKFLOW_EXECUTION_SIGNALED")
            assert tellings[workflow_id] <= told <= tellings[parent], workflow_id


def test_rotations_that_come_while_children_are_told_are_told_together(storm: Storm) -> None:
    assert storm.in_burst <= ROTATIONS / 2


def test_a_history_grows_by_ten_events_a_rotation_at_most(storm: Storm) -> None:
    for workflow_id, events in storm.histories.items():
        assert len(events) - storm.before[workflow_id] <= 10 * 2 * ROTATIONS, workflow_id
