"""Everything that happens to a token is on record, whoever does it, and never the token."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowInput,
    StartWorkflowUpdateInput,
    WorkflowHandle,
    WorkflowHistory,
    WorkflowUpdateFailedError,
    WorkflowUpdateHandle,
    WorkflowUpdateStage,
)
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Replayer, Worker

from stateful_workflow import (
    AuditFailed,
    Keyring,
    OperationFailed,
    OriginNotAllowed,
    StatefulPlugin,
    TokenClient,
    TokenConflict,
    TokenForged,
    TokenNotSet,
)
from stateful_workflow.audit import AuditEvent, AuditSink
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.record.event import Deed, Note
from stateful_workflow.sealed.message import Message, parse
from tests.support.api import Api, start_api
from tests.support.asking import Unreachable, eventually, nodes_run, sealed_at, start_worker
from tests.support.use_workflows import ASYNC_ACTIVITIES, USE_WORKFLOWS, Caller, Job
from tests.support.workflows import WORKFLOWS, Node, Plan

FIRST, SECOND = "audit-canary-first", "audit-canary-second"
URL = "https://api.example.com"
ENDS = ("unknown", "success")


class Recorded:
    """A sink of a user's own: what it was given, in order."""

    is_local = True

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def record(self, event: AuditEvent) -> None:
        self.events.append(event)

    def of(self, *actions: str, **wanted: Any) -> list[AuditEvent]:
        return [
            event
            for event in list(self.events)
            if (not actions or event.action in actions)
            and all(getattr(event, field) == value for field, value in wanted.items())
        ]

    def outcomes(self, *actions: str, **wanted: Any) -> list[tuple[str, str, str | None]]:
        return [(e.action, e.outcome, e.reason) for e in self.of(*actions, **wanted)]

    async def has(self, count: int, *actions: str, **wanted: Any) -> None:
        """Wait until there are so many such events."""

        async def are_there() -> bool:
            return len(self.of(*actions, **wanted)) >= count

        await eventually(are_there)


class Broken:
    """A sink that fails for as long as it is told to."""

    is_local = True

    def __init__(self) -> None:
        self.fails = True
        self.kept = Recorded()

    def record(self, event: AuditEvent) -> None:
        if self.fails:
            raise OSError("no space left")
        self.kept.record(event)


class Stuck:
    """A sink that waits for somebody else, who does not answer before he is let to."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.kept = Recorded()

    def record(self, event: AuditEvent) -> None:
        self.may_go_on.wait(60)
        self.kept.record(event)


@pytest.fixture
def record() -> Recorded:
    return Recorded()


@pytest.fixture
async def audited(engine: EmbeddedEngine, keyring: Keyring, record: Recorded) -> Client:
    """A client, and so workers, that put everything on one record."""
    return await connect(engine, keyring, record)


async def connect(
    engine: EmbeddedEngine, keyring: Keyring, sink: AuditSink, **options: Any
) -> Client:
    plugin = StatefulPlugin(keyring, audit=sink, **options)
    return await Client.connect(engine.address, namespace=engine.namespace, plugins=[plugin])


@pytest.fixture
async def tree(
    audited: Client, keyring: Keyring, queue: str, replays: None
) -> AsyncIterator[TokenClient]:
    """A root with a child `a`, that has a child `b`, and a `Cleanup` that is kept without."""
    async with start_worker(audited, queue):
        tokens = TokenClient(audited, keyring)
        plan = Plan({"a": Plan({"b": Plan()}), "c": Plan(type="Cleanup")})
        await tokens.start_workflow(
            Node.run, plan, id=queue, task_queue=queue, api_token=FIRST, api_url=URL
        )
        await nodes_run(tokens, queue, 4)
        yield tokens


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        api.valid = {FIRST, SECOND}
        yield api


# --- the life of a token -------------------------------------------------------------------------


async def test_a_start_and_a_rotation_stand_on_record_at_every_hop(
    tree: TokenClient, queue: str, record: Recorded
) -> None:
    await tree.rotate(queue, SECOND, timeout=20)
    version = (await tree.get(queue)).version
    a, b, c = f"{queue}-a", f"{queue}-a-b", f"{queue}-c"

    assert record.outcomes("set") == [("set", "unknown", None), ("set", "success", None)] * 2
    terms = {(e.origins, e.types, e.readers) for e in record.of("set")}
    assert terms == {(URL, None, None)}, "what was carried on stands there, too"
    started = record.of("accept", reason="start")
    assert {e.workflow_id for e in started} == {queue, a, b}
    rotated = record.of("accept", version=version)
    assert Counter(e.workflow_id for e in rotated) == {queue: 1, a: 1, b: 1}
    forwarded = record.of("forward", version=version, outcome="success")
    assert {(e.workflow_id, e.child_id) for e in forwarded} == {(queue, a), (a, b)}
    (withheld,) = record.of("withhold")
    assert (withheld.workflow_id, withheld.child_id, withheld.name) == (queue, c, "*")
    assert not record.of("accept", workflow_id=c)

    sealed = parse(await sealed_at(tree._client, queue))  # pyright: ignore[reportPrivateUsage]
    (event,) = record.of("accept", workflow_id=a, version=version)
    assert (event.namespace, event.workflow_type, event.authority) == ("default", "Node", queue)
    assert event.run_id
    assert (event.name, event.kind, event.issuer) == ("apiToken", "token", sealed.issuer)
    assert (event.version, event.fingerprint) == (sealed.claims.version, sealed.fingerprint)


async def test_who_had_what_done_for_whom_and_why_stands_on_record_from_start_to_end(
    audited: Client, keyring: Keyring, queue: str, record: Recorded
) -> None:
    why: Note = {"by": "mia", "on_behalf_of": "Acme", "reason": "ticket 7"}
    tokens = TokenClient(audited, keyring)
    async with start_worker(audited, queue):
        given: Any = {"task_queue": queue, "api_token": FIRST, "api_url": URL}
        await tokens.start_workflow(Node.run, Plan(), id=queue, **given, **why)
        await tokens.set(queue, FIRST, **why)
        await tokens.rotate(queue, SECOND, timeout=20, **why)
        await tokens.reseal(queue, **why)
        sealed = await tokens.seal(queue, SECOND, **why)
        await tokens.revoke(queue, **why)
        with pytest.raises(OperationFailed, match="is the root of its tree"):
            await tokens.inherit(queue, **why)
        await tokens.set(queue, FIRST, origins=[URL])  # nobody says why

    noted = record.of(by="mia", on_behalf_of="Acme", said_reason="ticket 7")
    assert Counter((e.action, e.outcome) for e in noted) == {
        ("set", "unknown"): 4,  # what is sealed by hand is sent by somebody else
        ("set", "success"): 3,
        **{(action, end): 1 for action in ("reseal", "revoke") for end in ENDS},
        ("inherit", "failure"): 1,
    }
    assert [e.fingerprint for e in noted if e.outcome == "unknown"][4] == parse(sealed).fingerprint
    assert len(record.of("set", by=None, on_behalf_of=None, said_reason=None)) == 2


async def test_a_replay_puts_nothing_on_record(
    tree: TokenClient, queue: str, record: Recorded
) -> None:
    """Without a cache every task replays the whole history; still each thing happened once."""
    for n in range(3):
        await tree.rotate(queue, f"{SECOND}-{n}", timeout=20)
    events = record.of("accept", "withhold", "reject")
    counted = Counter((e.action, e.run_id, e.fingerprint, e.child_id) for e in events)

    assert set(counted.values()) == {1}


async def test_whatever_else_changes_what_a_workflow_holds_stands_on_record(
    tree: TokenClient, queue: str, record: Recorded, keyring: Keyring
) -> None:
    handle, a = tree._client.get_workflow_handle(queue), f"{queue}-a"  # pyright: ignore[reportPrivateUsage]
    await handle.signal("keep_from", args=["a", "apiToken"])
    await handle.signal("give_to", args=["a", None])
    await record.has(1, "share")
    (withheld,) = record.of("withhold", child_id=a)
    assert (withheld.name, withheld.child_type, withheld.reason) == ("apiToken", "Node", None)
    (shared,) = record.of("share")
    assert (shared.name, shared.child_id) == ("*", a)

    await tree.reseal(queue)
    assert [e.outcome for e in record.of("reseal")] == ["unknown", "success"]
    (read,) = record.of("read")
    assert read.reader in {info.kid for info in keyring.keys() if info.kind == "reader"}
    assert read.workflow_id == queue

    await tree.revoke(a)
    await record.has(1, "accept", workflow_id=f"{a}-b", kind="revocation")
    await tree.inherit(a)
    await record.has(1, "accept", workflow_id=f"{a}-b", kind="inherit")
    for action in ("revoke", "inherit"):
        assert [e.outcome for e in record.of(action, workflow_id=a)] == ["unknown", "success"]


async def test_what_is_refused_stands_on_record_with_its_reason(
    tree: TokenClient, audited: Client, queue: str, record: Recorded, keyring: Keyring
) -> None:
    genuine = parse(await sealed_at(audited, queue))
    newer = replace(genuine.claims, version=genuine.claims.version + 9)
    forged = Keyring.generate().seal(newer, "x")
    as_trusted = ".".join([genuine.text.split(".")[0], *forged.split(".")[1:]])
    old = keyring.seal(replace(genuine.claims, version=1), "x")
    handle = audited.get_workflow_handle(queue)
    for text in ("garbage", as_trusted, old):
        await handle.signal("apiToken", text)
    await record.has(3, "reject")
    with pytest.raises(WorkflowUpdateFailedError):
        await handle.execute_update("apiToken", old)
    await record.has(4, "reject")

    rejected = record.of("reject", workflow_id=queue)
    # An update to a workflow that is in no cache gives its last task again, as new.
    reasons = dict.fromkeys((e.reason, e.fingerprint) for e in rejected)
    assert list(reasons) == [
        ("NotSealed", None),
        ("TokenForged", parse(as_trusted).fingerprint),
        ("TokenStale", parse(old).fingerprint),
    ]
    assert rejected[0].version is None


async def test_a_set_that_is_turned_down_and_one_that_cannot_be_sealed_stand_on_record(
    tree: TokenClient, audited: Client, queue: str, record: Recorded
) -> None:
    limited = Keyring.generate().only(issuers=False)
    with pytest.raises(Exception, match="issuer"):
        await TokenClient(audited, limited).set(queue, SECOND, origins=[URL])

    assert record.outcomes("set")[-1] == ("set", "failure", "NoIssuerKey")

    with pytest.raises(TokenNotSet):
        await tree.get(queue, "billing")
    assert record.outcomes("refuse") == [("refuse", "failure", "TokenNotSet")]
    with pytest.raises(Exception, match="no open workflow"):
        await tree.get(f"{queue}-nobody")
    assert record.outcomes("read") == [("read", "failure", "WorkflowNotFound")]

    with pytest.raises(TokenForged):
        await TokenClient(audited, Keyring.generate()).get(queue)
    assert record.of("refuse")[-1].reason == "TokenForged"
    assert record.of("refuse")[-1].version == (await tree.get(queue)).version


# --- use -----------------------------------------------------------------------------------------


@pytest.fixture
async def use(audited: Client, queue: str) -> AsyncIterator[str]:
    async with Worker(
        audited, task_queue=queue, workflows=USE_WORKFLOWS, activities=ASYNC_ACTIVITIES
    ):
        yield queue


async def start(tokens: TokenClient, queue: str, api: Api) -> Any:
    return await tokens.start_workflow(
        Caller.run, id=queue, task_queue=queue, api_token=FIRST, api_url=api.origin
    )


async def test_every_request_that_carries_a_token_stands_on_record(
    use: str, audited: Client, keyring: Keyring, api: Api, record: Recorded
) -> None:
    root = await start(TokenClient(audited, keyring), use, api)
    url = api.url("items")
    await root.execute_update("do", Job([url], body="json"))

    (read,) = record.of("read")
    assert (read.activity_type, read.attempt, read.workflow_id) == ("call", 1, use)
    (used,) = record.of("use")
    assert (used.method, used.origin, used.status) == ("POST", api.origin, 200)
    assert (used.activity_id, used.version) == (read.activity_id, read.version)


async def test_a_retry_in_place_and_each_hop_of_a_redirect_are_uses(
    use: str, audited: Client, keyring: Keyring, api: Api, record: Recorded
) -> None:
    tokens = TokenClient(audited, keyring)
    root = await start(tokens, use, api)
    redirected = api.url(f"to?url={api.url('items')}")
    job = Job([api.gate("wait"), redirected, api.url("more")], follow=True)
    update = await root.start_update("do", job, wait_for_stage=WorkflowUpdateStage.ACCEPTED)
    await api.reached("wait")
    await tokens.set(use, SECOND)
    api.valid = {SECOND}
    api.open("wait")
    await update.result()

    assert [e.status for e in record.of("use")] == [c.status for c in api.calls]
    assert len(record.of("use", status=401)) == 1
    assert {e.version for e in record.of("use", status=200)} == {(await tokens.get(use)).version}


async def test_what_nobody_answers_is_a_use_of_unknown_outcome_and_what_may_not_be_sent_is_none(
    use: str, audited: Client, keyring: Keyring, api: Api, record: Recorded
) -> None:
    with start_api() as gone:
        pass
    root = await TokenClient(audited, keyring).start_workflow(
        Caller.run, id=use, task_queue=use, api_token=FIRST, origins=[api.origin, gone.origin]
    )
    for key in (False, True):
        await root.execute_update("do", Job([gone.url("items")], key=key))
        await root.execute_update("do", Job(["https://evil.example.net/x"], key=key))
    assert [(e.origin, e.outcome, e.status) for e in record.of("use")] == [
        (gone.origin, "unknown", None)
    ] * 2
    assert [(e.reason, e.origin) for e in record.of("refuse")] == [
        (OriginNotAllowed.__name__, "https://evil.example.net")
    ] * 2


async def test_a_redirect_chain_that_fails_at_last_is_one_use_whose_outcome_is_unknown(
    use: str, audited: Client, keyring: Keyring, api: Api, record: Recorded
) -> None:
    root = await start(TokenClient(audited, keyring), use, api)
    with start_api() as gone:
        pass
    chain = gone.url("x")
    for _ in range(3):
        chain = api.url(f"to?url={quote(chain, safe='')}")
    answers = await root.execute_update("do", Job([chain], follow=True))

    assert answers == ["ConnectError"]
    assert len(api.calls) == 3
    assert [(e.origin, e.outcome) for e in record.of("use")] == [(api.origin, "unknown")]


async def test_a_failed_delivery_is_on_record_for_each_message_that_did_not_arrive(
    engine: EmbeddedEngine, keyring: Keyring, queue: str, record: Recorded
) -> None:
    unreachable = Unreachable()
    client = await Client.connect(
        engine.address,
        plugins=[StatefulPlugin(keyring, audit=record)],
        interceptors=[unreachable],
    )
    tokens = TokenClient(client, keyring)
    async with start_worker(client, queue):
        await tokens.start_workflow(
            Node.run, Plan({"a": Plan()}), id=queue, task_queue=queue, api_token=FIRST, api_url=URL
        )
        await nodes_run(tokens, queue, 2)
        unreachable.ids.add(f"{queue}-a")
        for name in ("apiToken", "billing"):
            await tokens.set(queue, SECOND, name=name, origins=[URL])
            await record.has(1, "forward", name=name, outcome="failure", reason="UNAVAILABLE")


async def test_what_a_replayer_replays_is_not_put_on_record(
    tree: TokenClient, audited: Client, queue: str, keyring: Keyring, record: Recorded
) -> None:
    await tree.rotate(queue, SECOND, timeout=20)
    handle = audited.get_workflow_handle(queue)
    await handle.signal("apiToken", "garbage")
    await record.has(1, "reject")
    history = await handle.fetch_history()
    # As it is while a task is open: its signals come as new ones to whoever replays it.
    events = list(history.events)
    while not events[-1].HasField("workflow_task_started_event_attributes"):
        events.pop()
    replayed = Recorded()
    replayer = Replayer(
        workflows=WORKFLOWS, plugins=[StatefulPlugin(keyring, audit=replayed)], namespace="default"
    )
    await replayer.replay_workflow(WorkflowHistory(queue, events), raise_on_replay_failure=False)

    assert replayed.events == []


# --- a sink that fails ---------------------------------------------------------------------------


async def test_blocking_no_activity_opens_and_no_client_sets_without_its_record(
    engine: EmbeddedEngine, client: Client, keyring: Keyring, queue: str, api: Api
) -> None:
    sink = Broken()
    broken = await connect(engine, keyring, sink)
    async with Worker(
        broken, task_queue=queue, workflows=USE_WORKFLOWS, activities=ASYNC_ACTIVITIES
    ):
        root = await start(TokenClient(client, keyring), queue, api)
        for key in (False, True):
            answers = await root.execute_update("do", Job([api.url("items")], key=key))
            assert answers[0].startswith("AuditFailed")
        tokens = TokenClient(broken, keyring)
        before = await tokens.status(queue)
        for change in (tokens.set(queue, SECOND), tokens.reseal(queue)):
            with pytest.raises(AuditFailed, match=queue):
                await change
        with pytest.raises(AuditFailed):
            await tokens.get(queue)
        with pytest.raises(AuditFailed):
            await start(tokens, f"{queue}-2", api)
        assert await tokens.status(queue) == before
        assert api.calls == []

        status = await tokens.revoke(queue)
        assert status.state == "revoked"

        sink.fails = False
        await tokens.set(queue, SECOND)
        assert await root.execute_update("do", Job([api.url("items")])) == ["200"]
        lost, *rest = sink.kept.events
        assert lost.action == "lost"
        assert (lost.count or 0) >= 8
        assert rest[0].action == "set"


async def test_continuing_tokens_are_set_and_opened_and_what_was_lost_is_counted(
    engine: EmbeddedEngine, keyring: Keyring, queue: str, api: Api
) -> None:
    sink = Broken()
    broken = await connect(engine, keyring, sink, audit_failure="continue")
    async with Worker(
        broken, task_queue=queue, workflows=USE_WORKFLOWS, activities=ASYNC_ACTIVITIES
    ):
        tokens = TokenClient(broken, keyring)
        root = await start(tokens, queue, api)
        assert await root.execute_update("do", Job([api.url("items")])) == ["200"]
        sink.fails = False
        await tokens.set(queue, SECOND)

    assert [e.action for e in sink.kept.events[:2]] == ["lost", "set"]
    # set twice, accept, read, use
    assert sink.kept.events[0].count == 5


async def test_no_node_waits_for_a_sink(
    engine: EmbeddedEngine, client: Client, keyring: Keyring, queue: str
) -> None:
    sink = Stuck()
    stuck = await connect(engine, keyring, sink)
    try:
        async with start_worker(stuck, queue):
            tokens = TokenClient(client, keyring)
            plan = Plan({"a": Plan(), "b": Plan()})
            await tokens.start_workflow(
                Node.run, plan, id=queue, task_queue=queue, api_token=FIRST, api_url=URL
            )
            await nodes_run(tokens, queue, 3)
            tree = await tokens.rotate(queue, SECOND, timeout=20)
            assert tree.converged
            assert sink.kept.events == []
            sink.may_go_on.set()
            await sink.kept.has(3, "accept", reason=None)
    finally:
        sink.may_go_on.set()


async def test_an_unknown_rule_for_failures_is_refused(client: Client, keyring: Keyring) -> None:
    with pytest.raises(ValueError, match="audit_failure"):
        StatefulPlugin(keyring, audit=Recorded(), audit_failure="ignore")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="is for audit="):
        TokenClient(client, keyring, audit_failure="continue")


async def test_a_client_may_have_a_record_of_its_own(
    worker: Worker, client: Client, keyring: Keyring, queue: str, record: Recorded
) -> None:
    tokens = TokenClient(client, keyring, audit=record)
    await tokens.start_workflow(
        Node.run, Plan(), id=queue, task_queue=queue, api_token=FIRST, api_url=URL
    )
    await tokens.get(queue)

    assert record.outcomes() == [
        ("set", "unknown", None),
        ("set", "success", None),
        ("read", "success", None),
    ]


# --- never the token -----------------------------------------------------------------------------


async def test_no_event_holds_a_token_or_a_sealed_one(
    tree: TokenClient, audited: Client, queue: str, record: Recorded
) -> None:
    await tree.rotate(queue, SECOND, timeout=20)
    await tree.get(queue)
    await audited.get_workflow_handle(queue).signal("apiToken", SECOND)
    await audited.get_workflow_handle(queue).signal("apiToken", 7)
    await record.has(2, "reject")
    sealed = await sealed_at(audited, queue)
    everything = "\n".join(json.dumps(event.attributes()) + repr(event) for event in record.events)

    assert len(record.events) > 10
    for secret in (FIRST, SECOND, sealed, sealed.split(".")[1]):
        assert secret not in everything
    assert queue in everything  # the control


async def test_a_start_whose_answer_is_lost_has_an_unknown_outcome_and_a_set_is_confirmed(
    engine: EmbeddedEngine, keyring: Keyring, queue: str, record: Recorded
) -> None:
    """It was applied, and who started the workflow does not know."""
    client = await Client.connect(
        engine.address,
        plugins=[StatefulPlugin(keyring, audit=record)],
        interceptors=[LosesAnswers()],
    )
    tokens = TokenClient(client, keyring)
    async with start_worker(client, queue):
        with pytest.raises(RPCError):
            await tokens.start_workflow(
                Node.run, Plan(), id=queue, task_queue=queue, api_token=FIRST, api_url=URL
            )
        await record.has(1, "accept", workflow_id=queue)
        # Of an update the client asks what became of it.
        assert (await tokens.set(queue, SECOND)).state == "held"

    assert [(e.outcome, e.reason) for e in record.of("set")] == [
        ("unknown", None),
        ("unknown", "RPCError"),
        ("unknown", None),
        ("success", None),
    ]


class LosesAnswers(Interceptor):
    """Lets starts and updates through, and then fails as a connection that breaks."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        class _Outbound(OutboundInterceptor):
            async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:
                await super().start_workflow(input)
                raise RPCError("made so", RPCStatusCode.UNAVAILABLE, b"")

            async def start_workflow_update(
                self, input: StartWorkflowUpdateInput
            ) -> WorkflowUpdateHandle[Any]:
                await super().start_workflow_update(input)
                raise RPCError("made so", RPCStatusCode.UNAVAILABLE, b"")

        return _Outbound(next)


async def test_two_issuers_in_conflict_stand_on_record(
    audited: Client, keyring: Keyring, queue: str, record: Recorded
) -> None:
    both = keyring.add_issuer()
    other = await connect_with(audited, both, record)
    async with start_worker(other, queue):
        first, second = TokenClient(other, keyring), TokenClient(other, both)
        await second.start_workflow(
            Node.run, Plan(), id=queue, task_queue=queue, api_token=FIRST, api_url=URL
        )
        held = parse(await sealed_at(other, queue))
        older = keyring.seal(replace(held.claims, version=held.claims.version - 1), "x")

        async def signed() -> tuple[Message, None]:
            return parse(older), None

        with pytest.raises(TokenConflict):
            await first._sender.send(Deed("set"), signed)  # pyright: ignore[reportPrivateUsage]

    assert record.outcomes("set")[-2:] == [
        ("set", "unknown", None),
        ("set", "failure", "TokenConflict"),
    ]
    assert record.outcomes("reject") == [("reject", "failure", "TokenConflict")]


async def connect_with(client: Client, keyring: Keyring, sink: AuditSink) -> Client:
    return await Client.connect(
        client.service_client.config.target_host,
        namespace=client.namespace,
        plugins=[StatefulPlugin(keyring, audit=sink)],
    )
