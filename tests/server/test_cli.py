"""The command as a person runs it: a process of its own, against a real server and worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from temporalio.client import Client

from stateful_workflow import Keyring, TokenClient
from stateful_workflow.audit import read, verify
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.text.printable import printable
from tests.terminal import unprintable

from .conftest import start_worker
from .support import eventually, nodes_run
from .test_engine import gone, port_of
from .workflows import HOSTILE_NAME, Liar, Node, Plan

COMMAND = [sys.executable, "-c", "from stateful_workflow.cli import main; main()"]
ORIGIN = "https://api.example.com"


@pytest.fixture(scope="module")
def keyring_file(keyring: Keyring, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keyring.json"
    keyring.save(path)
    return path


@pytest.fixture
def environment(engine: EmbeddedEngine, keyring_file: Path) -> dict[str, str]:
    return {
        **os.environ,
        "TEMPORAL_ADDRESS": engine.address,
        "TEMPORAL_CONFIG_FILE": os.devnull,
        "STATEFUL_KEYRING": str(keyring_file),
    }


async def stateful(
    environment: dict[str, str], *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [*COMMAND, *arguments],
        input=stdin,
        env=environment,
        text=True,
        capture_output=True,
        timeout=50,
    )


async def test_a_token_is_set_shown_revealed_revoked_and_inherited(
    client: Client, tokens: TokenClient, queue: str, environment: dict[str, str]
) -> None:
    root, child = queue, f"{queue}-a"
    async with start_worker(client, queue):
        await tokens.start_workflow(
            Node.run,
            Plan(children={"a": Plan(), "c": Plan(type="Cleanup")}),
            id=root,
            task_queue=queue,
            api_token="first",
            origins=[ORIGIN],
        )

        made = await stateful(
            environment, "token", "set", root, "--expires-in", "3600", "--json", stdin="second\n"
        )
        assert (made.returncode, made.stderr) == (0, "")
        status = json.loads(made.stdout)
        assert (status["state"], status["origins"]) == ("held", [ORIGIN])
        assert (await tokens.get(root)).reveal() == "second"

        shown = await stateful(environment, "token", "status", root)
        assert shown.returncode == 0
        assert status["fingerprint"] in shown.stdout
        assert ORIGIN in shown.stdout
        assert "second" not in shown.stdout

        async def reaches_the_child() -> None:
            revealed = await stateful(environment, "token", "reveal", child)
            assert (revealed.stdout, revealed.returncode) == ("second\n", 0)

        await eventually(reaches_the_child)

        tree = await stateful(environment, "tree", root)
        assert tree.returncode == 0
        first, *lines = tree.stdout.splitlines()
        assert first == "apiToken converged"
        assert sum(status["fingerprint"] in line for line in lines) == 2
        assert ["withheld" in line for line in lines if "Cleanup" in line] == [True]
        data = json.loads((await stateful(environment, "tree", root, "--json")).stdout)
        assert data["converged"] is True
        assert [node["parent"] for node in data["nodes"]] == [None, root, root]

        revoked = await stateful(environment, "token", "revoke", child, "--json")
        assert json.loads(revoked.stdout)["state"] == "revoked"
        refused = await stateful(environment, "token", "reveal", child)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("error: ")
        inherited = await stateful(environment, "token", "inherit", child, "--json")
        assert json.loads(inherited.stdout)["fingerprint"] == status["fingerprint"]


async def test_a_rotation_is_awaited_and_its_tree_shown(
    client: Client, tokens: TokenClient, queue: str, environment: dict[str, str]
) -> None:
    async with start_worker(client, queue):
        await tokens.start_workflow(
            Node.run,
            Plan({"a": Plan(), "b": Plan()}),
            id=queue,
            task_queue=queue,
            api_token="first",
            origins=[ORIGIN],
        )
        await nodes_run(tokens, queue, 3)

        done = await stateful(environment, "token", "rotate", queue, "--json", stdin="second")

        assert done.returncode == 0, done.stderr
        tree = json.loads(done.stdout.splitlines()[-1])
        assert tree["converged"]
        assert len({node["fingerprint"] for node in tree["nodes"]}) == 1
        assert tree["signed"]["origins"] == [ORIGIN], "the terms that it carries on are shown"
        assert (await tokens.get(f"{queue}-b")).reveal() == "second"

        done = await stateful(environment, "token", "rotate", queue, stdin="third")
        fingerprint = (await tokens.get(queue)).fingerprint
        shown = f"signed apiToken {fingerprint} for {ORIGIN}; types any; readers any"
        assert done.stdout.splitlines()[0] == shown


async def test_what_workflows_may_choose_is_escaped(
    client: Client, tokens: TokenClient, queue: str, environment: dict[str, str]
) -> None:
    root, liar = f"{queue}{HOSTILE_NAME}", f"{queue}-liar{HOSTILE_NAME}"
    async with start_worker(client, queue):
        await tokens.start_workflow(
            Node.run,
            Plan({HOSTILE_NAME: Plan()}),
            id=root,
            task_queue=queue,
            api_token="first",
            origins=[ORIGIN],
        )
        await client.start_workflow(Liar.run, Plan(), id=liar, task_queue=queue)
        await nodes_run(tokens, root, 2)

        async def output_of(*arguments: str) -> str:
            done = await stateful(environment, *arguments, stdin="second")
            assert unprintable(done.stdout + done.stderr) == set()
            assert "\nerror: forged" not in done.stdout + done.stderr
            return done.stdout if done.returncode in (0, 3) else done.stderr

        for told in (root, liar):
            lines = (await output_of("tree", told)).splitlines()
            assert len(lines) == 3, "a node is a line, whatever its id"
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


async def test_a_watched_tree_is_escaped_in_a_pipe(
    client: Client, tokens: TokenClient, queue: str, environment: dict[str, str]
) -> None:
    liar = f"{queue}{HOSTILE_NAME}"
    async with start_worker(client, queue):
        handle = await client.start_workflow(Liar.run, Plan(), id=liar, task_queue=queue)
        await handle.query(Liar.status)
        watching = await asyncio.create_subprocess_exec(
            *COMMAND,
            *("tree", liar, "--watch"),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        assert watching.stdout is not None
        lines = [await asyncio.wait_for(watching.stdout.readline(), 30) for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(watching.wait(), 30) == 0
    assert unprintable(b"".join(lines).decode()) == set()
    assert printable(liar) in lines[1].decode()


MISPLACED = "sk_live_Canary0123456789"


async def test_what_the_server_was_not_asked_for_or_does_not_know_is_not_repeated(
    client: Client, tokens: TokenClient, queue: str, environment: dict[str, str]
) -> None:
    no_file = f"{MISPLACED}/{MISPLACED}"
    async with start_worker(client, queue):
        await start_tree(tokens, queue)
        for ways in (
            (
                ("token", "reveal", queue, "--name", MISPLACED),
                ("token", "status", queue, "--name", MISPLACED),
                ("token", "reseal", queue, "--reader", MISPLACED),
                ("token", "set", queue, "--reader", MISPLACED),
                ("token", "set", queue, "--name", f"{MISPLACED}/+"),
            ),
            (
                ("token", "set", queue, "--audit", no_file),
                ("token", "revoke", queue, "--audit", no_file),
                ("token", "status", queue, "--namespace", MISPLACED),
                ("tree", queue, "--namespace", MISPLACED),
            ),
        ):
            for done in await asyncio.gather(
                *(stateful(environment, *arguments, stdin="second") for arguments in ways)
            ):
                assert queue in done.stdout or done.stderr.startswith("error: "), done.args
                assert "canary" not in (done.stdout + done.stderr).lower(), done.args


@pytest.mark.parametrize("command", ["set", "rotate"])
async def test_a_token_on_the_command_line_is_refused_and_not_repeated(
    environment: dict[str, str], command: str
) -> None:
    refused = await stateful(environment, "token", command, "some-id", "my-secret", stdin="x")

    assert refused.returncode == 2
    assert "my-secret" not in refused.stderr + refused.stdout
    assert "--from-env" in refused.stderr


async def test_a_token_comes_from_a_variable(
    client: Client, tokens: TokenClient, queue: str, environment: dict[str, str]
) -> None:
    async with start_worker(client, queue):
        await client.start_workflow(Node.run, Plan(), id=queue, task_queue=queue)
        done = await stateful(
            {**environment, "THEIR_TOKEN": "from the variable"},
            *("token", "set", queue, "--from-env", "THEIR_TOKEN", "--origin", ORIGIN),
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert (await tokens.get(queue)).reveal() == "from the variable"


async def test_what_went_wrong_is_one_line_that_says_what_to_do(
    client: Client, queue: str, environment: dict[str, str], tmp_path: Path, keyring: Keyring
) -> None:
    async def error(*arguments: str, **variables: str) -> str:
        done = await stateful({**environment, **variables}, *arguments, stdin="secret")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert "secret" not in done.stderr
        return done.stderr

    public = tmp_path / "public.json"
    keyring.public().save(public)
    async with start_worker(client, queue):
        await client.start_workflow("Plain", Plan(), id=f"{queue}-plain", task_queue=queue)
        await client.start_workflow(Node.run, Plan(), id=queue, task_queue=queue)
        assert "no-such-workflow" in await error("tree", "no-such-workflow")
        assert "not a StatefulWorkflow" in await error("tree", f"{queue}-plain")
        assert "not a StatefulWorkflow" in await error("token", "status", f"{queue}-plain")
        assert "no issuer" in await error(
            "token", "set", queue, "--origin", ORIGIN, STATEFUL_KEYRING=str(public)
        )
        assert "origin" in await error("token", "set", queue)
        assert "amespace" in await error("tree", queue, "--namespace", "elsewhere")


async def test_no_worker_is_said_in_time(
    client: Client, queue: str, environment: dict[str, str]
) -> None:
    await client.start_workflow(Node.run, Plan(), id=queue, task_queue=queue)
    done = await stateful(environment, "token", "status", queue)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no worker answered" in done.stderr


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


def read_address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("export TEMPORAL_ADDRESS="):
            return line.strip().partition("=")[2]
    raise AssertionError("it ended without an address")


@pytest.mark.skipif(os.name != "posix", reason="signals to a process group")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_dev_serves_until_it_is_stopped(number: signal.Signals, tmp_path: Path) -> None:
    db = tmp_path / "engine.db"
    with start_dev("--db", str(db), "--namespace", "acme") as process:
        try:
            address = read_address(process)
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
    client: Client, tokens: TokenClient, queue: str, environment: dict[str, str]
) -> None:
    async with start_worker(client, queue):
        await start_tree(tokens, queue)
        watching = await asyncio.create_subprocess_exec(
            *COMMAND,
            *("tree", queue, "--watch", "--json"),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        stdout = watching.stdout
        assert stdout is not None
        first = json.loads(await asyncio.wait_for(stdout.readline(), 30))
        await tokens.rotate(queue, "second", timeout=20)
        newest = (await tokens.get(queue)).version

        async def shows_it() -> bool:
            seen = json.loads(await asyncio.wait_for(stdout.readline(), 30))
            return {node["version"] for node in seen["nodes"]} == {newest}

        await eventually(shows_it)
        watching.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(watching.wait(), 30) == 0
    assert first["converged"]
    assert [node["id"] for node in first["nodes"]] == [queue, f"{queue}-a"]


async def test_in_a_terminal_a_watched_tree_is_drawn_anew(
    client: Client, tokens: TokenClient, queue: str, environment: dict[str, str]
) -> None:
    async with start_worker(client, queue):
        await start_tree(tokens, queue)
        terminal, slave = os.openpty()
        watching = await asyncio.create_subprocess_exec(
            *COMMAND,
            *("tree", queue, "--watch"),
            env={**environment, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
            stdout=slave,
        )
        os.close(slave)
        os.set_blocking(terminal, False)
        drawn = b""

        async def shows(text: str) -> None:
            async def is_shown() -> bool:
                nonlocal drawn
                with suppress(BlockingIOError):
                    drawn += os.read(terminal, 65536)
                return text.encode() in drawn

            await eventually(is_shown)

        await shows("Ctrl-C ends it")
        await tokens.rotate(queue, "second", timeout=20)
        await shows((await tokens.get(queue)).fingerprint)
        watching.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(watching.wait(), 30) == 0
        os.close(terminal)
    assert b"\x1b[" in drawn


async def start_tree(tokens: TokenClient, queue: str) -> None:
    await tokens.start_workflow(
        Node.run,
        Plan(children={"a": Plan()}),
        id=queue,
        task_queue=queue,
        api_token="first",
        origins=[ORIGIN],
    )
    await nodes_run(tokens, queue, 2)


async def test_what_the_command_sets_and_reveals_stands_in_the_audit_file(
    client: Client, tokens: TokenClient, queue: str, environment: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "audit.jsonl"
    async with start_worker(client, queue):
        await start_tree(tokens, queue)
        with_record = {**environment, "STATEFUL_AUDIT": str(file)}
        for arguments in (("set", queue), ("reveal", queue), ("revoke", queue)):
            done = await stateful(with_record, "token", *arguments, stdin="second\n")
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


async def test_a_revocation_is_sent_even_where_it_cannot_be_recorded(
    client: Client, tokens: TokenClient, queue: str, environment: dict[str, str], tmp_path: Path
) -> None:
    nowhere = {**environment, "STATEFUL_AUDIT": str(tmp_path / "missing" / "audit.jsonl")}
    async with start_worker(client, queue):
        await start_tree(tokens, queue)
        refused = await stateful(nowhere, "token", "set", queue, stdin="second\n")
        assert refused.returncode == 1
        assert (await tokens.get(queue)).reveal() == "first"

        revoked = await stateful(nowhere, "token", "revoke", queue)

        assert revoked.returncode == 0
        assert "not recorded" in revoked.stderr
        status = await tokens.status(queue)
        assert status is not None
        assert status.state == "revoked"
