"""Thousands of a stranger's messages: each is judged, few are kept, and genuine ones are taken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest

from stateful_workflow.sealed.message import Message, parse
from tests.attacks.messages.unsent import (
    Unsent,
    failed_tasks,
    is_everywhere,
    is_healthy,
    now,
    slow_tasks,
    unsent_for,
)
from tests.support import builders
from tests.support.asking import events_of, eventually, next_run, run_id
from tests.support.trees import Tree
from tests.support.workflows import Plan

LINE = Plan({"a": Plan({"b": Plan()})})
NODES = ["", "a", "a-b"]
FLOODS = {"": 9000, "a": 3000}
"""To the root and to the middle of a line; the engine allows a run 10,000 signals."""


async def send_all(tree: Tree, at: str, messages: Iterable[str], *, at_once: int = 4) -> None:
    """Signal all of them, so many at once."""
    left = iter(messages)

    async def some() -> None:
        for text in left:
            await tree.signal(at, "apiToken", text)

    await asyncio.gather(*[some() for _ in range(at_once)])


def strangers(genuine: Message, count: int, *, secret: str = "x") -> list[str]:
    """Well-formed messages of high versions by a stranger."""
    keys, high = builders.keyring("stranger"), now() + 280_000
    return [keys.seal(replace(genuine.claims, version=high + n), secret) for n in range(count)]


def forgeries_of(genuine: Message, count: int, *, secret: str = "x") -> list[str]:
    """The same in the genuine issuer's name."""
    head = genuine.text.split(".")[0]
    return [
        ".".join([head, *text.split(".")[1:]]) for text in strangers(genuine, count, secret=secret)
    ]


def flood_of(genuine: Message, count: int) -> list[str]:
    """Garbage by turns with forgeries."""
    forged = forgeries_of(genuine, count // 2)
    return [text for n, one in enumerate(forged) for text in (f"garbage {n}", one)]


async def is_counted_and_not_kept(tree: Tree, at: str, flood: list[str]) -> None:
    """Every message of a flood was judged; what is left of it are two counts and 20 lines."""

    async def all_judged() -> bool:
        return sum((await tree.refusals(at)).values()) >= len(flood)

    await eventually(all_judged, within=60)
    state = await tree[at].query("statefulState")
    ledger = state["ledger"]
    half = len(flood) // 2
    assert ledger["rejected"] == {"NotSealed": half, "TokenForged": half}
    assert len(ledger["rejections"]) == 20
    assert ledger["held"] == [await tree.sealed(at)]
    assert state["waiting"] == []
    assert len(json.dumps(state)) < 10_000


async def has_worked_all_along(tree: Tree) -> None:
    for at in NODES:
        assert await failed_tasks(tree[at]) == []
        assert await slow_tasks(tree[at]) == []


# --- garbage and forgeries -----------------------------------------------------------------------


async def test_a_flood_of_garbage_does_not_displace_the_genuine_message(unsent: Unsent) -> None:
    flood = flood_of(unsent.message, 300)

    await send_all(unsent.tree, "", flood)

    await is_counted_and_not_kept(unsent.tree, "", flood)
    await unsent.is_taken()


@pytest.fixture
async def line(unserved: Tree) -> AsyncIterator[Tree]:
    async with unserved.worker():
        await unserved.start(LINE)
        yield unserved


@pytest.mark.timeout(300)
@pytest.mark.parametrize("flooded", FLOODS, ids=["root", "middle"])
async def test_rotations_converge_while_thousands_of_garbage_signals_come(
    line: Tree, flooded: str
) -> None:
    """At the root the genuine messages are updates amid the flood, in the middle signals."""
    genuine = parse(await line.sealed())
    flood = await asyncio.to_thread(flood_of, genuine, FLOODS[flooded])

    for rotation in range(20):
        part = flood[rotation::20]
        sending = asyncio.create_task(send_all(line, flooded, part))
        await line.rotate(f"rotation {rotation}")
        await line.reveals(f"rotation {rotation}", *NODES)
        await sending

    await is_counted_and_not_kept(line, flooded, flood)
    await has_worked_all_along(line)
    await line.rotate("after the flood")


@pytest.mark.timeout(300)
async def test_a_genuine_message_amid_garbage_that_waited_for_the_worker_is_taken(
    unserved: Tree,
) -> None:
    """All of it comes in one workflow task, and is judged in several."""
    tree = unserved
    async with tree.worker():
        await tree.start(LINE)
        unsent = await unsent_for(tree)
    flood = flood_of(unsent.message, 3000)

    await send_all(tree, "", flood[:1500], at_once=50)
    await tree.signal("", "apiToken", unsent.message.text)
    await send_all(tree, "", flood[1500:], at_once=50)

    async with tree.worker():
        await is_everywhere(tree, unsent.message)  # before the rest is judged
        await is_counted_and_not_kept(tree, "", flood)
        await unsent.is_taken()
        await has_worked_all_along(tree)
        assert len(await events_of(tree[""], "TIMER_FIRED")) >= 1


@pytest.mark.timeout(180)
@pytest.mark.parametrize("forged", [1000, 4000])
async def test_a_genuine_message_behind_a_flood_of_forgeries_outlives_continue_as_new(
    unserved: Tree, forged: int
) -> None:
    tree = unserved
    async with tree.worker():
        await tree.start()
        unsent = await unsent_for(tree)

    await send_all(tree, "", forgeries_of(unsent.message, forged, secret="x" * 800))
    await tree.signal("", "apiToken", unsent.message.text)
    await tree.signal("", "go_on_at_once")
    before = await run_id(tree.client, tree.root)

    async with tree.worker():
        await next_run(tree.client, tree.root, before)

        async def all_is_judged() -> bool:
            return not (await tree.status())["waiting"]

        await eventually(all_is_judged)
        assert await tree.sealed() == unsent.message.text
        assert await tree.refusals() == {"TokenForged": forged}
        await is_healthy(tree, holding="unsent")


# --- by issuers nobody knows ---------------------------------------------------------------------


async def test_of_a_flood_by_strangers_little_is_kept_and_the_rest_is_forged(
    unsent: Unsent,
) -> None:
    flood = strangers(unsent.message, 300, secret="x" * 4000)
    assert sum(map(len, flood)) > 2_000_000

    await send_all(unsent.tree, "", flood)

    async def bounded() -> None:
        status = await unsent.tree.status()
        waiting = status["waiting_count"]
        assert waiting * len(flood[0]) < 1_000_000
        assert status["rejections"]["counts"] == {"TokenForged": len(flood) - waiting}

    await eventually(bounded)
    await unsent.is_taken()


async def test_a_successors_message_behind_those_of_strangers_outlives_continue_as_new(
    tree: Tree,
) -> None:
    """No worker has the successor's key yet, as in a rollout that takes its time."""
    await tree.start()
    successor = (await unsent_for(tree, by="successor")).message

    await send_all(tree, "", strangers(successor, 100, secret="x" * 4000))
    await tree.signal("", "apiToken", successor.text)
    await tree.goes_on(how="go_on_at_once")

    # A status lists the first few of those that wait; the state has all.
    state = await tree[""].query("statefulState")
    assert successor.text in state["waiting"]
