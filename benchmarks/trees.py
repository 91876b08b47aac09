"""What the benchmarks share: a server, trees by their shape, and medians of what was found."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temporalio.client import Client

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine

Results = dict[str, dict[str, float]]
"""Figures by their names, of each thing that was measured."""

URL = "https://api.example.com"
MESSAGE = "x" * 1200  # about what a sealed token weighs

_begun = time.monotonic()


def say(text: str) -> None:
    """Tell of progress, with the minutes and seconds since the start."""
    minutes, seconds = divmod(int(time.monotonic() - _begun), 60)
    print(f"{minutes:2}:{seconds:02} {text}", file=sys.stderr, flush=True)


def say_found(what: str, number: int, figures: Mapping[str, float]) -> None:
    """Tell what one repetition found."""
    found = ", ".join(f"{name} {figure:.3g}" for name, figure in figures.items())
    say(f"  {what}, {number or 'not counted'}: {found}")


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each figure, over the repetitions that have it."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {
        name: round(statistics.median(run[name] for run in runs if name in run), 3)
        for name in names
    }


def levels(shape: str) -> list[int]:
    """Children of a node at each level, of "1+500", "10×10×10" or "chain of 50"."""
    if shape.startswith("chain of "):
        return [1] * (int(shape.removeprefix("chain of ")) - 1)
    return [int(number) for number in shape.removeprefix("1+").replace("x", "×").split("×")]


def ids(root: str, children: Sequence[int]) -> Iterator[str]:
    """The workflow ids of a tree, each node followed by those below it."""
    yield root
    for n in range(children[0] if children else 0):
        yield from ids(f"{root}-{n}", children[1:])


@dataclass(frozen=True)
class Server:
    """An embedded server, with clients.

    Attributes:
        plain: a client without the plugin.
        ours: one with it.
        keyring: the file of its keys, for other processes.
    """

    address: str
    plain: Client
    ours: Client
    tokens: TokenClient
    keyring: Path

    async def start_ours(self, run: Any, args: Sequence[Any], id: str, queue: str) -> None:
        """Start a workflow with a token."""
        await self.tokens.start_workflow(
            run, args=args, id=id, task_queue=queue, api_token="t", api_url=URL
        )


@asynccontextmanager
async def start_server(database: str) -> AsyncGenerator[Server, None]:
    """Run one for the length of an ``async with``, its database in a "file" or in "memory"."""
    keyring = Keyring.generate()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "keyring.json")
        keyring.save(file)
        db = Path(folder, "temporal.db") if database == "file" else None
        async with start_engine(db=db, ui=False) as engine:
            plain = await Client.connect(engine.address)
            ours = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
            yield Server(engine.address, plain, ours, TokenClient(ours, keyring), file)


async def history(client: Client, workflow_id: str) -> tuple[int, int]:
    """Events and bytes of a workflow."""
    described = await client.get_workflow_handle(workflow_id).describe()
    info = described.raw_description.workflow_execution_info
    return info.history_length, info.history_size_bytes
