"""Every fenced block of the README and of docs/ is claimed here, and what can run runs.

The README is walked through as a reader would: its worker is built from the diff, its
commands and its Python run one after the other against a real engine and a real HTTP API.
The guides are walked through by a reader who has done that.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import runpy
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from temporalio.client import Client, WorkflowHandle

from stateful_workflow import (
    Keyring,
    NoWorkerAnswers,
    ReferenceUnresolved,
    Resolver,
    TokenClient,
)
from stateful_workflow.engine import start_engine
from stateful_workflow.sealed.message import parse
from stateful_workflow.sealed.secret import Secret
from stateful_workflow.source.environment import EnvironmentSource
from stateful_workflow.use.references import resolved
from tests.docs.reader import BLOCKS, DOCUMENTS, PROJECT, Block, Reader
from tests.support.api import start_api
from tests.support.asking import WITHIN, events_of, eventually
from tests.support.builders import CLAIMS as CLAIMS_OF_ONE

KINDS: Final = {"python", "diff", "sh", "console", "json", "text"}

KNOWN: Final = (
    "./run ",
    "git ",
    "pip install ",
    "uv pip compile ",
    "python worker.py",  # the README's worker is started by the walk itself
    "stateful demo",  # tests/demo/test_demo.py
    "stateful dev",  # tests/cli/test_cli_in_trees.py
)
"""Commands that are known and not run here."""


def unknown(block: Block) -> list[str]:
    return [command for command in block.commands if not f"{command} ".startswith(KNOWN)]


WALKED: Final = {
    "docs/audit.md": "tests/docs/test_audit.py",
    "docs/guide-sources.md": "tests/source/test_guide.py",
    "docs/kms.md": "tests/sealed/test_kms.py",
    "docs/operations.md": "tests/docs/test_operations.py",
    "docs/security.md": "tests/docs/test_security.py",
}
"""Documents whose blocks have a test of their own."""

ACME: Final = Secret("prod:tenants/acme", is_reference=True)
FIRST, SECOND, BILLING = "snippet-token-1", "snippet-token-2", "snippet-billing"
KEY_ID: Final = "snippet-key-id"
PATHS: Final = ("/accounts/ada", "/accounts/bob")


# --- the README ----------------------------------------------------------------------------------


def write_workers(reader: Reader, block: Block) -> None:
    """The worker before the diff and after it, and in between, with its activity as it was."""
    lines = block.text.splitlines()
    assert all(line[:1] in {" ", "+", "-", ""} for line in lines), f"{block.place}: not a diff"
    before = [line for line in lines if not line.startswith("+")]
    after = [line for line in lines if not line.startswith("-")]
    assert len(lines) - len(before) == 5, f"{block.place}: the text counts five lines"
    (of_environment,) = [line for line in lines if line.startswith("-") and "API_TOKEN" in line]
    between = [of_environment if "auth=TokenAuth()" in line else line for line in after]
    for name, kept in (("before", before), ("between", between), ("worker", after)):
        (reader.home / f"{name}.py").write_text("".join(f"{line[1:]}\n" for line in kept), "utf-8")


async def start_before(reader: Reader, workflow_id: str) -> WorkflowHandle[Any, Any]:
    """The worker as it was, which is an ordinary one and works, and a tree that it runs."""
    await reader.start_worker("before.py")
    client = await Client.connect(reader.engine.address)
    handle = await client.start_workflow(
        "Tenant",
        [f"{reader.api.origin}{path}" for path in PATHS],
        id=workflow_id,
        task_queue="tenants",
    )
    await reader.called_with(FIRST, *PATHS)
    return handle


async def the_diff(reader: Reader, block: Block) -> None:
    write_workers(reader, block)
    handle = await start_before(reader, "before")
    await handle.terminate()
    await reader.stop_worker()


async def the_keys(reader: Reader, block: Block) -> None:
    listed = await reader.run(block)
    key_ids = {key.kid for key in reader.keyring.keys()}
    assert len(key_ids) == 2
    assert all(kid in listed for kid in key_ids)
    public = Keyring.from_json((reader.home / "public.json").read_text("utf-8"))
    assert {key.kid for key in public.keys()} == key_ids
    assert not any(key.private for key in public.keys())


async def the_start(reader: Reader, block: Block) -> None:
    await reader.start_worker("worker.py")
    await reader.python(block)
    await reader.called_with(FIRST, *PATHS)


async def the_rotation(reader: Reader, block: Block) -> None:
    reader.api.valid.add(SECOND)
    await reader.python(block)
    reader.api.valid.remove(FIRST)
    await reader.called_with(SECOND, *PATHS)


# --- the guides ----------------------------------------------------------------------------------

BESIDE: Final = """\
import asyncio
import os
from collections.abc import Callable
from datetime import timedelta

import httpx
from temporalio import activity, workflow
from temporalio.common import RetryPolicy

from stateful_workflow import SealedToken, StatefulWorkflow, TokenAuth, current_api_url, seal_token


@workflow.defn
class Sync(StatefulWorkflow):
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.update
    async def call(self, name: str, argument: str) -> int:
        return await workflow.execute_activity(
            name,
            argument,
            result_type=int,
            start_to_close_timeout=timedelta(seconds=10),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )


@workflow.defn
class Cleanup(StatefulWorkflow):
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)


class Client:
    def __init__(self, base_url: str, api_key: Callable[[], str]) -> None:
        self._http = httpx.Client(base_url=base_url)
        self._api_key = api_key

    def get(self, path: str) -> httpx.Response:
        return self._http.get(path, headers={"Authorization": f"Bearer {self._api_key()}"})
"""
"""What the guides' activities and workflows are put behind; `Client` is that of some API."""


async def the_python(reader: Reader, block: Block) -> None:
    await reader.python(block)


async def the_commands(reader: Reader, block: Block) -> None:
    await reader.run(block)


async def the_withholding(reader: Reader, block: Block) -> None:
    async with reader.worker_of(BESIDE + block.text) as (tokens, _):
        handle = await tokens.start_workflow(
            "Account",
            "ada",
            id="account-ada",
            task_queue="snippets",
            api_token=FIRST,
            origins=[reader.api.origin],
        )

        async def only_the_sync_has_it() -> None:
            tree = await tokens.rotate("account-ada", SECOND, timeout=WITHIN)
            assert {node.id: (node.state, node.withheld) for node in tree.nodes} == {
                "account-ada": ("held", False),
                "ada-sync": ("held", False),
                "ada-cleanup": ("withheld", True),
                "ada-dry-run": ("withheld", True),
            }

        await eventually(only_the_sync_has_it)
        await handle.terminate()


JOINING: Final = """\
from temporalio.client import Schedule, ScheduleActionStartWorkflow, ScheduleSpec

from stateful_workflow import TokenHome
"""


async def the_joining(reader: Reader, block: Block) -> None:
    async with reader.worker_of(BESIDE + block.text) as (tokens, _):
        account = await tokens.start_workflow(
            "Account",
            id="account",
            task_queue="snippets",
            api_token=SECOND,
            api_url=reader.api.origin,
        )
        started = reader.names["client"].execute_workflow
        ended = await started("Nightly", "account", id="nightly", task_queue="snippets")
        assert ended == 200
        await account.terminate()


async def the_home(reader: Reader, block: Block) -> None:
    """Started by the reader's issuer, for the workflow of the section before."""
    reader.api.valid.add(FIRST)
    exec(JOINING, reader.names)
    [nightly] = [b for b in BLOCKS if (b.document, b.heading) == (block.document, "Join a tree")]
    [commands] = [b for b in BLOCKS if b.document == block.document and b.kind == "sh"]
    async with reader.worker_of(BESIDE + nightly.text, "nightly") as (tokens, _):
        await reader.python(block)
        client: Client = reader.names["client"]
        await client.get_schedule_handle("nightly").trigger()

        async def has_called() -> None:
            assert reader.api.tokens("accounts").count(FIRST) == 1

        reader.api.calls.clear()
        await eventually(has_called)
        await client.get_schedule_handle("nightly").delete()
        await reader.run(commands)
        assert await client.get_workflow_handle("nightly-now").result() == 200
        assert (await tokens.get("home")).reveal() == SECOND
        await client.get_workflow_handle("home").terminate()
    reader.api.valid.discard(FIRST)


async def the_commands_of_the_home(reader: Reader, block: Block) -> None:
    """Run with the home."""


async def the_activities(reader: Reader, block: Block) -> None:
    """Each activity calls the API, with the tokens that its text names."""
    reader.api.valid |= {BILLING, KEY_ID}
    wanted = [SECOND, BILLING] if "billing" in block.text else [SECOND]
    if '"aws"' in block.text:
        wanted = [KEY_ID]
    async with reader.worker_of(BESIDE + block.text) as (tokens, module):
        handle = await tokens.start_workflow(
            "Sync", id="caller", task_queue="snippets", api_token=SECOND, api_url=reader.api.origin
        )
        await tokens.set("caller", BILLING, name="billing", origins=[reader.api.origin])
        await tokens.set("caller", f"{KEY_ID}:{SECOND}", name="aws", origins=[reader.api.origin])
        activities = {
            name: it
            for name, it in vars(module).items()
            if hasattr(it, "__temporal_activity_definition")
        }
        assert activities, f"{block.place}: there is no activity in it"
        for name, it in activities.items():
            (parameter,) = inspect.signature(it).parameters
            argument = f"/{name}" if parameter == "path" else reader.api.url(name)
            assert await handle.execute_update("call", args=[name, argument]) == 200
            calls = [call for call in reader.api.calls if call.path.split("/")[1] == name]
            assert [call.token for call in calls] == wanted
        await handle.terminate()


async def the_narrowing(reader: Reader, block: Block) -> None:
    """The token was set by hand: the child has none, and it says why."""
    async with reader.worker_of(BESIDE + block.text) as (tokens, _):
        handle = await tokens.start_workflow(
            "Audited",
            "bob",
            id="audited-bob",
            task_queue="snippets",
            api_token=FIRST,
            origins=[reader.api.origin],
        )

        async def it_is_behind() -> None:
            (child,) = (await tokens.tree("audited-bob")).behind
            assert (child.id, child.narrowed, child.state) == ("bob-export", ("read",), "withheld")
            assert "does not say its source" in str(child.problem)

        await eventually(it_is_behind)
        await handle.terminate()


async def the_reference(reader: Reader, block: Block) -> None:
    async with reader.worker_of(BESIDE, "tenants") as (tokens, _):
        await reader.python(block)
        with pytest.raises(ReferenceUnresolved) as refusal:
            await tokens.get("sync-acme")
        assert refusal.value.reference == "prod:tenants/acme"
        await reader.names["client"].get_workflow_handle("sync-acme").terminate()


async def the_resolvers(reader: Reader, block: Block) -> None:
    """Each of them resolves a tenant's, and nothing else."""
    exec("from stateful_workflow import Resolver, StatefulPlugin", reader.names)
    names = {**reader.names}
    reader.names["read_secret"] = {"tenants/acme": SECOND}.__getitem__
    reader.names["key_values"] = EnvironmentSource("NEW_API_TOKEN")
    await reader.python(block)
    resolver: Resolver = (
        reader.names.pop("resolver", None) or (reader.names["plugin"].resolvers["prod"])
    )
    reader.names |= names
    held = parse(Keyring.generate().seal(CLAIMS_OF_ONE, ACME))
    assert (await resolved({"prod": resolver}, held, ACME))[0].token == SECOND
    assert not resolver.allows("others/acme")


async def the_renewal(reader: Reader, block: Block) -> None:
    async with reader.worker_of(BESIDE + block.text) as (tokens, _):
        handle = await tokens.start_workflow("Renewal", id="renewal", task_queue="snippets")
        assert await handle.result() == "held"
        assert (await tokens.get("renewal")).reveal() == SECOND


async def the_status(reader: Reader, block: Block) -> None:
    assert "tenant-acme-sync-0" in await reader.run(block)


async def the_command_line(reader: Reader, block: Block) -> None:
    secrets, reader.secrets = reader.secrets, {FIRST, BILLING}  # `reveal` shows the second
    lines = (await reader.run(block)).splitlines()
    reader.secrets = secrets
    assert lines.count(SECOND) == "\n".join(lines).count(SECOND) == 1
    assert len(json.loads(lines[-1])["nodes"]) == 3


async def the_console(reader: Reader, block: Block) -> None:
    (command,) = block.commands
    printed = await reader.shell(
        # Revoking and inheriting before it may still be on their way down.
        f"for try in 1 2 3 4 5 6 7 8 9; do {command} >shown && break; sleep 0.3; done; cat shown",
        block.place,
    )
    _, _, promised = block.text.partition("\n")
    assert alike(printed) == alike(promised), block.place


def alike(text: str) -> list[str]:
    """Without what differs from run to run: fingerprints, ages, origins, the order of siblings."""
    text = re.sub(r"\b[0-9a-f]{16}\b", "FINGERPRINT", text)
    text = re.sub(r"\bhttps?://[^\s;]+", "ORIGIN", text)
    text = re.sub(r"\b\d+ (s|min) old\b", "AGE", text)
    return sorted(re.sub("[├└]", "", line).rstrip() for line in text.splitlines())


async def the_record(reader: Reader, block: Block) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(reader.home)
        await reader.python(block)
    client = await Client.connect(reader.engine.address, plugins=[reader.names["plugin"]])
    await TokenClient(client, reader.keyring).set("tenant-acme", SECOND)
    shown = await reader.shell("stateful audit tail worker.jsonl", block.place)
    assert shown.count("set") >= 2
    await reader.shell("stateful audit verify worker.jsonl", block.place)


async def the_move(reader: Reader, block: Block) -> None:
    """Steps 1 and 2 of the migration by hand, then step 3 as it stands there, then step 4."""
    client = await Client.connect(reader.engine.address)
    await client.get_workflow_handle("tenant-acme").terminate()
    reader.api.valid.add(FIRST)
    await start_before(reader, "tenant-before")
    syncs = [f"tenant-before-sync-{number}" for number in range(len(PATHS))]

    async def have_called() -> bool:
        handles = [client.get_workflow_handle(sync) for sync in syncs]
        return all([await events_of(handle, "ACTIVITY_TASK_COMPLETED") for handle in handles])

    await eventually(have_called)
    await reader.start_worker("between.py")
    await reader.called_with(FIRST, *PATHS)
    tokens = TokenClient(client)

    async def answers() -> bool:
        try:
            return bool((await tokens.tree("tenant-before")).nodes)
        except NoWorkerAnswers:
            return False

    await eventually(answers)
    await reader.run(block)
    nodes = (await tokens.tree("tenant-before")).nodes
    assert [node.id for node in nodes if node.authority == "tenant-before"][1:] == syncs

    await reader.start_worker("worker.py")
    await reader.called_with(FIRST, *PATHS)


async def the_last_step(reader: Reader, block: Block) -> None:
    await reader.run(block)
    reader.api.valid.remove(FIRST)
    await reader.called_with(SECOND, *PATHS)


CLAIMS: Final[dict[tuple[str, str, str], Callable[[Reader, Block], Awaitable[None]]]] = {
    ("README.md", "diff", "Three lines and an import"): the_diff,
    ("README.md", "sh", "Make keys"): the_keys,
    ("README.md", "python", "Start a tree with a token"): the_start,
    ("README.md", "python", "Rotate it"): the_rotation,
    ("docs/guide-manage.md", "console", "What a rotation keeps"): the_console,
    ("docs/guide-manage.md", "python", "Look at it"): the_python,
    ("docs/guide-manage.md", "sh", "From the command line"): the_command_line,
    ("docs/guide-manage.md", "console", "From the command line"): the_console,
    ("docs/guide-manage.md", "sh", "Send one by hand"): the_commands,
    ("docs/guide-manage.md", "python", "The API's address"): the_python,
    ("docs/guide-manage.md", "python", "From inside a workflow"): the_renewal,
    ("docs/guide-use.md", "python", "With httpx"): the_activities,
    ("docs/guide-use.md", "python", "With requests and aiohttp"): the_activities,
    ("docs/guide-use.md", "python", "In another header, in another scheme"): the_activities,
    ("docs/guide-use.md", "python", "With any other client"): the_activities,
    ("docs/guide-use.md", "python", "When the API refuses the token"): the_activities,
    ("docs/guide-use.md", "python", "Before there is a token"): the_activities,
    ("docs/guide-use.md", "sh", "Several credentials"): the_commands,
    ("docs/guide-use.md", "python", "Several credentials"): the_activities,
    ("docs/guide-use.md", "python", "Where the token is a reference"): the_resolvers,
    ("docs/guide-share.md", "python", "Before a child starts"): the_withholding,
    ("docs/guide-share.md", "python", "Less than the parent may"): the_narrowing,
    ("docs/guide-share.md", "python", "From outside"): the_python,
    ("docs/guide-share.md", "python", "Nothing but a reference"): the_reference,
    ("docs/guide-join.md", "python", "Join a tree"): the_joining,
    ("docs/guide-join.md", "python", "A home for a token"): the_home,
    ("docs/guide-join.md", "sh", "A home for a token"): the_commands_of_the_home,
    ("docs/guide-record.md", "python", "Write it"): the_record,
    ("docs/limits.md", "sh", "A running child that its parent does not know"): the_commands,
    ("docs/limits.md", "sh", "A workflow with a token of its own"): the_commands,
    ("docs/limits.md", "sh", "A workflow that has lost its state"): the_commands,
    ("docs/limits.md", "sh", "A reset that brings a revoked token back"): the_commands,
    ("docs/limits.md", "sh", "A branch that is to have its token back"): the_commands,
    ("docs/limits.md", "sh", "A call that ended without an answer"): the_commands,
    ("docs/signals.md", "sh", "Try it"): the_status,
    # Last: it takes the worker away from the README's tree.
    ("docs/guide-migration.md", "sh", "3. Set the tokens"): the_move,
    ("docs/guide-migration.md", "sh", "5. Rotate"): the_last_step,
}
"""What is done with the blocks, by document, tag and heading; one document after the other."""


@pytest.fixture
async def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reader]:
    async with start_engine(ui=False) as engine:
        with start_api() as api:
            api.valid = {FIRST}
            reader = Reader(tmp_path, engine, api)
            reader.secrets = {FIRST, SECOND, BILLING}
            reader.environment |= {
                "API_URL": api.origin,
                "API_TOKEN": FIRST,
                "NEW_API_TOKEN": SECOND,
                "BILLING_TOKEN": BILLING,
            }
            for name, value in reader.environment.items():
                monkeypatch.setenv(name, value)
            monkeypatch.syspath_prepend(tmp_path)  # pyright: ignore[reportUnknownMemberType]
            try:
                yield reader
            finally:
                await reader.stop_worker()
                sys.modules.pop("worker", None)


@pytest.mark.timeout(300)
async def test_the_readme_and_the_guides_do_what_they_say(
    reader: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    followed: set[tuple[str, str, str]] = set()
    for document in dict.fromkeys(document for document, _, _ in CLAIMS):
        for block in BLOCKS:
            key = (block.document, block.kind, block.heading)
            if block.document == document and key in CLAIMS and unknown(block):
                await CLAIMS[key](reader, block)
                followed.add(key)
    assert followed == CLAIMS.keys(), "a document has lost a block that is claimed here"
    printed = capsys.readouterr().out
    assert "revoke the old token at the API; 3 workflows have the new one" in printed
    assert re.search(r"^held \d+ [0-9a-f]{16} \('http://127.0.0.1:\d+',\)$", printed, re.MULTILINE)
    assert FIRST not in printed
    assert SECOND not in printed


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_every_block_is_claimed(block: Block) -> None:
    assert block.kind in KINDS, f"{block.place}: tag it as one of {KINDS}"
    if block.kind == "json":
        json.loads(block.text)  # docs/wire-format.md: what they say is checked by its own test
    elif block.document in WALKED:
        assert (PROJECT / WALKED[block.document]).is_file()
    elif block.kind != "text" and (block.document, block.kind, block.heading) not in CLAIMS:
        assert block.kind in {"sh", "console"}, f"{block.place}: nothing runs this block"
        assert not unknown(block), f"{block.place}: nothing runs {unknown(block)}"


def test_the_readme_has_a_thousand_words_at_most() -> None:
    assert len((PROJECT / "README.md").read_text("utf-8").split()) <= 1_000


def test_links_between_documents_lead_somewhere() -> None:
    for path in [*DOCUMENTS, PROJECT / "CHANGELOG.md"]:
        text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)", text):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_picture_is_what_its_script_draws() -> None:
    script = PROJECT / "docs" / "images" / "make_rotation.py"
    drawn = runpy.run_path(os.fspath(script))["draw"]()
    assert drawn == script.with_name("rotation.svg").read_text("utf-8")
