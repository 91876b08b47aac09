"""What is read of another workflow's status, which may have been written by anybody."""

from __future__ import annotations

from typing import Any

import pytest

from stateful_workflow.describe import describe_ledger, known_children, read_children
from stateful_workflow.ledger import ALL, Child, Ledger

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


@pytest.mark.parametrize("junk", [None, 7, "\ud800", {}, [[]], ["\ud800"], ["a b"]], ids=repr)
def test_junk_in_the_other_members_is_as_if_they_were_not_there(junk: object) -> None:
    others = {name: junk for name in GENUINE if name != "id"}

    [(child, kept)] = read({**others, "id": "a"})

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


@pytest.mark.parametrize("status", [{}, {"children": None}, {"children": {}}, {"children": [7]}])
def test_a_status_without_children_that_can_be_read_has_none(status: dict[str, Any]) -> None:
    assert known_children(status) == []


def test_of_a_child_that_did_not_settle_it_is_not_said_that_it_ended() -> None:
    """Its handle may only have been given up; whoever takes it over finds out."""
    ledger = Ledger(("root",), "tree")
    ledger.start_child(Child("a", "Node"))
    ledger.end_child("a", settled=False)

    assert describe_ledger(ledger, 0, [], {})["children"][0]["ended"] is False
