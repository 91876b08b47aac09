"""Anybody may signal a workflow that is asleep, and it says nothing yet of what it will refuse."""

from __future__ import annotations

from dataclasses import replace

from temporalio.client import Client

from stateful_workflow import Keyring, StatefulPlugin
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.sealed.message import parse
from tests.support import builders
from tests.support.asking import Unreachable, start_worker
from tests.support.trees import URL, Tree
from tests.support.workflows import LATER, Flaky, Plan


async def test_a_message_of_an_earlier_tree_moves_nothing_that_is_set_at_a_sleeper(
    tree: Tree, outsider: Client
) -> None:
    await tree.start(run=Flaky.run)
    captured = await tree.sealed()
    await tree[""].terminate()
    await tree.start(run=Flaky.run, retry_policy=LATER, api_token=None)
    await tree.goes_on("", "break_down")
    await outsider.get_workflow_handle(tree.root).signal("apiToken", captured)

    await tree.tokens.set(tree.root, "second", origins=[URL])

    assert await tree.update("", "use_token", "apiToken") == "second"


async def test_a_forged_message_makes_nobody_believe_that_a_sleeper_was_told(
    engine: EmbeddedEngine, keyring: Keyring, unserved: Tree, outsider: Client
) -> None:
    unreachable = Unreachable()
    client = await Client.connect(
        engine.address, plugins=[StatefulPlugin(keyring)], interceptors=[unreachable]
    )
    async with start_worker(client, unserved.queue):
        await unserved.start(Plan({"a": Plan(type="Flaky", rests="backoff")}))
        genuine = parse(await unserved.sealed()).claims
        await unserved.goes_on("a", "break_down")
        newer = replace(genuine, version=genuine.version + 200_000)
        forged = builders.keyring("outsider").seal(newer, "forged")
        await outsider.get_workflow_handle(unserved.id("a")).signal("apiToken", forged)
        unreachable.ids.add(unserved.id("a"))

        shown = await unserved.tokens.status(unserved.id("a"))
        assert shown is not None
        assert shown.version == genuine.version

        await unserved.rotate("second")

        assert await unserved.update("a", "use_token", "apiToken") == "second"
