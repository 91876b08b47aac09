"""A tree of workflows under test: what it is made of, what was set, and what was closed."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

from temporalio.client import WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError

from tests.faults.cluster import WITHIN, Cluster, until
from tests.faults.workflows import QUICK, TASK_TIMEOUT, Node, Plan
from tests.support.asking import reset, tasks_of

URL = "https://api.example.com"
_AT_ONCE = 20


def small_plan(note: str) -> Plan:
    """32 nodes: leaves, two parents, of which one is retried, and a withheld subtree.

    The suffix of what is withheld begins with "w".
    """

    def leaves(count: int) -> dict[str, Plan]:
        return {f"k{n}": Plan(note=note) for n in range(count)}

    deep = Plan({**leaves(4), "m": Plan(leaves(2), note=note)}, note=note)
    retried = Plan(leaves(6), retried=True, note=note)
    withheld = Plan(leaves(2), type="Withheld", note=note)
    return Plan({**leaves(12), "a": retried, "b": deep, "w": withheld}, note=note)


class Tree:
    """One tree.

    Args:
        cluster: where it runs.
        plan: what its root starts.
        root: workflow id of the root.
        padding: characters that its tokens have more.
    """

    def __init__(self, cluster: Cluster, plan: Plan, root: str, padding: int = 0) -> None:
        self.cluster = cluster
        self.root = root
        self._padding = padding
        self.ids = set(plan.ids(root))
        """Of all nodes ever started."""
        self.closed: set[str] = set()
        """Of those that have ended."""
        self.last = 0
        """The version that was set last."""

    def id(self, path: str) -> str:
        """The id of a node by the suffixes on the way to it, such as "b-m"; "" for the root."""
        return f"{self.root}-{path}" if path else self.root

    def is_withheld(self, workflow_id: str) -> bool:
        return workflow_id.removeprefix(self.root).startswith("-w")

    @property
    def live(self) -> set[str]:
        return self.ids - self.closed

    @property
    def entitled(self) -> set[str]:
        """The live nodes that are to hold the last version."""
        return {id for id in self.live if not self.is_withheld(id)}

    def handle(self, path: str) -> WorkflowHandle[Any, Any]:
        return self.cluster.client.get_workflow_handle(self.id(path))

    # --- setting ---------------------------------------------------------------------------------

    def new_token(self) -> str:
        return f"{self.cluster.secret}/{secrets.token_hex(4)}" + "x" * self._padding

    async def set(self) -> int:
        """Set a new token at the root, again where it is not known what came of it."""

        async def is_set() -> int:
            status = await self.cluster.tokens.set(self.root, self.new_token(), origins=[URL])
            return status.version or 0

        self.last = await until(is_set, f"a token is set at {self.root}")
        return self.last

    async def rotate(self) -> None:
        """Set a new token and wait until every live entitled node holds it."""
        await self.set()
        await self.until_told()

    async def until_told(self) -> None:
        """Wait until every live entitled node holds the last version, each asked by itself."""
        slots = asyncio.Semaphore(_AT_ONCE)

        async def holds(workflow_id: str) -> bool:
            async with slots:
                status = await self.cluster.tokens.status(workflow_id)
            return status is not None and status.version == self.last

        await asyncio.gather(
            *[until(lambda id=id: holds(id), f"{id} holds {self.last}") for id in self.entitled]
        )

    @asynccontextmanager
    async def in_the_middle(self, path: str, told: int) -> AsyncGenerator[str, None]:
        """While the telling of a new token is held after `told` children of a node have it.

        Yields the name of the worker that runs the telling. Afterwards the telling goes on,
        where it still can, and the token is set.
        """
        gate = self.cluster.gate
        gate.close(self.id(path), told)
        setting = asyncio.create_task(self.set())

        async def reached() -> str | None:
            return gate.holder()

        try:
            yield await until(reached, f"the telling of {self.id(path)} tells {told} children")
            gate.open()
            await setting
        finally:
            gate.open()
            setting.cancel()

    async def grow(self, count: int) -> None:
        """Let the root start so many children in one task."""
        await self.handle("").signal("grow", count)
        self.ids |= {self.id(f"g{n}") for n in range(count)}

    async def until_started(self, within: float = WITHIN) -> None:
        """Wait until every node that was to be started has been."""

        async def all_started() -> bool:
            query = f"WorkflowId STARTS_WITH '{self.root}'"
            return (await self.cluster.client.count_workflows(query)).count >= len(self.ids)

        await until(all_started, f"all nodes of {self.root} are started", within=within)

    # --- what happens to nodes -------------------------------------------------------------------

    async def run_of(self, path: str) -> str:
        """The id of a node's newest run."""
        return str((await self.handle(path).describe()).run_id)

    async def until_closed(self, path: str) -> None:
        async def is_closed() -> bool:
            status = (await self.handle(path).describe()).status
            return status is not WorkflowExecutionStatus.RUNNING

        await until(is_closed, f"{self.id(path)} has ended")
        self.closed.add(self.id(path))

    async def until_next_run(self, path: str, before: str) -> None:
        async def is_next() -> bool:
            described = await self.handle(path).describe()
            running = described.status is WorkflowExecutionStatus.RUNNING
            return described.run_id != before and running

        await until(is_next, f"{self.id(path)} runs anew")

    async def reset(self, path: str, *, first: bool = False) -> None:
        """Reset a node to its last workflow task, or to its first."""
        tasks = await tasks_of(self.cluster.client, self.id(path))
        await reset(self.cluster.client, self.id(path), tasks[0 if first else -1])


@asynccontextmanager
async def start_tree(
    cluster: Cluster, plan: Plan | None = None, *, padding: int = 0, cron_schedule: str = ""
) -> AsyncGenerator[Tree, None]:
    """A tree started with its first token, all its nodes running; terminated in the end."""
    plan = small_plan(cluster.marker) if plan is None else plan
    tree = Tree(cluster, plan, f"r{uuid.uuid4().hex[:8]}", padding)
    await cluster.tokens.start_workflow(
        Node.run,
        plan,
        id=tree.root,
        task_queue=cluster.queue,
        api_token=tree.new_token(),
        api_url=URL,
        task_timeout=TASK_TIMEOUT,
        retry_policy=QUICK,
        cron_schedule=cron_schedule,
    )
    try:
        await tree.until_started()
        status = await cluster.tokens.status(tree.root)
        assert status is not None
        tree.last = status.version or 0
        yield tree
    finally:
        for workflow_id in tree.live:
            with suppress(RPCError):
                await cluster.client.get_workflow_handle(workflow_id).terminate()
