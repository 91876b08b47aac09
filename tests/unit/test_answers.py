"""What is read of a workflow's answer, and that whatever else it answers is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateful_workflow.errors import AnswerMalformed
from stateful_workflow.node.answers import (
    MAX_ENTRIES,
    kept_children,
    node_status,
    token_answer,
    token_status,
)
from stateful_workflow.node.contract import Orphan
from stateful_workflow.node.describe import describe_ledger, status_of
from stateful_workflow.node.ledger import Child, Ledger, Life
from stateful_workflow.sealed.message import Message
from tests.builders import NOW, ROOT, TREE, revocation, token, trusted
from tests.statuses import CHILD, HELD, MALFORMED, Json, status

# --- what a node answers is read -----------------------------------------------------------------


def node(*messages: Message) -> Ledger:
    ledger = Ledger((ROOT,), TREE, trusted("ours"))
    for message in messages:
        ledger.accept(message, NOW)
    return ledger


def answer_of(ledger: Ledger, reasons: dict[str, str] | None = None) -> Json:
    """What the node of a ledger answers, as it comes out of JSON."""
    described = describe_ledger(ledger, NOW, [token(name="billing")], reasons or {})
    return json.loads(json.dumps({**status(), **described}))


def test_of_a_genuine_status_everything_is_read() -> None:
    ledger = node(token(), revocation(name="github"))
    ledger.start_child(Child("acme-a", "Shop", withheld=frozenset({"github"})))
    ledger.confirm_child("acme-a", ledger.starts)
    ledger.accept(token(NOW + 1), NOW + 1)

    read = node_status(answer_of(ledger))

    held = [
        (one.status.name, one.kind, one.version, one.inherit, one.in_force) for one in read.tokens
    ]
    assert held == [
        ("apiToken", "token", NOW + 1, None, True),
        ("github", "revocation", NOW, False, True),
    ]
    assert read.tokens[0].status == status_of(ledger, token(NOW + 1), NOW)
    [child] = read.children
    assert (child.id, child.type, child.life, child.reason) == (
        *("acme-a", "Shop", Life.RUNNING, None),
    )
    assert (child.hard, child.withheld, child.shared) == (("github",), ("github",), ())
    assert (read.root, read.tree, read.type) == (ROOT, TREE, "Liar")
    assert read.undelivered == (("acme-a", "apiToken"),)
    assert read.waiting == ("billing",)
    assert read.signals == 3
    assert read.courier == "q:stateful"


def test_of_each_child_its_life_is_read_and_why_it_is_not_told() -> None:
    ledger = node(token())
    for id in ("starting", "running", "in_doubt", "closed"):
        ledger.start_child(Child(id, "Shop"))
        if id != "starting":
            ledger.confirm_child(id, ledger.starts)
    ledger.doubt_child("in_doubt", ledger.children["in_doubt"].start)
    ledger.close_child("closed", ledger.starts)
    ledger.adopt("gone", [Orphan("untold", "Shop", [], None)])

    reasons = {"running": "UNAVAILABLE: no", "closed": "closed; UNAVAILABLE: no"}
    read = {child.id: child for child in node_status(answer_of(ledger, reasons)).children}

    assert {id: child.life.value for id, child in read.items()} == {id: id for id in read}
    assert {child.life for child in read.values()} == {*Life}
    assert {id: child.reason for id, child in read.items() if id != "untold"} == {
        **dict.fromkeys(("starting", "in_doubt"), None),
        **reasons,
    }
    assert (read["untold"].reason or "").startswith("not told, since nobody can say")


def test_of_a_child_that_closed_and_runs_again_the_later_one_is_read_and_its_id() -> None:
    ledger = node()
    ledger.start_child(Child("acme-a", "Shop"))
    ledger.close_child("acme-a", ledger.starts)
    assert node_status(answer_of(ledger)).replaced == ()

    ledger.start_child(Child("acme-a", "Shop"))
    read = node_status(answer_of(ledger))

    assert [(child.id, child.life) for child in read.children] == [("acme-a", Life.STARTING)]
    assert read.replaced == ("acme-a",)


def test_a_node_may_know_more_children_than_one_run_may_have_open() -> None:
    """The server's limit is 2,000 a run; those of runs before and of closed children add to it."""
    ledger = node()
    for n in range(2_500):
        ledger.start_child(Child(f"acme-{n}", "Shop"))
    carried = Ledger.load(ledger.dump())

    assert len(node_status(answer_of(carried)).children) == 2_500


def test_what_workflow_code_withholds_that_no_credential_is_called_is_left_out() -> None:
    ledger = node()
    ledger.start_child(Child("acme-a", "Shop", withheld=frozenset({"no name", "*"})))

    [child] = node_status(answer_of(ledger)).children

    assert child.hard == ("*",)


def test_members_that_are_not_known_are_ignored() -> None:
    newer: Json = {"newer": {"than": [1.5]}}
    ours = status(tokens=[HELD], children=[CHILD])
    theirs = status(tokens=[{**HELD, **newer}], children=[{**CHILD, **newer}])

    assert node_status({**theirs, **newer}) == node_status(ours)


def test_of_a_child_only_the_id_has_to_be_there() -> None:
    [child] = node_status(status(children=[{"id": "a"}])).children

    assert (child.type, child.life, child.reason) == ("", Life.RUNNING, None)
    assert (child.withheld, child.shared, child.hard) == ((), (), ())


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

    assert len(node_status(status(children=children[:-1])).children) == MAX_ENTRIES
    with pytest.raises(AnswerMalformed, match=f"^children: it is no list of at most {MAX_ENTRIES}"):
        node_status(status(children=children))


# --- what the children of a closed workflow are adopted by ----------------------------------------


def kept(*children: object) -> list[str]:
    """Which of the children in a status are read."""
    return list(kept_children({"children": list(children)}))


def test_of_a_closed_workflow_the_children_are_read_with_what_was_kept_from_them() -> None:
    ledger = node()
    ledger.start_child(Child("acme-a", "Shop", withheld=frozenset({"github"})))
    ledger.withhold("acme-a", None)
    ledger.share("acme-a", "billing")

    [child] = kept_children(answer_of(ledger)).values()

    assert (child.id, child.type) == ("acme-a", "Shop")
    assert (child.hard, child.withheld) == (("github",), ("*", "github"))
    assert child.shared == ("billing",)


@pytest.mark.parametrize(
    "child_id", [None, 7, "", "x" * 1001, "é" * 501, "\ud800", ["a"]], ids=repr
)
def test_one_that_can_be_no_workflow_is_left_out(child_id: object) -> None:
    assert kept({**CHILD, "id": child_id}, CHILD) == [CHILD["id"]]


def test_one_of_the_longest_id_is_read() -> None:
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


def test_of_one_with_too_many_children_none_are_read() -> None:
    children = [{"id": str(n)} for n in range(MAX_ENTRIES + 1)]

    assert len(kept_children({"children": children[:-1]})) == MAX_ENTRIES
    with pytest.raises(AnswerMalformed, match=f"^it is no list of at most {MAX_ENTRIES}"):
        kept_children({"children": children})


# --- whatever comes ------------------------------------------------------------------------------

texts = st.text(st.characters(codec=None), max_size=20) | st.just("apiToken") | st.just("\ud800")
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)

READERS: list[Callable[[object], object]] = [
    node_status,
    token_status,
    lambda answer: token_answer(answer, "apiToken"),
    kept_children,
]


def is_read_or_refused(answer: object) -> None:
    for read in READERS:
        try:
            read(answer)
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
    for path, new in sorted(changes, key=lambda change: -len(change[0])):
        answer = changed(answer, path, new)

    is_read_or_refused(answer)


def test_the_genuine_one_is_read() -> None:
    assert len(node_status(GENUINE).tokens) == 2


@given(st.sampled_from(places(HELD)), anything)
def test_of_a_changed_token_only_the_librarys_error_comes(
    path: tuple[Any, ...], new: object
) -> None:
    is_read_or_refused(changed({**HELD, "sealed": "a message"}, path, new))
