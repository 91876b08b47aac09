"""What a tree says of itself on a real server: *converged* and *held* say no more than is true."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    HandleSignalInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

from stateful_workflow import (
    Keyring,
    NameNotInUse,
    NotConverged,
    NoWorkerAnswers,
    OperationFailed,
    StatefulPlugin,
    TokenClient,
    TokenForged,
)
from stateful_workflow.engine import EmbeddedEngine
from tests.support.asking import lower
from tests.support.trees import URL, Tree
from tests.support.workflows import Plan

# --- an override -----------------------------------------------------------------------------


async def test_a_token_that_was_set_further_down_is_counted_and_revoked_with_those_below(
    tree: Tree,
) -> None:
    await tree.start(Plan({"a": Plan({"x": Plan()}), "b": Plan()}))
    await tree.set("own", "a")
    seen = await tree.rotate("second")
    assert seen.glance == "converged · 1 set here"
    assert [node.id for node in seen.nodes if node.set_here] == [tree.id("a")]
    assert seen.usable

    await tree.revoke()
    await tree.opens("TokenRevoked", "", "b")
    seen = await tree.tokens.tree(tree.root)
    assert {node.id for node in seen.holding} == tree.ids("a", "a-x"), "a revocation passes it by"
    await tree.opens("own", "a", "a-x")

    await tree.tokens.revoke(tree.root, below=True)

    seen = await tree.tokens.tree(tree.root)
    assert (seen.holding, seen.usable) == ((), False)
    assert seen.glance == "nothing usable is held · 1 set here · 4 revoked"


async def test_a_root_has_nothing_to_inherit(tree: Tree) -> None:
    await tree.start()
    with pytest.raises(OperationFailed, match=r"nothing was sent: .* is the root of its tree"):
        await tree.inherit("")
    assert (await tree.tokens.get(tree.root)).reveal() == "first"


# --- names -----------------------------------------------------------------------------------


async def test_a_name_that_is_not_in_use_is_an_error_that_names_those_in_use(tree: Tree) -> None:
    await tree.start(Plan({"a": Plan()}))
    await tree.set("theirs", "a", name="billing")
    at_root = "no biling is known at workflow .*; in use there: apiToken"
    in_tree = "no biling is known at workflow .*; in use there: apiToken, billing$"
    how_to_begin = r"\. \(A first one is set with its origins\)$"
    for act, more in (
        (tree.tokens.status(tree.root, "biling"), "$"),
        (tree.tokens.set(tree.root, "x", name="biling"), how_to_begin),
        (tree.tokens.rotate(tree.root, "x", name="biling", timeout=20), how_to_begin),
        (tree.tokens.revoke(tree.root, "biling"), "$"),
    ):
        with pytest.raises(NameNotInUse, match=at_root + more):
            await act
    for act in (
        tree.tokens.tree(tree.root, "biling"),
        tree.tokens.revoke(tree.root, "biling", below=True),
    ):
        with pytest.raises(NameNotInUse, match=in_tree):
            await act

    assert (await tree.tokens.tree(tree.root, "billing")).glance == "converged · 1 set here"
    await tree.tokens.revoke(tree.root, "billing", below=True)
    assert (await tree.tokens.tree(tree.root, "billing")).holding == ()


async def test_where_nothing_is_set_no_name_is_a_mistake(tree: Tree) -> None:
    await tree.start(api_token=None)
    assert await tree.tokens.status(tree.root, "any") is None
    seen = await tree.tokens.tree(tree.root, "any")
    assert (seen.glance, seen.usable) == ("nothing usable is held", False)


# --- what cannot be used ---------------------------------------------------------------------


async def test_what_a_revoked_key_signed_is_not_shown_as_held(
    tree: Tree, client: Client, keyring: Keyring
) -> None:
    await tree.start(Plan({"a": Plan()}))
    (issuer,) = [key.kid for key in keyring.keys() if key.kind == "issuer"]
    revoked = TokenClient(client, keyring.revoke(issuer))

    seen = await revoked.tree(tree.root)

    assert seen.glance == "nothing usable is held · 2 key revoked"
    status = await revoked.status(tree.root)
    assert status is not None
    assert status.state == "key_revoked"
    assert (await tree.tokens.tree(tree.root)).glance == "converged"


class _Refuses(Interceptor):
    """Fails closed on the names that it does not know, as people who authorize by name do."""

    def workflow_interceptor_class(
        self, input: WorkflowInterceptorClassInput
    ) -> type[WorkflowInboundInterceptor]:
        assert input is not None
        return _RefusesSignals


class _RefusesSignals(WorkflowInboundInterceptor):
    async def handle_signal(self, input: HandleSignalInput) -> None:
        if input.signal == "apiToken":
            raise ApplicationError("a signal of this name is not allowed here")
        await super().handle_signal(input)


async def test_children_that_fail_when_they_are_told_are_no_tree_that_has_converged(
    unserved: Tree,
) -> None:
    tree = unserved
    async with tree.worker(interceptors=[_Refuses()]):
        await tree.start(Plan({"a": Plan(), "b": Plan()}))
        await tree.signal("b", "break_down")
        await tree.knows("b", "closed")

        with pytest.raises(NotConverged) as raised:
            await tree.tokens.rotate(tree.root, "second", timeout=20)

        (failed,) = raised.value.tree.behind
        assert (failed.id, failed.state) == (tree.id("a"), "failed")
        assert "does an interceptor refuse the signal?" in str(failed.problem)
        assert raised.value.tree.glance == "not converged · 1 failed", "b failed for its own reason"


# --- nothing is said that was not done -------------------------------------------------------


async def test_without_a_worker_an_error_says_that_nothing_was_sent(
    unserved: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = unserved
    await tree.tokens.start_workflow(
        "Node", Plan(), id=tree.root, task_queue=tree.queue, api_token="first", origins=[URL]
    )
    lower(monkeypatch, client_question=timedelta(seconds=1))
    for act in (
        tree.tokens.revoke(tree.root),
        tree.tokens.rotate(tree.root, "second", timeout=1),
    ):
        with pytest.raises(NoWorkerAnswers, match="nothing was sent: no worker answered"):
            await act


async def test_a_rotation_that_settles_waits_until_running_activities_have_asked_again(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tree.start()
    lower(monkeypatch, fresh_seconds=1234.0)
    waited: list[float] = []
    true_sleep = asyncio.sleep

    async def sleeps(seconds: float, *rest: Any) -> None:
        if seconds > 1000:
            waited.append(seconds)
        else:
            await true_sleep(seconds, *rest)

    monkeypatch.setattr(asyncio, "sleep", sleeps)
    await tree.rotate("second", settle=True)
    assert waited == [1239.0], "the freshness of an activity, and a question of it"


# --- keys ------------------------------------------------------------------------------------


async def test_a_client_takes_the_keyring_of_its_plugin(
    tree: Tree, engine: EmbeddedEngine, keyring: Keyring
) -> None:
    await tree.start()
    plugins = [StatefulPlugin(keyring)]
    with_plugin = await Client.connect(engine.address, namespace=engine.namespace, plugins=plugins)
    assert (await TokenClient(with_plugin).get(tree.root)).reveal() == "first"
    other = TokenClient(with_plugin, Keyring.generate())
    with pytest.raises(TokenForged, match="not trusted"):
        await other.get(tree.root)
