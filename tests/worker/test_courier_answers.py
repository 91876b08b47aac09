"""What is answered in a courier's place, or through a converter of the user's, is read strictly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from datetime import timedelta
from typing import Any, cast

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.converter import DataConverter, DefaultPayloadConverter
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin, StatefulWorkflow, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.errors import AnswerMalformed
from stateful_workflow.node import telling
from stateful_workflow.node.contract import (
    Orphan,
    RecoverResult,
    TellResult,
    TrustResult,
    courier_queue_of,
)
from stateful_workflow.node.members import read, to_json
from tests.support.asking import WITHIN, eventually, nodes_run, status_of
from tests.worker.test_couriers import WithoutCourier

TOLD = TellResult(
    sent={"a": 1},
    left=["a"],
    failed={"b": "why"},
    orphans={"c": [Orphan("x", "Node", ["h"], {"s": True}), Orphan("y", "", [], None)]},
)
WHOLE = [TOLD, TellResult(), TrustResult({"k": {}}, ["r"]), RecoverResult(False)]


@pytest.mark.parametrize("result", WHOLE, ids=lambda result: type(result).__name__)
def test_a_result_is_read_as_it_was_written(result: object) -> None:
    assert read(type(result), to_json(result)) == result


@pytest.mark.parametrize(
    "answer",
    [
        {},
        None,
        [],
        {**to_json(TOLD), "left": {}},
        {**to_json(TOLD), "sent": {"a": -1}},
        {**to_json(TOLD), "orphans": {"c": [{"id": "x"}]}},
        {**to_json(TOLD), "more": "no"},
    ],
    ids=str,
)
def test_nothing_else_is_a_result(answer: object) -> None:
    for cls in (TellResult, TrustResult, RecoverResult):
        with pytest.raises(AnswerMalformed):
            read(cls, answer)


@workflow.defn(sandboxed=False)
class Deep(StatefulWorkflow):
    @workflow.run
    async def run(self, depth: int) -> None:
        if depth:
            await workflow.start_child_workflow(
                Deep.run, depth - 1, id=f"{workflow.info().workflow_id}-a"
            )
        await workflow.wait_condition(lambda: False)


class GivesDictionaries(DefaultPayloadConverter):
    """Writes dataclasses otherwise than the SDK, and reads dictionaries in their place."""

    def to_payloads(self, values: Sequence[Any]) -> list[Payload]:
        return super().to_payloads([_odd(value) for value in values])

    def from_payloads(
        self, payloads: Sequence[Payload], type_hints: list[type] | None = None
    ) -> list[Any]:
        hints = [hint if hint in (RawValue, str, int) else None for hint in type_hints or ()]
        return super().from_payloads(payloads, cast("Any", hints) or None)


def _odd(value: Any) -> Any:
    is_data = is_dataclass(value) and not isinstance(value, RawValue)
    return {"of": asdict(cast("Any", value))} if is_data else value


async def test_a_converter_that_knows_no_dataclasses_tells_a_tree_all_the_same(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    converter = DataConverter(payload_converter_class=GivesDictionaries)
    client = await Client.connect(
        engine.address, plugins=[StatefulPlugin(keyring)], data_converter=converter
    )
    tokens = TokenClient(client, keyring)
    async with Worker(client, task_queue=queue, workflows=[Deep]):
        await started(tokens, queue)

        assert len((await tokens.rotate(queue, "second", timeout=WITHIN)).nodes) == 3
        assert (await tokens.get(f"{queue}-a-a")).reveal() == "second"


@activity.defn(dynamic=True)
async def answers_anything(_args: Sequence[RawValue]) -> dict[str, Any]:
    return {}


async def test_a_foreign_answer_is_shown_and_told_again_and_never_believed(
    monkeypatch: pytest.MonkeyPatch, engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    monkeypatch.setattr(telling, "_LONGEST_BACKOFF", timedelta(seconds=1))
    bare = await Client.connect(engine.address)
    client = await Client.connect(engine.address, plugins=[WithoutCourier(keyring)])
    whole = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
    tokens = TokenClient(client, keyring)
    foreign = Worker(bare, task_queue=courier_queue_of(queue), activities=[answers_anything])
    async with Worker(client, task_queue=queue, workflows=[Deep]), foreign:
        await started(tokens, queue)
        await tokens.set(queue, "second")

        async def is_shown() -> None:
            (lacking,) = (await status_of(client, queue))["undelivered"]
            assert "is none of this library's answers" in lacking["reason"]

        await eventually(is_shown)
        assert (await tokens.get(f"{queue}-a")).reveal() == "first"

    async with Worker(whole, task_queue=queue, workflows=[Deep]):
        tree = await tokens.rotate(queue, "third", timeout=WITHIN)

        assert len(tree.nodes) == 3


async def started(tokens: TokenClient, queue: str) -> None:
    """Start a root with a child and one below that."""
    await tokens.start_workflow(
        Deep.run, 2, id=queue, task_queue=queue, api_token="first", origins=["https://a.example"]
    )
    await nodes_run(tokens, queue, 3)
