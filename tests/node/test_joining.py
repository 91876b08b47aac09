"""Workflows that nobody started inside a tree take a place in one: by their own code, or told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import nexusrpc
import nexusrpc.handler
import pytest
from temporalio import activity, nexus, workflow
from temporalio.api.nexus.v1 import EndpointSpec, EndpointTarget
from temporalio.api.operatorservice.v1 import CreateNexusEndpointRequest
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionExecutionStartWorkflow,
    ScheduleActionStartWorkflow,
    ScheduleSpec,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.common import RetryPolicy

from stateful_workflow import JoinFailed, TokenHome
from stateful_workflow.client.starting import start
from stateful_workflow.node.headers import Joined, Start
from stateful_workflow.node.ledger import Ledger
from tests.support.asking import events_of, eventually, lower, next_run, run_id, start_worker
from tests.support.trees import URL, Tree
from tests.support.workflows import SOON, Guest, Host, Node, Plan, shown

Way = Callable[[Tree, str], Awaitable[str]]
"""Starts a `Guest` of a tree's root under an id, and returns the id that it has."""


async def start_guest(tree: Tree, id: str, *, host: str | None = None) -> str:
    """As the UI and the CLI do: nothing but what Temporal itself has."""
    await tree.client.start_workflow(
        "Guest", tree.root if host is None else host, id=id, task_queue=tree.queue
    )
    return id


async def by_a_schedule(tree: Tree, id: str) -> str:
    action = ScheduleActionStartWorkflow(Guest.run, tree.root, id=id, task_queue=tree.queue)
    schedule = await tree.client.create_schedule(id, Schedule(action=action, spec=ScheduleSpec()))
    await schedule.trigger()

    async def fired() -> str:
        actions = (await schedule.describe()).info.recent_actions
        assert actions
        assert isinstance(actions[0].action, ScheduleActionExecutionStartWorkflow)
        return actions[0].action.workflow_id

    started = await eventually(fired)
    await schedule.delete()
    return started


@activity.defn
async def start_it(id: str, host: str, queue: str) -> None:
    await activity.client().start_workflow("Guest", host, id=id, task_queue=queue)


@workflow.defn(sandboxed=False)
class StartsIt:
    @workflow.run
    async def run(self, id: str, host: str, queue: str) -> None:
        await workflow.execute_activity(
            start_it, args=[id, host, queue], start_to_close_timeout=SOON
        )


async def by_an_activity(tree: Tree, id: str) -> str:
    async with start_worker(tree.client, f"{id}-else", workflows=[StartsIt], activities=[start_it]):
        await tree.client.execute_workflow(
            StartsIt.run, args=[id, tree.root, tree.queue], id=f"{id}-by", task_queue=f"{id}-else"
        )
    return id


@nexusrpc.service(name="Guests")
class Guests:
    invite: nexusrpc.Operation[list[str], str]


@nexusrpc.handler.service_handler(service=Guests)
class GuestsHandler:
    @nexus.workflow_run_operation
    async def invite(
        self, context: nexus.WorkflowRunOperationContext, asked: list[str]
    ) -> nexus.WorkflowHandle[str]:
        id, host, queue = asked
        return await context.start_workflow(Guest.run, host, id=id, task_queue=queue)


@workflow.defn(sandboxed=False)
class CallsIt:
    @workflow.run
    async def run(self, endpoint: str, asked: list[str]) -> None:
        guests = workflow.create_nexus_client(service=Guests, endpoint=endpoint)
        await guests.start_operation(Guests.invite, asked)


async def by_nexus(tree: Tree, id: str) -> str:
    queue, endpoint = f"{id}-else", id
    target = EndpointTarget(
        worker=EndpointTarget.Worker(namespace=tree.client.namespace, task_queue=queue)
    )
    await tree.client.operator_service.create_nexus_endpoint(
        CreateNexusEndpointRequest(spec=EndpointSpec(name=endpoint, target=target))
    )
    async with start_worker(
        tree.client,
        queue,
        workflows=[CallsIt],
        activities=[],
        nexus_service_handlers=[GuestsHandler()],
    ):
        await tree.client.execute_workflow(
            CallsIt.run,
            args=[endpoint, [id, tree.root, tree.queue]],
            id=f"{id}-by",
            task_queue=queue,
        )
    return id


WAYS: list[Way] = [start_guest, by_a_schedule, by_an_activity, by_nexus]


def guest(tree: Tree, id: str) -> WorkflowHandle[Any, Any]:
    return tree.client.get_workflow_handle(id)


async def notes(tree: Tree, id: str, count: int = 1) -> list[str]:
    """What a guest's first activity opened, once it has."""

    async def noted() -> list[str]:
        said: list[str] = await guest(tree, id).query("notes")
        assert len(said) >= count
        return said

    return await eventually(noted)


async def names_it(tree: Tree, id: str, life: str | None = None) -> None:
    """Wait until the root tells this one, of whom it knows this."""

    async def so() -> bool:
        children = (await tree.status())["children"]
        return any(c["id"] == id and c["joined"] and life in (None, c["life"]) for c in children)

    await eventually(so)


async def joins_of(tree: Tree, at: str = "") -> int:
    """How many signals joins have cost a node's run."""
    signals = await events_of(tree[at], "WORKFLOW_EXECUTION_SIGNALED")
    return sum(
        event.workflow_execution_signaled_event_attributes.signal_name == "apiTokenJoin"
        for event in signals
    )


async def failure(handle: WorkflowHandle[Any, Any]) -> str:
    with pytest.raises(WorkflowFailureError) as failed:
        await handle.result()
    cause: Any = failed.value.cause
    assert cause.type == JoinFailed.__name__
    return str(cause)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest asks at once to be told what is set from then on."""
    lower(monkeypatch, join_seconds=0.0)


# --- ways in -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_run_that_joins_has_the_token_at_its_first_activity_and_the_next_one_too(
    soon: None, tree: Tree, way: Way
) -> None:
    await tree.start(run=Host.run)
    id = await way(tree, tree.id("guest"))
    assert await notes(tree, id) == ["first"]
    await names_it(tree, id)

    seen = await tree.rotate("second")

    assert {(node.id, node.state, node.parent) for node in seen.nodes} == {
        (tree.root, "held", None),
        (id, "held", tree.root),
    }
    assert await guest(tree, id).execute_update("use_token", "apiToken") == "second"

    await guest(tree, id).signal("stop")
    await guest(tree, id).result()
    assert [node.id for node in (await tree.rotate("third")).nodes] == [tree.root]
    await tree.has_children()


async def test_a_run_that_ends_soon_costs_whom_it_joined_nothing(tree: Tree) -> None:
    await tree.start(run=Host.run)
    id = await start_guest(tree, tree.id("guest"))
    await guest(tree, id).signal("stop")
    assert await guest(tree, id).result() == "stopped"

    assert await joins_of(tree) == 0
    await tree.has_children()


async def test_a_run_that_stays_costs_one_signal(soon: None, tree: Tree) -> None:
    await tree.start(run=Host.run)
    id = await start_guest(tree, tree.id("guest"))
    await names_it(tree, id)
    await tree.rotate("second")
    await tree.rotate("third")

    assert await joins_of(tree) == 1


async def test_what_is_set_between_the_join_and_its_registration_is_not_missed(
    monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    lower(monkeypatch, join_seconds=2.0)
    await tree.start(run=Host.run)
    id = await start_guest(tree, tree.id("guest"))
    assert await notes(tree, id) == ["first"]
    await tree.set("second")
    await names_it(tree, id)

    async def has_it() -> None:
        assert await guest(tree, id).execute_update("use_token", "apiToken") == "second"

    await eventually(has_it)


async def test_a_guest_takes_the_address_of_whom_it_joined(tree: Tree) -> None:
    await tree.start(run=Host.run)
    id = await start_guest(tree, tree.id("guest"))
    await notes(tree, id)

    assert await guest(tree, id).execute_update("use_address") == URL


async def test_children_of_a_guest_are_in_the_tree_too_and_stay_when_it_ends(
    soon: None, tree: Tree
) -> None:
    await tree.start(run=Host.run)
    id = await start_guest(tree, tree.id("guest"))
    await notes(tree, id)
    await guest(tree, id).signal("add_child", args=["below", Plan()])
    await names_it(tree, id)
    await tree.has(3)
    assert (await tree.tokens.get(f"{id}-below")).reveal() == "first"
    await guest(tree, id).terminate()

    await tree.rotate("second")

    await tree.has_children("guest-below")
    assert (await tree.tokens.get(f"{id}-below")).reveal() == "second"


# --- who may -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "said"),
    [(Node.run, "does not admit Guest: its class by open_to="), (None, "is no StatefulWorkflow")],
    ids=["another class", "a plain workflow"],
)
async def test_nobody_joins_a_class_that_does_not_admit_its_type(
    tree: Tree, run: Any, said: str
) -> None:
    if run is None:
        await tree.client.start_workflow("Plain", Plan(), id=tree.root, task_queue=tree.queue)
    else:
        await tree.start(run=run)
    handle = await tree.client.start_workflow(
        Guest.run, args=[tree.root, 2.0], id=tree.id("guest"), task_queue=tree.queue
    )

    assert said in await failure(handle)


async def test_a_join_waits_within_its_time_and_says_what_it_waited_for(tree: Tree) -> None:
    async def why() -> str:
        id = tree.id(f"guest-{len(reasons)}")
        handle = await tree.client.start_workflow(
            Guest.run, args=[tree.root, 1.5], id=id, task_queue=tree.queue
        )
        return await failure(handle)

    reasons: list[str] = []
    reasons.append(await why())
    await tree.start(run=Host.run, api_token=None)
    reasons.append(await why())
    await tree[""].terminate()
    reasons.append(await why())

    for text, said in zip(reasons, ["there is no", "has no token yet", "is closed"], strict=True):
        assert said in text
        assert tree.root in text


async def test_a_join_goes_on_as_soon_as_the_tree_is_there(tree: Tree) -> None:
    id = await start_guest(tree, tree.id("guest"))
    await tree.start(run=Host.run, api_token=None)
    await tree.tokens.set(tree.root, "first", origins=[URL])

    assert await notes(tree, id) == ["first"]


async def test_a_workflow_with_a_place_does_not_join(tree: Tree) -> None:
    await tree.start(run=Host.run)
    handle = await tree.tokens.start_workflow(
        Guest.run, tree.root, id=tree.id("guest"), task_queue=tree.queue
    )

    assert "has its place already" in await failure(handle)


async def test_a_child_that_was_started_withheld_does_not_join(tree: Tree) -> None:
    await tree.start(run=Host.run)
    await tree.signal("", "start_guest_withheld", "guest")
    await tree.exists("guest")

    assert "has its place already" in await failure(tree["guest"])


async def test_a_guest_is_not_given_what_is_withheld_by_its_id(soon: None, tree: Tree) -> None:
    await tree.start(run=Host.run)
    await tree.signal("", "keep_from", "guest", None)
    id = await start_guest(tree, tree.id("guest"))
    assert await notes(tree, id) == ["TokenNotSet"]

    await names_it(tree, id)
    await tree.rotate("second")
    assert await guest(tree, id).execute_update("use_token", "apiToken") == "TokenNotSet"
    await tree.signal("", "give_to", "guest", None)

    await tree.opens("second", "guest")


async def test_a_signal_makes_nobody_a_guest_whom_the_server_does_not_know_as_one(
    tree: Tree,
) -> None:
    await tree.start(run=Host.run)
    other = await tree.client.start_workflow(
        "Node", Plan(), id=tree.id("other"), task_queue=tree.queue
    )
    for id, type in ((other.id, "Guest"), (tree.id("nobody"), "Guest"), (other.id, "Node")):
        await tree.signal("", "apiTokenJoin", {"id": id, "type": type})
    for argument in (None, "x", {"id": 1}, {"id": tree.root, "type": "Guest"}):
        await tree.signal("", "apiTokenJoin", argument)

    assert len((await tree.rotate("second")).nodes) == 1
    await tree.has_children()
    assert not await events_of(other, "WORKFLOW_EXECUTION_SIGNALED")


# --- from run to run -----------------------------------------------------------------------------


async def test_guest_and_host_keep_each_other_when_they_continue_as_new(
    soon: None, tree: Tree
) -> None:
    await tree.start(run=Host.run)
    id = await start_guest(tree, tree.id("guest"))
    await names_it(tree, id)
    await tree.goes_on("guest")
    await tree.goes_on()
    assert await notes(tree, id) == ["first"]

    assert {node.id for node in (await tree.rotate("second")).nodes} == {tree.root, id}
    assert await joins_of(tree) == 0  # of its second run
    await tree.opens("second", "guest")


async def test_a_retried_run_joins_anew_and_holds_what_was_set_meanwhile(tree: Tree) -> None:
    await tree.start(run=Host.run)
    id = tree.id("guest")
    retry = RetryPolicy(initial_interval=timedelta(milliseconds=50))
    handle = await tree.client.start_workflow(
        Guest.run, args=[tree.root], id=id, task_queue=tree.queue, retry_policy=retry
    )
    assert await notes(tree, id) == ["first"]
    await tree.set("second")
    before = await run_id(tree.client, id)
    await handle.signal("break_down")
    await next_run(tree.client, id, before)

    assert await notes(tree, id) == ["second"]


# --- many ----------------------------------------------------------------------------------------


async def test_after_many_joins_those_that_have_ended_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    lower(monkeypatch, join_seconds=0.0, joins_until_a_look=3)
    await tree.start(run=Host.run)
    for number in range(2):
        id = await start_guest(tree, tree.id(f"guest-{number}"))
        await names_it(tree, id)
        await guest(tree, id).terminate()
    await start_guest(tree, tree.id("guest-2"))

    await tree.has_children("guest-2")


async def test_one_that_finds_no_room_is_told_once_there_is(
    monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    lower(monkeypatch, join_seconds=0.0, joins_until_a_look=2, joiners=1)
    await tree.start(run=Host.run)
    await names_it(tree, await start_guest(tree, tree.id("guest-0")))
    await start_guest(tree, tree.id("guest-1"))
    await guest(tree, tree.id("guest-0")).terminate()

    await names_it(tree, tree.id("guest-1"))


# --- homes ---------------------------------------------------------------------------------------


async def test_a_home_only_holds_tokens_and_goes_on_from_run_to_run(
    monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    lower(monkeypatch, join_seconds=0.0, many_signals=2)
    home = await tree.tokens.start_workflow(
        TokenHome.run,
        ["Guest"],
        id=tree.root,
        task_queue=tree.queue,
        api_token="first",
        api_url=URL,
    )
    before = await run_id(tree.client, home.id)
    for number in range(2):
        id = await start_guest(tree, tree.id(f"guest-{number}"))
        assert await notes(tree, id) == ["first"]
    await next_run(tree.client, home.id, before)

    assert len((await tree.rotate("second")).nodes) == 3
    await tree.opens("second", "guest-0", "guest-1")


async def test_a_home_below_a_home_hands_the_token_on(soon: None, tree: Tree) -> None:
    await tree.tokens.start_workflow(
        TokenHome.run,
        ["TokenHome"],
        id=tree.root,
        task_queue=tree.queue,
        api_token="first",
        api_url=URL,
    )
    await tree.client.start_workflow(
        TokenHome.run, args=[["Guest"], tree.root], id=tree.id("eu"), task_queue=tree.queue
    )
    id = await start_guest(tree, tree.id("guest"), host=tree.id("eu"))
    assert await notes(tree, id) == ["first"]
    await tree.has(3)

    assert len((await tree.rotate("second")).nodes) == 3
    await tree.opens("second", "guest")


# --- by an issuer --------------------------------------------------------------------------------


async def test_an_issuer_sets_a_token_at_a_guest_alone(tree: Tree) -> None:
    await tree.start(run=Host.run)
    id = await start_guest(tree, tree.id("guest"))
    await notes(tree, id)
    assert (await tree.tokens.get(id)).reveal() == "first"

    await tree.tokens.set(id, "own", origins=[URL])

    assert await guest(tree, id).execute_update("use_token", "apiToken") == "own"
    assert (await tree.tokens.get(tree.root)).reveal() == "first"


# --- who claims a place, or gives one ------------------------------------------------------------


@workflow.defn(sandboxed=False)
class LyingHost:
    """Answers a question for a place with what it was started with."""

    @workflow.run
    async def run(self, answer: Any) -> None:
        self.answer = answer
        await workflow.wait_condition(lambda: False)

    @workflow.query(name="apiTokenJoin")
    def place(self, joiner: dict[str, str]) -> Any:
        return self.answer


def lies(host: str, guest: str) -> dict[str, Any]:
    """What a host may answer, by what is amiss with it."""
    good = Ledger((host, guest), "a-tree").dump()
    answer = {"ledger": good, "parent_api_url": None, "refused": None, "registered": False}
    return {
        "nothing": None,
        "no object": [answer],
        "a word that is not known": {**answer, "refused": "later"},
        "neither a state nor a reason": {**answer, "ledger": None},
        "a state for another": {**answer, "ledger": {**good, "path": [host, "another"]}},
        "a state below another": {**answer, "ledger": {**good, "path": ["another", guest]}},
        "a state of a later format": {**answer, "ledger": {**good, "format": 99}},
        "a malformed state": {**answer, "ledger": {**good, "held": ["no message"]}},
        "more than a megabyte": {**answer, "ledger": {**good, "rejected": {"x" * 1_200_000: 1}}},
    }


async def test_a_host_that_answers_something_else_gives_no_place(
    client: Client, queue: str
) -> None:
    async def why(number: int, lie: str) -> str:
        host, guest = f"{queue}-{number}", f"{queue}-{number}-guest"
        await client.start_workflow(
            LyingHost.run, lies(host, guest)[lie], id=host, task_queue=queue
        )
        handle = await client.start_workflow(
            Guest.run, args=[host, 4.0], id=guest, task_queue=queue
        )
        return await failure(handle)

    async with start_worker(client, queue, workflows=[LyingHost, Guest]):
        reasons = await asyncio.gather(*[why(*lie) for lie in enumerate(lies("", ""))])

    for lie, said in zip(lies("", ""), reasons, strict=True):
        assert f"could not join {queue}-" in said, lie


@pytest.mark.parametrize("run", [None, "of-nobody"])
async def test_a_start_that_claims_to_have_joined_is_taken_for_a_root(
    tree: Tree, run: str | None
) -> None:
    await tree.start(run=Host.run)
    theirs = await tree.status()
    ledger = Ledger((tree.root, tree.id("forged")), theirs["tree"])
    forged = Start(ledger.dump(), run, joined=Joined(0, registered=True))
    await start(tree.client, forged, "Node", Plan(), id=tree.id("forged"), task_queue=tree.queue)
    await tree.exists("forged")
    await tree.signal("forged", "apiToken", await tree.sealed())

    assert (await tree.status("forged"))["root"] == tree.id("forged")
    assert await tree.opened("forged") == ["TokenNotSet"]


async def test_no_history_of_a_join_holds_the_token(soon: None, tree: Tree) -> None:
    secret = "canary-of-a-join-7c1f9a44e2"
    await tree.start(run=Host.run, api_token=secret)
    id = await start_guest(tree, tree.id("guest"))
    assert await notes(tree, id) == [shown(secret)]
    await names_it(tree, id)

    for handle in (tree[""], guest(tree, id)):
        history = await handle.fetch_history()
        assert secret.encode() not in b"".join(e.SerializeToString() for e in history.events)
