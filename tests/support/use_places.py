"""Where the tests' activities run, beside the worker that runs their workflows."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from stateful_workflow import TokenClient
from tests.support.api import Api
from tests.support.use_workflows import ASYNC_ACTIVITIES, SYNC_ACTIVITIES, Caller, Job

Root = WorkflowHandle[Caller, None]

KINDS = pytest.mark.parametrize("key", [False, True], ids=["bearer", "key"])
"""`TokenAuth`, or `OriginTransport`."""

NEVER_OLD = 3600.0


@dataclass(frozen=True)
class Place:
    """Where activities run: on an activity-only worker, in one kind of executor."""

    kind: str
    queue: str

    def job(self, *urls: str, activity: str = "call", **options: Any) -> Job:
        kind = "" if self.kind == "async" else "_sync"
        return Job(list(urls), activity=activity + kind, queue=self.queue, **options)


@asynccontextmanager
async def place_of(kind: str, client: Client, queue: str) -> AsyncGenerator[Place, None]:
    """A worker whose activities are async, or run in one thread."""
    with ThreadPoolExecutor(1) as threads:
        options: dict[str, Any] = {"activities": ASYNC_ACTIVITIES}
        if kind == "thread":
            options = {
                "activities": SYNC_ACTIVITIES,
                "activity_executor": threads,
                "max_concurrent_activities": 1,
            }
        async with Worker(client, task_queue=f"{queue}-use", **options):
            yield Place(kind, f"{queue}-use")


async def start(tokens: TokenClient, queue: str, api: Api, **options: Any) -> Root:
    settings: dict[str, Any] = {"api_token": "first", "api_url": api.origin, **options}
    return await tokens.start_workflow(Caller.run, id=queue, task_queue=queue, **settings)
