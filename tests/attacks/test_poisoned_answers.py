"""Somebody without a key polls the task queue and answers queries in a worker's place.

Whatever he answers, nothing of his is signed: not an origin, not a type lifted, not a reader, not
another root or tree, not a version far ahead.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from temporalio.api.common.v1 import Payloads, WorkflowExecution
from temporalio.api.enums.v1 import QueryResultType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueRequest,
    ResetStickyTaskQueueRequest,
    RespondQueryTaskCompletedRequest,
)
from temporalio.client import Client
from temporalio.converter import PayloadConverter

from stateful_workflow import Keyring, StatefulError, TokenClient
from stateful_workflow.sealed.message import parse
from tests.attacks.conftest import ORIGIN, start_root
from tests.support.asking import sealed_at, start_worker, status_of

EVIL = "https://evil.example.com"

Status = dict[str, Any]


def _origin(status: Status) -> None:
    status["tokens"][0]["origins"].append(EVIL)
    status["api_url"] = EVIL


def _limits(status: Status) -> None:
    status["tokens"][0] |= {"types": None, "readers": None}


def _version(status: Status) -> None:
    status["tokens"][0]["version"] = int(time.time() * 1000) + 20 * 86_400_000


def _root(status: Status) -> None:
    status |= {"root": "tenant-of-another", "tree": "t" * 32}


def _nothing(status: Status) -> None:
    status["tokens"] = []
    status["api_url"] = EVIL


POISONS: list[Callable[[Status], None]] = [_origin, _limits, _version, _root, _nothing]


class Intruder:
    """Answers every status query of one workflow with what he likes, and takes nothing else."""

    def __init__(self, client: Client, queue: str, workflow_id: str, answer: Status) -> None:
        self._client, self._queue, self._id = client, queue, workflow_id
        self._answer = Payloads(payloads=PayloadConverter.default.to_payloads([answer]))
        self.answered = asyncio.Event()

    async def poll(self) -> None:
        service = self._client.workflow_service
        while True:
            task = await service.poll_workflow_task_queue(
                PollWorkflowTaskQueueRequest(
                    namespace=self._client.namespace,
                    task_queue=TaskQueue(name=self._queue),
                    identity="intruder",
                )
            )
            if task.HasField("query"):
                await service.respond_query_task_completed(
                    RespondQueryTaskCompletedRequest(
                        namespace=self._client.namespace,
                        task_token=task.task_token,
                        completed_type=QueryResultType.QUERY_RESULT_TYPE_ANSWERED,
                        query_result=self._answer,
                    )
                )
                self.answered.set()


@asynccontextmanager
async def intruder(
    client: Client, queue: str, workflow_id: str, answer: Status
) -> AsyncGenerator[Intruder, None]:
    found = Intruder(client, queue, workflow_id, answer)
    await client.workflow_service.reset_sticky_task_queue(
        ResetStickyTaskQueueRequest(
            namespace=client.namespace, execution=WorkflowExecution(workflow_id=workflow_id)
        )
    )
    polls = [asyncio.create_task(found.poll()) for _ in range(3)]
    try:
        yield found
    finally:
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)


async def test_nothing_of_what_is_answered_in_a_workers_place_is_signed(
    client: Client, outsider: Client, keyring: Keyring, queue: str
) -> None:
    tokens = TokenClient(client, keyring)
    await asyncio.gather(
        *(
            _is_not_signed(client, outsider, tokens, f"{queue}-{number}", poison)
            for number, poison in enumerate(POISONS)
        )
    )


async def _is_not_signed(
    client: Client,
    outsider: Client,
    tokens: TokenClient,
    queue: str,
    poison: Callable[[Status], None],
) -> None:
    async with start_worker(client, queue):
        await start_root(tokens, queue, types=["Node"], readers=["default"])
        answer = copy.deepcopy(await status_of(client, queue))
    poison(answer)

    # No worker runs: each query is his. What is signed on his word can only be sent later.
    async with intruder(outsider, queue, queue, answer) as him:
        rotation = asyncio.create_task(tokens.set(queue, "second"))
        await asyncio.wait_for(him.answered.wait(), 20)
        await asyncio.wait({rotation}, timeout=2)

    async with start_worker(client, queue):
        try:
            await rotation
        except StatefulError:
            # Turned down; the caller names the origins, and all is as he says.
            await tokens.set(queue, "second", origins=[ORIGIN])
        claims = parse(await sealed_at(client, queue)).claims
        assert (await tokens.get(queue)).reveal() == "second"
    assert claims.origins == (ORIGIN,)
    assert claims.types == ("Node",)
    assert claims.audiences == ("default",)
    assert claims.root == queue
    assert claims.version < (time.time() + 300) * 1000
