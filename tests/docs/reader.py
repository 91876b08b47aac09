"""The fenced blocks of the documents, and somebody who does what they say."""

from __future__ import annotations

import ast
import asyncio
import importlib
import os
import re
import signal
import subprocess
import sys
import types
import uuid
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from temporalio.client import Client
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine, find_temporal
from tests.support.api import Api
from tests.support.asking import eventually

PROJECT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    *sorted((PROJECT / "docs").rglob("*.md")),
]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
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

    @property
    def commands(self) -> list[str]:
        """The commands of a sh or console block, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.kind == "console":
            return [line[2:] for line in lines if line.startswith("$ ")]
        return [line for line in lines if line.strip() and not line.startswith("#")]


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


BLOCKS: Final = [
    block
    for path in DOCUMENTS
    for block in read_blocks(path.relative_to(PROJECT).as_posix(), path.read_text("utf-8"))
]


class Reader:
    """Somebody who follows documents in an empty directory.

    Attributes:
        home: that directory.
        environment: of every command.
        secrets: what no command may print.
    """

    def __init__(self, home: Path, engine: EmbeddedEngine, api: Api) -> None:
        self.home = home
        self.engine = engine
        self.api = api
        self.secrets: set[str] = set()
        self.environment = {
            **os.environ,
            "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TEMPORAL_ADDRESS": engine.address,
            "TEMPORAL_CONFIG_FILE": os.devnull,
            "STATEFUL_KEYRING": str(home / "keyring.json"),
        }
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self._worker: subprocess.Popen[bytes] | None = None
        program = home / "bin" / "stateful"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m stateful_workflow.cli "$@"\n')
        program.chmod(0o755)
        (home / "bin" / "temporal").symlink_to(find_temporal())

    @property
    def keyring(self) -> Keyring:
        return Keyring.load(self.home / "keyring.json")

    async def run(self, block: Block, status: int = 0) -> str:
        """Run a block that is to end with this status; what it printed, errors last."""
        return await self.shell(block.text, block.place, status)

    async def shell(self, script: str, place: str, status: int = 0) -> str:
        """Run a script that is to end with this status; what it printed, errors last."""
        done = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-eu", "-c", script],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=150,
        )
        printed = done.stdout + done.stderr
        assert done.returncode == status, f"{place}: status {done.returncode}\n{printed}"
        assert not any(secret in printed for secret in self.secrets), place
        return printed

    async def python(self, block: Block) -> None:
        """Run a block as `python -m asyncio` would; names live on from block to block."""
        code = compile(
            "\n" * (block.line - 1) + block.text,
            str(PROJECT / block.document),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        running = eval(code, self.names)  # the document's own
        if running is not None:
            await running

    @asynccontextmanager
    async def worker_of(
        self, text: str, task_queue: str = "snippets"
    ) -> AsyncGenerator[tuple[TokenClient, types.ModuleType], None]:
        """A worker of a task queue with the workflows and activities of a text."""
        name = f"snippet_{uuid.uuid4().hex}"  # importable, as a worker's sandbox needs it
        (self.home / f"{name}.py").write_text(text, "utf-8")
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        defined = vars(module).values()
        client = await Client.connect(self.engine.address, plugins=[StatefulPlugin(self.keyring)])
        with ThreadPoolExecutor(max_workers=4) as threads:
            async with Worker(
                client,
                task_queue=task_queue,
                workflows=[it for it in defined if hasattr(it, "__temporal_workflow_definition")],
                activities=[it for it in defined if hasattr(it, "__temporal_activity_definition")],
                activity_executor=threads,
            ):
                yield TokenClient(client, self.keyring), module

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
        """Wait until the API has answered calls of these paths with a token, from now on."""
        self.api.calls.clear()

        async def answered() -> bool:
            assert self._worker is not None
            log = (self.home / "worker.log").read_text("utf-8", "replace")
            assert self._worker.poll() is None, f"the worker has ended: {log[-2000:]}"
            seen = {(call.path, call.token) for call in self.api.calls if call.status == 200}
            return all((path, token) in seen for path in paths)

        await eventually(answered)
