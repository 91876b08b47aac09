"""What `TokenClient` says when it cannot do what was asked, so that a person can act on it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowUpdateInput,
    WorkflowHandle,
    WorkflowUpdateHandle,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

from stateful_workflow import (
    AlreadyRunning,
    Keyring,
    KeyringError,
    NewToken,
    NoIssuerKey,
    NoReaderKey,
    NotConverged,
    NotStateful,
    NoWorkerAnswers,
    OriginsMissing,
    OutcomeUnknown,
    StatefulPlugin,
    TokenClient,
    TokenConflict,
    TokenMalformed,
    TokenNotSet,
    WorkflowNotFound,
    seal_token,
)
from stateful_workflow.engine import EmbeddedEngine
from tests.support.asking import events_of, eventually, lower, status_of
from tests.support.use_workflows import ASYNC_ACTIVITIES, USE_WORKFLOWS, Caller, Distant
from tests.support.workflows import WORKFLOWS, Plain, Plan

URL = "https://api.example.com"

ACTIONS: dict[str, Callable[[TokenClient, str], Awaitable[object]]] = {
    "set": lambda tokens, id: tokens.set(id, "second", origins=[URL]),
    "rotate": lambda tokens, id: tokens.rotate(id, "second", origins=[URL], timeout=5),
    "revoke": lambda tokens, id: tokens.revoke(id),
    "inherit": lambda tokens, id: tokens.inherit(id),
    "get": lambda tokens, id: tokens.get(id),
    "status": lambda tokens, id: tokens.status(id),
    "tree": lambda tokens, id: tokens.tree(id),
}
every_action = pytest.mark.parametrize("act", ACTIONS.values(), ids=ACTIONS)


def worker_for(client: Client, queue: str, **options: Any) -> Worker:
    settings: dict[str, Any] = {"workflows": USE_WORKFLOWS, **options}
    return Worker(client, task_queue=queue, activities=ASYNC_ACTIVITIES, **settings)


@pytest.fixture
async def worker(client: Client, queue: str) -> AsyncIterator[Worker]:
    async with worker_for(client, queue) as worker:
        yield worker


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon on workers that do not answer."""
    soon = timedelta(seconds=2)
    lower(monkeypatch, client_question=soon, update_alone_seconds=0.5, confirm_seconds=0.5)


async def start(tokens: TokenClient, queue: str, **options: Any) -> WorkflowHandle[Caller, None]:
    settings: dict[str, Any] = {"api_token": "first", "api_url": URL, **options}
    return await tokens.start_workflow(Caller.run, id=queue, task_queue=queue, **settings)


def keys_of(*keyrings: Keyring) -> Keyring:
    """All their keys in one keyring; the last one's issuer seals."""
    keys = [key for keyring in keyrings for key in json.loads(keyring.to_json())["keys"]]
    return Keyring.from_json(json.dumps({"keys": keys}))


class Before(Interceptor):
    """Does something between a client's reading a workflow's status and its update."""

    def __init__(self, act: Callable[[], Awaitable[object]], *, times: int = 100) -> None:
        self.act = act
        self.times = times

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        before = self

        class _Outbound(OutboundInterceptor):
            async def start_workflow_update(
                self, input: StartWorkflowUpdateInput
            ) -> WorkflowUpdateHandle[Any]:
                before.times -= 1
                if before.times >= 0:
                    await before.act()
                return await super().start_workflow_update(input)

        return _Outbound(next)


async def client_with(engine: EmbeddedEngine, keyring: Keyring, *interceptors: Before) -> Client:
    return await Client.connect(
        engine.address,
        namespace=engine.namespace,
        plugins=[StatefulPlugin(keyring)],
        interceptors=interceptors,
    )


# --- whom it asks --------------------------------------------------------------------------------


@every_action
async def test_no_such_workflow(
    tokens: TokenClient, queue: str, act: Callable[[TokenClient, str], Awaitable[object]]
) -> None:
    with pytest.raises(WorkflowNotFound, match=f"no open workflow {queue}"):
        await act(tokens, queue)


@every_action
async def test_a_workflow_that_takes_no_part(
    tokens: TokenClient,
    client: Client,
    queue: str,
    act: Callable[[TokenClient, str], Awaitable[object]],
) -> None:
    async with worker_for(client, queue, workflows=WORKFLOWS):
        await client.start_workflow(Plain.run, Plan(), id=queue, task_queue=queue)

        with pytest.raises(NotStateful, match=f"{queue} is not a StatefulWorkflow"):
            await act(tokens, queue)


@every_action
@pytest.mark.usefixtures("impatient")
async def test_no_worker(
    tokens: TokenClient, queue: str, act: Callable[[TokenClient, str], Awaitable[object]]
) -> None:
    await start(tokens, queue)

    with pytest.raises(NoWorkerAnswers, match=f"is one running on task queue {queue}"):
        await act(tokens, queue)


@every_action
async def test_a_workflow_that_has_ended(
    tokens: TokenClient,
    queue: str,
    worker: Worker,
    act: Callable[[TokenClient, str], Awaitable[object]],
) -> None:
    root = await start(tokens, queue)
    await tokens.status(queue)
    await root.terminate()

    if act in (ACTIONS["get"], ACTIONS["status"], ACTIONS["tree"]):
        await act(tokens, queue)  # what it last knew can still be read
    else:
        with pytest.raises(WorkflowNotFound, match=f"no open workflow {queue}"):
            await act(tokens, queue)


@pytest.mark.usefixtures("impatient")
async def test_a_worker_that_stops_in_between_leaves_the_outcome_open_and_the_token_is_set_later(
    engine: EmbeddedEngine, client: Client, keyring: Keyring, queue: str
) -> None:
    worker = worker_for(client, queue)
    stopping = Before(worker.shutdown)
    tokens = TokenClient(await client_with(engine, keyring, stopping), keyring)
    async with worker:
        await start(tokens, queue)

        with pytest.raises(OutcomeUnknown, match="is applied when a worker runs"):
            await tokens.set(queue, "second")

    async with worker_for(client, queue):
        # Its last word may still be on its way from the worker that stopped.
        async def applied() -> bool:
            try:
                return (await tokens.get(queue)).reveal() == "second"
            except NoWorkerAnswers:
                return False

        await eventually(applied)
        status = await status_of(client, queue)
        assert status["rejections"]["counts"] == {}


def _without_plugins(client: Client) -> Client:
    config = client.config()
    config["plugins"] = []
    return Client(**config)


# --- keys and origins ----------------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
async def test_a_client_can_do_what_its_keys_are_for_and_says_which_it_lacks(
    tokens: TokenClient, client: Client, keyring: Keyring, queue: str
) -> None:
    await start(tokens, queue)
    without = _without_plugins(client)
    keyless, public = TokenClient(without), TokenClient(client, keyring.public())
    (reader,) = [key.kid for key in keyring.keys() if key.kind == "reader"]

    status = await keyless.status(queue)
    assert status is not None
    assert status.state == "held"
    assert (await keyless.tree(queue)).converged
    for action in ("set", "revoke", "get"):
        with pytest.raises(KeyringError, match="needs keys"):
            await ACTIONS[action](keyless, queue)
    for action in ("set", "revoke"):
        with pytest.raises(NoIssuerKey, match="no issuer's private key"):
            await ACTIONS[action](public, queue)
    with pytest.raises(NoReaderKey, match=reader):
        await public.get(queue)
    for lacking in (keyless, public):
        with pytest.raises(KeyringError):
            await start(lacking, f"{queue}-other")
    await start(keyless, f"{queue}-bare", api_token=None)


async def test_a_keyword_that_nobody_knows_is_named_and_nothing_is_sent(
    tokens: TokenClient, queue: str
) -> None:
    mistyped: dict[str, Any] = {"orgins": [URL]}
    for call in (tokens.set, tokens.seal, tokens.rotate, tokens.start_workflow):
        given = {"timeout": 5} if call == tokens.rotate else {}
        if call == tokens.start_workflow:
            given = {"id": queue, "task_queue": queue}
        with pytest.raises(TypeError, match="orgins"):
            await call(queue, "secret", **given, **mistyped)
    with pytest.raises(TypeError, match="orgins"):
        seal_token("secret", **mistyped)


@pytest.mark.usefixtures("worker")
async def test_the_first_token_needs_an_origin_and_the_next_ones_keep_it(
    tokens: TokenClient, queue: str
) -> None:
    with pytest.raises(OriginsMissing, match=r"give origins=\[…\]"):
        await start(tokens, queue, api_url=None)
    await start(tokens, queue, api_token=None, api_url=None)
    with pytest.raises(OriginsMissing, match=f"no apiToken was set at workflow {queue} itself"):
        await tokens.set(queue, "first")
    with pytest.raises(TokenNotSet):
        await tokens.get(queue)

    await tokens.set(queue, "first", origins=[f"{URL}:443"])
    status = await tokens.set(queue, "second")

    assert status.origins == (URL,)


@pytest.mark.usefixtures("worker")
async def test_a_tree_starts_with_several_tokens_each_with_its_own_terms(
    tokens: TokenClient, queue: str
) -> None:
    other = "https://other.example.com"
    ordinary = "eyJhbGciOi" * 120
    await tokens.start_workflow(
        Caller.run,
        id=queue,
        task_queue=queue,
        api_tokens={
            "plain": ordinary,
            "own": NewToken(ordinary, [other], types=["Caller"], expires_in=60),
            "moved": NewToken("3", api_url=f"{other}/v2", types="any"),
        },
        api_token="default",
        api_url=f"{URL}/v1",
        types=["Caller", "Sync"],
    )

    seen = {name: await tokens.get(queue, name) for name in ("apiToken", "plain", "own", "moved")}
    assert [token.reveal() for token in seen.values()] == ["default", ordinary, ordinary, "3"]
    where = {name: (token.origins, token.message.claims.api_url) for name, token in seen.items()}
    assert where == {
        "apiToken": ((URL,), f"{URL}/v1"),
        "plain": ((URL,), f"{URL}/v1"),
        "own": ((other,), None),
        "moved": ((other,), f"{other}/v2"),
    }
    assert [token.message.claims.types for token in seen.values()] == [
        ("Caller", "Sync"),
        ("Caller", "Sync"),
        ("Caller",),
        None,
    ]
    assert [token.expires_at is not None for token in seen.values()] == [False, False, True, False]
    with pytest.raises(ValueError, match="both have a plain"):
        await start(tokens, f"{queue}-2", api_tokens={"plain": "1"}, name="plain")
    with pytest.raises(ValueError, match="the names are the keys"):
        await start(tokens, f"{queue}-2", api_tokens={"plain": "1"}, api_token=None, name="plain")
    assert ordinary not in repr(NewToken(ordinary))


@pytest.mark.parametrize(
    "options",
    [
        {"origins": ["http://api.example.com"]},
        {"origins": URL},
        {"origins": [f"{URL}/path"]},
        {"expires_in": 0},
        {"api_url": "ftp://api.example.com"},
        {"api_token": ""},
    ],
    ids=str,
)
async def test_a_start_that_cannot_be_sealed_starts_nothing(
    tokens: TokenClient, queue: str, options: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, TokenMalformed)):
        await start(tokens, queue, **options)

    with pytest.raises(WorkflowNotFound):
        await tokens.status(queue)


# --- several issuers -----------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [False, True], ids=["clocks agree", "clock ahead"])
async def test_a_token_that_another_issuer_set_meanwhile_is_not_overwritten_unseen(
    engine: EmbeddedEngine,
    keyring: Keyring,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    ahead: bool,
) -> None:
    another = Keyring.generate()
    both, knowing = keys_of(keyring, another), keys_of(another.public(), keyring)
    other = TokenClient(await client_with(engine, both), both)

    async def set_by_other() -> None:
        if ahead:
            clock = SimpleNamespace(time=lambda: time.time() + 120, monotonic=time.monotonic)
            with monkeypatch.context() as patch:
                patch.setattr("stateful_workflow.client.client.time", clock)
                await other.set(queue, "other's")
        else:
            await other.set(queue, "other's")

    between = Before(set_by_other, times=1)
    client = await client_with(engine, both, between)
    mine = TokenClient(client, knowing)
    async with worker_for(client, queue):
        await start(mine, queue)

        with pytest.raises(TokenConflict, match="read the status and decide which one stands"):
            await mine.set(queue, "mine")
        assert (await other.get(queue)).reveal() == "other's"

        # Said again, knowing of the other one, it stands; the other's clock does not matter.
        await mine.set(queue, "mine")
        assert (await mine.get(queue)).reveal() == "mine"


async def test_two_calls_of_one_issuer_at_once_both_succeed_and_the_later_one_stands(
    engine: EmbeddedEngine, client: Client, tokens: TokenClient, keyring: Keyring, queue: str
) -> None:
    between = Before(lambda: tokens.set(queue, "meanwhile"), times=1)
    mine = TokenClient(await client_with(engine, keyring, between), keyring)
    async with worker_for(client, queue):
        await start(mine, queue)

        await mine.set(queue, "mine")

        assert (await mine.get(queue)).reveal() == "mine"


async def test_a_signalled_message_behind_a_newer_one_is_signed_anew_at_once(
    engine: EmbeddedEngine, client: Client, tokens: TokenClient, keyring: Keyring, queue: str
) -> None:
    newer = ["meanwhile"]

    async def no_update_finds_room() -> None:
        while newer:
            await tokens.set(queue, newer.pop())
        raise RPCError("made so", RPCStatusCode.RESOURCE_EXHAUSTED, b"")

    mine = TokenClient(await client_with(engine, keyring, Before(no_update_finds_room)), keyring)
    async with worker_for(client, queue):
        await start(mine, queue)

        await mine.set(queue, "mine")

        assert (await mine.get(queue)).reveal() == "mine"


@pytest.mark.usefixtures("impatient")
async def test_an_issuer_whom_no_worker_knows_yet_waits_and_is_taken_when_one_does(
    engine: EmbeddedEngine,
    tokens: TokenClient,
    keyring: Keyring,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lower(monkeypatch, trust_every_ms=500)
    both = keys_of(keyring, Keyring.generate())
    keyless, knowing = await client_with(engine, Keyring()), await client_with(engine, both)
    newcomer = TokenClient(knowing, both)
    root = await start(tokens, queue)
    async with worker_for(keyless, queue):
        with pytest.raises(OutcomeUnknown):
            await newcomer.set(queue, "second", origins=[URL])

        async def looked_up_in_vain() -> bool:
            failed = await events_of(root, "ACTIVITY_TASK_FAILED")
            signals = await events_of(root, "WORKFLOW_EXECUTION_SIGNALED")
            return bool(failed and signals and failed[-1].event_id > signals[-1].event_id)

        await eventually(looked_up_in_vain)
        assert len((await status_of(knowing, queue))["waiting"]) == 1

    async with worker_for(knowing, queue):

        async def taken() -> bool:
            return (await newcomer.get(queue)).reveal() == "second"

        await eventually(taken)


# --- convergence ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("worker", "impatient")
async def test_a_node_whose_worker_is_down_is_named_and_has_the_token_when_it_comes_back(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    queues = {"near": queue, "far": f"{queue}-far"}
    await tokens.start_workflow(
        Distant.run, queues, id=queue, task_queue=queue, api_token="first", api_url=URL
    )

    async def children_started() -> bool:
        return len((await status_of(client, queue))["children"]) == 2

    await eventually(children_started)

    with pytest.raises(NotConverged, match=rf"1 of 3 nodes .*\(such as {queue}-far\)") as caught:
        await tokens.rotate(queue, "second", timeout=1)

    (far,) = caught.value.tree.behind
    assert (far.id, far.parent) == (f"{queue}-far", queue)
    assert far.problem is not None
    assert "no worker answered" in far.problem
    assert {node.id for node in caught.value.tree.nodes if node.current} == {queue, f"{queue}-near"}
    async with worker_for(client, f"{queue}-far"):

        async def converged() -> bool:
            return (await tokens.tree(queue)).converged

        await eventually(converged)
        assert (await tokens.get(f"{queue}-far")).reveal() == "second"


# --- starting ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
async def test_a_running_workflow_is_not_given_a_token_by_a_start(
    tokens: TokenClient, queue: str
) -> None:
    await start(tokens, queue)

    with pytest.raises(WorkflowAlreadyStartedError):
        await start(tokens, queue, api_token="second")
    with pytest.raises(ValueError, match="would not get this token"):
        await start(
            tokens,
            queue,
            api_token="second",
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        )
    await start(
        tokens, queue, api_token=None, id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING
    )

    assert (await tokens.get(queue)).reveal() == "first"


@pytest.mark.usefixtures("worker")
async def test_a_start_with_a_signal_says_where_the_workflow_ran_already_so_that_it_set_nothing(
    tokens: TokenClient, queue: str
) -> None:
    noted: dict[str, Any] = {"start_signal": "note", "start_signal_args": ["called"]}
    root = await start(tokens, queue, api_token="first", **noted)
    with pytest.raises(AlreadyRunning, match="set\\(\\) or rotate\\(\\)"):
        await start(tokens, queue, api_token="second", **noted)
    await start(tokens, queue, api_token=None, **noted)

    assert len(await events_of(root, "WORKFLOW_EXECUTION_SIGNALED")) == 3
    assert (await tokens.get(queue)).reveal() == "first"


@pytest.mark.usefixtures("worker")
async def test_the_sdks_own_options_reach_the_start(tokens: TokenClient, queue: str) -> None:
    root = await start(
        tokens, queue, memo={"customer": "acme"}, run_timeout=timedelta(hours=1), static_summary="s"
    )

    described = await root.describe()
    assert await described.memo() == {"customer": "acme"}
    assert await described.static_summary() == "s"
