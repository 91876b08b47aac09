"""One run of the demo from start to end."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from temporalio.client import Client
from temporalio.worker import Worker

from ..audit import AuditFile, AuditSink
from ..client.client import TokenClient
from ..engine import EmbeddedEngine, start_engine
from ..errors import NotConverged, OperationFailed
from ..node.status import TokenTree
from ..sealed.keyring import Keyring
from ..text.output import out, say
from ..worker.plugin import StatefulPlugin
from .api import RunningApi, serve_api
from .live import Progress
from .report import VERSIONS, Report, Rotations, count, read_record
from .workflows import ACTIVITIES, WORKFLOWS, AccountPlan, Tenant

ROOT: Final = "acme"
"""Workflow id of the tenant."""

_QUEUE: Final = "demo"
_ACCOUNTS: Final = 5
_SYNCS: Final = 5
_OWN_URL: Final = (2, 4)
_NODES: Final = 1 + _ACCOUNTS * (1 + _SYNCS + 1)
_BETWEEN_SECONDS: Final = 4.0
_START_WITHIN_SECONDS: Final = 20.0
_CONVERGE_WITHIN_SECONDS: Final = 15.0
_END_WITHIN_SECONDS: Final = 30.0
_TOKEN_LIFETIME_SECONDS: Final = 900.0


async def run_demo(*, as_json: bool, keep: bool) -> int:
    """Run the demo and print its report.

    Progress goes to stderr, the report to stdout. With `as_json` the table goes to stderr
    too, and stdout has one line.

    Args:
        as_json: print the report as JSON.
        keep: leave the engine and its Web UI running after the report, until cancelled.

    Returns:
        The exit status: 0 where the report is good, else 1.

    Raises:
        StatefulError: what kept it from a report.
    """
    progress = Progress(out(err=True))
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="stateful-demo-", ignore_cleanup_errors=True)
        )
        db = Path(directory, "engine.db")
        checkpoints: list[str] = []
        record = stack.enter_context(
            AuditFile(Path(directory, "audit.jsonl"), on_checkpoint=checkpoints.append)
        )
        with progress.shown():
            progress.say("starting the Temporal server and the API")
            engine = await stack.enter_async_context(start_engine(db))
            api = await stack.enter_async_context(serve_api())
            client, tokens = await stack.enter_async_context(_workers(engine, record))
            progress.say(f"Web UI: {engine.ui_url}")
            seen = await _rotate_while_calls_flow(tokens, api, progress)
            progress.say("all workflows have ended; reading the API's log, histories, database")
            await asyncio.to_thread(record.close)
            recorded = await asyncio.to_thread(read_record, record.path, checkpoints)
            report = await count(client, api.state, seen, recorded, db=db, web_ui=engine.ui_url)
            progress.say("done" if report.is_good else "done, and the report is not good")
        _print(report, as_json=as_json)
        if keep:
            _tell_how_to_look(engine)
            with suppress(asyncio.CancelledError):  # the way to end it, and no failure
                await asyncio.Event().wait()
    return 0 if report.is_good else 1


@asynccontextmanager
async def _workers(
    engine: EmbeddedEngine, record: AuditSink
) -> AsyncGenerator[tuple[Client, TokenClient], None]:
    """Two workers: one runs the workflows and can open no token, one runs the activities.

    Both, and who rotates, put on record what they do.
    """
    keyring = Keyring.generate()

    async def connect(keys: Keyring) -> Client:
        plugin = StatefulPlugin(keys, audit=record)
        return await Client.connect(engine.address, namespace=engine.namespace, plugins=[plugin])

    operator = await connect(keyring)
    async with (
        Worker(await connect(keyring.public()), task_queue=_QUEUE, workflows=WORKFLOWS),
        Worker(operator, task_queue=_QUEUE, activities=ACTIVITIES),
    ):
        yield operator, TokenClient(operator, keyring)


async def _rotate_while_calls_flow(
    tokens: TokenClient, api: RunningApi, progress: Progress
) -> Rotations:
    """Start the tree, rotate its token again and again while it works, and end it."""
    versions: dict[int, int] = {}
    sealed: list[str] = []
    convergence_ms: list[float] = []

    async def note(token: str) -> int:
        answer: dict[str, Any] = await root.query("apiToken")
        versions[api.state.issued[token].serial] = answer["version"]
        sealed.append(answer["sealed"])
        return progress.number(answer["version"])

    current = await api.issue(expires_in=_TOKEN_LIFETIME_SECONDS)
    root = await tokens.start_workflow(
        Tenant.run,
        _plans(api),
        id=ROOT,
        task_queue=_QUEUE,
        api_token=current,
        api_url=api.urls[0],
        origins=api.urls,
        expires_in=_TOKEN_LIFETIME_SECONDS,
    )
    tree = await _complete(tokens)
    number = await note(current)
    progress.say(f"{len(tree.nodes)} workflows run, and call the API with v{number}")
    async with progress.watching(tokens, tree, api.state.log):
        await asyncio.sleep(_BETWEEN_SECONDS)
        for _ in range(VERSIONS - 1):
            old, current = current, await api.issue(expires_in=_TOKEN_LIFETIME_SECONDS)
            started = time.perf_counter()
            with progress.closely():
                tree = await tokens.rotate(
                    ROOT,
                    current,
                    timeout=_CONVERGE_WITHIN_SECONDS,
                    expires_in=_TOKEN_LIFETIME_SECONDS,
                )
            taken = (time.perf_counter() - started) * 1000
            await api.revoke(old)
            convergence_ms.append(taken)
            old_number, number = number, await note(current)
            progress.saw(tree)
            progress.say(
                f"v{number}: rotated and converged in {taken:.0f} ms; "
                f"v{old_number} is revoked at the API"
            )
            await asyncio.sleep(_BETWEEN_SECONDS)
    progress.say("stopping the tree")
    await root.signal(Tenant.stop)
    try:
        await asyncio.wait_for(root.result(), _END_WITHIN_SECONDS)
    except asyncio.TimeoutError:
        raise OperationFailed(f"the tree did not end within {_END_WITHIN_SECONDS:g} s") from None
    return Rotations(tree, convergence_ms, versions, sealed)


def _plans(api: RunningApi) -> list[AccountPlan]:
    return [
        AccountPlan(
            f"account-{number}", _SYNCS, api_url=api.urls[1] if number in _OWN_URL else None
        )
        for number in range(1, _ACCOUNTS + 1)
    ]


async def _complete(tokens: TokenClient) -> TokenTree:
    """The tree, once every workflow of it has started."""
    give_up = time.monotonic() + _START_WITHIN_SECONDS
    while True:
        tree = await tokens.tree(ROOT)
        if len(tree.nodes) == _NODES and tree.converged:
            return tree
        if time.monotonic() > give_up:
            raise NotConverged(
                f"{len(tree.nodes)} of {_NODES} workflows run after {_START_WITHIN_SECONDS:g} s",
                tree,
            )
        await asyncio.sleep(0.1)


def _print(report: Report, *, as_json: bool) -> None:
    # The table goes to stderr where stdout is for a program.
    out(err=as_json).print(report.table())
    if as_json:
        say(report.to_json())


def _tell_how_to_look(engine: EmbeddedEngine) -> None:
    tree = f"  stateful tree {ROOT} --address {engine.address}"
    say("", f"The engine stays: {engine.ui_url}", tree, "Ctrl-C ends it.", err=True)
