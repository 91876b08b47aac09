"""`stateful token authorize` and `renew`, and what the other commands show of sources."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from temporalio.client import Client

from stateful_workflow import TokenClient
from stateful_workflow.engine import EmbeddedEngine
from tests.cli.test_cli_in_trees import Run, stateful
from tests.docs.reader import BLOCKS
from tests.support.asking import lower
from tests.support.living import URL, Provider, living_keyring, plugin, source_is
from tests.support.trees import Tree
from tests.support.workflows import Plan


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
async def home(
    engine: EmbeddedEngine, provider: Provider, queue: str, tmp_path: Path
) -> AsyncIterator[Tree]:
    """A root with a child, and a worker of the source "own" beside theirs."""
    keyring = living_keyring()
    keyring.save(tmp_path / "living.json")
    client = await Client.connect(engine.address, plugins=[plugin(keyring, provider)])
    tree = Tree(client, TokenClient(client, keyring), queue, queue)
    async with tree.worker():
        await tree.start(Plan({"a": Plan()}), api_token=None, api_url=None)
        yield tree


@pytest.fixture
def run(engine: EmbeddedEngine, tmp_path: Path) -> Run:
    return partial(
        stateful,
        {
            **os.environ,
            "TEMPORAL_ADDRESS": engine.address,
            "TEMPORAL_CONFIG_FILE": os.devnull,
            "STATEFUL_KEYRING": str(tmp_path / "living.json"),
        },
    )


async def test_a_source_is_authorized_seen_and_renewed_and_the_old_token_retired(
    home: Tree, provider: Provider, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower(monkeypatch, fresh_seconds=1.0)
    root, child = home.root, home.id("a")
    given = ("token", "authorize", root, "--source", "own", "--origin", URL)
    done = await run(*given, "--renew-every", "1h", stdin=json.dumps(provider.first))
    assert (done.returncode, "canary" in done.stdout + done.stderr) == (0, False), done.stderr
    assert "own, fresh" in done.stdout
    assert "every 3,600 s at the latest" in done.stdout

    seen = json.loads((await run("token", "status", child, "--json")).stdout)["source"]
    assert (seen["source"], seen["state"], seen["home"]) == ("own", "fresh", root)
    assert f"own, fresh, at {root}" in (await run("token", "status", child)).stdout
    tree = await run("tree", root)
    assert [" source own fresh, renews it in " in line for line in tree.stdout.splitlines()] == [
        *(False, True, False),
    ]

    done = await run("token", "renew", root, "--retire", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    shown = json.loads(done.stdout)
    assert (shown["done"], shown["proven"], shown["counts"]) == (True, True, {"minted": 2})
    assert "minted; 2 of 2 workflows hold it; running activities ask for it" in done.stderr
    assert provider.valid == {"tok-2"}

    done = await run("token", "set", root, stdin="by-hand")
    assert done.returncode == 0
    assert done.stderr.startswith("note: source own goes on minting apiToken here")
    done = await run("token", "renew", root, "--retire")
    assert done.returncode == 3
    assert "is not retired: source own did not mint it" in done.stdout


async def test_who_holds_a_retirement_up_is_named(home: Tree, provider: Provider, run: Run) -> None:
    given = ("token", "authorize", home.root, "--source", "own", "--origin", URL)
    assert (await run(*given, stdin=json.dumps(provider.first))).returncode == 0
    await home.signal("", "add_child", "lost", Plan(type="NoWorkerHasIt"))
    await home.knows("lost", "running", by="")

    done = await run("token", "renew", home.root, "--retire", "--timeout", "3")

    assert done.returncode == 3, done.stderr
    assert f"minted; 2 of 3 workflows hold it, not yet {home.id('lost')}" in done.stdout
    assert provider.valid == {"tok-1", "tok-2"}


async def test_a_dead_grant_is_told_with_the_command_that_ends_it(
    home: Tree, provider: Provider, run: Run
) -> None:
    command = f"stateful token authorize {home.root} --source own"
    given = (*command.split()[1:], "--origin", URL)
    dead = await run(*given, stdin='{"refresh": "spent-long-ago"}')
    assert dead.returncode == 3
    for shown in (dead, await run("token", "status", home.root), await run("tree", home.root)):
        assert "needs authorization" in shown.stdout
        assert "the provider refuses the grant: the provider answered invalid_grant" in shown.stdout
        assert command in shown.stdout
    refused = await run("token", "renew", home.root)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"apiToken needs authorization: run `{command}`" in refused.stderr

    done = await run(*given, "--grant-from-env", "GRANT", GRANT=json.dumps(provider.first))
    assert done.returncode == 0, done.stdout
    await home.opens("tok-1", "", "a")


async def test_where_no_worker_of_the_source_runs_authorize_says_so(home: Tree, run: Run) -> None:
    name = f"own-{home.queue}"
    given = ("token", "authorize", home.root, "--source", name, "--no-grant", "--origin", URL)
    done = await run(*given, "--timeout", "1")
    assert done.returncode == 3
    pending = f"pending: no worker polls task queue stateful-source:{name}"
    assert pending in done.stdout
    assert pending in done.stderr
    await source_is(home.tokens, home.root, lambda status: status.is_minting)
    assert pending in (await run("tree", home.root)).stdout


async def test_the_commands_of_the_guide_follow_one_another(
    home: Tree,
    provider: Provider,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lower(monkeypatch, fresh_seconds=1.0)
    (tmp_path / "grant.json").write_text(json.dumps(provider.first), "utf-8")
    (block,) = [
        block
        for block in BLOCKS
        if (block.document, block.heading) == ("docs/guide-sources.md", "On the command line")
    ]
    for command in block.commands:
        meant = command.replace("tenant-acme", home.root).replace("tenants", "own")
        words = [URL if word == "$API_URL" else word for word in shlex.split(meant)]
        words, stdin = (words[:-2], words[-1]) if "<" in words else (words, None)
        given = "" if stdin is None else (tmp_path / stdin).read_text("utf-8")
        done = await run(*words[1:], stdin=given)
        assert (words[0], done.returncode) == ("stateful", 0), done.stderr
    assert provider.valid == {"tok-2"}
