"""Keys change under running trees: no token of a revoked key is used, and no message is lost."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle

from stateful_workflow import IssuerLimited, Keyring, StatefulPlugin, TokenClient, TokenRevoked
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.sealed.message import Claims, parse
from tests.cli.test_cli_in_trees import stateful
from tests.client.test_client import Before, client_with, worker_for
from tests.support.asking import (
    events_of,
    eventually,
    lower,
    nodes_run,
    opened,
    opens,
    sealed_at,
    start_worker,
    status_of,
)
from tests.support.builders import jwks, keyring_of, marked
from tests.support.use_workflows import Caller, Job
from tests.support.workflows import Node, Plan

ORIGIN = "https://api.example.com"
FOUR_MINUTES = 240_000


@dataclass(frozen=True)
class Process:
    """What one process has: a client whose plugin follows a keyring file."""

    file: Path
    client: Client
    plugin: StatefulPlugin

    async def takes_its_file(self) -> None:
        """Wait until the process has the keys that its file has now."""
        keys = Keyring.load(self.file).keys()

        async def taken() -> bool:
            keyring = self.plugin.keyring
            return keyring is not None and keyring.keys() == keys

        await eventually(taken)


async def process(engine: EmbeddedEngine, file: Path, identity: str | None = None) -> Process:
    plugin = StatefulPlugin(Keyring.load(file))
    client = await Client.connect(
        engine.address, namespace=engine.namespace, plugins=[plugin], identity=identity
    )
    return Process(file, client, plugin)


def give(keyring: Keyring, fleet: Path) -> None:
    """Write the workers' part of a keyring into their file."""
    Keyring.change_file(fleet, lambda _: keyring.only(readers=["default"]))


@pytest.fixture
def master(tmp_path: Path) -> Path:
    """The file of who sets tokens: every private key."""
    path = tmp_path / "master.json"
    Keyring.generate().save(path)
    return path


@pytest.fixture
def fleet(master: Path) -> Path:
    """The file of the workers: the readers' private keys."""
    path = master.with_name("fleet.json")
    Keyring.load(master).only(readers=["default"]).save(path)
    return path


@pytest.fixture
def environment(engine: EmbeddedEngine, master: Path) -> dict[str, str]:
    return {
        **os.environ,
        "TEMPORAL_ADDRESS": engine.address,
        "TEMPORAL_CONFIG_FILE": os.devnull,
        "STATEFUL_KEYRING": str(master),
    }


async def done(environment: dict[str, str], *command: str, stdin: str = "") -> None:
    ended = await stateful(environment, *command, stdin=stdin)
    assert ended.returncode == 0, ended.stderr


async def start(
    tokens: TokenClient, queue: str, plan: Plan, *, nodes: int
) -> WorkflowHandle[Any, Any]:
    root = await tokens.start_workflow(
        Node.run, plan, id=queue, task_queue=queue, api_token="first", origins=[ORIGIN]
    )
    await nodes_run(tokens, queue, nodes)
    return root


async def claims_at(client: Client, workflow_id: str) -> Claims:
    return parse(await sealed_at(client, workflow_id)).claims


async def update(client: Client, workflow_id: str, message: str) -> None:
    await client.get_workflow_handle(workflow_id).execute_update("apiToken", message)


def now() -> int:
    return int(time.time() * 1000)


# --- revoked -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a message of a lower version", "stateful token set"])
async def test_a_revoked_issuers_token_is_refused_at_once_and_displaced_by_the_next_message(
    engine: EmbeddedEngine,
    queue: str,
    master: Path,
    fleet: Path,
    environment: dict[str, str],
    how: str,
) -> None:
    worker = await process(engine, fleet)
    client, stolen = worker.client, Keyring.load(master)
    tokens = TokenClient(client, stolen.only(readers=["default"]))
    nodes = [queue, f"{queue}-a", f"{queue}-a-x"]
    async with start_worker(client, queue):
        plan = Plan({"a": Plan({"x": Plan()})})
        await start(TokenClient(client, stolen), queue, plan, nodes=3)
        ahead = replace(await claims_at(client, queue), version=now() + FOUR_MINUTES)
        thiefs = parse(stolen.seal(ahead, "stolen"))
        await update(client, queue, thiefs.text)
        await opens(client, "stolen", *nodes)

        # From the worker's file alone, and before anything is set.
        await done(environment, "keys", "revoke", thiefs.issuer)
        await done(environment, "keys", "export", str(fleet), "--reader", "default", "--replace")
        await opens(client, "TokenRevoked", *nodes)
        assert [await sealed_at(client, node) for node in nodes] == [thiefs.text] * 3
        await worker.takes_its_file()
        with pytest.raises(TokenRevoked):
            await TokenClient(client, Keyring.load(master)).get(queue)

        if how == "stateful token set":
            # Nothing that the revoked issuer signed is carried on.
            await done(environment, "token", "set", queue, "--origin", ORIGIN, stdin="renewed")
        else:
            lower = replace(ahead, version=now())
            assert lower.version < ahead.version
            await update(client, queue, Keyring.load(master).seal(lower, "renewed"))

        await opens(client, "renewed", *nodes)
        (tree,) = {await sealed_at(client, node) for node in nodes}
        assert parse(tree).issuer == Keyring.load(master).keys()[-1].kid
        # What the thief still signs is taken nowhere.
        for node in nodes:
            await client.get_workflow_handle(node).signal("apiToken", thiefs.text)
        await opens(client, "renewed", *nodes)
        for node in nodes:
            status = await status_of(client, node)
            assert status["rejections"]["counts"] == {"TokenForged": 1}
        assert (await tokens.tree(queue)).converged is True


async def test_a_retired_issuers_token_stays_in_use_and_is_taken_where_it_arrives_late(
    engine: EmbeddedEngine, queue: str, master: Path, fleet: Path
) -> None:
    worker = await process(engine, fleet)
    client, before = worker.client, Keyring.load(master)
    nodes = [queue, f"{queue}-a"]
    async with start_worker(client, queue):
        await start(TokenClient(client, before), queue, Plan({"a": Plan()}), nodes=2)
        late = before.seal(replace(await claims_at(client, queue), version=now()), "late")

        kid = parse(late).issuer
        after = Keyring.change_file(master, lambda keyring: keyring.add_issuer().retire(kid))
        give(after, fleet)
        await worker.takes_its_file()
        assert await opened(client, *nodes) == ["first", "first"]
        await update(client, queue, late)
        await opens(client, "late", *nodes)

        await TokenClient(client, after).rotate(queue, "second", timeout=20)
        assert await opened(client, *nodes) == ["second", "second"]
        assert parse(await sealed_at(client, queue)).issuer == after.keys()[-1].kid


# --- limited -------------------------------------------------------------------------------------


async def test_nodes_learn_an_issuer_with_its_limits(
    engine: EmbeddedEngine, queue: str, master: Path, fleet: Path
) -> None:
    worker = await process(engine, fleet)
    client, before = worker.client, Keyring.load(master)
    async with start_worker(client, queue):
        await start(TokenClient(client, before), queue, Plan({"a": Plan()}), nodes=2)
        # A second team: its key is for its own trees' CRM, and for one host.
        after = Keyring.change_file(
            master,
            lambda keyring: keyring.add_issuer(
                names=["crm"], roots=[queue], origins=["https://*.crm.example"]
            ),
        )
        give(after, fleet)
        await worker.takes_its_file()
        team = after.retire(after.keys()[0].kid)  # its people have no other issuer
        theirs = TokenClient(client, team)
        crm = ["https://eu.crm.example"]

        await theirs.rotate(queue, "theirs", name="crm", origins=crm, timeout=20)
        assert await opened(client, queue, f"{queue}-a", name="crm") == ["theirs", "theirs"]

        with pytest.raises(IssuerLimited):
            await theirs.set(queue, "x", origins=crm)
        with pytest.raises(IssuerLimited):
            await theirs.set(queue, "x", name="crm", origins=[ORIGIN])
        with pytest.raises(IssuerLimited):
            await theirs.revoke(queue)
        # Sealed by who does not mind the limits, the nodes refuse it.
        unlimited = keyring_of(*(marked(key) for key in jwks(team)))
        claims = replace(await claims_at(client, queue), version=now())
        forged = unlimited.seal(claims, "forged")
        assert parse(forged).issuer == team.keys()[-1].kid
        for node in (queue, f"{queue}-a"):
            await client.get_workflow_handle(node).signal("apiToken", forged)
            counts = (await status_of(client, node))["rejections"]["counts"]
            assert counts == {"IssuerLimited": 1}
        assert await opened(client, queue, f"{queue}-a") == ["first", "first"]


# --- audiences -----------------------------------------------------------------------------------


async def look(client: Client, workflow_id: str, queue: str) -> str:
    """What an activity on this task queue opens, or what it is told instead."""
    job = Job(activity="look", queue=queue)
    seen = await client.get_workflow_handle(workflow_id).execute_update(Caller.do, job)
    return seen[0]


async def test_a_fleet_of_workers_cannot_open_what_is_not_meant_for_it(
    engine: EmbeddedEngine, queue: str, master: Path, environment: dict[str, str]
) -> None:
    """Two task queues, and a keyring file for each, made by the command."""
    crm, erp = f"{queue}-crm", f"{queue}-erp"
    files = {name: master.with_name(f"{name}.json") for name in (crm, erp)}
    for name, file in files.items():
        await done(environment, "keys", "add-reader", "--audience", name)
        await done(environment, "keys", "export", str(file), "--reader", name)
    tokens = TokenClient(
        await client_with(engine, Keyring.load(master).public()), Keyring.load(master)
    )
    first, second = [(await process(engine, file)).client for file in files.values()]
    async with worker_for(first, crm), worker_for(second, erp):
        await tokens.start_workflow(
            Caller.run,
            id=queue,
            task_queue=crm,
            api_token="first",
            origins=[ORIGIN],
            readers=[crm],
        )
        assert await look(first, queue, crm) == "first"
        assert (await look(first, queue, erp)).startswith("NoReaderKey: ")

        # A rotation keeps for whom it is; another choice is made by saying so.
        await tokens.set(queue, "second")
        assert await look(first, queue, crm) == "second"
        assert (await look(first, queue, erp)).startswith("NoReaderKey: ")
        await tokens.set(queue, "third", readers=[erp])
        assert (await look(first, queue, crm)).startswith("NoReaderKey: ")
        assert await look(first, queue, erp) == "third"
        await done(
            environment, "token", "set", queue, "--reader", crm, "--reader", erp, stdin="fourth"
        )
        assert [await look(first, queue, fleet) for fleet in files] == ["fourth", "fourth"]
        status = await tokens.status(queue)
        assert status is not None
        assert status.readers == (crm, erp)


# --- what it costs -------------------------------------------------------------------------------


async def looked_up(client: Client, workflow_id: str) -> int:
    """How often a node asked a worker's keyring whom to trust."""
    handle = client.get_workflow_handle(workflow_id)
    scheduled = await events_of(handle, "ACTIVITY_TASK_SCHEDULED")
    return sum(b"statefulTrust" in event.SerializeToString() for event in scheduled)


async def test_trust_is_renewed_once_a_key_change_and_not_once_a_rotation(
    engine: EmbeddedEngine, queue: str, master: Path, fleet: Path
) -> None:
    worker = await process(engine, fleet)
    client = worker.client
    nodes = [queue, *(f"{queue}-{path}" for path in ("a", "a-x", "a-y", "b", "b-z"))]
    async with start_worker(client, queue):
        tokens = TokenClient(client, Keyring.load(master))
        plan = Plan({"a": Plan({"x": Plan(), "y": Plan()}), "b": Plan({"z": Plan()})})
        root = await start(tokens, queue, plan, nodes=6)
        for token in ("1", "2"):
            await tokens.rotate(queue, token, timeout=20)
        assert [await looked_up(client, node) for node in nodes] == [0] * 6

        # The second change comes at once: what is new in the keyring is learnt at once as well.
        for changes in (1, 2):
            after = Keyring.change_file(master, Keyring.add_issuer)
            give(after, fleet)
            await worker.takes_its_file()
            tokens = TokenClient(client, after)
            for rotation in range(3):
                await tokens.rotate(queue, f"{changes}.{rotation}", timeout=20)
            assert parse(await sealed_at(client, queue)).issuer == after.keys()[-1].kid
            assert await opened(client, *nodes) == [f"{changes}.2"] * 6
            assert [await looked_up(client, node) for node in nodes] == [changes] * 6

        # It travels with the state: who starts now need not ask.
        await root.signal("add_child", args=["late", Plan()])
        await nodes_run(tokens, queue, 7)
        await tokens.rotate(queue, "last", timeout=20)
        assert await looked_up(client, f"{queue}-late") == 0


# --- two files side by side ----------------------------------------------------------------------


async def runs_on(client: Client, workflow_id: str) -> str:
    """Identity of the worker that completed a workflow's last task."""
    handle = client.get_workflow_handle(workflow_id)
    completed = await events_of(handle, "WORKFLOW_TASK_COMPLETED")
    return str(completed[-1].workflow_task_completed_event_attributes.identity)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("asked", ["by a further update", "by the nodes themselves"])
async def test_workers_with_an_old_and_a_new_file_side_by_side_lose_no_message(
    engine: EmbeddedEngine,
    queue: str,
    master: Path,
    fleet: Path,
    asked: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if asked == "by the nodes themselves":  # once a minute; ten times in vain and it is refused
        lower(monkeypatch, trust_every_ms=5_000)
    before = Keyring.load(master)
    after = Keyring.change_file(master, Keyring.add_issuer)
    renewed = fleet.with_name("renewed.json")
    after.only(readers=["default"]).save(renewed)
    old = await process(engine, fleet, f"{queue}-old")
    new = await process(engine, renewed, f"{queue}-new")
    client, tokens = new.client, TokenClient(new.client, after)
    children: list[str] = []

    async def holding(message: str) -> set[str]:
        return {node for node in [queue, *children] if await sealed_at(client, node) == message}

    async def waiting() -> set[str]:
        found = set[str]()
        for node in [queue, *children]:
            status = await status_of(client, node)
            assert status["rejections"]["counts"] == {}
            found |= {node} if status["waiting"] else set()
        return found

    async with start_worker(new.client, queue):
        root = await start(TokenClient(client, before), queue, Plan(), nodes=1)
        async with start_worker(old.client, queue):

            async def both_run_some() -> bool:
                children.append(f"{queue}-c{len(children)}")
                await root.signal("add_children", args=[len(children) - 1, 1])
                await nodes_run(tokens, queue, len(children) + 1)
                on = {await runs_on(client, child) for child in children}
                return on == {f"{queue}-old", f"{queue}-new"}

            await eventually(both_run_some)

            await tokens.set(queue, "second")
            message = await sealed_at(client, queue)
            assert parse(message).issuer == after.keys()[-1].kid

            async def all_hold_it_or_wait() -> None:
                hold, wait = await holding(message), await waiting()
                assert hold | wait == {queue, *children}
                assert not hold & wait

            await eventually(all_hold_it_or_wait)
            behind = sorted(await waiting())
            assert behind
            assert await opened(client, *behind) == ["first"] * len(behind)

            give(after, fleet)
            await old.takes_its_file()
            if asked == "by a further update":
                await asyncio.gather(*[update(client, node, message) for node in behind])

            async def all_hold_it() -> bool:
                return await holding(message) == {queue, *children}

            await eventually(all_hold_it, within=60)
            assert await waiting() == set()
            assert (await tokens.tree(queue)).converged
            await opens(client, "second", *children)


# --- sealed anew ---------------------------------------------------------------------------------


async def test_a_new_reader_opens_the_current_token_once_it_is_sealed_anew(
    engine: EmbeddedEngine, queue: str, master: Path, fleet: Path, environment: dict[str, str]
) -> None:
    newcomers, file = f"{queue}-new", master.with_name("newcomers.json")
    client = (await process(engine, fleet)).client
    tokens = TokenClient(client, Keyring.load(master))
    await tokens.start_workflow(
        Caller.run,
        id=queue,
        task_queue=queue,
        api_token="first",
        origins=[ORIGIN, "https://*.example.net"],
        types=["Caller"],
        expires_in=3600,
    )
    await done(environment, "keys", "add-reader", "--audience", "newcomers")
    await done(environment, "keys", "export", str(file), "--reader", "newcomers")
    new = (await process(engine, file)).client
    async with worker_for(client, queue), worker_for(new, newcomers):
        before = await claims_at(client, queue)
        assert await look(client, queue, queue) == "first"
        assert (await look(client, queue, newcomers)).startswith("NoReaderKey: ")

        await done(environment, "token", "reseal", queue)

        assert await look(client, queue, newcomers) == "first"
        assert await look(client, queue, queue) == "first"
        after = await claims_at(client, queue)
        assert after == replace(before, version=after.version)
        assert after.version > before.version
        assert (after.types, len(after.origins)) == (("Caller",), 2)
        assert after.expires_at is not None

        # For the newcomers alone, from now on.
        resealed = TokenClient(client, Keyring.load(master))
        status = await resealed.reseal(queue, readers=["newcomers"])
        assert status.readers == ("newcomers",)
        assert (await look(client, queue, queue)).startswith("NoReaderKey: ")
        assert await look(client, queue, newcomers) == "first"


async def test_what_is_sealed_anew_is_set_where_it_was_set_and_reaches_every_node(
    engine: EmbeddedEngine, queue: str, master: Path, fleet: Path
) -> None:
    client = (await process(engine, fleet)).client
    async with start_worker(client, queue):
        before = TokenClient(client, Keyring.load(master))
        await start(before, queue, Plan({"a": Plan({"x": Plan()})}), nodes=3)
        after = Keyring.change_file(master, lambda keyring: keyring.add_reader("new"))
        tokens = TokenClient(client, after)

        status = await tokens.reseal(f"{queue}-a-x")

        assert status.authority == queue

        async def everywhere() -> None:
            for node in (queue, f"{queue}-a", f"{queue}-a-x"):
                message = parse(await sealed_at(client, node))
                assert message.fingerprint == status.fingerprint
                assert len(message.readers) == 2

        await eventually(everywhere)
        new = TokenClient(client, after.only(readers=["new"]))
        assert (await new.get(f"{queue}-a")).reveal() == "first"


async def nothing() -> None:
    pass


@dataclass(frozen=True)
class Race:
    """Two clients of one issuer; before the slow one's message is sent, `between` may act."""

    tokens: TokenClient
    slow: TokenClient
    between: Before


@asynccontextmanager
async def racing(
    engine: EmbeddedEngine, queue: str, keyring: Keyring, ahead: int
) -> AsyncGenerator[Race, None]:
    """A workflow whose token has a version so many milliseconds ahead of the clock."""
    client, between = await client_with(engine, keyring), Before(nothing)
    tokens = TokenClient(client, keyring)
    slow = TokenClient(await client_with(engine, keyring, between), keyring)
    async with worker_for(client, queue):
        await tokens.start_workflow(
            Caller.run, id=queue, task_queue=queue, api_token="first", origins=[ORIGIN]
        )
        if ahead:
            claims = replace(await claims_at(client, queue), version=now() + ahead)
            await update(client, queue, keyring.seal(claims, "ahead"))
        yield Race(tokens, slow, between)


@pytest.mark.parametrize("ahead", [0, FOUR_MINUTES], ids=["clocks agree", "a clock was ahead"])
@pytest.mark.parametrize("late", ["the reseal", "the set"])
async def test_a_token_that_is_set_during_a_reseal_stands(
    engine: EmbeddedEngine, queue: str, late: str, ahead: int
) -> None:
    async with racing(engine, queue, Keyring.generate(), ahead) as race:
        # Of two messages of one version the hash decides: so more than once.
        for n in range(10):

            async def meanwhile(token: str = f"token {n}") -> None:
                race.between.act = nothing
                if late == "the set":
                    await race.tokens.reseal(queue)
                else:
                    await race.tokens.set(queue, token)

            race.between.act = meanwhile
            if late == "the set":
                await race.slow.set(queue, f"token {n}")
            else:
                await race.slow.reseal(queue)

            assert (await race.tokens.get(queue)).reveal() == f"token {n}"


async def test_a_revocation_during_a_reseal_stands(engine: EmbeddedEngine, queue: str) -> None:
    async with racing(engine, queue, Keyring.generate(), FOUR_MINUTES) as race:
        for _ in range(10):

            async def meanwhile() -> None:
                race.between.act = nothing
                await race.tokens.revoke(queue)

            race.between.act = meanwhile
            with pytest.raises(TokenRevoked):
                await race.slow.reseal(queue)

            await race.tokens.set(queue, "again", origins=[ORIGIN])
