"""The rotations that a run is said to take, it takes; then it should have continued as new."""

from __future__ import annotations

import asyncio
import logging

import pytest
from temporalio.client import Client, WorkflowExecutionStatus

from stateful_workflow import Keyring, OperationFailed, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine
from stateful_workflow.node import budget

from .conftest import start_worker
from .support import nodes_run, status_of
from .workflows import Node, Plan

EVENTS = 200
AN_ACTIVITY = 2
"""Rotations that as many events would do, should one fan-out take long on a busy machine."""

FEW_EVENTS = [
    *("--dynamic-config-value", f"limit.historyCount.error={EVENTS}"),
    *("--dynamic-config-value", "limit.historyCount.warn=10000"),
]


async def test_a_run_takes_the_rotations_it_says_and_warns_before_they_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(budget, "MAX_EVENTS", EVENTS)
    keyring = Keyring.generate()
    said: list[int] = []
    async with start_engine(ui=False, extra_args=FEW_EVENTS) as engine:
        client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        tokens = TokenClient(client, keyring)
        with caplog.at_level(logging.WARNING):
            async with start_worker(client, "q"):
                root = await tokens.start_workflow(
                    Node.run,
                    Plan({"a": Plan()}),
                    id="root",
                    task_queue="q",
                    api_token="first",
                    api_url="https://api.example.com",
                )
                await nodes_run(tokens, "root", 2)
                root_seen, child = (await tokens.tree("root")).nodes
                assert root_seen.rotations_left is not None
                assert child.rotations_left is not None

                async def rotate() -> bool:
                    said.append((await status_of(client, "root"))["budget"]["rotations_left"])
                    try:
                        await asyncio.wait_for(tokens.rotate("root", "next", timeout=10), 20)
                    except OperationFailed:
                        return False
                    return True

                while await rotate():
                    assert len(said) < EVENTS

                status = (await root.describe()).status
    assert status is WorkflowExecutionStatus.TERMINATED
    done = len(said) - 1
    assert done > 10
    for before, left in enumerate(said):
        assert left <= done - before + AN_ACTIVITY, f"{left} said to be left of {done - before}"
    assert said[0] > done / 2
    warned = [r for r in caplog.records if "continue as new" in r.getMessage()]
    assert {r.getMessage().split()[1] for r in warned} == {"root", "root-a"}
    assert len(warned) == 2
