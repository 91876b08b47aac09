"""How many rotations a run takes: what is short decides, and nothing makes it more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateful_workflow.node.budget import (
    MAX_BYTES,
    MAX_EVENTS,
    MAX_SIGNALS,
    MAX_UPDATES,
    Cost,
    Used,
    cost_of_rotation,
    rotations_left,
)
from stateful_workflow.node.ledger import Child, Ledger
from tests.builders import NOW, ROOT, TREE, token, trusted

FRESH = Used(events=0, bytes=0, signals=0, updates=0)
COST = Cost(events=6, bytes=2_600)

counts = st.integers(0, 2 * MAX_BYTES)
used = st.builds(Used, counts, counts, counts, counts)
costs = st.builds(Cost, st.integers(1, 100), st.integers(1, 10**6))


def ledger(children: int) -> Ledger:
    node = Ledger((ROOT,), TREE, trusted("ours"))
    node.accept(token(), NOW)
    for n in range(children):
        node.start_child(Child(f"child-{n:05}", "Node"))
    return node


@pytest.mark.parametrize(
    ("short", "is_root", "left"),
    [
        (replace(FRESH, events=MAX_EVENTS - 6 * 8), False, 7),
        (replace(FRESH, events=MAX_EVENTS - 6 * 8 + 1), False, 6),
        (replace(FRESH, bytes=MAX_BYTES - 2_600 * 8), False, 7),
        (replace(FRESH, updates=MAX_UPDATES - 7), True, 7),
        (replace(FRESH, signals=MAX_SIGNALS - 7, updates=MAX_UPDATES), False, 7),
        (replace(FRESH, signals=MAX_SIGNALS, updates=MAX_UPDATES - 7), False, 7),
    ],
    ids=["events", "not a whole one", "bytes", "updates", "signals", "updates after signals"],
)
def test_what_is_short_decides(short: Used, is_root: bool, left: int) -> None:
    assert rotations_left(short, COST, is_root=is_root) == left


@given(used, costs, st.booleans())
def test_a_rotation_takes_at_least_one_from_what_is_left(
    used: Used, cost: Cost, is_root: bool
) -> None:
    left = rotations_left(used, cost, is_root=is_root)
    after = replace(used, events=used.events + cost.events, bytes=used.bytes + cost.bytes)
    if is_root or used.signals >= MAX_SIGNALS:
        after = replace(after, updates=used.updates + 1)
    else:
        after = replace(after, signals=used.signals + 1)
    assert 0 <= rotations_left(after, cost, is_root=is_root) <= max(left - 1, 0)


def test_by_the_local_attempt_children_cost_the_same_however_many_they_are() -> None:
    one, many = (cost_of_rotation(ledger(count), by_activity=False) for count in (1, 1_000))
    assert one == many
    assert one.events == cost_of_rotation(ledger(0), by_activity=False).events + 1


def test_an_ordinary_activity_names_every_child_in_history() -> None:
    few, many = (cost_of_rotation(ledger(count), by_activity=True) for count in (1, 1_001))
    assert few.events == many.events > cost_of_rotation(ledger(1), by_activity=False).events
    assert many.bytes - few.bytes >= 1_000 * len("child-00000" + "Node" + '["","",[0]],')
