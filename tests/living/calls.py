"""Workflows that call an API with the token of their home, once or all the while."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import httpx
from temporalio import activity, workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import StatefulWorkflow, TokenAuth

WAIT: Final = 60.0
"""Seconds that a request waits for a newer token: for ever, on a busy machine."""

SENT: Final = "X-Sent"
"""The header that says when a request was begun, by the sender's clock."""


@dataclass
class Work:
    """What each workflow of a family does.

    Attributes:
        url: that is asked.
        gate: asked before, without a token.
        family: how many children the root has, which do the same.
        until: Unix seconds until which one activity follows the other.
        seconds: that an activity goes on calling for; it calls once at least.
    """

    url: str
    gate: str | None = None
    family: int = 0
    until: float = 0.0
    seconds: float = 0.0


class Stamped(httpx.AsyncHTTPTransport):
    """Says of each request when it was begun: the last thing before it is sent."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers[SENT] = repr(time.time())
        return await super().handle_async_request(request)


@activity.defn
async def call_api(work: Work) -> list[int]:
    """Call until the time is over; the statuses that came, each once, and the attempt."""
    if work.gate is not None:
        async with httpx.AsyncClient(timeout=WAIT) as bare:
            await bare.get(work.gate)
    seen: set[int] = set()
    begun, auth = time.monotonic(), TokenAuth(wait_for_newer=WAIT)
    async with httpx.AsyncClient(auth=auth, transport=Stamped(), timeout=WAIT) as http:
        while not seen or time.monotonic() - begun < work.seconds:
            seen.add((await http.get(work.url)).status_code)
            await asyncio.sleep(0.1 if work.seconds else 0)
    return [*sorted(seen), activity.info().attempt]


@workflow.defn
class Caller(StatefulWorkflow):
    """Calls, and is told to go by its parent's end."""

    @workflow.run
    async def run(self, work: Work) -> list[list[int]]:
        """What each of its activities has seen."""
        return await _called(work)


@workflow.defn
class Family(StatefulWorkflow):
    """The home of a grant, which calls as well, with children that call."""

    @workflow.run
    async def run(self, work: Work) -> list[list[int]]:
        """What each activity of them all has seen."""
        own = workflow.info().workflow_id
        children = [
            workflow.execute_child_workflow(Caller.run, work, id=f"{own}-{n}")
            for n in range(work.family)
        ]
        all_seen = await asyncio.gather(_called(work), *children)
        return [seen for each in all_seen for seen in each]


async def _called(work: Work) -> list[list[int]]:
    seen: list[list[int]] = []
    while not seen or workflow.now().timestamp() < work.until:
        seen.append(
            await workflow.execute_activity(
                call_api,
                work,
                start_to_close_timeout=timedelta(seconds=3 * WAIT),
                retry_policy=RetryPolicy(maximum_attempts=3),
            )
        )
    return seen


WORKFLOWS: Final[list[type]] = [Caller, Family]
ACTIVITIES: Final[list[Any]] = [call_api]
