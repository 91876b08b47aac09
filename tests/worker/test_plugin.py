"""Workers with the plugin behave as without it, whatever else they have."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_tracer
from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import HeaderCodecBehavior
from temporalio.contrib.opentelemetry import (
    OpenTelemetryPlugin,
    TracingInterceptor,
    create_tracer_provider,
)
from temporalio.converter import DataConverter, PayloadCodec
from temporalio.plugin import SimplePlugin
from temporalio.worker import (
    Worker,
    WorkflowInstance,
    WorkflowInstanceDetails,
    WorkflowRunner,
)
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from stateful_workflow import Keyring, NoWorkerAnswers, StatefulPlugin, TokenClient, TokenTree
from stateful_workflow.engine import EmbeddedEngine, start_engine
from stateful_workflow.sealed.message import Claims
from tests.support.asking import Unreachable, events_of, eventually, nodes_run, status_of
from tests.support.asking import start_worker as worker_for
from tests.support.imported_anew import Plainly
from tests.support.lone import Lone
from tests.support.workflows import ACTIVITIES, WORKFLOWS, Node, Plan, shown

URL = "https://api.example.com"

Root = WorkflowHandle[Any, Any]


async def connect(engine: EmbeddedEngine, *plugins: Any, **options: Any) -> Client:
    return await Client.connect(
        engine.address, namespace=engine.namespace, plugins=plugins, **options
    )


async def start(tokens: TokenClient, queue: str, plan: Plan) -> Root:
    """Start a tree and wait until its first node knows that its children run."""
    root = await tokens.start_workflow(
        Node.run, plan, id=queue, task_queue=queue, api_token="first", api_url=URL
    )

    async def started() -> bool:
        tree = await tokens.tree(queue)
        return sum(node.parent == queue and node.problem is None for node in tree.nodes) == len(
            plan.children
        )

    await eventually(started)
    return root


async def rotated(tokens: TokenClient, queue: str) -> TokenTree:
    return await tokens.rotate(queue, "second", timeout=20)


def registered(worker: Worker) -> list[str]:
    """The activity types a worker runs."""
    activities = cast(
        "Sequence[Callable[..., Any]]", worker.config(active_config=True).get("activities", ())
    )
    definitions = [
        activity._Definition.must_from_callable(run)  # pyright: ignore[reportPrivateUsage]
        for run in activities
    ]
    return [str(definition.name) for definition in definitions]


# --- kinds of workers ----------------------------------------------------------------------------


@pytest.mark.parametrize("workflows", [[], WORKFLOWS], ids=["activities alone", "mixed"])
async def test_a_worker_registers_no_activity_of_ours(
    client: Client, queue: str, workflows: list[type]
) -> None:
    worker = worker_for(client, queue, workflows=workflows)

    assert set(registered(worker)) == {run.__name__ for run in ACTIVITIES}


async def test_activities_that_another_plugin_adds_to_a_worker_are_run(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    adds = SimplePlugin("adds-activities", activities=ACTIVITIES)
    async with Worker(client, task_queue=queue, workflows=WORKFLOWS, plugins=[adds]):
        root = await start(tokens, queue, Plan())

        assert await root.execute_update("use_token", "apiToken") == "first"


@pytest.mark.parametrize("adds", [True, False], ids=["activities", "nothing"])
@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
async def test_another_plugin_may_add_activities_or_none_before_ours_or_after_it(
    engine: EmbeddedEngine, keyring: Keyring, queue: str, adds: bool, first: bool
) -> None:
    another = SimplePlugin("another", activities=ACTIVITIES if adds else None)
    ours = StatefulPlugin(keyring)
    client = await connect(engine, *((another, ours) if first else (ours, another)))
    tokens = TokenClient(client, keyring)
    own = [] if adds else ACTIVITIES
    async with Worker(client, task_queue=queue, workflows=WORKFLOWS, activities=own):
        root = await start(tokens, queue, Plan({"a": Plan()}))
        await rotated(tokens, queue)

        assert await root.execute_update("use_token", "apiToken") == "second"


# --- where the plugin is given -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")  # the SDK's, about a plugin given twice
async def test_client_and_worker_may_have_the_same_plugin_and_no_two(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    plugin = StatefulPlugin(keyring)
    client = await connect(engine, plugin)
    with pytest.raises(ValueError, match="give one to the client alone"):
        worker_for(client, queue, plugins=[StatefulPlugin(keyring)])

    async with worker_for(client, queue, plugins=[plugin]):
        root = await start(TokenClient(client, keyring), queue, Plan({"a": Plan()}))
        await rotated(TokenClient(client, keyring), queue)

        assert await root.execute_update("use_token", "apiToken") == "second"


async def test_the_plugin_may_be_given_to_the_worker_alone(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    client = await connect(engine)
    async with worker_for(client, queue, plugins=[StatefulPlugin(keyring)]):
        root = await start(TokenClient(client, keyring), queue, Plan({"a": Plan()}))
        await rotated(TokenClient(client, keyring), queue)

        assert await root.execute_update("use_token", "apiToken") == "second"


async def test_one_plugin_serves_workers_of_several_clients(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    plugin = StatefulPlugin(keyring)
    large = "x" * 5000  # asked for by query, so that the client matters
    async with start_engine(ui=False) as second_engine:
        clients = [await connect(engine, plugin), await connect(second_engine, plugin)]
        workers = [worker_for(client, queue) for client in clients]
        async with workers[0], workers[1]:
            for client in clients:
                root = await TokenClient(client, keyring).start_workflow(
                    Node.run, Plan(), id=queue, task_queue=queue, api_token=large, origins=[URL]
                )
                assert await root.execute_update("use_token", "apiToken") == shown(large)


async def test_the_users_sandbox_restrictions_stay(client: Client, queue: str) -> None:
    runner = SandboxedWorkflowRunner()
    mine = SandboxedWorkflowRunner(
        restrictions=runner.restrictions.with_passthrough_modules("my_module")
    )

    worker = worker_for(client, queue, workflow_runner=mine)

    used = worker.config(active_config=True).get("workflow_runner")
    assert isinstance(used, SandboxedWorkflowRunner)
    assert {"my_module", "cryptography"} <= used.restrictions.passthrough_modules


# --- beside others -------------------------------------------------------------------------------


class _Encrypts(PayloadCodec):
    """AES-GCM, as a user would write it."""

    def __init__(self) -> None:
        self._cipher = AESGCM(AESGCM.generate_key(256))

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._encrypted(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._decrypted(payload) for payload in payloads]

    def _encrypted(self, payload: Payload) -> Payload:
        nonce = os.urandom(12)
        data = nonce + self._cipher.encrypt(nonce, payload.SerializeToString(), None)
        return Payload(metadata={"encoding": b"binary/encrypted"}, data=data)

    def _decrypted(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != b"binary/encrypted":
            return payload
        return Payload.FromString(self._cipher.decrypt(payload.data[:12], payload.data[12:], None))


@pytest.mark.parametrize("headers", list(HeaderCodecBehavior), ids=lambda behavior: behavior.name)
async def test_a_tree_lives_behind_an_encrypting_codec(
    engine: EmbeddedEngine,
    keyring: Keyring,
    queue: str,
    headers: HeaderCodecBehavior,
) -> None:
    client = await connect(
        engine,
        StatefulPlugin(keyring),
        data_converter=DataConverter(payload_codec=_Encrypts()),
        header_codec_behavior=headers,
    )
    tokens = TokenClient(client, keyring)
    async with worker_for(client, queue):
        root = await start(tokens, queue, Plan({"a": Plan({"x": Plan()})}))
        tree = await rotated(tokens, queue)
        await tokens.rotate(queue, "other", name="github", origins=[URL], timeout=20)
        leaf = client.get_workflow_handle(f"{queue}-a-x")

        assert len(tree.nodes) == 3
        assert (await tokens.get(f"{queue}-a-x")).reveal() == "second"
        assert await leaf.execute_update("use_token", "apiToken") == "second"
        assert await leaf.execute_update("use_token", "github") == "other"
        assert await leaf.execute_update("use_token_locally") == "second"
        assert await leaf.execute_update("use_address") == URL
        assert await root.execute_update("fetch_token", args=["third", None]) == "held"
        assert await root.execute_update("use_token", "apiToken") == "third"
        await root.signal("go_on")

        async def went_on() -> bool:
            described = await client.get_workflow_handle(queue).describe()
            return described.run_id != root.first_execution_run_id

        await eventually(went_on)
        assert (await tokens.get(queue)).reveal() == "third"

    scheduled = await events_of(leaf, "ACTIVITY_TASK_SCHEDULED")
    encodings = {
        payload.metadata["encoding"]
        for event in scheduled
        for payload in event.activity_task_scheduled_event_attributes.header.fields.values()
    }
    plain = headers is HeaderCodecBehavior.NO_CODEC
    assert encodings == {b"json/plain" if plain else b"binary/encrypted"}


Traced = Callable[[EmbeddedEngine, Keyring, InMemorySpanExporter], Awaitable[Client]]


async def _with_interceptor(
    engine: EmbeddedEngine, keyring: Keyring, spans: InMemorySpanExporter
) -> Client:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracing = TracingInterceptor(provider.get_tracer("tests"))
    return await connect(engine, StatefulPlugin(keyring), interceptors=[tracing])


def _with_plugin(*, first: bool) -> Traced:
    async def traced(
        engine: EmbeddedEngine, keyring: Keyring, spans: InMemorySpanExporter
    ) -> Client:
        plugins = [StatefulPlugin(keyring), OpenTelemetryPlugin(add_temporal_spans=True)]
        return await connect(engine, *(reversed(plugins) if first else plugins))

    return traced


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What the process's tracer provider is told during one test."""
    exporter = InMemorySpanExporter()
    provider = create_tracer_provider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # OpenTelemetry lets the provider be set once a process.
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    return exporter


@pytest.mark.parametrize(
    "traced",
    [_with_interceptor, _with_plugin(first=True), _with_plugin(first=False)],
    ids=["interceptor", "plugin before ours", "plugin after ours"],
)
async def test_opentelemetry_traces_a_tree_and_sees_no_token(
    engine: EmbeddedEngine,
    keyring: Keyring,
    queue: str,
    spans: InMemorySpanExporter,
    traced: Traced,
) -> None:
    client = await traced(engine, keyring, spans)
    tokens = TokenClient(client, keyring)
    async with worker_for(client, queue):
        root = await start(tokens, queue, Plan({"a": Plan()}))
        await tokens.rotate(queue, "canary-3f81", timeout=20)
        child = client.get_workflow_handle(f"{queue}-a")
        assert await child.execute_update("use_address") == URL
        assert await child.execute_update("use_token", "apiToken") == shown("canary-3f81")
        for node in (child, root):
            await node.signal("stop")
            await node.result()

    finished = spans.get_finished_spans()
    names = {span.name for span in finished}
    assert {"StartWorkflow:Node", "StartChildWorkflow:Node", "RunActivity:reveal"} <= names
    assert "canary-3f81" not in " ".join(span.to_json() for span in finished)


@pytest.mark.parametrize(
    "traced",
    [_with_plugin(first=True), _with_plugin(first=False)],
    ids=["plugin before ours", "plugin after ours"],
)
async def test_each_rotation_is_one_trace_across_all_hops(
    engine: EmbeddedEngine,
    keyring: Keyring,
    queue: str,
    spans: InMemorySpanExporter,
    traced: Traced,
) -> None:
    client = await traced(engine, keyring, spans)
    config = client.config(active_config=True)
    unreachable = Unreachable()
    config["interceptors"] = [*config["interceptors"], unreachable]
    client = Client(**config)
    tokens = TokenClient(client, keyring)
    tracer = get_tracer("tests")
    async with worker_for(client, queue):
        await start(tokens, queue, Plan({"a": Plan({"x": Plan()}), "b": Plan()}))
        await nodes_run(tokens, queue, 4)
        # A child that cannot be told keeps its parent telling from one to the next.
        unreachable.ids.add(f"{queue}-b")
        traces: list[int] = []
        for secret in ("second", "third"):
            with tracer.start_as_current_span("rotation") as span:
                await tokens.set(queue, secret)
                traces.append(span.get_span_context().trace_id)
            leaf = f"{queue}-a-x"

            async def is_there() -> bool:
                return (await tokens.get(leaf)).reveal() == secret  # noqa: B023

            await eventually(is_there)

    for trace in traces:
        hops = {
            (span.name, dict(span.attributes or {}).get("temporalWorkflowID"))
            for span in spans.get_finished_spans()
            if span.context is not None and span.context.trace_id == trace
        }
        assert {
            ("HandleUpdate:apiToken", queue),
            ("RunActivity:statefulTell", queue),
            ("SignalWorkflow:apiToken", f"{queue}-a"),
            ("HandleSignal:apiToken", f"{queue}-a"),
            ("RunActivity:statefulTell", f"{queue}-a"),
            ("SignalWorkflow:apiToken", f"{queue}-a-x"),
            ("HandleSignal:apiToken", f"{queue}-a-x"),
        } <= hops


# --- without the plugin --------------------------------------------------------------------------


async def test_without_the_plugin_the_task_fails_with_a_cure_and_the_workflow_lives(
    engine: EmbeddedEngine, client: Client, tokens: TokenClient, queue: str
) -> None:
    bare = await connect(engine)
    async with worker_for(bare, queue):
        root = await tokens.start_workflow(
            Node.run,
            Plan(),
            id=queue,
            task_queue=queue,
            api_token="first",
            api_url=URL,
            task_timeout=timedelta(seconds=1),  # which is also the pause between its attempts
        )

        async def failed() -> str:
            failures = await events_of(root, "WORKFLOW_TASK_FAILED")
            assert failures
            message: str = failures[0].workflow_task_failed_event_attributes.failure.message
            return message

        message = await eventually(failed)

    assert "Node is a StatefulWorkflow, but this worker has no StatefulPlugin" in message
    assert "Client.connect(plugins=[StatefulPlugin()])" in message
    assert (await root.describe()).status is WorkflowExecutionStatus.RUNNING
    async with worker_for(client, queue):

        async def converges() -> bool:
            try:  # just after a task has failed no query is answered
                return (await rotated(tokens, queue)).converged
            except NoWorkerAnswers:
                return False

        await eventually(converges)


# --- forged messages --------------------------------------------------------


def forged(keyring: Keyring, status: Mapping[str, Any], version: int) -> str:
    """A message for this tree that names a trusted issuer; its signature is off by one bit."""
    root, tree = status["root"], status["tree"]
    claims = Claims("apiToken", "default", root, tree, root, version, origins=(URL,))
    signed, _, signature = keyring.seal(claims, "forged").rpartition(".")
    return f"{signed}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"


async def test_forged_messages_leave_the_worker_process_alive(
    client: Client, tokens: TokenClient, keyring: Keyring, queue: str
) -> None:
    """Verified in a second copy of the cryptographic library, one would end this process."""
    async with Worker(client, task_queue=queue, workflows=[Lone]):
        root = await tokens.start_workflow(
            Lone.run, id=queue, task_queue=queue, api_token="first", origins=[URL]
        )
        status = await status_of(client, queue)
        version = status["tokens"][0]["version"]

        for n in range(1, 21):
            await root.signal("apiToken", forged(keyring, status, version + n))

        counts = (await status_of(client, queue))["rejections"]["counts"]
        assert counts == {"TokenForged": 20}
        assert (await rotated(tokens, queue)).converged


# --- a runner of one's own -------------------------------------------------------------------


class _Wraps(WorkflowRunner):
    """Wraps the SDK's sandbox, so that the plugin cannot see it."""

    def __init__(self, inner: SandboxedWorkflowRunner) -> None:
        self._inner = inner

    def prepare_workflow(self, defn: Any) -> None:
        self._inner.prepare_workflow(defn)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return self._inner.create_instance(det)

    def set_worker_level_failure_exception_types(
        self, types: Sequence[type[BaseException]]
    ) -> None:
        self._inner.set_worker_level_failure_exception_types(types)


async def test_a_runner_that_wraps_the_sandbox_needs_not_know_what_to_pass_through(
    client: Client, queue: str
) -> None:
    runner = _Wraps(SandboxedWorkflowRunner())
    async with Worker(client, task_queue=queue, workflows=[Plainly], workflow_runner=runner):
        run = await TokenClient(client).start_workflow(
            Plainly.run, id=queue, task_queue=queue, api_token="first", origins=[URL]
        )
        assert await run.result() == "held"
