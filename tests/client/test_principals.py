"""The record says who set a token, and the server whom it saw: the two are joined."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from temporalio.api.common.v1 import Principal
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import (
    Client,
    FetchWorkflowHistoryEventsInput,
    Interceptor,
    OutboundInterceptor,
)
from temporalio.worker import Worker
from typer.testing import CliRunner

from stateful_workflow import Keyring, TokenClient
from stateful_workflow.audit import AuditFile
from stateful_workflow.cli.app import app
from stateful_workflow.client.principals import _COMPACT, principals  # pyright: ignore[reportPrivateUsage]
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.sealed.message import parse
from tests.support.workflows import Node, Plan

ORIGIN = "https://api.example.com"


class Authorizing(Interceptor):
    """Lets histories have the principals that a server with an authorizer records."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        class _Outbound(OutboundInterceptor):
            def fetch_workflow_history_events(self, input: FetchWorkflowHistoryEventsInput) -> Any:
                return stamped(super().fetch_workflow_history_events(input))

        return _Outbound(next)


async def stamped(events: AsyncIterator[HistoryEvent]) -> AsyncIterator[HistoryEvent]:
    async for event in events:
        event.principal.CopyFrom(Principal(type="jwt", name=f"event-{event.event_id}"))
        yield event


async def test_each_message_has_the_principal_of_the_event_that_brought_it(
    worker: Worker, client: Client, engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    tokens = TokenClient(client, keyring)
    handle = await tokens.start_workflow(
        Node.run, Plan(), id=queue, task_queue=queue, api_token="first", origins=[ORIGIN]
    )
    started = (await tokens.get(queue)).fingerprint
    updated = (await tokens.set(queue, "second")).fingerprint
    signalled = parse(await tokens.seal(queue, "third"))
    await handle.signal("apiToken", signalled.text)
    assert updated is not None
    marks = [started, updated, signalled.fingerprint]
    seeing = await Client.connect(
        engine.address, namespace=engine.namespace, interceptors=[Authorizing()]
    )

    seen = await principals(seeing, queue, [*marks, "0" * 16])

    assert list(seen) == marks
    assert seen[started] == "jwt event-1"
    assert len(set(seen.values())) == 3
    assert await principals(client, queue, marks) == dict.fromkeys(marks)
    assert await principals(client, "never-was", marks) == {}


async def test_the_command_joins_what_the_server_has_to_the_record(
    worker: Worker,
    client: Client,
    engine: EmbeddedEngine,
    keyring: Keyring,
    queue: str,
    tmp_path: Path,
) -> None:
    file = tmp_path / "audit.jsonl"
    with AuditFile(file) as record:
        tokens = TokenClient(client, keyring, audit=record)
        by = "mia: the server saw user root"
        given: Any = {"task_queue": queue, "api_token": "first", "origins": [ORIGIN], "by": by}
        await tokens.start_workflow(Node.run, Plan(), id=queue, **given)
        status = await tokens.revoke(queue, by="ada")

    options = ["audit", "verify", str(file), "--with-history", "--address", engine.address]
    shown = await asyncio.to_thread(CliRunner().invoke, app, options)

    assert shown.exit_code == 0, shown.output
    first, second = [line for line in shown.stdout.splitlines() if line.startswith("line ")]
    assert ": the server recorded nobody: set apiToken" in first
    assert first.endswith(f"at {queue}, by {by}")
    assert f"revoke apiToken {status.fingerprint} at {queue}, by ada" in second
    assert "first" not in shown.output


def test_one_long_word_in_a_signal_holds_up_nobody() -> None:
    assert _COMPACT.findall(b"a" * 2_000_000) == []
    assert _COMPACT.findall(b'"sealed":"eyJ.eyJ-_.x_"') == [b"eyJ.eyJ-_.x_"]
