"""One real engine for the session, a task queue and a worker for each test, and which are slow."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowHistory
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine, start_engine
from tests.support.asking import start_worker
from tests.support.trees import Tree
from tests.support.workflows import WORKFLOWS

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
async def skipping(keyring: Keyring) -> AsyncIterator[Client]:
    """A client of a time-skipping server."""
    program = shutil.which("temporal-test-server", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("it has no package for this platform")
    environment = await WorkflowEnvironment.start_time_skipping(test_server_existing_path=program)
    async with environment:
        config = environment.client.config(active_config=True)
        yield await Client.connect(
            config["service_client"].config.target_host, plugins=[StatefulPlugin(keyring)]
        )


@pytest.fixture
def queue() -> str:
    """A task queue, and the beginning of workflow ids, that no other test uses."""
    return f"t-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def replays(engine: EmbeddedEngine, queue: str) -> AsyncIterator[None]:
    """Once the test is over and its worker has stopped, each of its workflows replays."""
    yield
    client = await Client.connect(engine.address, namespace=engine.namespace)
    replayer = Replayer(
        workflows=WORKFLOWS,
        plugins=[StatefulPlugin(Keyring())],
        namespace=engine.namespace,
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    known = {cls.__name__ for cls in WORKFLOWS}

    async def histories() -> AsyncIterator[WorkflowHistory]:
        async for run in client.list_workflows(f"WorkflowId STARTS_WITH '{queue}'", limit=50):
            handle = client.get_workflow_handle(run.id, run_id=run.run_id)
            history = await handle.fetch_history()
            # The replayer waits for ever for the first task of a run that has had none.
            ran = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
            if run.workflow_type in known and ran in {one.event_type for one in history.events}:
                yield history

    results = await replayer.replay_workflows(histories(), raise_on_replay_failure=False)
    assert results.replay_failures == {}


@pytest.fixture(scope="module")
async def shared_queue(client: Client) -> AsyncIterator[str]:
    """The task queue of a worker that is there for all tests of a file."""
    queue = f"shared-{uuid.uuid4().hex[:8]}"
    async with start_worker(client, queue):
        yield queue


@pytest.fixture
def tree(client: Client, tokens: TokenClient, shared_queue: str, queue: str, replays: None) -> Tree:
    """A tree that the test starts, and that replays once the test is over."""
    return Tree(client, tokens, shared_queue, queue)


@pytest.fixture
def unserved(client: Client, tokens: TokenClient, queue: str) -> Tree:
    """A tree that has no worker but those the test starts."""
    return Tree(client, tokens, queue, queue)


@pytest.fixture
async def worker(client: Client, queue: str, replays: None) -> AsyncIterator[Worker]:
    async with start_worker(client, queue) as worker:
        yield worker


# --- what is slow: `./run test` leaves it out, `./run test --all` does not -----------------------

SLOW_SECONDS = 100
"""A test that is given more than this many is slow."""

STORIES = {
    "test_benchmarks.py",
    "test_demo.py",
    "test_formats.py",
    "test_monitoring.py",
    "test_operations.py",
    "test_pace_in_trees.py",
    "test_storm.py",
    "test_web_ui.py",
}
"""Files whose tests tell long stories, most of them with programs of their own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)


def is_slow(item: pytest.Item) -> bool:
    """Whether it is given long, tells a story, or kills processes."""
    timeout = item.get_closest_marker("timeout")
    is_given_long = timeout is not None and timeout.args[0] > SLOW_SECONDS
    path = Path(item.path)
    is_story = path.name in STORIES
    return is_given_long or is_story or "faults" in path.parts
