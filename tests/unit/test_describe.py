"""What is read of another workflow's status, which may have been written by anybody."""

from __future__ import annotations

from typing import Any

import pytest

from stateful_workflow.errors import AnswerMalformed
from stateful_workflow.node.answers import MAX_ENTRIES
from stateful_workflow.node.describe import describe_ledger, known_children, read_children
from stateful_workflow.node.ledger import ALL, Child, Ledger

GENUINE: dict[str, Any] = {
    "id": "a",
    "type": "Node",
    "ended": True,
    "withheld": ["x"],
    "shared": ["y"],
    "hard": ["z"],
}


def read(child: dict[str, Any]) -> list[tuple[Child, dict[str, bool]]]:
    return read_children(known_children({"children": [child]}))


def test_a_child_is_read_with_what_it_is_kept_from() -> None:
    [(child, kept)] = read(GENUINE)

    assert (child.id, child.type, child.ended) == ("a", "Node", True)
    assert child.withheld == {"z"}
    assert kept == {"x": True, "y": False}


def test_one_that_may_be_nobodys_child_is_left_out() -> None:
    assert read({**GENUINE, "running": True}) == []


@pytest.mark.parametrize(
    "child_id", [None, 7, "", "x" * 1001, "é" * 501, "\ud800", ["a"]], ids=repr
)
def test_what_can_be_no_workflow_id_is_left_out(child_id: object) -> None:
    assert read({**GENUINE, "id": child_id}) == []


def test_the_longest_id_is_read() -> None:
    assert len(read({**GENUINE, "id": "x" * 1000})) == 1


@pytest.mark.parametrize("junk", [7, "\ud800", {}, [[]], ["\ud800"]], ids=repr)
def test_one_with_junk_in_another_member_is_left_out(junk: object) -> None:
    others = {name: junk for name in GENUINE if name != "id"}

    assert read({**others, "id": "a"}) == []
    assert len(read_children([{**others, "id": "a"}, GENUINE])) == 1


def test_of_one_that_is_only_named_nothing_is_withheld() -> None:
    [(child, kept)] = read({"id": "a"})

    assert (child.type, child.ended, child.withheld, kept) == ("", False, frozenset(), {})


def test_what_an_adoption_does_not_go_by_is_not_taken() -> None:
    nested: list[Any] = []
    for _ in range(900):
        nested = [nested]

    [known] = known_children({"children": [{**GENUINE, "padding": nested}]})

    assert known == GENUINE


def test_more_names_than_a_list_may_have_are_every_name_and_never_none() -> None:
    names = [f"n{n}" for n in range(65)]

    [(hard, _)] = read({"id": "a", "hard": names})
    [(_, soft)] = read({"id": "a", "withheld": names, "shared": names})

    assert hard.withheld == {ALL}
    assert soft == {ALL: True}


@pytest.mark.parametrize(
    "status", ["x", [], {}, {"children": None}, {"children": {}}, {"children": [7]}], ids=repr
)
def test_a_status_without_children_that_can_be_read_has_none(status: object) -> None:
    assert known_children(status) == []


def test_of_one_with_too_many_children_none_are_read() -> None:
    children = [{"id": str(n)} for n in range(MAX_ENTRIES + 1)]

    assert len(known_children({"children": children[:-1]})) == MAX_ENTRIES
    with pytest.raises(AnswerMalformed, match=f"more than {MAX_ENTRIES} children"):
        known_children({"children": children})


def test_of_a_child_that_did_not_settle_it_is_not_said_that_it_ended() -> None:
    """Its handle may only have been given up; whoever takes it over finds out."""
    ledger = Ledger(("root",), "tree")
    ledger.start_child(Child("a", "Node"))
    ledger.end_child("a", settled=False)

    assert describe_ledger(ledger, 0, [], {})["children"][0]["ended"] is False
