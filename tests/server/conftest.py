"""One real engine for the session; each test gets a task queue and, twice, a worker of its own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine, start_engine

from .workflows import ACTIVITIES, WORKFLOWS

# The server deletes a closed run only when its queues have acknowledged the close.
DELETE_SOON = [
    argument
    for queue in ("transfer", "visibility", "timer")
    for argument in (
        "--dynamic-config-value",
        f'history.{queue}ProcessorUpdateAckInterval="1s"',
    )
]


@pytest.fixture(scope="session")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedEngine]:
    db: Path = tmp_path_factory.mktemp("engine") / "temporal.db"
    async with start_engine(db=db, ui=False, extra_args=DELETE_SOON) as engine:
        yield engine


@pytest.fixture(scope="session")
def keyring() -> Keyring:
    return Keyring.generate()


@pytest.fixture(scope="session")
async def client(engine: EmbeddedEngine, keyring: Keyring) -> Client:
    return await Client.connect(
        engine.address, namespace=engine.namespace, plugins=[StatefulPlugin(keyring)]
    )


@pytest.fixture(scope="session")
def tokens(client: Client, keyring: Keyring) -> TokenClient:
    return TokenClient(client, keyring)


@pytest.fixture
def queue() -> str:
    """A task queue, and the beginning of workflow ids, that no other test uses."""
    return f"t-{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["cached", "replayed"])
def cached_workflows(request: pytest.FixtureRequest) -> int:
    """How many workflows the worker keeps: with 0 every task replays the whole history."""
    return 1000 if request.param == "cached" else 0


@pytest.fixture
async def worker(client: Client, queue: str, cached_workflows: int) -> AsyncIterator[Worker]:
    # Without a cache a second workflow task would cancel the local activities of the first.
    at_once = 1 if cached_workflows == 0 else None
    async with start_worker(
        client,
        queue,
        max_cached_workflows=cached_workflows,
        max_concurrent_workflow_tasks=at_once,
    ) as worker:
        yield worker


def start_worker(client: Client, queue: str, **options: Any) -> Worker:
    """A worker of the tests' workflows and activities, sandbox on."""
    settings: dict[str, Any] = {"workflows": WORKFLOWS, "activities": ACTIVITIES, **options}
    return Worker(client, task_queue=queue, **settings)
