"""A run that has taken most of the signals the server lets it have says so, and starts afresh."""

from __future__ import annotations

import logging

import pytest
from temporalio.client import Client

from stateful_workflow import TokenClient
from stateful_workflow.node import contract

from .conftest import start_worker
from .support import eventually, next_run, nodes_run, run_id, status_of
from .workflows import Node, Plan


async def test_a_run_of_many_signals_is_shown_and_warned_of_until_it_continues_as_new(
    client: Client,
    tokens: TokenClient,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for module in ("node.contract", "client.walk"):
        monkeypatch.setattr(f"stateful_workflow.{module}.MANY_SIGNALS", 3)
    with caplog.at_level(logging.WARNING):
        async with start_worker(client, queue):
            root = await tokens.start_workflow(
                Node.run,
                Plan({"a": Plan()}),
                id=queue,
                task_queue=queue,
                api_token="first",
                api_url="https://api.example.com",
            )
            await nodes_run(tokens, queue, 2)
            assert (await tokens.tree(queue)).nearly_full == ()

            for text in ("one", "two", "three"):
                await root.signal("note", text)

            async def is_shown() -> None:
                assert [node.id for node in (await tokens.tree(queue)).nearly_full] == [queue]

            await eventually(is_shown)
            assert (await status_of(client, queue))["signals"] == 3

            before = await run_id(client, queue)
            await root.signal("go_on")
            await next_run(client, queue, before)
            assert (await status_of(client, queue))["signals"] == 0
    warned = [r.getMessage() for r in caplog.records if "continue as new" in r.getMessage()]
    assert len(warned) == 1
    assert f"{contract.MAX_SIGNALS:,} signals" in warned[0]
