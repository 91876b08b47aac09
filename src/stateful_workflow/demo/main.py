"""One run of the demo from start to end."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

from temporalio.client import Client
from temporalio.worker import Worker

from ..audit import AuditFile
from ..client.client import TokenClient
from ..engine import EmbeddedEngine, start_engine
from ..errors import OperationFailed
from ..sealed.keyring import Keyring
from ..text.output import print_json, say
from ..worker.plugin import StatefulPlugin
from .api import TokenApi, serve
from .provider import AuthorizationServer
from .report import VERSIONS, Report, Seen, count
from .second_act import SOURCE, live_on_a_source, source_of
from .workflows import ACTIVITIES, WORKFLOWS, Tenant

_ROOT: Final = "acme"
_QUEUE: Final = "demo"
_ACCOUNTS: Final = [f"account-{number}" for number in range(1, 6)]
_SYNCS: Final = 5
_NODES: Final = 1 + len(_ACCOUNTS) * (1 + _SYNCS + 1)
_TOLD_EVERY_SECONDS: Final = 2.0
_TOKEN_LIVES_SECONDS: Final = 5
_CONVERGE_WITHIN_SECONDS: Final = 30.0
_END_WITHIN_SECONDS: Final = 300.0

_tell = partial(say, err=True)


async def run_demo(*, as_json: bool, keep: bool) -> int:
    """Run the demo: progress on stderr, its report on stdout.

    Args:
        as_json: print the report as one line of JSON, and on stderr for a person.
        keep: leave the engine and its Web UI running after the report, until cancelled.

    Returns:
        The exit status: 0 where the report is good, else 1.

    Raises:
        StatefulError: what kept it from a report.
    """
    with tempfile.TemporaryDirectory(prefix="stateful-demo-", ignore_cleanup_errors=True) as at:
        _tell("starting the Temporal server, the API and its authorization server")
        server = AuthorizationServer(TokenApi(), _TOKEN_LIVES_SECONDS)
        async with start_engine(Path(at, "engine.db")) as engine, serve(server.app()) as url:
            _tell(f"Web UI: {engine.ui_url}")
            report = await _run(engine, server, url, Path(at), keep=keep, as_json=as_json)
    return 0 if report.is_good else 1


async def _run(
    engine: EmbeddedEngine,
    server: AuthorizationServer,
    url: str,
    folder: Path,
    *,
    as_json: bool,
    keep: bool,
) -> Report:
    checkpoints: list[str] = []
    keyring = Keyring.generate().add_reader("sources")
    with AuditFile(folder / "audit.jsonl", on_checkpoint=checkpoints.append) as record:
        plugin = StatefulPlugin(keyring, audit=record, sources={SOURCE: source_of(server, url)})
        client = await Client.connect(engine.address, plugins=[plugin])
        async with Worker(client, task_queue=_QUEUE, workflows=WORKFLOWS, activities=ACTIVITIES):
            running = _rotate_while_calls_flow(TokenClient(client, keyring), server, url)
            try:
                seen = await asyncio.wait_for(running, _END_WITHIN_SECONDS)
            except asyncio.TimeoutError:
                raise OperationFailed(f"no end within {_END_WITHIN_SECONDS:g} s") from None
            _tell("all workflows have ended; reading the API's log, histories, database")
            await asyncio.to_thread(record.close)
            report = await count(client, engine, server, seen, record.path, checkpoints)
            shown = [f"{name:<28} {value}" for name, value in asdict(report).items()]
            say("", *shown, "", err=as_json)
            if as_json:
                print_json(asdict(report))
            if keep:
                command = f"stateful tree {_ROOT} --address {engine.address}"
                _tell(f"The engine stays: {engine.ui_url}", f"  {command}", "Ctrl-C ends it.")
                with suppress(asyncio.CancelledError):  # the way to end it, and no failure
                    await asyncio.Event().wait()
    return report


async def _rotate_while_calls_flow(
    tokens: TokenClient, server: AuthorizationServer, url: str
) -> Seen:
    """Start the tree, rotate its token while it works, let it live on a source, and end it."""
    api = server.api
    current = api.issue()
    root = await tokens.start_workflow(
        Tenant.run,
        args=[_ACCOUNTS, _SYNCS],
        id=_ROOT,
        task_queue=_QUEUE,
        api_token=current,
        api_url=url,
    )
    tree = await tokens.tree(_ROOT)
    while len(tree.nodes) < _NODES or not tree.converged:
        await asyncio.sleep(0.1)
        tree = await tokens.tree(_ROOT)
    convergence_ms: list[float] = []
    _tell(f"{_NODES} workflows run, and call the API with v1")
    await _let_calls_flow(api)
    for number in range(2, VERSIONS + 1):
        old, current = current, api.issue()
        started = time.perf_counter()
        tree = await tokens.rotate(_ROOT, current, timeout=_CONVERGE_WITHIN_SECONDS)
        taken = (time.perf_counter() - started) * 1000
        api.revoked.add(old)
        convergence_ms.append(round(taken, 1))
        _tell(
            f"v{number}: rotated and converged in {taken:.0f} ms; "
            f"v{number - 1} is revoked at the API"
        )
        await _let_calls_flow(api)
    answer: dict[str, str] = await root.query("apiToken")
    lived = await live_on_a_source(tokens, _ROOT, server, lambda: _let_calls_flow(api))
    _tell("stopping the tree")
    await root.signal(Tenant.stop)
    await root.result()
    return Seen(tree, answer["sealed"].encode(), convergence_ms, *lived)


async def _let_calls_flow(api: TokenApi) -> None:
    for _ in range(2):
        await asyncio.sleep(_TOLD_EVERY_SECONDS)
        refused = sum(call.status == 401 for call in api.log)
        _tell(f"  {len(api.log)} API calls, {refused} answered 401")
