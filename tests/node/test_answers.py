"""What a node answers is read as it was meant, and whatever else comes is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateful_workflow.errors import AnswerMalformed
from stateful_workflow.node.answers import (
    ChildStatus,
    Lacking,
    NodeStatus,
    kept_children,
    node_status,
    token_answer,
)
from stateful_workflow.node.describe import View
from stateful_workflow.node.ledger import Ledger, Life
from stateful_workflow.node.members import MAX_ENTRIES, read, to_json
from stateful_workflow.node.status import TokenStatus
from tests.support.builders import (
    NOW,
    ROOT,
    TREE,
    close,
    doubt,
    node,
    orphan,
    restarted,
    revocation,
    started,
    starting,
    token,
)
from tests.support.statuses import CHILD, HELD, MALFORMED, Json, status

# --- what a node answers is read -----------------------------------------------------------------


def view_of(ledger: Ledger, **reasons: str) -> View:
    return View(ledger, NOW, [token(name="billing")], reasons)


def answer_of(ledger: Ledger, **reasons: str) -> Json:
    """What the node of a ledger answers, as it comes out of JSON."""
    answer = view_of(ledger, **reasons).node("Shop", signals=3, courier="q:stateful")
    return json.loads(json.dumps(to_json(answer)))


def read_of(ledger: Ledger, **reasons: str) -> NodeStatus:
    return node_status(answer_of(ledger, **reasons))


def test_of_a_genuine_status_everything_is_read() -> None:
    ledger = node(holds=[token(), revocation(name="github")])
    started(ledger, "acme-a", withheld=frozenset({"github"}))
    ledger.accept(token(NOW + 1), NOW + 1)
    ledger.withhold("acme-a", None)
    ledger.share("acme-a", "apiToken")

    read = read_of(ledger)

    held = [
        (one.status.name, one.kind, one.version, one.inherit, one.in_force, one.message)
        for one in read.tokens
    ]
    assert held == [
        ("apiToken", "token", NOW + 1, None, True, token(NOW + 1).text),
        ("github", "revocation", NOW, False, True, revocation(name="github").text),
    ]
    assert read.tokens[0].status == view_of(ledger).status("apiToken")
    assert read.children == (
        ChildStatus(
            "acme-a", "Node", Life.RUNNING, None, ("*", "github"), ("apiToken",), ("github",)
        ),
    )
    assert [read.children[0].is_kept_from(name) for name in ("apiToken", "github", "x")] == [
        *(False, True, True),
    ]
    assert (read.root, read.tree, read.type) == (ROOT, TREE, "Shop")
    assert read.undelivered == (Lacking("acme-a", "apiToken"),)
    assert [one.name for one in read.waiting] == ["billing"]
    assert read.waits("apiToken") is None
    assert read.waiting[0].issuer in (read.waits("billing") or "")
    assert (read.signals, read.courier) == (3, "q:stateful")


def test_of_each_child_its_life_is_read_and_why_it_is_not_told() -> None:
    ledger = node(holds=[token()])
    starting(ledger, "starting")
    started(ledger, "running")
    doubt(ledger, "in_doubt")
    started(ledger, "closed")
    close(ledger, "closed")
    ledger.adopt("gone", [orphan("untold", None)])
    ledger.accept(token(NOW + 1), NOW)

    reasons = {"running": "UNAVAILABLE: no", "closed": "closed; UNAVAILABLE: no"}
    read = {child.id: child for child in read_of(ledger, **reasons).children}

    assert {id: child.life.value for id, child in read.items()} == {id: id for id in read}
    assert {child.life for child in read.values()} == {*Life}
    assert {id: child.reason for id, child in read.items() if id != "untold"} == {
        **dict.fromkeys(("starting", "in_doubt"), None),
        **reasons,
    }
    assert "set a token at it, or let its parent's code share() it" in str(read["untold"].reason)
    for said in ({}, reasons):
        assert [
            (lack["id"], lack["reason"]) for lack in answer_of(ledger, **said)["undelivered"]
        ] == [("running", said.get("running", "on its way"))]


def test_a_closed_child_is_read_until_whom_it_leaves_is_found_and_a_later_one_of_its_id() -> None:
    ledger = node()
    started(ledger, "acme-a", withheld=frozenset({"github"}))
    close(ledger, "acme-a")
    [child] = read_of(ledger).children
    assert (child.life, child.hard) == (Life.CLOSED, ("github",))
    assert read_of(ledger).replaced == ()

    starting(ledger, "acme-a")
    [child] = read_of(ledger).children
    assert (child.life, child.hard) == (Life.STARTING, ())
    assert read_of(ledger).replaced == ("acme-a",)

    ledger.adopt("acme-a", [])
    assert read_of(ledger).replaced == ()


def test_a_node_may_know_more_children_than_one_run_may_have_open() -> None:
    """The server's limit is 2,000 a run; those of runs before and of closed children add to it."""
    ledger = node()
    ledger.adopt("gone", [orphan(f"acme-{n}", {}) for n in range(2_500)])

    assert len(read_of(restarted(ledger)).children) == 2_500


def test_what_workflow_code_withholds_that_no_credential_is_called_is_left_out() -> None:
    ledger = node()
    started(ledger, "acme-a", withheld=frozenset({"no name", "*"}))

    [child] = read_of(ledger).children

    assert child.hard == ("*",)


@pytest.mark.parametrize(
    ("recovering", "waits", "lost", "withheld", "state"),
    [
        (True, False, True, True, "waiting"),
        (False, True, True, True, "waiting"),
        (False, False, True, True, "needs_set"),
        (False, False, False, True, "withheld"),
        (False, False, False, False, "none"),
    ],
)
def test_the_state_of_a_name_without_a_message_is_the_first_that_is_so(
    recovering: bool, waits: bool, lost: bool, withheld: bool, state: str
) -> None:
    ledger = started(node(), "mid", withheld=frozenset({"*"} if withheld else ()))
    waiting = [token()] if waits else []
    view = View(ledger, NOW, waiting, recovering=recovering, lost=lost)

    assert view.status("apiToken").state == state
    assert (view.token("apiToken") is None) is (state == "none")


def test_members_that_are_not_known_are_ignored() -> None:
    newer: Json = {"newer": {"than": [1.5]}}
    ours = status(tokens=[HELD], children=[CHILD])
    theirs = status(tokens=[{**HELD, **newer}], children=[{**CHILD, **newer}])

    assert node_status({**theirs, **newer}) == node_status(ours)


def test_of_a_child_only_the_id_has_to_be_there() -> None:
    [child] = node_status(status(children=[{"id": "a"}])).children

    assert child == ChildStatus("a", "", Life.RUNNING, None, (), (), ())


@pytest.mark.parametrize("member", ["api_url", "replaced", "signals", "courier"])
def test_a_member_that_may_be_null_may_be_absent(member: str) -> None:
    absent = {name: value for name, value in status().items() if name != member}

    assert node_status(absent) == node_status({**status(), member: None})


def test_the_sealed_token_of_the_name_that_was_asked_for_is_read() -> None:
    answer = token_answer({**HELD, "sealed": "a message"}, "apiToken")

    assert answer is not None
    assert (answer.status.fingerprint, answer.sealed) == (HELD["fingerprint"], "a message")
    assert token_answer(None, "apiToken") is None
    with pytest.raises(AnswerMalformed, match="another credential"):
        token_answer({**HELD, "sealed": None}, "github")


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("change", MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_status_is_refused_by_name(change: Json) -> None:
    with pytest.raises(AnswerMalformed):
        node_status({**status(), **change})


@pytest.mark.parametrize(
    "member",
    [
        *("root", "tree", "type", "needs_set", "recovering"),
        *("tokens", "children", "withheld", "undelivered", "waiting"),
    ],
)
def test_a_status_without_what_has_to_be_there_is_refused(member: str) -> None:
    absent = {name: value for name, value in status().items() if name != member}

    with pytest.raises(AnswerMalformed, match=f"^{member}: it is no"):
        node_status(absent)


def test_the_error_says_where_it_is_wrong_and_not_what_stood_there() -> None:
    with pytest.raises(AnswerMalformed, match=r"^tokens: version: it is no integer") as refused:
        node_status(status(tokens=[{**HELD, "version": "tok-3f9c1b-canary"}]))

    assert "canary" not in str(refused.value)


def test_longer_lists_than_a_status_holds_are_refused() -> None:
    children = [{"id": str(n)} for n in range(MAX_ENTRIES + 1)]
    whole, longer = status(children=children[:-1]), status(children=children)

    assert len(node_status(whole).children) == len(kept_children(whole)) == MAX_ENTRIES
    for read_it in (node_status, kept_children):
        with pytest.raises(AnswerMalformed, match=f"it is no list of at most {MAX_ENTRIES}"):
            read_it(longer)


# --- what the children of a closed workflow are adopted by ----------------------------------------


def kept(*children: object) -> list[str]:
    """Which of the children in a status are read."""
    return list(kept_children({"children": list(children)}))


@pytest.mark.parametrize(
    "child_id", [None, 7, "", "x" * 1001, "é" * 501, "\ud800", ["a"]], ids=repr
)
def test_one_that_can_be_no_workflow_is_left_out(child_id: object) -> None:
    assert kept({**CHILD, "id": child_id}, CHILD) == [CHILD["id"]]
    assert len(kept({**CHILD, "id": "x" * 1000})) == 1


@pytest.mark.parametrize("member", ["type", "life", "reason", "withheld", "shared", "hard"])
@pytest.mark.parametrize("junk", [7, "\ud800", {}, [[]], ["\ud800"]], ids=repr)
def test_one_with_junk_in_another_member_is_left_out(member: str, junk: object) -> None:
    assert kept({**CHILD, "id": "a", member: junk}, CHILD) == [CHILD["id"]]


@pytest.mark.parametrize("children", [None, [], [7], ["a"], [None]], ids=repr)
def test_a_status_without_children_that_can_be_read_has_none(children: object) -> None:
    assert kept_children({"children": children}) == {}
    assert kept_children({}) == {}


@pytest.mark.parametrize(
    "answer", ["x", [], 7, None, {"children": {}}, {"children": "a"}], ids=repr
)
def test_what_is_no_status_is_refused(answer: object) -> None:
    with pytest.raises(AnswerMalformed, match=r"^it is no (object|list of at most)"):
        kept_children(answer)


# --- whatever comes ------------------------------------------------------------------------------

texts = st.text(st.characters(codec=None), max_size=20) | st.just("apiToken") | st.just("\ud800")
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)

READERS: list[Callable[[object], object]] = [
    node_status,
    partial(read, TokenStatus),
    lambda answer: token_answer(answer, "apiToken"),
    kept_children,
]


def is_read_or_refused(answer: object) -> None:
    for reader in READERS:
        try:
            reader(answer)
        except AnswerMalformed as error:
            str(error).encode()


@given(anything)
def test_of_any_json_only_the_librarys_error_comes(answer: object) -> None:
    is_read_or_refused(answer)


GENUINE = status(
    tokens=[HELD, {**HELD, "name": "github", "kind": "revocation", "inherit": False}],
    children=[CHILD, {**CHILD, "id": "other", "withheld": ["*"], "shared": ["github"]}],
    withheld=["github"],
    undelivered=[{"id": "phantom", "name": "apiToken"}],
    waiting=[{"name": "apiToken"}],
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a value something stands."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, list):
        inner = list(enumerate(value))  # pyright: ignore[reportUnknownArgumentType]
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: object) -> Any:
    if not path:
        return new
    copy = deepcopy(value)
    at = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return copy


@given(st.lists(st.tuples(st.sampled_from(places(GENUINE)), anything), min_size=1, max_size=3))
def test_of_a_changed_status_only_the_librarys_error_comes(
    changes: list[tuple[tuple[Any, ...], object]],
) -> None:
    answer: Any = GENUINE
    assert len(node_status(answer).tokens) == 2
    for path, new in sorted(changes, key=lambda change: -len(change[0])):
        answer = changed(answer, path, new)

    is_read_or_refused(answer)


@given(st.sampled_from(places(HELD)), anything)
def test_of_a_changed_token_only_the_librarys_error_comes(
    path: tuple[Any, ...], new: object
) -> None:
    is_read_or_refused(changed({**HELD, "sealed": "a message"}, path, new))
