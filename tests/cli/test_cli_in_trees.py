"""The command as a person runs it: a process of its own, against a real server and worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from temporalio.client import Client

from stateful_workflow import Keyring, TokenClient
from stateful_workflow.audit import read, verify
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.text.printable import printable
from tests.engine.test_engine import gone, port_of
from tests.support.asking import eventually, nodes_run, start_worker
from tests.support.terminal import unprintable
from tests.support.workflows import HOSTILE_NAME, Liar, Node, Plan

COMMAND = [sys.executable, "-c", "from stateful_workflow.cli import main; main()"]
ORIGIN = "https://api.example.com"
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Awaitable[Done]]


@pytest.fixture
def environment(engine: EmbeddedEngine, keyring: Keyring, tmp_path: Path) -> dict[str, str]:
    keyring.save(tmp_path / "keyring.json")
    return {
        **os.environ,
        "TEMPORAL_ADDRESS": engine.address,
        "TEMPORAL_CONFIG_FILE": os.devnull,
        "STATEFUL_KEYRING": str(tmp_path / "keyring.json"),
    }


async def stateful(
    environment: dict[str, str], *arguments: str, stdin: str = "", **variables: str
) -> Done:
    return await asyncio.to_thread(
        subprocess.run,
        [*COMMAND, *arguments],
        input=stdin,
        env={**environment, **variables},
        text=True,
        capture_output=True,
        timeout=50,
    )


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    return partial(stateful, environment, stdin="second\n")


@asynccontextmanager
async def watched(
    environment: dict[str, str], workflow_id: str, *options: str, stdout: int = subprocess.PIPE
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """`stateful tree --watch`, which ends well with Ctrl-C."""
    watching = await asyncio.create_subprocess_exec(
        *(*COMMAND, "tree", workflow_id, "--watch", *options), env=environment, stdout=stdout
    )
    yield watching
    watching.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(watching.wait(), 30) == 0


async def start_tree(tokens: TokenClient, root: str, queue: str, *children: str) -> None:
    await tokens.start_workflow(
        Node.run,
        Plan({**{child: Plan() for child in children}, "c": Plan(type="Cleanup")}),
        id=root,
        task_queue=queue,
        api_token="first",
        origins=[ORIGIN],
    )
    await nodes_run(tokens, root, len(children) + 2)


@pytest.fixture
async def root(client: Client, tokens: TokenClient, queue: str) -> AsyncIterator[str]:
    """A workflow with a token, one child that has it too, and one from which it is withheld."""
    async with start_worker(client, queue):
        await start_tree(tokens, queue, queue, "a")
        yield queue


async def test_a_token_is_set_shown_revealed_revoked_and_inherited(
    tokens: TokenClient, root: str, run: Run
) -> None:
    child = f"{root}-a"
    made = await run("token", "set", root, "--expires-in", "3600", "--json")
    assert (made.returncode, made.stderr) == (0, "")
    status = json.loads(made.stdout)
    assert (status["state"], status["origins"]) == ("held", [ORIGIN])
    assert (await tokens.get(root)).reveal() == "second"

    shown = await run("token", "status", root)
    assert shown.returncode == 0
    assert status["fingerprint"] in shown.stdout
    assert ORIGIN in shown.stdout
    assert "second" not in shown.stdout

    async def reaches_the_child() -> None:
        revealed = await run("token", "reveal", child)
        assert (revealed.stdout, revealed.returncode) == ("second\n", 0)

    await eventually(reaches_the_child)

    tree = await run("tree", root)
    assert tree.returncode == 0
    first, *lines = tree.stdout.splitlines()
    assert first == "apiToken converged · 1 withheld"
    assert sum(status["fingerprint"] in line for line in lines) == 2
    assert ["withheld" in line for line in lines if "Cleanup" in line] == [True]
    data = json.loads((await run("tree", root, "--json")).stdout)
    assert data["converged"] is True
    assert [node["parent"] for node in data["nodes"]] == [None, root, root]

    revoked = await run("token", "revoke", child, "--json")
    assert json.loads(revoked.stdout)["state"] == "revoked"
    refused = await run("token", "reveal", child)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: ")
    inherited = await run("token", "inherit", child, "--json")
    assert json.loads(inherited.stdout)["fingerprint"] == status["fingerprint"]


async def test_a_reference_is_set_without_waiting_for_a_token_and_never_printed_as_one(
    root: str, run: Run
) -> None:
    made = await run("token", "rotate", root, "--reference", "prod:tenants/acme")
    assert made.returncode == 0, made.stderr
    revealed = await run("token", "reveal", root)
    assert (revealed.returncode, revealed.stdout) == (1, "")
    assert revealed.stderr == "error: it is a reference: prod:tenants/acme\n"
    whole = json.loads((await run("token", "reveal", root, "--json")).stdout)
    assert whole == {"name": "apiToken", "reference": "prod:tenants/acme"}
    refused = await run("token", "set", root, "--reference", "prod:../acme")
    assert refused.returncode == 1
    assert "acme" not in refused.stderr


async def test_addresses_are_given_refused_and_shown(root: str, run: Run) -> None:
    child, other = f"{root}-a", "https://other.example.com"
    origins = ("--origin", ORIGIN, "--origin", other)
    moved = await run("token", "rotate", root, *origins, "--api-url", f"{ORIGIN}/v2")
    assert moved.returncode == 0, moved.stderr
    signed, _, first, *below = moved.stdout.splitlines()
    assert signed.endswith(f"; address {ORIGIN}/v2")
    assert first.endswith(f" at {ORIGIN}/v2")
    assert not any(" at " in line for line in below)

    given = await run("token", "api-url", child, f"{other}/")
    assert (given.returncode, given.stderr) == (0, "")
    assert f"at {other}" in (await run("tree", root)).stdout
    assert other in (await run("token", "status", child)).stdout

    narrowed = await run("token", "rotate", root, "--origin", ORIGIN)
    assert narrowed.returncode == 0, narrowed.stderr
    assert f"at {other}, not signed: uses {ORIGIN}/v2" in " ".join(narrowed.stdout.split())
    refused = await run("token", "api-url", child, "https://elsewhere.example.com")
    assert refused.returncode == 1
    assert "is not within the origins" in refused.stderr
    uncovered = await run("token", "rotate", root, "--origin", other)
    assert uncovered.returncode == 1
    assert "--api-url" in uncovered.stderr
    assert (await run("token", "api-url", child)).returncode == 2

    mistyped = await run("token", "api-url", child, "--follow", "--name", "biling")
    assert mistyped.returncode == 1
    assert "no biling is known" in mistyped.stderr
    assert (await run("token", "api-url", child, "--follow")).returncode == 0
    assert other not in (await run("tree", root)).stdout


async def test_the_status_of_a_closed_workflow_says_that_it_is_closed(
    client: Client, root: str, run: Run
) -> None:
    await client.get_workflow_handle(root).terminate()
    shown = await run("token", "status", root)
    assert shown.returncode == 0, shown.stderr
    assert "the workflow is closed" in shown.stdout


async def test_a_revocation_says_who_holds_one_yet_and_takes_those_below_along_where_asked(
    root: str, run: Run
) -> None:
    child = f"{root}-a"
    assert (await run("token", "set", child, "--origin", ORIGIN)).returncode == 0
    seen = json.loads((await run("tree", root, "--json")).stdout)
    assert (seen["usable"], seen["counts"]) == (True, {"set here": 1, "withheld": 1})

    revoked = await run("token", "revoke", root, "--json")
    assert (revoked.returncode, json.loads(revoked.stdout)["held_yet_at"]) == (3, [child])

    revoked = await run("token", "revoke", root, "--below", "--json")
    assert (revoked.returncode, revoked.stderr) == (0, "")
    assert json.loads(revoked.stdout)["revoked_at"] == [root, child]

    tree = await run("tree", root)
    assert tree.returncode == 3, "where nothing is held a tree is not well"
    assert tree.stdout.startswith("apiToken nothing usable is held · 1 set here · 2 revoked")


async def test_a_rotation_is_awaited_and_its_tree_shown(
    tokens: TokenClient, root: str, run: Run
) -> None:
    done = await run("token", "rotate", root, "--json")

    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout.splitlines()[-1])
    assert tree["converged"]
    assert len({node["fingerprint"] for node in tree["nodes"] if not node["withheld"]}) == 1
    assert tree["signed"]["origins"] == [ORIGIN], "the terms that it carries on are shown"
    assert (await tokens.get(f"{root}-a")).reveal() == "second"

    done = await run("token", "rotate", root, stdin="third")
    fingerprint = (await tokens.get(root)).fingerprint
    shown = f"signed apiToken {fingerprint} for {ORIGIN}; types any; readers any"
    assert done.stdout.splitlines()[0] == shown


async def test_what_workflows_may_choose_is_escaped(
    client: Client,
    tokens: TokenClient,
    queue: str,
    run: Run,
    environment: dict[str, str],
) -> None:
    root, liar = f"{queue}{HOSTILE_NAME}", f"{queue}-liar{HOSTILE_NAME}"
    async with start_worker(client, queue):
        await start_tree(tokens, root, queue, HOSTILE_NAME)
        await client.start_workflow(Liar.run, Plan(), id=liar, task_queue=queue)

        async def output_of(*arguments: str) -> str:
            done = await run(*arguments)
            assert unprintable(done.stdout + done.stderr) == set()
            assert "\nerror: forged" not in done.stdout + done.stderr
            return done.stdout if done.returncode in (0, 3) else done.stderr

        for told, nodes in ((root, 3), (liar, 2)):
            lines = (await output_of("tree", told)).splitlines()
            assert len(lines) == 1 + nodes, "a node is a line, whatever its id"
            assert printable(told) in lines[1]
            status = await output_of("token", "status", told)
            assert printable(told) in status
            data = json.loads(await output_of("tree", told, "--json"))
            assert data["nodes"][0]["id"] == told
            assert json.loads(await output_of("token", "status", told, "--json"))
        for command in ("reveal", "revoke", "set"):
            assert (await output_of("token", command, liar)).startswith("error: ")
        missing = await output_of("token", "status", f"{root}-missing")
        assert missing.startswith(f"error: there is no open workflow {printable(root)}-missing")

        async with watched(environment, liar) as watching:
            assert watching.stdout is not None
            seen = [await asyncio.wait_for(watching.stdout.readline(), 30) for _ in range(3)]
        assert unprintable(b"".join(seen).decode()) == set()
        assert printable(liar) in seen[1].decode()


MISPLACED = "sk_live_Canary0123456789"


async def test_what_the_server_was_not_asked_for_or_does_not_know_is_not_repeated(
    root: str, run: Run
) -> None:
    no_file = f"{MISPLACED}/{MISPLACED}"
    for arguments in (
        ("token", "reveal", root, "--name", MISPLACED),
        ("token", "status", root, "--name", MISPLACED),
        ("token", "reseal", root, "--reader", MISPLACED),
        ("token", "set", root, "--reader", MISPLACED),
        ("token", "set", root, "--name", f"{MISPLACED}/+"),
        ("token", "set", root, "--audit", no_file),
        ("token", "revoke", root, "--audit", no_file),
        ("token", "status", root, "--namespace", MISPLACED),
        ("tree", root, "--namespace", MISPLACED),
    ):
        done = await run(*arguments)
        assert root in done.stdout or done.stderr.startswith("error: "), done.args
        assert "canary" not in (done.stdout + done.stderr).lower(), done.args


@pytest.mark.parametrize("command", ["set", "rotate"])
async def test_a_token_on_the_command_line_is_refused_and_not_repeated(
    run: Run, command: str
) -> None:
    refused = await run("token", command, "some-id", "my-secret")

    assert refused.returncode == 2
    assert "my-secret" not in refused.stderr + refused.stdout
    assert "--from-env" in refused.stderr


async def test_a_token_comes_from_a_variable(tokens: TokenClient, root: str, run: Run) -> None:
    done = await run(
        *("token", "set", root, "--from-env", "THEIR_TOKEN", "--origin", ORIGIN),
        THEIR_TOKEN="from the variable",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (await tokens.get(root)).reveal() == "from the variable"


async def test_what_went_wrong_is_one_line_that_says_what_to_do(
    client: Client, queue: str, run: Run, tmp_path: Path, keyring: Keyring
) -> None:
    async def error(*arguments: str, **variables: str) -> str:
        done = await run(*arguments, stdin="secret", **variables)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert "secret" not in done.stderr
        return done.stderr

    public = tmp_path / "public.json"
    keyring.public().save(public)
    await client.start_workflow(Node.run, Plan(), id=queue, task_queue=queue)
    assert f"is one running on task queue {queue}?" in await error("token", "status", queue)
    async with start_worker(client, queue):
        await client.start_workflow("Plain", Plan(), id=f"{queue}-plain", task_queue=queue)
        assert "no-such-workflow" in await error("tree", "no-such-workflow")
        assert "not a StatefulWorkflow" in await error("tree", f"{queue}-plain")
        assert "not a StatefulWorkflow" in await error("token", "status", f"{queue}-plain")
        assert "no issuer" in await error(
            "token", "set", queue, "--origin", ORIGIN, STATEFUL_KEYRING=str(public)
        )
        assert "origin" in await error("token", "set", queue)
        said = await error("tree", queue, "--namespace", "elsewhere")
        assert "there is no namespace" in said
        assert "no open workflow" not in said


def start_dev(*arguments: str) -> subprocess.Popen[str]:
    # A session of its own, so that a signal to its group is what Ctrl-C in a terminal is.
    return subprocess.Popen(
        [*COMMAND, "dev", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that run under nohup would leave it SIGHUP ignored, which `dev` respects.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_dev_serves_until_it_is_stopped(number: signal.Signals, tmp_path: Path) -> None:
    db = tmp_path / "engine.db"
    with start_dev("--db", str(db), "--namespace", "acme") as process:
        try:
            assert process.stdout is not None
            exported = next(line for line in process.stdout if line.startswith("export "))
            address = exported.removeprefix("export TEMPORAL_ADDRESS=").strip()
            client = await Client.connect(address, namespace="acme")
            assert [run async for run in client.list_workflows()] == []
            os.killpg(process.pid, number)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")
    assert gone(port_of(address))
    assert db.exists()


async def test_a_watched_tree_says_what_changes_until_it_is_stopped(
    tokens: TokenClient, root: str, environment: dict[str, str]
) -> None:
    async with watched(environment, root, "--json") as watching:
        stdout = watching.stdout
        assert stdout is not None
        first = json.loads(await asyncio.wait_for(stdout.readline(), 30))
        await tokens.rotate(root, "second", timeout=20)
        newest = (await tokens.get(root)).version

        async def shows_it() -> bool:
            seen = json.loads(await asyncio.wait_for(stdout.readline(), 30))
            return {node["version"] for node in seen["nodes"] if not node["withheld"]} == {newest}

        await eventually(shows_it)
    assert first["converged"]
    assert {node["id"] for node in first["nodes"]} == {root, f"{root}-a", f"{root}-c"}


async def test_in_a_terminal_a_watched_tree_is_drawn_anew(
    tokens: TokenClient, root: str, environment: dict[str, str]
) -> None:
    terminal, slave = os.openpty()
    os.set_blocking(terminal, False)
    environment |= {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    drawn = b""

    async def shows(text: str) -> None:
        async def is_shown() -> bool:
            nonlocal drawn
            with suppress(BlockingIOError):
                drawn += os.read(terminal, 65536)
            return text.encode() in drawn

        await eventually(is_shown)

    async with watched(environment, root, stdout=slave):
        await shows("Ctrl-C ends it")
        await tokens.rotate(root, "second", timeout=20)
        await shows((await tokens.get(root)).fingerprint)
    assert b"\x1b[" in drawn
    for end in (terminal, slave):
        os.close(end)


async def test_what_the_command_sets_and_reveals_stands_in_the_audit_file(
    root: str, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"
    for command in ("set", "reveal", "revoke"):
        done = await run("token", command, root, STATEFUL_AUDIT=str(file))
        assert done.returncode == 0, done.stderr

    assert [(e.action, e.outcome) for e in read(file)] == [
        ("set", "unknown"),
        ("set", "success"),
        ("read", "success"),
        ("revoke", "unknown"),
        ("revoke", "success"),
    ]
    assert verify(file).signed_to is not None
    assert "second" not in file.read_text()


async def test_who_has_it_done_is_this_systems_user_where_nothing_is_said(
    root: str, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"
    here = {"STATEFUL_AUDIT": str(file), "LOGNAME": "mia"}
    said = ("--by", "ada", "--on-behalf-of", "Acme Ltd", "--reason", "ticket 7")
    for command, options in (("set", ()), ("rotate", said), ("reseal", said), ("revoke", said)):
        done = await run("token", command, root, *options, **here)
        assert done.returncode == 0, done.stderr

    for event in read(file):
        why = (event.by, event.on_behalf_of, event.said_reason)
        if event.action != "read":
            is_first = event.sequence < 4
            assert why == (("mia", None, None) if is_first else ("ada", "Acme Ltd", "ticket 7"))
    refused = await run("token", "set", root, "--reason", "it is second")
    assert refused.returncode == 2
    assert "never a secret" in refused.stderr


async def test_a_token_is_sealed_for_somebody_else_to_send(
    client: Client, tokens: TokenClient, root: str, run: Run
) -> None:
    sealed = (await run("token", "seal", root)).stdout.strip()
    assert (await tokens.get(root)).reveal() == "first"
    as_json = json.loads((await run("token", "seal", root, "--json")).stdout)
    assert as_json.keys() == {"name", "sealed"}

    await client.get_workflow_handle(root).execute_update("apiToken", sealed)

    assert (await tokens.get(root)).reveal() == "second"


async def test_the_status_shows_what_may_be_a_token_in_clear_text(
    client: Client, queue: str, run: Run
) -> None:
    async with start_worker(client, queue):
        handle = await client.start_workflow(Node.run, Plan(), id=queue, task_queue=queue)
        await handle.signal("apiToken", "third-in-clear-text")

        async def is_shown() -> None:
            for options in ((), ("--json",)):
                shown = (await run("token", "status", queue, *options)).stdout
                assert "no sealed message" in " ".join(shown.split())
                assert "third" not in shown

        await eventually(is_shown)
        assert "no sealed message" in (await run("tree", queue)).stdout


async def test_a_revocation_is_sent_even_where_it_cannot_be_recorded(
    tokens: TokenClient, root: str, run: Run, tmp_path: Path
) -> None:
    nowhere = {"STATEFUL_AUDIT": str(tmp_path / "missing" / "audit.jsonl")}
    refused = await run("token", "set", root, **nowhere)
    assert refused.returncode == 1
    assert (await tokens.get(root)).reveal() == "first"

    revoked = await run("token", "revoke", root, **nowhere)

    assert revoked.returncode == 0
    assert "not recorded" in revoked.stderr
    status = await tokens.status(root)
    assert status is not None
    assert status.state == "revoked"
