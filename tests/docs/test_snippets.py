"""Every fenced block of the README and of docs/ is claimed here, and what can run runs.

The README is walked through as a reader would: its worker is built from the diff, its
commands and its Python run one after the other against a real engine and a real HTTP API.
The guides are walked through by a reader who has done that.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import types
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from stateful_workflow import Keyring, NoWorkerAnswers, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine, find_temporal, start_engine

from ..server.api import Api, start_api
from ..server.support import WITHIN, events_of, eventually

PROJECT: Final = Path(__file__).parents[2]
KINDS: Final = {"python", "diff", "sh", "console", "json"}
NOT_RUN: Final = {"text"}

KNOWN: Final = (
    "./run ",
    "git ",
    "pip install ",
    "uv pip compile ",
    "python worker.py",  # the README's worker is started by the walk itself
    "stateful demo",  # tests/server/test_demo.py
    "stateful dev",  # tests/server/test_cli.py
)
"""Commands that are known and not run here."""

WALKED: Final = {
    "docs/audit.md": "tests/docs/test_audit.py",
    "docs/kms.md": "tests/server/test_kms.py",
    "docs/operations.md": "tests/docs/test_operations.py",
    "docs/security.md": "tests/docs/test_security.py",
}
"""Documents whose blocks have a test of their own."""

FOLLOWED: Final = (
    "README.md",
    "docs/guide-manage.md",
    "docs/guide-use.md",
    "docs/guide-share.md",
    "docs/guide-record.md",
    "docs/limits.md",
    "docs/signals.md",
    "docs/guide-migration.md",  # last: it takes the worker away from the README's tree
)
"""Documents that are followed here, one after the other by the same reader."""

FIRST, SECOND, BILLING = "snippet-token-1", "snippet-token-2", "snippet-billing"


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        document: path in the project.
        line: of its first line of content, from 1.
        kind: its tag; "" without one.
        heading: the heading it stands under.
        text: what is between the fences.
    """

    document: str
    line: int
    kind: str
    heading: str
    text: str

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.document}:{self.line}"


def read_blocks(document: str, markdown: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    blocks: list[Block] = []
    heading, fence, kind, begin = "", "", "", 0
    content: list[str] = []
    for number, line in enumerate(markdown.splitlines(), 1):
        mark = re.match(r"\s*(`{3,}|~{3,})\s*(\w*)", line)
        if fence:
            if mark and mark[1].startswith(fence) and line.strip() == mark[1]:
                blocks.append(Block(document, begin, kind, heading, "\n".join(content) + "\n"))
                fence = ""
            else:
                content.append(line)
        elif mark:
            fence, kind, begin, content = mark[1], mark[2], number + 1, []
        elif title := re.match(r"#+ (.*)", line):
            heading = title[1]
    assert not fence, f"{document}: the fence opened at line {begin - 1} is never closed"
    return blocks


def documents() -> list[Path]:
    return [
        PROJECT / "README.md",
        PROJECT / "CONTRIBUTING.md",
        *sorted((PROJECT / "docs").rglob("*.md")),
    ]


BLOCKS: Final = [
    block
    for path in documents()
    for block in read_blocks(path.relative_to(PROJECT).as_posix(), path.read_text("utf-8"))
]


def commands(block: Block) -> list[str]:
    """The commands of a sh or console block, continued lines joined."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.kind == "console":
        return [line[2:] for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def is_known(command: str) -> bool:
    return any(f"{command} ".startswith(known) for known in KNOWN)


class Reader:
    """Somebody who follows the README in an empty directory, and then the guides.

    Attributes:
        home: that directory.
        environment: of every command.
    """

    def __init__(self, home: Path, engine: EmbeddedEngine, api: Api) -> None:
        self.home = home
        self.engine = engine
        self.api = api
        self.environment = {
            **os.environ,
            "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TEMPORAL_ADDRESS": engine.address,
            "TEMPORAL_CONFIG_FILE": os.devnull,
            "STATEFUL_KEYRING": str(home / "keyring.json"),
            "API_URL": api.origin,
            "API_TOKEN": FIRST,
            "NEW_API_TOKEN": SECOND,
            "BILLING_TOKEN": BILLING,
        }
        self._worker: subprocess.Popen[bytes] | None = None
        self._names: dict[str, Any] = {"__name__": "__main__"}
        program = home / "bin" / "stateful"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m stateful_workflow.cli "$@"\n')
        program.chmod(0o755)

    @property
    def keyring(self) -> Keyring:
        return Keyring.load(self.home / "keyring.json")

    async def follow(self, block: Block) -> None:
        """Do what a block says.

        Raises:
            AssertionError: where it fails, or nothing here knows what to do with it.
        """
        if block.kind in ("sh", "console") and all(map(is_known, commands(block))):
            return
        claim = CLAIMS.get((block.document, block.kind, block.heading))
        assert claim is not None, f"{block.place}: nothing claims this {block.kind} block"
        await claim(self, block)

    async def shell(self, script: str, place: str) -> str:
        """Run a shell script and return what it printed."""
        done = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-eu", "-c", script],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert done.returncode == 0, f"{place}: status {done.returncode}\n{done.stderr}"
        return done.stdout

    async def python(self, block: Block) -> None:
        """Run a block as `python -m asyncio` would; names live on from block to block."""
        tree = ast.parse(block.text, block.place)
        ast.increment_lineno(tree, block.line - 1)
        code = compile(
            tree,
            str(PROJECT / block.document),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        running = types.FunctionType(code, self._names)()
        if inspect.isawaitable(running):
            await running

    def module(self, text: str) -> types.ModuleType:
        """A module of this text, importable by its name, as a worker's sandbox needs it."""
        name = f"snippet_{uuid.uuid4().hex}"
        path = self.home / f"{name}.py"
        path.write_text(text, "utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    async def start_worker(self, program: str) -> None:
        """Start a worker of the reader's in a process of its own, in place of the one before."""
        await self.stop_worker()
        with (self.home / "worker.log").open("wb") as log:
            self._worker = subprocess.Popen(
                [sys.executable, program],
                cwd=self.home,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def stop_worker(self) -> None:
        if self._worker is not None:
            # As Ctrl-C does: the server hears of it, and waits for no worker that is gone.
            self._worker.send_signal(signal.SIGINT)
            try:
                await asyncio.to_thread(self._worker.wait, 10)
            except subprocess.TimeoutExpired:
                self._worker.kill()
                await asyncio.to_thread(self._worker.wait)
            self._worker = None

    async def called_with(self, token: str, *paths: str) -> None:
        """Wait until the API has answered calls of these paths with a token."""

        async def answered() -> bool:
            worker = self._worker
            assert worker is not None
            log = (self.home / "worker.log").read_text("utf-8", "replace")
            assert worker.poll() is None, f"the worker has ended: {log[-2000:]}"
            seen = {(call.path, call.token) for call in self.api.calls if call.status == 200}
            return all((path, token) in seen for path in paths)

        await eventually(answered)


PATHS: Final = ("/accounts/ada", "/accounts/bob")


def write_workers(reader: Reader, block: Block) -> None:
    """The worker before the diff and after it, and in between, with its activity as it was."""
    lines = block.text.splitlines()
    assert all(line[:1] in {" ", "+", "-", ""} for line in lines), f"{block.place}: not a diff"
    added = [line for line in lines if line.startswith("+")]
    assert len(added) == 5, f"{block.place}: the text counts five lines"
    not_yet = [line for line in added if "auth=TokenAuth()" in line]
    still = [line for line in lines if line.startswith("-") and "API_TOKEN" in line]
    assert len(not_yet) == len(still) == 1
    for name, kept in (
        ("before.py", [line for line in lines if line not in added]),
        ("between.py", [line for line in lines if _is_after(line, not_yet) or line in still]),
        ("worker.py", [line for line in lines if _is_after(line)]),
    ):
        (reader.home / name).write_text("".join(f"{line[1:]}\n" for line in kept), "utf-8")


def _is_after(line: str, but: Sequence[str] = ()) -> bool:
    return not line.startswith("-") and line not in but


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
    listed = await reader.shell(block.text, block.place)
    key_ids = {key.kid for key in reader.keyring.keys()}
    assert len(key_ids) == 2
    assert all(kid in listed for kid in key_ids)
    public = Keyring.from_json((reader.home / "public.json").read_text("utf-8"))
    assert {key.kid for key in public.keys()} == key_ids
    assert not any(key.private for key in public.keys())


async def the_start(reader: Reader, block: Block) -> None:
    reader.api.calls.clear()
    await reader.start_worker("worker.py")
    await reader.python(block)
    await reader.called_with(FIRST, *PATHS)


async def the_rotation(reader: Reader, block: Block) -> None:
    reader.api.valid.add(SECOND)
    await reader.python(block)
    reader.api.valid.remove(FIRST)
    await reader.called_with(SECOND, *PATHS)


async def the_python(reader: Reader, block: Block) -> None:
    await reader.python(block)


async def the_commands(reader: Reader, block: Block) -> None:
    printed = await reader.shell(block.text, block.place)
    assert not any(token in printed for token in (FIRST, SECOND, BILLING)), block.place


async def the_withholding(reader: Reader, block: Block) -> None:
    """Its workflows, around which the imports and the two children are put, in a worker here."""
    account = reader.module(
        "import asyncio\n"
        "from temporalio import workflow\n"
        "from stateful_workflow import StatefulWorkflow\n"
        + "".join(
            f"@workflow.defn\nclass {name}(StatefulWorkflow):\n"
            "    @workflow.run\n"
            "    async def run(self) -> None:\n"
            "        await workflow.wait_condition(lambda: False)\n"
            for name in ("Sync", "Cleanup")
        )
        + block.text
    )
    client = await Client.connect(reader.engine.address, plugins=[StatefulPlugin(reader.keyring)])
    tokens = TokenClient(client, reader.keyring)
    async with Worker(
        client,
        task_queue="accounts",
        workflows=[account.Account, account.Sync, account.Cleanup],
    ):
        handle = await tokens.start_workflow(
            "Account",
            "ada",
            id="account-ada",
            task_queue="accounts",
            api_token=FIRST,
            origins=[reader.api.origin],
        )

        async def only_the_sync_has_it() -> None:
            tree = await tokens.rotate("account-ada", SECOND, timeout=WITHIN)
            seen = {node.id: (node.state, node.withheld) for node in tree.nodes}
            assert seen == {
                "account-ada": ("held", False),
                "ada-sync": ("held", False),
                "ada-cleanup": ("withheld", True),
                "ada-dry-run": ("withheld", True),
            }

        await eventually(only_the_sync_has_it)
        await handle.terminate()


CALLER: Final = """\
import os
from datetime import timedelta

import httpx
from temporalio import activity, workflow
from temporalio.common import RetryPolicy

from stateful_workflow import SealedToken, StatefulWorkflow, seal_token


@workflow.defn
class Caller(StatefulWorkflow):
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


class Client:
    def __init__(self, base_url: str, api_key: str) -> None:
        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=base_url, headers=headers)

    def get(self, path: str) -> httpx.Response:
        return self._http.get(path)
"""
"""What the guides' activities and workflows are put behind; `Client` is that of some API."""


@asynccontextmanager
async def run_snippet(
    reader: Reader, block: Block
) -> AsyncGenerator[tuple[TokenClient, types.ModuleType], None]:
    """A worker of the task queue "snippets" with the workflows and activities of a block."""
    module = reader.module(CALLER + block.text)
    defined = vars(module).values()
    client = await Client.connect(reader.engine.address, plugins=[StatefulPlugin(reader.keyring)])
    with ThreadPoolExecutor(max_workers=4) as threads:
        async with Worker(
            client,
            task_queue="snippets",
            workflows=[it for it in defined if hasattr(it, "__temporal_workflow_definition")],
            activities=[it for it in defined if hasattr(it, "__temporal_activity_definition")],
            activity_executor=threads,
        ):
            yield TokenClient(client, reader.keyring), module


async def the_activities(reader: Reader, block: Block) -> None:
    """Each activity calls the API, with the tokens that its text names."""
    reader.api.valid.add(BILLING)
    wanted = [SECOND, BILLING] if "billing" in block.text else [SECOND]
    async with run_snippet(reader, block) as (tokens, module):
        handle = await tokens.start_workflow(
            "Caller",
            id="caller",
            task_queue="snippets",
            api_token=SECOND,
            api_url=reader.api.origin,
        )
        await tokens.set("caller", BILLING, name="billing", origins=[reader.api.origin])
        names = [
            name
            for name, it in vars(module).items()
            if hasattr(it, "__temporal_activity_definition")
        ]
        assert names, f"{block.place}: there is no activity in it"
        for name in names:
            (parameter,) = inspect.signature(vars(module)[name]).parameters
            argument = f"/{name}" if parameter == "path" else reader.api.url(name)
            assert await handle.execute_update("call", args=[name, argument]) == 200
            assert reader.api.tokens(name) == wanted
        await handle.terminate()


async def the_renewal(reader: Reader, block: Block) -> None:
    async with run_snippet(reader, block) as (tokens, _):
        handle = await tokens.start_workflow("Renewal", id="renewal", task_queue="snippets")
        assert await handle.result() == "held"
        assert (await tokens.get("renewal")).reveal() == SECOND


async def the_status(reader: Reader, block: Block) -> None:
    (reader.home / "bin" / "temporal").symlink_to(find_temporal())
    printed = await reader.shell(block.text, block.place)
    assert "tenant-acme-sync-0" in printed
    assert SECOND not in printed


async def the_move(reader: Reader, block: Block) -> None:
    """Steps 1 and 2 of the migration by hand, then step 3 as it stands there, then step 4."""
    client = await Client.connect(reader.engine.address)
    await client.get_workflow_handle("tenant-acme").terminate()
    reader.api.valid.add(FIRST)
    reader.api.calls.clear()
    await start_before(reader, "tenant-before")
    for number in range(len(PATHS)):
        sync = client.get_workflow_handle(f"tenant-before-sync-{number}")

        async def has_called(sync: WorkflowHandle[Any, Any] = sync) -> bool:
            return bool(await events_of(sync, "ACTIVITY_TASK_COMPLETED"))

        await eventually(has_called)

    await reader.start_worker("between.py")
    reader.api.calls.clear()
    await reader.called_with(FIRST, *PATHS)
    tokens = TokenClient(client)

    async def answers() -> bool:
        try:
            return bool((await tokens.tree("tenant-before")).nodes)
        except NoWorkerAnswers:
            return False

    await eventually(answers)
    await the_commands(reader, block)
    tree = await tokens.tree("tenant-before")
    problems = {node.id: node.problem or "" for node in tree.nodes}
    assert [id for id, problem in problems.items() if "not of this tree" in problem] == [
        "tenant-before-sync-0",
        "tenant-before-sync-1",
    ]

    await reader.start_worker("worker.py")
    reader.api.calls.clear()
    await reader.called_with(FIRST, *PATHS)


async def the_last_step(reader: Reader, block: Block) -> None:
    await the_commands(reader, block)
    reader.api.valid.remove(FIRST)
    await reader.called_with(SECOND, *PATHS)


async def the_command_line(reader: Reader, block: Block) -> None:
    printed = await reader.shell(block.text, block.place)
    lines = printed.splitlines()
    assert lines.count(SECOND) == printed.count(SECOND) == 1  # reveal shows it, nothing else does
    assert len(json.loads(lines[-1])["nodes"]) == 3


async def the_console(reader: Reader, block: Block) -> None:
    (command,) = commands(block)
    printed = await reader.shell(
        # Revoking and inheriting before it may still be on their way down.
        f"for try in 1 2 3 4 5 6 7 8 9; do {command} >shown && break; sleep 0.3; done; cat shown",
        block.place,
    )
    _, _, promised = block.text.partition("\n")
    assert _alike(printed) == _alike(promised), block.place


async def the_record(reader: Reader, block: Block) -> None:
    before = Path.cwd()
    os.chdir(reader.home)
    try:
        await reader.python(block)
    finally:
        os.chdir(before)
    plugin: StatefulPlugin = reader._names["plugin"]  # pyright: ignore[reportPrivateUsage]
    client = await Client.connect(reader.engine.address, plugins=[plugin])
    await TokenClient(client, reader.keyring).set("tenant-acme", SECOND)
    shown = await reader.shell("stateful audit tail worker.jsonl", block.place)
    assert SECOND not in shown
    assert shown.count("set") >= 2
    await reader.shell("stateful audit verify worker.jsonl", block.place)


def _alike(text: str) -> list[str]:
    """Without what differs from run to run: fingerprints, ages, origins, the order of siblings."""
    text = re.sub(r"\b[0-9a-f]{16}\b", "FINGERPRINT", text)
    text = re.sub(r"\bhttps?://[^\s;]+", "ORIGIN", text)
    text = re.sub(r"\b\d+ (s|min) old\b", "AGE", text)
    return sorted(re.sub("[├└]", "", line).rstrip() for line in text.splitlines())


CLAIMS: Final[dict[tuple[str, str, str], Callable[[Reader, Block], Awaitable[None]]]] = {
    ("README.md", "diff", "Three lines and an import"): the_diff,
    ("README.md", "sh", "Make keys"): the_keys,
    ("README.md", "python", "Start a tree with a token"): the_start,
    ("README.md", "python", "Rotate it"): the_rotation,
    ("docs/guide-manage.md", "console", "What a rotation keeps"): the_console,
    ("docs/guide-manage.md", "python", "Look at it"): the_python,
    ("docs/guide-manage.md", "sh", "From the command line"): the_command_line,
    ("docs/guide-manage.md", "console", "From the command line"): the_console,
    ("docs/guide-manage.md", "python", "From inside a workflow"): the_renewal,
    ("docs/guide-use.md", "python", "With httpx"): the_activities,
    ("docs/guide-use.md", "python", "In another header"): the_activities,
    ("docs/guide-use.md", "python", "Without httpx"): the_activities,
    ("docs/guide-use.md", "sh", "Several credentials"): the_commands,
    ("docs/guide-use.md", "python", "Several credentials"): the_activities,
    ("docs/guide-share.md", "python", "Before a child starts"): the_withholding,
    ("docs/guide-share.md", "python", "From outside"): the_python,
    ("docs/guide-record.md", "python", "Write it"): the_record,
    ("docs/limits.md", "sh", "A running child that its parent does not know"): the_commands,
    ("docs/limits.md", "sh", "A workflow with a token of its own"): the_commands,
    ("docs/limits.md", "sh", "A workflow that has lost its state"): the_commands,
    ("docs/limits.md", "sh", "A reset that brings a revoked token back"): the_commands,
    ("docs/limits.md", "sh", "A branch that is to have its token back"): the_commands,
    ("docs/limits.md", "sh", "A call that ended without an answer"): the_commands,
    ("docs/signals.md", "sh", "Try it"): the_status,
    ("docs/guide-migration.md", "sh", "3. Set the tokens"): the_move,
    ("docs/guide-migration.md", "sh", "5. Rotate"): the_last_step,
}
"""What is done with the blocks of the README and of the guides, by document, tag and heading."""


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[EmbeddedEngine]:
    async with start_engine(ui=False) as engine:
        yield engine


@pytest.fixture
async def reader(
    engine: EmbeddedEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Reader]:
    with start_api() as api:
        api.valid = {FIRST}
        reader = Reader(tmp_path, engine, api)
        for name, value in reader.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.syspath_prepend(tmp_path)  # pyright: ignore[reportUnknownMemberType]
        try:
            yield reader
        finally:
            await reader.stop_worker()
            for name in [name for name in sys.modules if name.startswith("snippet_")]:
                del sys.modules[name]
            sys.modules.pop("worker", None)


@pytest.mark.timeout(300)
async def test_the_readme_and_the_guides_do_what_they_say(
    reader: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    followed: set[tuple[str, str, str]] = set()
    for document in FOLLOWED:
        for block in BLOCKS:
            if block.document == document and block.kind in KINDS:
                await reader.follow(block)
                followed.add((block.document, block.kind, block.heading))
    assert set(CLAIMS) <= followed, "a document has lost a block that is claimed here"
    printed = capsys.readouterr().out
    assert "revoke the old token at the API; 3 workflows have the new one" in printed
    assert re.search(r"^held \d+ [0-9a-f]{16} \('http://127.0.0.1:\d+',\)$", printed, re.MULTILINE)
    assert FIRST not in printed
    assert SECOND not in printed


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_every_block_is_claimed(block: Block) -> None:
    assert block.kind in KINDS | NOT_RUN, f"{block.place}: tag it as one of {KINDS | NOT_RUN}"
    if block.kind == "json":
        json.loads(block.text)  # docs/wire-format.md: what they say is checked by its own test
    elif block.document in WALKED:
        assert (PROJECT / WALKED[block.document]).is_file()
    elif block.kind in KINDS and (block.document, block.kind, block.heading) not in CLAIMS:
        assert block.kind in {"sh", "console"}, f"{block.place}: nothing runs this block"
        unknown = [command for command in commands(block) if not is_known(command)]
        assert not unknown, f"{block.place}: nothing runs {unknown}"


def test_the_readme_has_a_thousand_words_at_most() -> None:
    assert len((PROJECT / "README.md").read_text("utf-8").split()) <= 1_000


def test_links_between_documents_lead_somewhere() -> None:
    for path in [*documents(), PROJECT / "CHANGELOG.md"]:
        text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)", text):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_picture_is_what_its_script_draws() -> None:
    script = PROJECT / "docs" / "images" / "make_rotation.py"
    drawn = subprocess.run(
        [sys.executable, "-c", "import make_rotation; print(make_rotation.draw(), end='')"],
        cwd=script.parent,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    ).stdout
    assert drawn == script.with_name("rotation.svg").read_text("utf-8")


def test_a_block_is_found_with_its_place() -> None:
    text = "# A\n\n```sh\n./run x\n```\n\n## B\n\n````text\n```\n````\n"
    assert read_blocks("x.md", text) == [
        Block("x.md", 4, "sh", "A", "./run x\n"),
        Block("x.md", 10, "text", "B", "```\n"),
    ]
