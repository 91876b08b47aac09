"""What a tree says of itself in a line, and when it is green."""

from __future__ import annotations

from typing import Any

import pytest

from stateful_workflow import TokenTree
from stateful_workflow.node.status import TreeNode

FINGERPRINT = "aa" * 8


def node(state: Any = "held", *, root: bool = False, **members: Any) -> TreeNode:
    return TreeNode("r" if root else "c", "Node", None if root else "r", state, **members)


ROOT = node(root=True)
NONE = node("none", root=True)

SEEN: dict[str, tuple[tuple[TreeNode, ...], bool]] = {
    # --- every live node that is entitled to it has it ---
    "converged": ((ROOT, node(), node()), True),
    "converged · 2 set here": ((ROOT, node(set_here=True), node(set_here=True)), True),
    "converged · 1 withheld": ((ROOT, node("withheld", withheld=True)), True),
    "converged · 1 not for its type": ((node(root=True, not_for_type=True), node()), True),
    "converged · 1 revoked": ((ROOT, node("revoked", set_here=False)), True),
    "converged · 1 set here · 1 revoked": ((ROOT, node("revoked", set_here=True)), True),
    # --- converged, and not all can use it ---
    "converged · 1 expired": ((ROOT, node("expired")), False),
    "converged · 2 key revoked": ((ROOT, node("key_revoked"), node("key_revoked")), False),
    "converged · 1 waiting": ((ROOT, node("waiting")), False),
    "converged · 1 needs set": ((ROOT, node("needs_set")), False),
    # --- nobody has anything to use ---
    "nothing usable is held · 1 not for its type": ((node(root=True, not_for_type=True),), False),
    "nothing usable is held": ((NONE, node("none")), False),
    "nothing usable is held · 2 revoked": ((node("revoked", root=True), node("revoked")), False),
    "nothing usable is held · 1 expired": ((node("expired", root=True),), False),
    "nothing usable is held · 1 withheld": ((NONE, node("withheld", withheld=True)), False),
    # --- not everybody has the newest ---
    "not converged · 1 behind": ((ROOT, node(current=False)), False),
    "not converged · 1 unreachable": ((ROOT, node("unknown", current=False)), False),
    "not converged · 1 failed": ((ROOT, node("failed", closed=True, current=False)), False),
    "not converged · 1 beside": ((ROOT, node(beside=True, current=False)), False),
    "not converged · 1 behind · 1 unreachable · 1 beside · 1 set here · 1 expired · 1 withheld": (
        (
            ROOT,
            node(current=False),
            node("unknown", current=False),
            node(beside=True, current=False),
            node("expired", set_here=True),
            node("withheld", withheld=True),
        ),
        False,
    ),
}


@pytest.mark.parametrize("glance", SEEN)
def test_a_tree_says_in_a_line_who_is_not_simply_current(glance: str) -> None:
    nodes, usable = SEEN[glance]
    tree = TokenTree("apiToken", nodes)
    assert tree.glance == glance
    assert tree.usable is usable


def test_of_closed_workflows_nothing_is_counted_but_that_they_failed_when_told() -> None:
    closed = [node(s, closed=True) for s in ("held", "expired", "revoked", "needs_set")]
    tree = TokenTree("apiToken", (ROOT, *closed, node("withheld", withheld=True, closed=True)))
    assert (tree.glance, tree.usable) == ("converged", True)
    assert not TokenTree("apiToken", (node(root=True, closed=True),)).usable


def test_what_is_kept_from_a_node_may_expire_there() -> None:
    kept = node("expired", withheld=True)
    assert TokenTree("apiToken", (ROOT, kept)).usable
