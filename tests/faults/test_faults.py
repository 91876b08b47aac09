"""Trees on real processes, through everything that happens to processes.

Each fault happens in the middle of a telling: some children have the new token, the others not
yet. What is to hold afterwards, every time, is in `invariants`.
"""

from __future__ import annotations

import pytest

from tests.faults.cluster import Cluster
from tests.faults.faults import FAULTS, HAPPENINGS, Fault, describe
from tests.faults.invariants import check
from tests.faults.tree import Tree, start_tree
from tests.faults.workflows import Plan

pytestmark = pytest.mark.timeout(150)


@pytest.mark.parametrize("fault", HAPPENINGS, ids=describe)
async def test_whatever_happens_in_a_telling_all_hold_the_newest_in_the_end(
    tree: Tree, fault: Fault
) -> None:
    await fault.happen(tree)

    await check(tree)


def test_every_fault_happens_to_some_tree() -> None:
    assert {fault.what for fault in HAPPENINGS} == FAULTS.keys()


async def test_a_root_started_by_cron_runs_anew(cluster: Cluster) -> None:
    async with start_tree(cluster, cron_schedule="@every 1s") as tree:
        before = await tree.run_of("")
        async with tree.in_the_middle("", told=4):
            await tree.handle("").signal("tell", "complete")
        await tree.until_next_run("", before)

        await check(tree)


@pytest.mark.timeout(400)
async def test_800_children_started_in_one_task_are_told_what_is_set_while_they_start(
    cluster: Cluster,
) -> None:
    """Their headers together are too long for one task, so most start without the token.

    To start as many takes the server 40 s and more, also without this library.
    """
    async with start_tree(cluster, Plan(note=cluster.marker), padding=1000) as tree:
        await tree.grow(800)
        await tree.set()
        await tree.until_started(within=240)

        await check(tree)
