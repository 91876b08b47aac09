"""A reference in the place of a token: resolved where it is used, and nowhere else."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import (
        ApiToken,
        Keyring,
        NewToken,
        ReferenceUnresolved,
        Resolver,
        SealedToken,
        StatefulPlugin,
        StatefulWorkflow,
        TokenClient,
        TokenMalformed,
        current_token,
        current_token_async,
        seal_token,
    )
    from stateful_workflow.engine import EmbeddedEngine
    from stateful_workflow.sealed.message import Message, parse
    from stateful_workflow.sealed.secret import Secret
    from stateful_workflow.source import Minted
    from stateful_workflow.use import references
    from stateful_workflow.use.references import References, resolved
    from tests.support.api import Api, start_api
    from tests.support.asking import eventually, lower, sealed_at
    from tests.support.builders import CLAIMS, keyring
    from tests.support.clients import CLIENTS, SYNC, Asking, send, send_async

CANARY = "canary-8d2f61-of-the-manager"
REFERENCE = "prod:tenants/acme"
TO = Secret(REFERENCE, is_reference=True)


@dataclass
class Manager:
    """A secret manager, and what it was asked for.

    Attributes:
        secrets: by name.
        asked: names, in order.
        threads: that asked.
        down: what it raises.
    """

    secrets: dict[str, Any] = field(default_factory=dict[str, Any])
    asked: list[str] = field(default_factory=list[str])
    threads: set[int] = field(default_factory=set[int])
    down: Exception | None = None

    def read(self, name: str) -> Any:
        self.asked.append(name)
        self.threads.add(threading.get_ident())
        if self.down is not None:
            raise self.down
        return self.secrets[name]

    async def read_async(self, name: str) -> Any:
        return self.read(name)

    def resolvers(self, *allow: str) -> dict[str, Resolver]:
        return {"prod": Resolver(self.read_async, allow or ("tenants/*",))}


def message(**claims: Any) -> Message:
    return parse(keyring().seal(replace(CLAIMS, **claims), TO))


# --- what may be asked ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allow", "names"),
    [
        ((), []),
        (("tenants/*",), ["tenants/acme"]),
        (("*",), ["acme", "a", "tenants"]),
        (("tenants/*/db", "a"), ["tenants/acme/db", "a"]),
        (("tenants/a[!b]*",), ["tenants/acme"]),
    ],
)
def test_a_resolver_is_asked_for_what_it_allows_and_nothing_by_default(
    allow: tuple[str, ...], names: list[str]
) -> None:
    every = ["acme", "a", "tenants", "tenants/acme", "tenants/acme/db", "Tenants/acme", "x/acme"]
    resolver = Resolver(Manager().read, allow)
    assert {name for name in every if resolver.allows(name)} == {*names}


def test_the_names_that_are_allowed_are_a_list() -> None:
    with pytest.raises(ValueError, match="list"):
        Resolver(Manager().read, "tenants/*")


async def fails(resolvers: dict[str, Resolver]) -> str:
    with pytest.raises(ReferenceUnresolved) as refusal:
        await resolved(resolvers, message(), TO)
    error = refusal.value
    assert (error.reference, error.__context__) == (REFERENCE, None)
    said = "".join(traceback.format_exception(error))
    assert not {"tenants", "acme/", CANARY} & {word for word in ("tenants", CANARY) if word in said}
    return str(error)


async def test_why_a_reference_leads_nowhere_is_said_and_nothing_of_it_or_of_a_secret() -> None:
    manager = Manager({"tenants/acme": CANARY})
    assert "no resolver (it has: none)" in await fails({})
    other = Resolver(manager.read, ("*/*",))
    assert "no resolver (it has: eu, us)" in await fails({"us": other, "eu": other})
    assert "does not allow" in await fails(manager.resolvers("other/*"))
    assert "does not allow" in await fails({"prod": Resolver(manager.read)})
    assert manager.asked == []

    manager.down = RuntimeError(CANARY)
    assert "(RuntimeError); try again" in await fails(manager.resolvers())
    manager.down = None
    for wrong in (None, "", f"{CANARY}\n", f" {CANARY}", f"{CANARY}\udc9b", CANARY.encode(), 7):
        manager.secrets["tenants/acme"] = wrong
        assert "gave no token" in await fails(manager.resolvers())


async def test_a_resolver_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "_SECONDS", 0.05)

    async def never(_: str) -> str:
        await asyncio.Event().wait()
        return ""

    assert "(TimeoutError)" in await fails({"prod": Resolver(never, ("*/*",))})


async def test_a_function_is_called_in_a_thread_of_the_librarys_own() -> None:
    manager = Manager({"tenants/acme": CANARY})
    secret, _ = await resolved({"prod": Resolver(manager.read, ("*/*",))}, message(), TO)
    assert secret == Secret(CANARY)
    assert threading.get_ident() not in manager.threads


async def test_what_a_source_mints_comes_with_its_values_and_is_kept_until_it_ends() -> None:
    manager = Manager({"tenants/acme": Minted(CANARY, time.time() + 600, values={"user": "ann"})})
    known = References({"prod": Resolver(lambda name: manager.read_async(name), ("*/*",))})
    held = message()

    assert await known.resolve(held, TO) == Secret(CANARY, {"user": "ann"})
    manager.secrets["tenants/acme"] = Minted("next", time.time() - 1)
    assert (await known.resolve(held, TO)).token == CANARY
    newer = message(version=CLAIMS.version + 1)
    assert (await known.resolve(newer, TO)).token == "next"
    manager.secrets["tenants/acme"] = "third"
    assert (await known.resolve(newer, TO)).token == "third"
    assert len(manager.asked) == 3


# --- once for all --------------------------------------------------------------------------------


async def test_a_version_is_resolved_once_for_all_who_use_it_and_a_failure_is_not_kept() -> None:
    manager = Manager({"tenants/acme": CANARY}, down=RuntimeError())
    known, held = References(manager.resolvers()), message()
    failed = await asyncio.gather(
        *[known.resolve(held, TO) for _ in range(50)], return_exceptions=True
    )
    assert {type(one) for one in failed} == {ReferenceUnresolved}
    manager.down = None
    found = await asyncio.gather(*[known.resolve(held, TO) for _ in range(50)])
    assert {one.token for one in found} == {CANARY}
    assert len(manager.asked) == 2


async def test_what_is_in_use_stays_known_while_a_newer_one_is_resolved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lower(monkeypatch, fresh_seconds=0.0)
    answers, old, new = asyncio.Event(), message(), message(version=CLAIMS.version + 1)
    given = iter(["first", "second", "third"])

    async def read(_: str) -> str:
        await answers.wait()
        return next(given)

    known = References({"prod": Resolver(read, ("*/*",))})
    answers.set()
    token = ApiToken(old, await known.resolve(old, TO))
    answers.clear()
    waiting: list[asyncio.Task[Any]] = [
        asyncio.create_task(known.resolve(new, TO)),
        asyncio.create_task(known.look_again(token)),
    ]
    await asyncio.sleep(0)
    assert known.known(old) == Secret("first")
    answers.set()
    await asyncio.gather(*waiting)
    assert known.known(old) in (Secret("second"), Secret("third"))
    assert known.known(new) in (Secret("second"), Secret("third"))
    assert known.has_another(token)


async def test_fifty_refusals_at_one_moment_look_once_and_again_when_it_may_have_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lower(monkeypatch, fresh_seconds=3600.0)
    manager = Manager({"tenants/acme": "first"})
    known, held = References(manager.resolvers()), message()
    token = ApiToken(held, await known.resolve(held, TO))

    await asyncio.gather(*[known.look_again(token) for _ in range(50)])
    await known.look_again(token)
    assert (len(manager.asked), known.has_another(token)) == (2, False)

    manager.secrets["tenants/acme"] = "second"
    lower(monkeypatch, fresh_seconds=0.0)
    await known.look_again(token)
    assert known.has_another(token)
    await known.look_again(token)
    assert len(manager.asked) == 3


# --- in activities -------------------------------------------------------------------------------

ASKED: dict[str, Asking] = {}
"""What the activity of a workflow sends, by workflow id."""

PAUSED: dict[str, threading.Event] = {}
"""Set when an activity has sent its first request, by workflow id."""


def key() -> str:
    return str(activity.info().workflow_id)


@activity.defn
async def ask_async(goes_on: str) -> list[int | None]:
    """Sends a request, another one when the file of that name is there, and says the statuses."""
    said = [(await send_async(ASKED[key()])).status]
    while goes_on and not PAUSED[key()].is_set():
        await asyncio.sleep(0.02)
    return [*said, (await send_async(ASKED[key()])).status] if goes_on else said


@activity.defn
def ask(goes_on: str) -> list[int | None]:
    said = [send(ASKED[key()]).status]
    if goes_on:
        PAUSED[key()].wait(60)
        said.append(send(ASKED[key()]).status)
    return said


@activity.defn
async def look(_: str) -> list[str]:
    return [f"{current_token().reveal()} at attempt {activity.info().attempt}"]


@activity.defn
async def look_async(_: str) -> list[str]:
    return [f"{(await current_token_async()).reveal()} at attempt {activity.info().attempt}"]


@activity.defn
def look_in_thread(_: str) -> list[str]:
    return [f"{current_token().reveal()} at attempt {activity.info().attempt}"]


@activity.defn
async def watch(until: str) -> list[str]:
    """Takes the token on the event loop until it is this one; a failure ends it."""
    seen = [(await current_token_async()).reveal()]
    while seen[-1] != until:
        await asyncio.sleep(0.01)
        seen.append(current_token().reveal())
    return [seen[0], seen[-1]]


@activity.defn
async def give_back(member: str) -> list[str]:
    token = await current_token_async()
    return [token.reveal() if member == "token" else token.values[member]]


@activity.defn
async def seal(reference: str) -> SealedToken:
    return seal_token(reference=reference)


@workflow.defn
class Asker(StatefulWorkflow):
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.update
    async def ask(self, name: str, argument: str, local: bool, attempts: int) -> list[Any]:
        start = workflow.execute_local_activity if local else workflow.execute_activity
        said: list[Any] = await start(
            name,
            argument,
            result_type=list[Any],
            start_to_close_timeout=timedelta(seconds=50),
            retry_policy=RetryPolicy(
                maximum_attempts=attempts, initial_interval=timedelta(milliseconds=50)
            ),
        )
        return said

    @workflow.update
    async def take(self, reference: str) -> str:
        sealed = await workflow.execute_activity(
            seal, reference, start_to_close_timeout=timedelta(seconds=30)
        )
        return (await self.set_api_token(sealed)).state


Root = WorkflowHandle[Asker, None]
ACTIVITIES = [ask, ask_async, look, look_async, look_in_thread, watch, give_back, seal]


async def run(
    root: Root, name: str, argument: str = "", *, local: bool = False, attempts: int = 1
) -> list[Any]:
    return await root.execute_update(Asker.ask, args=[name, argument, local, attempts])


@pytest.fixture
def manager() -> Manager:
    return Manager({"tenants/acme": "first", "tenants/other": "other"})


@pytest.fixture
async def client(engine: EmbeddedEngine, keyring: Keyring, manager: Manager) -> Client:
    plugin = StatefulPlugin(keyring, resolvers=manager.resolvers())
    return await Client.connect(engine.address, namespace=engine.namespace, plugins=[plugin])


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        api.valid = {"first"}
        yield api


Start = Callable[..., Any]


@pytest.fixture
async def start(
    client: Client, keyring: Keyring, queue: str, api: Api, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Start]:
    """Starts a workflow whose token is a reference, on a worker with a resolver."""
    lower(monkeypatch, fresh_seconds=0.3, wait_seconds=0.1)
    tokens = TokenClient(client, keyring)

    async def started(**options: Any) -> Root:
        given: dict[str, Any] = {"reference": REFERENCE, "api_url": api.origin, **options}
        root = await tokens.start_workflow(Asker.run, id=queue, task_queue=queue, **given)
        PAUSED[root.id] = threading.Event()
        return root

    with ThreadPoolExecutor(4) as threads:
        async with Worker(
            client,
            task_queue=queue,
            workflows=[Asker],
            activities=ACTIVITIES,
            activity_executor=threads,
        ):
            yield started


@pytest.fixture
def tokens(client: Client, keyring: Keyring) -> TokenClient:
    return TokenClient(client, keyring)


@pytest.mark.parametrize("by", CLIENTS)
async def test_each_client_sends_what_it_leads_to_and_looks_again_where_the_api_refuses_that(
    start: Start, manager: Manager, api: Api, tokens: TokenClient, by: str
) -> None:
    root = await start()
    ASKED[root.id] = Asking(by, api.url("x"))
    running = asyncio.create_task(run(root, "ask" if by in SYNC else "ask_async", "twice"))

    async def asked() -> bool:
        return len(api.calls) == 1

    await eventually(asked)
    manager.secrets["tenants/acme"], api.valid = "second", {"second"}
    PAUSED[root.id].set()

    assert await running == [200, 200]
    assert api.tokens() == ["first", "first", "second"]
    assert manager.asked == ["tenants/acme"] * 2
    status = await tokens.status(root.id)
    assert status is not None
    assert not status.refused


@pytest.mark.parametrize("local", [False, True], ids=["", "local"])
@pytest.mark.parametrize("name", ["ask", "ask_async"])
async def test_where_the_manager_has_nothing_newer_the_refusal_is_reported(
    start: Start, manager: Manager, api: Api, tokens: TokenClient, name: str, local: bool
) -> None:
    api.valid = {"second"}
    root = await start()
    ASKED[root.id] = Asking("requests" if name == "ask" else "httpx.async", api.url("x"))

    assert await run(root, name, local=local) == [401]
    assert manager.asked == ["tenants/acme"] * 2
    if not local:  # it asks nobody, and tells nobody

        async def reported() -> bool:
            status = await tokens.status(root.id)
            return status is not None and status.refused

        await eventually(reported)


async def test_a_newer_version_of_the_same_reference_is_resolved_anew_by_all(
    start: Start, manager: Manager, tokens: TokenClient
) -> None:
    root = await start()
    assert await run(root, "look_async") == ["first at attempt 1"]
    manager.secrets["tenants/acme"] = "second"
    assert await run(root, "look_in_thread") == ["first at attempt 1"]

    await tokens.rotate(root.id, reference=REFERENCE, timeout=30)
    assert await run(root, "look_in_thread") == ["second at attempt 1"]
    await tokens.set(root.id, "token")
    assert await run(root, "look_async") == ["token at attempt 1"]
    assert await root.execute_update(Asker.take, "prod:tenants/other") == "held"
    assert await run(root, "look_in_thread", local=True) == ["other at attempt 1"]
    assert manager.asked == ["tenants/acme", "tenants/acme", "tenants/other"]


@pytest.mark.parametrize("local", [False, True], ids=["", "local"])
async def test_on_the_event_loop_it_is_resolved_by_the_next_attempt(
    start: Start, manager: Manager, local: bool
) -> None:
    root = await start()
    assert await run(root, "look", local=local, attempts=0) == ["first at attempt 2"]
    assert await run(root, "look", local=local) == ["first at attempt 1"]
    assert manager.asked == ["tenants/acme"]


async def test_a_running_activity_that_cannot_wait_gets_the_newer_one_when_it_is_resolved(
    start: Start, manager: Manager, tokens: TokenClient
) -> None:
    root = await start()
    running = asyncio.create_task(run(root, "watch", "other"))

    async def asked() -> bool:
        return manager.asked == ["tenants/acme"]

    await eventually(asked)
    await tokens.rotate(root.id, reference="prod:tenants/other", timeout=30)
    assert await running == ["first", "other"]

    # The next one of its type has it from its start.
    await tokens.set(root.id, reference=REFERENCE)
    manager.secrets["tenants/acme"] = "third"
    assert await run(root, "watch", "third") == ["third", "third"]


async def test_an_activity_fails_until_the_manager_answers_and_says_nothing_of_it(
    start: Start, manager: Manager
) -> None:
    manager.down = RuntimeError(CANARY)
    root = await start()
    for name in ("look_async", "look_in_thread"):
        with pytest.raises(WorkflowUpdateFailedError) as failed:
            await run(root, name)
        cause = failed.value.cause
        assert isinstance(cause, ActivityError)
        assert isinstance(cause.cause, ApplicationError)
        assert (cause.cause.type, cause.cause.non_retryable) == ("ReferenceUnresolved", False)

    waiting = asyncio.create_task(run(root, "look_async", attempts=0))
    before = len(manager.asked)

    async def tried() -> bool:
        return len(manager.asked) > before + 1

    await eventually(tried)
    manager.down = None
    assert (await waiting)[0].startswith("first at attempt ")
    history = await root.fetch_history()
    stored = b"".join(event.SerializeToString() for event in history.events)
    assert b"is a reference" in stored
    for hidden in (CANARY, "tenants/acme"):
        assert hidden.encode() not in stored


@pytest.mark.parametrize("member", ["token", "user"])
async def test_what_it_leads_to_is_kept_out_of_what_an_activity_gives_back(
    start: Start, manager: Manager, member: str
) -> None:
    manager.secrets["tenants/acme"] = Minted(CANARY, values={"user": f"user-{CANARY}"})
    root = await start()
    with pytest.raises(WorkflowUpdateFailedError) as failed:
        await run(root, "give_back", member)
    assert isinstance(failed.value.cause, ActivityError)
    assert isinstance(failed.value.cause.cause, ApplicationError)
    assert failed.value.cause.cause.type == "TokenExposed"


async def test_values_that_are_sealed_with_a_token_are_kept_out_as_well(
    start: Start, client: Client, keyring: Keyring
) -> None:
    root = await start(reference=None, api_token="first")
    claims = parse(await sealed_at(client, root.id)).claims
    newer = replace(claims, version=claims.version + 1)
    await root.execute_update("apiToken", keyring.seal(newer, Secret("t", {"n": "5", "u": CANARY})))

    assert await run(root, "give_back", "n") == ["5"]
    with pytest.raises(WorkflowUpdateFailedError) as failed:
        await run(root, "give_back", "u")
    assert isinstance(failed.value.cause, ActivityError)
    assert CANARY not in str(failed.value.cause.cause)


# --- clients -------------------------------------------------------------------------------------


async def test_a_client_resolves_only_what_it_gets_and_by_resolvers_of_its_own(
    start: Start, client: Client, keyring: Keyring, manager: Manager
) -> None:
    root = await start(api_tokens={"github": NewToken(reference="prod:tenants/other")})
    bare = TokenClient(client, keyring, resolvers={})
    with pytest.raises(ReferenceUnresolved) as refusal:
        await bare.get(root.id)
    assert refusal.value.reference == REFERENCE
    await bare.reseal(root.id)
    await bare.reseal(root.id, "github")
    assert manager.asked == []

    own = Manager({"tenants/acme": "mine"})
    assert (
        await TokenClient(client, keyring, resolvers=own.resolvers()).get(root.id)
    ).reveal() == "mine"
    assert (await TokenClient(client, keyring).get(root.id, "github")).reveal() == "other"


@pytest.mark.parametrize("given", [{}, {"token": "a", "reference": REFERENCE}])
async def test_a_token_or_a_reference_is_given_and_not_both(
    tokens: TokenClient, given: dict[str, Any]
) -> None:
    for call in (tokens.set, tokens.seal):
        with pytest.raises(ValueError, match="either a token or reference="):
            await call("none", origins=["https://a.example"], **given)
    with pytest.raises(ValueError, match="either a token or reference="):
        await tokens.rotate("none", timeout=1, **given)


async def test_a_start_takes_one_of_them_and_nothing_that_is_no_reference(
    tokens: TokenClient,
) -> None:
    where: dict[str, Any] = {"id": "x", "task_queue": "q", "origins": ["https://a.example"]}
    with pytest.raises(ValueError, match="give one of"):
        await tokens.start_workflow("X", api_token="a", reference=REFERENCE, **where)
    with pytest.raises(TokenMalformed) as refusal:
        await tokens.start_workflow("X", reference=CANARY, **where)
    assert CANARY not in str(refusal.value)
