"""A tree of the tests' workflows; its nodes are named by what their ids have after the root's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError
from temporalio.worker import Worker

from stateful_workflow import TokenClient, TokenStatus, TokenTree
from tests.support.asking import (
    WITHIN,
    eventually,
    next_run,
    nodes_run,
    opened,
    opens,
    run_id,
    sealed_at,
    start_worker,
)
from tests.support.workflows import Node, Plan

URL = "https://api.example.com"


@dataclass(frozen=True)
class Tree:
    """The node at ``a-x`` has the id ``{root}-a-x``; the root is at the empty string.

    Attributes:
        tokens: of the issuer who starts it.
        queue: task queue of its workers.
        root: id of the root.
    """

    client: Client
    tokens: TokenClient
    queue: str
    root: str

    def id(self, at: str = "") -> str:
        return f"{self.root}-{at}" if at else self.root

    def ids(self, *ats: str) -> set[str]:
        return {self.id(at) for at in ats}

    def __getitem__(self, at: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(self.id(at))

    def worker(self, **options: Any) -> Worker:
        return start_worker(self.client, self.queue, **options)

    # --- its life ---

    async def start(self, plan: Plan | None = None, run: Any = Node.run, **options: Any) -> None:
        """Start it with the token "first", and wait until all of its nodes run."""
        plan = plan or Plan()
        settings: dict[str, Any] = {"api_token": "first", "api_url": URL, **options}
        await self.tokens.start_workflow(run, plan, id=self.root, task_queue=self.queue, **settings)
        await self.has(plan.size)

    async def exists(self, at: str = "") -> None:
        """Wait until a workflow that this client did not start has had its first task."""

        async def so() -> bool:
            try:
                return (await self[at].describe()).history_length > 3
            except RPCError:
                return False

        await eventually(so)

    async def has(self, count: int, at: str = "") -> None:
        """Wait until so many nodes run at and below this one."""
        await nodes_run(self.tokens, self.id(at), count)

    async def add(self, suffix: str, plan: Plan | None = None, *, to: str = "") -> None:
        """Have a node start a child, and wait until that and all planned below it run."""
        at = f"{to}-{suffix}".removeprefix("-")
        plan = plan or Plan()
        await self.signal(to, "add_child", suffix, plan)
        await self.knows(at, "running", by=to)
        if plan.size:
            await self.has(plan.size, at)

    async def knows(self, at: str, life: str, *, by: str = "") -> None:
        """Wait until this is what a node knows of a child's life."""

        async def so() -> bool:
            children = (await self.status(by))["children"]
            return any(c["id"] == self.id(at) and c["life"] == life for c in children)

        await eventually(so)

    async def goes_on(self, at: str = "", how: str = "go_on") -> None:
        """Let a node begin another run: continue as new, or be retried (``break_down``)."""
        before = await run_id(self.client, self.id(at))
        await self.signal(at, how)
        await next_run(self.client, self.id(at), before)

    # --- what is done to it ---

    async def signal(self, at: str, name: str, *args: object) -> None:
        await self[at].signal(name, args=args)

    async def update(self, at: str, name: str, *args: object) -> Any:
        return await self[at].execute_update(name, args=args)

    async def set(self, token: str, at: str = "", **options: Any) -> TokenStatus:
        return await self.tokens.set(self.id(at), token, **{**_origins(at), **options})

    async def rotate(self, token: str, at: str = "", **options: Any) -> TokenTree:
        """Set a token and wait until the tree says that it has converged."""
        tree = await self.tokens.rotate(
            self.id(at), token, timeout=WITHIN, **{**_origins(at), **options}
        )
        assert tree.converged
        return tree

    async def revoke(self, at: str = "") -> None:
        assert (await self.tokens.revoke(self.id(at))).state == "revoked"

    async def inherit(self, at: str) -> None:
        await self.tokens.inherit(self.id(at))

    # --- what it says ---

    async def status(self, at: str = "") -> dict[str, Any]:
        answer: dict[str, Any] = await self[at].query("apiTokenStatus")
        return answer

    async def refusals(self, at: str = "") -> dict[str, int]:
        """How many messages a node refused, by the reason."""
        counts: dict[str, int] = (await self.status(at))["rejections"]["counts"]
        return counts

    async def has_children(self, *suffixes: str) -> None:
        """Wait until these, and no others, are the root's children."""

        async def so() -> None:
            children = [child["id"] for child in (await self.status())["children"]]
            assert sorted(children) == sorted(self.ids(*suffixes))

        await eventually(so)

    async def sealed(self, at: str = "") -> str:
        return await sealed_at(self.client, self.id(at))

    async def reveals(self, secret: str, *ats: str) -> None:
        """Wait until an issuer who reads along opens this at all these nodes."""

        async def all_reveal() -> None:
            held = await asyncio.gather(*[self.tokens.get(self.id(at)) for at in ats])
            assert {token.reveal() for token in held} == {secret}

        await eventually(all_reveal)

    async def opened(self, *ats: str, name: str = "apiToken") -> list[str]:
        """What an activity of each of these nodes opens, or what it is told instead."""
        return await opened(self.client, *map(self.id, ats), name=name)

    async def opens(self, expected: str, *ats: str, name: str = "apiToken") -> None:
        """Wait until activities of all these nodes open this, or are told it."""
        await opens(self.client, expected, *map(self.id, ats), name=name)


def _origins(at: str) -> dict[str, Any]:
    """What a first token at a node needs; at the root they are those of the start."""
    return {"origins": [URL]} if at else {}
