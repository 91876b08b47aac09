"""How a walk judges the nodes that it meets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from stateful_workflow.client import walk
from stateful_workflow.client.calls import Answer
from stateful_workflow.node.answers import ChildStatus, NodeStatus
from stateful_workflow.node.ledger import Life

ROOT = NodeStatus("r", "t", "Node", None, (), (), (), (), (), False, False)
UNTOLD = ChildStatus("c", "Node", Life.UNTOLD, "nobody knows what was kept from it", (), (), ())


@pytest.mark.parametrize("root", ["r", "another"])
async def test_a_child_that_is_untold_or_beside_the_tree_keeps_it_from_converging(
    monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    statuses = {"r": replace(ROOT, children=(UNTOLD,)), "c": replace(ROOT, root=root)}

    async def ask(_client: object, workflow_id: str, _timeout: object) -> Answer:
        return Answer(statuses[workflow_id], closed=False)

    monkeypatch.setattr(walk, "ask", ask)

    tree = await walk.TreeWalk(cast("Any", None), "apiToken").run("r")

    assert not tree.converged
    assert tree.nodes[1].beside is (root == "another")
    assert tree.nodes[1].problem == (UNTOLD.reason if root == "r" else walk._FOREIGN)  # pyright: ignore[reportPrivateUsage]
