"""The faults, each in the middle of a telling: what tests name one by one, and chaos at random."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tests.faults.proxy import Cut
from tests.faults.tree import Tree


@dataclass(frozen=True)
class Fault:
    """What happens, and in the middle of which telling.

    Attributes:
        what: one of `FAULTS`.
        parent: path of the node whose telling is held; see `Tree.id`.
        told: how many of its children have the new token by then.
        child: path of the one that it happens to, where it happens to a child.
        seconds: how long the connection stays cut, where it is.
    """

    what: str
    parent: str = ""
    told: int = 4
    child: str = ""
    seconds: float = 0.0

    async def happen(self, tree: Tree) -> None:
        """Set a new token and let it happen in the middle."""
        await FAULTS[self.what](tree, self)


def describe(fault: Fault) -> str:
    whom = f" ({fault.child})" if fault.child else ""
    return f"{fault.what}{whom} in the telling of {fault.parent or 'the root'}"


async def _kill_worker(tree: Tree, fault: Fault) -> None:
    async with tree.in_the_middle(fault.parent, fault.told) as holder:
        tree.cluster.kill_worker(holder)
    await tree.cluster.start_workers()


async def _kill_all_workers(tree: Tree, fault: Fault) -> None:
    async with tree.in_the_middle(fault.parent, fault.told):
        killed = list(tree.cluster.workers)
        for name in killed:
            tree.cluster.kill_worker(name)
        await tree.cluster.start_workers(len(killed))


async def _kill_server(tree: Tree, fault: Fault) -> None:
    async with tree.in_the_middle(fault.parent, fault.told):
        tree.cluster.kill_server()
        tree.cluster.gate.open()  # deliveries go to a server that is not there
        await tree.cluster.start_server()


def _cut(how: Cut) -> Callable[[Tree, Fault], Awaitable[None]]:
    async def cut(tree: Tree, fault: Fault) -> None:
        async with tree.in_the_middle(fault.parent, fault.told):
            tree.cluster.proxy.cut(how)
            tree.cluster.gate.open()
            await asyncio.sleep(fault.seconds)
            tree.cluster.proxy.heal()

    return cut


def _to(
    whom: Literal["child", "parent"], do: Callable[[Tree, str], Awaitable[None]]
) -> Callable[[Tree, Fault], Awaitable[None]]:
    async def in_the_middle(tree: Tree, fault: Fault) -> None:
        async with tree.in_the_middle(fault.parent, fault.told):
            await do(tree, fault.child if whom == "child" else fault.parent)

    return in_the_middle


async def end(tree: Tree, path: str, how: str) -> None:
    handle = tree.handle(path)
    if how == "terminate":
        await handle.terminate()
    elif how == "cancel":
        await handle.cancel()
    else:
        await handle.signal("tell", how)
    await tree.until_closed(path)


async def go_on(tree: Tree, path: str, what: str) -> None:
    before = await tree.run_of(path)
    await tree.handle(path).signal("tell", what)
    await tree.until_next_run(path, before)


async def reset(tree: Tree, path: str, *, first: bool) -> None:
    await tree.reset(path, first=first)


FAULTS: dict[str, Callable[[Tree, Fault], Awaitable[None]]] = {
    "worker killed": _kill_worker,
    "all workers killed": _kill_all_workers,
    "server killed": _kill_server,
    "connection closed": _cut("closed"),
    "connection silent": _cut("silent"),
    "child completes": _to("child", partial(end, how="complete")),
    "child fails": _to("child", partial(end, how="fail")),
    "child terminated": _to("child", partial(end, how="terminate")),
    "child continues": _to("child", partial(go_on, what="continue")),
    "child reset": _to("child", partial(reset, first=False)),
    "child reset to its start": _to("child", partial(reset, first=True)),
    "parent terminated": _to("parent", partial(end, how="terminate")),
    "parent cancelled": _to("parent", partial(end, how="cancel")),
    "parent continues": _to("parent", partial(go_on, what="continue")),
    "parent retried": _to("parent", partial(go_on, what="fail")),
    "parent reset": _to("parent", partial(reset, first=False)),
    "parent reset to its start": _to("parent", partial(reset, first=True)),
}

LEAF, PARENT = "k10", "b"

HAPPENINGS = [
    Fault("worker killed"),
    Fault("worker killed", "a"),
    Fault("all workers killed"),
    Fault("server killed"),
    Fault("connection closed", seconds=3),
    Fault("connection silent", seconds=3),
    Fault("child completes", child=PARENT),
    Fault("child fails", child=PARENT),
    Fault("child terminated", child=PARENT),
    Fault("child terminated", child=LEAF),
    Fault("child continues", child=PARENT),
    Fault("child reset", child=PARENT),
    Fault("child reset", child=LEAF),
    Fault("child reset to its start", child=PARENT),
    Fault("parent reset"),
    Fault("parent reset", "a"),
    Fault("parent reset to its start"),
    Fault("parent reset to its start", "a"),
    Fault("parent terminated", "b", told=2),
    Fault("parent cancelled", "b", told=2),
    Fault("parent continues"),
    Fault("parent retried", "a"),
]
"""What can happen to a `small_plan`: each fault at least once."""


def possible(tree: Tree) -> list[Fault]:
    """What can happen to a tree after what has happened to it."""

    def can_happen(fault: Fault) -> bool:
        if tree.closed & {tree.id(fault.parent), tree.id(fault.child)}:
            return False
        # What a closed child left alive is unknown to a run that is reset to before that.
        return not (tree.closed and fault.what.endswith("reset to its start"))

    return [fault for fault in HAPPENINGS if can_happen(fault)]
