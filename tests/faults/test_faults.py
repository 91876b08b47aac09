"""Trees on real processes, through everything that happens to processes.

Each fault happens in the middle of a telling: some children have the new token, the others not
yet. What is to hold afterwards, every time, is in `invariants`.
"""

from __future__ import annotations

import pytest

from .cluster import Cluster
from .faults import Fault
from .invariants import check
from .tree import Tree, schedule_tree, start_tree
from .workflows import Plan

pytestmark = pytest.mark.timeout(150)

# --- processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("parent", ["", "a"], ids=["root", "below"])
async def test_a_worker_is_killed_and_another_goes_on(tree: Tree, parent: str) -> None:
    await Fault("worker killed", parent).happen(tree)

    await check(tree)


async def test_all_workers_are_killed_and_started_again(tree: Tree) -> None:
    await Fault("all workers killed").happen(tree)

    await check(tree)


async def test_the_server_is_killed_and_started_again(tree: Tree) -> None:
    await Fault("server killed").happen(tree)

    await check(tree)


@pytest.mark.parametrize("how", ["closed", "silent"])
async def test_the_connection_is_cut_and_healed(tree: Tree, how: str) -> None:
    await Fault(f"connection {how}", seconds=3).happen(tree)

    await check(tree)


# --- children ------------------------------------------------------------------------------------

LEAF, PARENT = "k10", "b"


@pytest.mark.parametrize(
    ("how", "child"),
    [("completes", PARENT), ("fails", PARENT), ("terminated", PARENT), ("terminated", LEAF)],
)
async def test_a_child_ends(tree: Tree, how: str, child: str) -> None:
    await Fault(f"child {how}", child=child).happen(tree)

    await check(tree)


@pytest.mark.parametrize(
    ("how", "child"),
    [("continues", PARENT), ("reset", PARENT), ("reset", LEAF), ("reset to its start", PARENT)],
)
async def test_a_child_runs_anew(tree: Tree, how: str, child: str) -> None:
    await Fault(f"child {how}", child=child).happen(tree)

    await check(tree)


# --- parents -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parent", ["", "a"], ids=["root", "below"])
@pytest.mark.parametrize("how", ["reset", "reset to its start"])
async def test_a_parent_is_reset(tree: Tree, how: str, parent: str) -> None:
    await Fault(f"parent {how}", parent).happen(tree)

    await check(tree)


@pytest.mark.parametrize("how", ["terminated", "cancelled"])
async def test_a_parent_ends_without_settling(tree: Tree, how: str) -> None:
    await Fault(f"parent {how}", "b", told=2).happen(tree)

    await check(tree)


@pytest.mark.parametrize(("how", "parent"), [("continues", ""), ("retried", "a")])
async def test_a_parent_runs_anew_while_its_fan_out_hangs(
    tree: Tree, how: str, parent: str
) -> None:
    await Fault(f"parent {how}", parent).happen(tree)

    await check(tree)


async def test_a_root_started_by_cron_runs_anew(cluster: Cluster) -> None:
    async with start_tree(cluster, cron_schedule="@every 1s") as tree:
        before = await tree.run_of("")
        async with tree.in_the_middle("", told=4):
            await tree.handle("").signal("tell", "complete")
        await tree.until_next_run("", before)

        await check(tree)


async def test_a_root_started_by_a_schedule_is_told_while_a_worker_is_killed(
    cluster: Cluster,
) -> None:
    async with schedule_tree(cluster) as tree:
        await Fault("worker killed").happen(tree)

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
