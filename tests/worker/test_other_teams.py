"""Children that another team's workers run, on a task queue of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.converter import (
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    FailureConverter,
)
from temporalio.worker import Worker

from stateful_workflow import Keyring, NotStateful, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from tests.support.asking import events_of, eventually
from tests.support.trees import Tree
from tests.support.workflows import Node, Plan


@workflow.defn(name="Theirs", sandboxed=False)
class TakesAnything:
    @workflow.run
    async def run(self, plan: Plan) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.signal(dynamic=True)
    def signalled(self, name: str, args: Sequence[RawValue]) -> None: ...

    @workflow.query(dynamic=True)
    def asked(self, name: str, args: Sequence[RawValue]) -> Any:
        return {"status": "fine"}

    @workflow.update(dynamic=True)
    def updated(self, name: str, args: Sequence[RawValue]) -> str:
        return "fine"


@workflow.defn(name="Theirs", sandboxed=False)
class TakesNothing:
    @workflow.run
    async def run(self, plan: Plan) -> None:
        await workflow.wait_condition(lambda: False)


@workflow.defn(name="Theirs", sandboxed=False)
class TakesPart(Node):
    @workflow.run
    async def run(self, plan: Plan) -> str:
        return await self.until_told()


def converter(failures: type[FailureConverter]) -> DataConverter:
    return DataConverter(failure_converter_class=failures)


@pytest.mark.parametrize("theirs", [TakesAnything, TakesNothing], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "failures",
    [DataConverter.default.failure_converter_class, DefaultFailureConverterWithEncodedAttributes],
    ids=["", "failures encoded"],
)
async def test_a_plain_child_sees_nothing_of_a_tree_and_holds_up_no_rotation(
    engine: EmbeddedEngine,
    keyring: Keyring,
    queue: str,
    theirs: type,
    failures: type[FailureConverter],
) -> None:
    bare = await Client.connect(engine.address, data_converter=converter(failures))
    config = bare.config(active_config=True)
    config["plugins"] = [StatefulPlugin(keyring)]
    client = Client(**config)
    tree = Tree(client, TokenClient(client, keyring), queue, queue)
    async with tree.worker(), Worker(bare, task_queue=f"{queue}-b", workflows=[theirs]):
        await tree.start()
        await tree.signal("", "add_elsewhere", "a", f"{queue}-b", "Theirs")
        await tree.knows("a", "running")

        for token in ("second", "third"):
            assert [node.id for node in (await tree.rotate(token)).nodes] == [tree.root]

        assert await events_of(tree["a"], "WORKFLOW_EXECUTION_SIGNALED") == []
        assert (await tree.status())["children"] == []
        with pytest.raises(NotStateful):
            await tree.set("fourth", "a")


async def test_a_child_that_cannot_be_asked_is_told_and_takes_it_when_its_worker_comes(
    tree: Tree, queue: str, client: Client
) -> None:
    await tree.start()
    await tree.signal("", "add_elsewhere", "a", f"{queue}-b", "Theirs")
    await tree.knows("a", "running")

    await tree.set("second")

    async def is_signalled() -> bool:
        return len(await events_of(tree["a"], "WORKFLOW_EXECUTION_SIGNALED")) == 1

    await eventually(is_signalled)
    async with Worker(client, task_queue=f"{queue}-b", workflows=[TakesPart]):
        await tree.reveals("second", "a")
