"""`max_signals_per_second`: a rotation leaves others their share of a namespace."""

from __future__ import annotations

import time

from temporalio.client import Client, Interceptor, OutboundInterceptor, SignalWorkflowInput

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from tests.support.asking import eventually, nodes_run, start_worker
from tests.support.workflows import Node, Plan

RATE = 20.0
URL = "https://api.example.com"


class Times(Interceptor):
    """Notes when each signal leaves."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        seen = self.seen

        class _Outbound(OutboundInterceptor):
            async def signal_workflow(self, input: SignalWorkflowInput) -> None:
                seen.append(time.monotonic())
                await super().signal_workflow(input)

        return _Outbound(next)


async def test_a_rotation_sends_no_more_signals_a_second_and_reaches_every_child(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    times = Times()
    client = await Client.connect(
        engine.address,
        namespace=engine.namespace,
        plugins=[StatefulPlugin(keyring, max_signals_per_second=RATE)],
        interceptors=[times],
    )
    tokens = TokenClient(client, keyring)
    plan = Plan({str(n): Plan({"a": Plan()} if n < 5 else {}) for n in range(45)})
    async with start_worker(client, queue):
        await tokens.start_workflow(
            Node.run, plan, id=queue, task_queue=queue, api_token="first", api_url=URL
        )
        await nodes_run(tokens, queue, 51)
        times.seen.clear()

        begun = time.monotonic()
        assert (await tokens.rotate(queue, "second", timeout=40)).converged

    assert len(times.seen) >= 50
    for number, at in enumerate(times.seen):
        assert at >= begun + number / RATE


async def test_a_child_that_lacks_more_than_an_attempt_may_send_is_sent_each_message_once(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    times = Times()
    client = await Client.connect(
        engine.address,
        plugins=[StatefulPlugin(keyring, max_signals_per_second=1)],
        interceptors=[times],
    )
    tokens = TokenClient(client, keyring)
    names = [f"name-{n}" for n in range(10)]
    async with start_worker(client, queue):
        root = await tokens.start_workflow(
            Node.run, Plan({"a": Plan()}), id=queue, task_queue=queue, api_token="t", api_url=URL
        )
        await nodes_run(tokens, queue, 2)
        await root.signal("keep_from", args=["a", None])
        for name in names:
            await tokens.set(queue, "t", name=name, origins=[URL])
        times.seen.clear()
        await root.signal("give_to", args=["a", None])

        async def holds_all() -> bool:
            status = await client.get_workflow_handle(f"{queue}-a").query("apiTokenStatus")
            return {token["name"] for token in status["tokens"]} >= set(names)

        await eventually(holds_all, within=40)

    told = len(times.seen) - 1  # without the signal `give_to`
    assert told == len(names)
