"""What a node says of its children."""

from __future__ import annotations

from typing import Any

from stateful_workflow.node.contract import Orphan
from stateful_workflow.node.describe import describe_ledger
from stateful_workflow.node.ledger import Child, Ledger
from tests.builders import NOW, ROOT, TREE, token, trusted


def node() -> Ledger:
    """A node that holds a token, and has one running child."""
    ledger = Ledger((ROOT,), TREE, trusted("ours"))
    ledger.accept(token(), NOW)
    ledger.start_child(Child("a", "Shop", withheld=frozenset({"github"})))
    ledger.confirm_child("a", ledger.starts)
    return ledger


def children(ledger: Ledger, **reasons: str) -> list[dict[str, Any]]:
    return describe_ledger(ledger, NOW, [], reasons)["children"]


def replaced(ledger: Ledger) -> list[str]:
    """The closed children of whose ids others run."""
    return describe_ledger(ledger, NOW, [], {})["replaced"]


def undelivered(ledger: Ledger, **reasons: str) -> dict[str, str]:
    """The children that lack something, and why."""
    entries = describe_ledger(ledger, NOW, [], reasons)["undelivered"]
    return {entry["id"]: entry["reason"] for entry in entries}


def test_of_a_child_its_life_and_what_is_kept_from_it_is_said() -> None:
    ledger = node()
    ledger.withhold("a", None)
    ledger.share("a", "billing")

    assert children(ledger) == [
        {
            "id": "a",
            "type": "Shop",
            "life": "running",
            "reason": None,
            "withheld": ["*", "github"],
            "shared": ["billing"],
            "hard": ["github"],
        }
    ]


def test_why_one_could_not_be_told_stands_with_the_child_and_with_what_it_lacks() -> None:
    ledger = node()
    ledger.accept(token(NOW + 1), NOW)
    assert undelivered(ledger) == {"a": "on its way"}

    assert undelivered(ledger, a="UNAVAILABLE: no") == {"a": "UNAVAILABLE: no"}
    assert [child["reason"] for child in children(ledger, a="UNAVAILABLE: no")] == [
        "UNAVAILABLE: no"
    ]


def test_a_closed_child_is_said_until_whom_it_leaves_is_found() -> None:
    ledger = node()
    ledger.close_child("a", ledger.starts)

    [child] = children(ledger, a="closed; UNAVAILABLE: no")
    assert (child["life"], child["reason"]) == ("closed", "closed; UNAVAILABLE: no")
    assert child["hard"] == ["github"]
    assert replaced(ledger) == []

    ledger.adopt("a", [])
    assert children(ledger) == []


def test_of_a_closed_child_and_a_later_one_of_its_id_the_one_that_runs_is_said() -> None:
    ledger = node()
    ledger.close_child("a", ledger.starts)
    ledger.start_child(Child("a", "Other"))

    [child] = children(ledger)
    assert (child["type"], child["life"], child["hard"]) == ("Other", "starting", [])
    assert replaced(ledger) == ["a"]

    ledger.adopt("a", [])
    assert replaced(ledger) == []


def test_of_one_untold_it_is_said_what_is_to_be_done_and_nothing_is_on_its_way() -> None:
    ledger = node()
    ledger.close_child("a", ledger.starts)
    ledger.adopt("a", [Orphan("b", "Shop", [], None)])

    [child] = children(ledger)
    assert child["life"] == "untold"
    assert "set a token at it, or let its parent's code share() it" in child["reason"]
    assert undelivered(ledger) == {}
