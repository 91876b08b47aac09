"""What the courier asks the server for, and how it reads the names that a workflow gives."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateful_workflow.node.answers import ChildStatus
from stateful_workflow.node.contract import Orphan
from stateful_workflow.node.ledger import ALL, Life
from stateful_workflow.sealed.message import MAX_LIST
from stateful_workflow.worker.descent import (
    _few,  # pyright: ignore[reportPrivateUsage]
    _kept_from,  # pyright: ignore[reportPrivateUsage]
    _quoted,  # pyright: ignore[reportPrivateUsage]
)

# What a workflow may be called: whoever starts it chose it.
ids = st.text(st.characters(codec="utf-8") | st.sampled_from("'\\\", )%_`-"), min_size=1)


def read(filter_: str) -> list[str]:
    """The strings of a list filter, as the server reads them: a backslash escapes one character."""
    literal = r"'((?:[^'\\]|\\.)*)'"
    assert re.fullmatch(f"{literal}(, {literal})*", filter_, re.DOTALL)
    return [
        re.sub(r"\\(.)", r"\1", found, flags=re.DOTALL)
        for found in re.findall(literal, filter_, re.DOTALL)
    ]


@given(st.lists(ids, min_size=1, max_size=4))
def test_whatever_workflows_are_called_the_server_reads_their_ids(called: list[str]) -> None:
    assert read(", ".join(map(_quoted, called))) == called


@pytest.mark.parametrize(
    "hostile",
    ["'", "\\", "\\'", "a') OR WorkflowId != ('", "a\\') OR WorkflowId != (\\'", '"\n--'],
)
def test_no_id_ends_the_string_it_stands_in(hostile: str) -> None:
    assert read(_quoted(hostile)) == [hostile]
    assert read(f"{_quoted(hostile)}, {_quoted('next')}") == [hostile, "next"]


def test_more_names_than_a_list_may_have_are_every_name_kept_and_none_given() -> None:
    names = tuple(f"n{n}" for n in range(MAX_LIST + 1))

    assert _few(names[1:], [ALL]) == list(names[1:])
    assert _few(names, [ALL]) == [ALL]
    assert _few(names, []) == []


def said(id: str, life: Life = Life.RUNNING, **kept: tuple[str, ...]) -> ChildStatus:
    said = ChildStatus(id=id, type="Node", life=life, reason=None, withheld=(), shared=(), hard=())
    return replace(said, **kept)  # pyright: ignore[reportArgumentType]


FOUND = Orphan("x", "Node", ["h"], {"s": True, "t": False})
"""As the upper of two closed workflows says."""

SAID: dict[str, tuple[ChildStatus | None, Orphan]] = {
    "nothing kept": (said("c"), FOUND),
    "kept hard": (said("c", hard=("t",)), Orphan("x", "Node", ["h", "t"], {"s": True})),
    "all kept but one": (
        said("c", withheld=(ALL,), shared=("s", "u")),
        Orphan("x", "Node", ["h"], {ALL: True, "s": True, "t": True, "u": False}),
    ),
    "untold": (said("c", life=Life.UNTOLD), Orphan("x", "Node", ["h"], None)),
    "not named": (None, Orphan("x", "Node", ["h"], None)),
}


@pytest.mark.parametrize("what", SAID)
def test_what_any_closed_workflow_on_the_way_kept_is_kept_and_what_nobody_knows_is_untold(
    what: str,
) -> None:
    child, kept = SAID[what]

    assert _kept_from(FOUND, child) == kept
