"""What holds after every fault, however the tree got there."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

from temporalio.client import WorkflowExecution, WorkflowExecutionStatus

from stateful_workflow import audit
from stateful_workflow.demo.search import forms, occurrences
from tests.faults import uses
from tests.faults.cluster import Cluster, until
from tests.faults.tree import Tree
from tests.faults.uses import Given
from tests.support.asking import sealed_at

_ENOUGH = 40
"""Nodes; of a large tree not every one is shown a late delivery."""


async def check(tree: Tree) -> None:
    """Check a tree and everything that was written about it.

    Raises:
        AssertionError: something does not hold; says which, and what the processes said last.
    """
    try:
        await tree.until_told()
        older = await sealed_at(tree.cluster.client, tree.root)
        await tree.rotate()
        await _check_late(tree, older)
        await _check_live(tree)
        await _check_walk(tree)
        _check_order(tree)
        await _check_withheld(tree)
        await _check_leaks(tree)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{tree.cluster.tails()}") from None


async def _check_late(tree: Tree, older: str) -> None:
    """A delivery that was long on its way takes no node back."""
    client = tree.cluster.client
    newest = await sealed_at(client, tree.root)

    async def holds_newest(workflow_id: str) -> bool:
        return await sealed_at(client, workflow_id) == newest

    for workflow_id in sorted(tree.entitled)[:_ENOUGH]:
        await client.get_workflow_handle(workflow_id).signal("apiToken", older)
        await until(lambda id=workflow_id: holds_newest(id), f"{workflow_id} keeps the newest")


async def _check_live(tree: Tree) -> None:
    """No node ended that was not to."""
    running = {
        execution.id
        async for execution in _runs_of(tree)
        if execution.status is WorkflowExecutionStatus.RUNNING
    }
    # What is listed is late sometimes; what is described is not.
    for workflow_id in tree.live - running:
        described = await tree.cluster.client.get_workflow_handle(workflow_id).describe()
        assert described.status is WorkflowExecutionStatus.RUNNING, f"{workflow_id} has ended"


async def _check_walk(tree: Tree) -> None:
    """The client's walk finds every live node, and each entitled one current."""

    async def finds_all() -> bool:
        seen = await tree.cluster.tokens.tree(tree.root)
        return seen.converged and {node.id for node in seen.nodes if not node.closed} >= tree.live

    await until(finds_all, f"the walk from {tree.root} finds every live node")


def _runs_of(tree: Tree) -> AsyncIterator[WorkflowExecution]:
    return tree.cluster.client.list_workflows(f"WorkflowId STARTS_WITH '{tree.root}'")


def _given_in(tree: Tree) -> list[Given]:
    read = uses.read(tree.cluster.directory)
    return [given for given in read if given.workflow.startswith(tree.root)]


def _check_order(tree: Tree) -> None:
    """No activity, by its id within one run, was given an older version than before."""
    given_to: dict[tuple[str, str, str], list[Given]] = defaultdict(list)
    for given in _given_in(tree):
        if given.version is not None:
            given_to[given.workflow, given.run, given.activity].append(given)
    assert given_to, "no activity was given a token"
    for of_one in given_to.values():
        of_one.sort(key=lambda given: given.at)
        for before, after in pairwise(of_one):
            assert (before.version or 0) <= (after.version or 0), f"{before}, and then {after}"


async def _check_withheld(tree: Tree) -> None:
    """No withheld node was sent the token, accepted it, or gave it to an activity."""
    asked = [given for given in _given_in(tree) if tree.is_withheld(given.workflow)]
    assert [given for given in asked if given.version is not None] == []
    withheld = {id for id in tree.ids if tree.is_withheld(id)}
    assert {given.workflow for given in asked} == withheld
    accepted = {
        event.workflow_id
        for path in tree.cluster.directory.glob("*.audit")
        for event in audit.read(path)
        if event.action == "accept"
    }
    assert tree.root in accepted
    assert accepted & withheld == set(), "a withheld node accepted a token"
    for workflow_id in withheld:
        handle = tree.cluster.client.get_workflow_handle(workflow_id)
        status = await handle.query("apiTokenStatus")
        assert status["tokens"] == [], f"{workflow_id} holds a token"
        history = await handle.fetch_history()
        signals = [
            event.workflow_execution_signaled_event_attributes.signal_name
            for event in history.events
            if event.HasField("workflow_execution_signaled_event_attributes")
        ]
        assert "apiToken" not in signals, f"{workflow_id} was sent a token"


async def _check_leaks(tree: Tree) -> None:
    """No token stands in clear in any file or history; what is to be found there is."""
    cluster = tree.cluster
    secret, marker = cluster.secret.encode(), cluster.marker.encode()
    found = await asyncio.to_thread(occurrences, cluster.db, [secret, marker])
    histories = b""
    async for execution in _runs_of(tree):
        handle = cluster.client.get_workflow_handle(execution.id, run_id=execution.run_id)
        history = await handle.fetch_history()
        histories += b"".join(event.SerializeToString() for event in history.events)
    written = _all_written(cluster)
    assert found[secret] == 0, "a token stands in the server's file"
    assert not _stands_in(secret, histories), "a token stands in a history"
    leaky = [path.name for path, data in written.items() if _stands_in(secret, data)]
    assert leaky == [], "a token stands in what processes wrote"
    # A search that found nothing at all would prove nothing.
    assert found[marker] > 0
    assert _stands_in(marker, histories)
    assert any(_stands_in(marker, data) for data in written.values())


def _all_written(cluster: Cluster) -> dict[Path, bytes]:
    files = [path for path in cluster.directory.iterdir() if not path.name.startswith("temporal")]
    return {path: path.read_bytes() for path in files}


def _stands_in(needle: bytes, data: bytes) -> bool:
    return any(form in data for form in forms(needle))
