"""One node's ledger: what it takes, what is in force, and what its children are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stateful_workflow.errors import (
    MessageRefused,
    TokenConflict,
    TokenForged,
    TokenMalformed,
    TokenStale,
    TokenWithheld,
    WrongAuthority,
    WrongTree,
)
from stateful_workflow.node.contract import Orphan
from stateful_workflow.node.ledger import (
    ALL,
    CLOCK_TOLERANCE_MS,
    REMEMBERED_REJECTIONS,
    Child,
    Ledger,
    Life,
    StateTooNew,
    StateUnreadable,
    Verdict,
)
from stateful_workflow.sealed.message import Message, parse
from tests.builders import (
    NOW,
    ROOT,
    TOKEN,
    TREE,
    Json,
    header_of,
    issuer,
    jwe_of,
    keyring,
    revocation,
    signed,
    token,
    trusted,
)

PATH = (ROOT, "mid", "leaf")
HARD = frozenset({ALL})


def node(*path: str, trusts: tuple[str, ...] = ("ours",)) -> Ledger:
    """The ledger of a node at the end of this path that holds nothing yet."""
    return Ledger(path or (ROOT,), TREE, trusted(*trusts))


def restarted(ledger: Ledger) -> Ledger:
    """What the next run reads of it."""
    return Ledger.load(json.loads(json.dumps(ledger.dump())))


def started(parent: Ledger, child_id: str, **settings: Any) -> Ledger:
    """A child's ledger, started and confirmed."""
    with_messages = settings.pop("with_messages", True)
    child = Child(child_id, "Node", **settings)
    state = json.loads(json.dumps(parent.start_child(child, with_messages=with_messages)))
    parent.confirm_child(child_id, parent.starts)
    return Ledger.load(state)


def close(parent: Ledger, child_id: str) -> None:
    """A child that runs closes."""
    assert parent.close_child(child_id, parent.children[child_id].start)


def doubt(parent: Ledger, child_id: str, **settings: Any) -> None:
    """A start is refused, since one of this id runs already."""
    parent.start_child(Child(child_id, "Node", **settings))
    assert parent.doubt_child(child_id, parent.starts)


def orphan(id: str, soft: dict[str, bool] | None, *, hard: tuple[str, ...] = ()) -> Orphan:
    """One that was found below a closed child."""
    return Orphan(id, "Node", list(hard), soft)


def life(parent: Ledger) -> dict[str, Life]:
    """What a parent knows of the life of each child that is not among the closed."""
    return {child.id: child.life for child in parent.children.values()}


def told(parent: Ledger) -> dict[str, list[Message]]:
    """What the next telling would carry to each child."""
    return {child.id: messages for child, messages in parent.to_tell()}


def tell(parent: Ledger, *children: Ledger) -> None:
    """A telling in which every delivery succeeds."""
    for child, messages in list(parent.to_tell()):
        for ledger in children:
            if ledger.path[-1] == child.id:
                for message in messages:
                    ledger.accept(message, NOW)
        parent.delivered(child.id, messages)


def refuses(ledger: Ledger, message: Message, error: type[MessageRefused], now: int = NOW) -> str:
    """Show that a ledger refuses a message for this reason and is not changed by it."""
    before = json.dumps(ledger.dump())
    for judge in (ledger.check, ledger.accept):
        with pytest.raises(error) as caught:
            judge(message, now)
        assert type(caught.value) is error
        assert json.dumps(ledger.dump()) == before
    return str(caught.value)


# --- what is taken ---------------------------------------------------------------


def test_a_node_has_a_path_that_ends_with_itself() -> None:
    with pytest.raises(ValueError, match="path"):
        Ledger((), TREE)


@pytest.mark.parametrize("message", [token(), revocation(), revocation(inherit=True)])
def test_a_genuine_message_is_accepted_and_held(message: Message) -> None:
    ledger = node()

    assert ledger.accept(message, NOW) is Verdict.ACCEPTED
    assert ledger.held == {("apiToken", ROOT): message}
    assert ledger.floor("apiToken", ROOT) == message.order


def test_checking_says_the_same_and_changes_nothing() -> None:
    ledger = node()

    assert ledger.check(token(), NOW) is Verdict.ACCEPTED
    assert ledger.held == {}
    assert ledger.floor("apiToken", ROOT) is None


def test_a_newer_message_replaces_an_older_one() -> None:
    ledger = node()
    for message in (token(NOW), token(NOW + 1), revocation(NOW + 2), token(NOW + 3)):
        assert ledger.accept(message, NOW) is Verdict.ACCEPTED
        assert ledger.held == {("apiToken", ROOT): message}


def test_the_message_held_is_known_when_it_comes_again() -> None:
    ledger = node()
    ledger.accept(token(), NOW)
    epoch = ledger.epoch

    assert ledger.accept(token(), NOW) is Verdict.KNOWN
    assert ledger.epoch == epoch


def test_the_same_issuers_older_message_is_stale() -> None:
    ledger = node()
    ledger.accept(token(NOW), NOW)
    assert str(NOW - 1) in refuses(ledger, token(NOW - 1), TokenStale)


def test_a_message_that_was_replaced_is_stale_when_it_comes_again() -> None:
    ledger = node()
    ledger.accept(token(NOW - 1), NOW)
    ledger.accept(token(NOW), NOW)
    refuses(ledger, token(NOW - 1), TokenStale)


def test_another_issuers_newer_message_is_a_conflict_that_names_it() -> None:
    ledger = node(trusts=("ours", "theirs"))
    ledger.accept(token(NOW, by="theirs"), NOW)
    assert issuer("theirs") in refuses(ledger, token(NOW - 1), TokenConflict)


def test_equal_versions_are_ordered_by_their_hash_everywhere() -> None:
    lower, higher = sorted((token(by="ours"), token(by="theirs")), key=lambda m: m.hash)
    first = node(trusts=("ours", "theirs"))
    first.accept(lower, NOW)
    assert first.accept(higher, NOW) is Verdict.ACCEPTED

    second = node(trusts=("ours", "theirs"))
    second.accept(higher, NOW)
    refuses(second, lower, TokenConflict)

    assert first.held == second.held


@pytest.mark.parametrize(
    "message",
    [token(tree="tree-0"), token(root="other"), token(root="mid", at="mid")],
    ids=["an earlier tree of the same root", "another root", "a root that is an inner node"],
)
def test_a_message_for_another_tree_is_refused(message: Message) -> None:
    refuses(node(), message, WrongTree)
    refuses(node(*PATH), message, WrongTree)


def test_a_message_is_taken_by_its_authority_and_everything_below() -> None:
    for authority in PATH:
        assert node(*PATH).accept(token(at=authority), NOW) is Verdict.ACCEPTED


def test_a_message_set_beside_or_below_a_node_is_not_for_it() -> None:
    refuses(node(), token(at="mid"), WrongAuthority)
    refuses(node(ROOT, "mid"), token(at="leaf"), WrongAuthority)
    refuses(node(*PATH), token(at="sibling"), WrongAuthority)


def test_a_version_may_be_5_minutes_ahead_of_the_clock_and_no_more() -> None:
    limit = NOW + CLOCK_TOLERANCE_MS
    assert CLOCK_TOLERANCE_MS == 300_000
    assert node().accept(token(limit), NOW) is Verdict.ACCEPTED
    refuses(node(), token(limit + 1), TokenMalformed)
    assert node().accept(token(limit + 1), NOW + 1) is Verdict.ACCEPTED


def test_a_message_from_far_in_the_future_does_not_raise_the_floor() -> None:
    ledger = node()
    refuses(ledger, token(2**53 - 1), TokenMalformed)
    assert ledger.accept(token(NOW), NOW) is Verdict.ACCEPTED


def forged(by: str = "ours") -> Message:
    """A message in the name of one issuer, signed by another."""
    return parse(signed(header_of(by=by), jwe_of(token()), by="stranger"))


def test_a_message_in_a_trusted_issuers_name_that_he_did_not_sign_is_forged() -> None:
    refuses(node(), forged(), TokenForged)


def test_a_forged_message_with_a_high_version_does_not_displace_the_genuine_one() -> None:
    ledger = node()
    high = token(NOW + CLOCK_TOLERANCE_MS)
    forgery = parse(signed(header_of(), jwe_of(high), by="stranger"))
    refuses(ledger, forgery, TokenForged)
    assert ledger.accept(token(NOW), NOW) is Verdict.ACCEPTED


# --- whose word counts -----------------------------------------------------------


def test_a_message_of_an_unknown_issuer_waits_and_changes_nothing() -> None:
    ledger = node()
    message = token(by="successor")

    assert ledger.accept(message, NOW) is Verdict.WAITING
    assert ledger.held == {}

    ledger.trust(trusted("successor"))
    assert ledger.accept(message, NOW) is Verdict.ACCEPTED


def test_a_message_for_elsewhere_is_refused_before_its_issuer_is_asked_for() -> None:
    refuses(node(), token(by="successor", tree="tree-0"), WrongTree)
    refuses(node(), token(by="successor", at="mid"), WrongAuthority)
    refuses(node(), token(NOW + CLOCK_TOLERANCE_MS + 1, by="successor"), TokenMalformed)


def test_trust_only_adds() -> None:
    ledger = node(trusts=("ours", "theirs"))
    ledger.trust(trusted("successor"))  # the answer of a worker with another keyring
    assert ledger.trusted == trusted("ours", "theirs", "successor")


def test_a_revoked_issuer_is_never_trusted_again() -> None:
    ledger = node()
    ledger.trust(trusted("successor"), revoked=[issuer("ours")])
    ledger.trust(trusted("ours"))  # the answer of a worker with an older keyring

    assert ledger.trusted == trusted("successor")
    assert started(ledger, "mid").trusted == trusted("successor")
    assert started(ledger, "mid").revoked == {issuer("ours")}


def test_a_message_of_an_issuer_known_to_be_revoked_is_refused_at_once() -> None:
    # It will never be trusted, so there is nothing to wait for.
    ledger = node()
    ledger.trust({}, revoked=[issuer("ours")])
    refuses(ledger, token(), TokenForged)


def test_the_floors_of_a_revoked_issuer_fall_away() -> None:
    ledger = node(trusts=("ours", "theirs"))
    ledger.accept(token(NOW, by="theirs"), NOW)
    ledger.accept(token(NOW + 9, by="ours"), NOW)
    assert ledger.floor("apiToken", ROOT) == token(NOW + 9, by="ours").order

    ledger.trust({}, revoked=[issuer("ours")])

    assert ledger.floor("apiToken", ROOT) == token(NOW, by="theirs").order
    refuses(ledger, token(NOW - 1, by="theirs"), TokenStale)
    assert ledger.accept(token(NOW + 1, by="theirs"), NOW) is Verdict.ACCEPTED


def test_a_revoked_issuers_message_stands_until_the_next_one_whatever_its_version() -> None:
    ledger = node()
    ledger.accept(token(NOW + CLOCK_TOLERANCE_MS), NOW)
    ledger.trust(trusted("successor"), revoked=[issuer("ours")])
    assert ledger.in_force("apiToken") == token(NOW + CLOCK_TOLERANCE_MS)

    assert ledger.accept(token(NOW, by="successor"), NOW) is Verdict.ACCEPTED
    assert ledger.in_force("apiToken") == token(NOW, by="successor")


def test_a_high_version_of_a_stolen_key_does_not_keep_the_successor_from_being_asked_for() -> None:
    # Who has a revoked key may set anything where the revocation is not known yet. The
    # message that would tell of it must not be turned down for its lower version.
    ledger = node()
    ledger.accept(token(NOW + CLOCK_TOLERANCE_MS), NOW)

    assert ledger.accept(token(NOW, by="successor"), NOW) is Verdict.WAITING

    ledger.trust(trusted("successor"), revoked=[issuer("ours")])
    assert ledger.accept(token(NOW, by="successor"), NOW) is Verdict.ACCEPTED


def test_what_a_revocation_uncovered_may_be_taken_again() -> None:
    ledger = node(trusts=("ours", "theirs"))
    ledger.accept(token(NOW, by="theirs"), NOW)
    ledger.accept(token(NOW + 9, by="ours"), NOW)
    ledger.trust({}, revoked=[issuer("ours")])

    assert ledger.accept(token(NOW, by="theirs"), NOW) is Verdict.ACCEPTED


# --- what is in force ------------------------------------------------------------


def test_nothing_is_in_force_where_nothing_was_set() -> None:
    assert node(*PATH).in_force("apiToken") is None
    assert node(*PATH).names() == []


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_the_nearest_authority_wins_whatever_came_first_or_is_newer(order: list[int]) -> None:
    ledger = node(*PATH)
    messages = [token(NOW + 9), token(NOW, at="mid"), token(NOW - 9, at="leaf")]
    for index in order:
        ledger.accept(messages[index], NOW)
    assert ledger.in_force("apiToken") == messages[2]


def test_an_ancestors_rotation_is_held_but_does_not_overwrite_a_nearer_token() -> None:
    ledger = node(ROOT, "mid")
    ledger.accept(token(NOW, at="mid"), NOW)
    ledger.accept(token(NOW + 1), NOW)

    assert ledger.in_force("apiToken") == token(NOW, at="mid")
    assert ledger.held[("apiToken", ROOT)] == token(NOW + 1)


def test_a_revocation_ends_the_search_for_its_node_and_those_below() -> None:
    for path in (PATH[:2], PATH):
        ledger = node(*path)
        ledger.accept(token(NOW), NOW)
        ledger.accept(revocation(NOW, at="mid"), NOW)
        assert ledger.in_force("apiToken") == revocation(NOW, at="mid")


def test_a_token_set_below_a_revocation_stands() -> None:
    ledger = node(*PATH)
    ledger.accept(token(NOW, at="leaf"), NOW)
    ledger.accept(revocation(NOW + 1, at="mid"), NOW)
    assert ledger.in_force("apiToken") == token(NOW, at="leaf")


def test_only_a_newer_message_ends_a_revocation() -> None:
    ledger = node()
    ledger.accept(token(NOW - 1), NOW)
    ledger.accept(revocation(NOW), NOW)
    refuses(ledger, token(NOW - 1), TokenStale)

    ledger = restarted(ledger)
    refuses(ledger, token(NOW - 1), TokenStale)
    assert ledger.in_force("apiToken") == revocation(NOW)

    ledger.accept(token(NOW + 1), NOW)
    assert ledger.in_force("apiToken") == token(NOW + 1)


def test_inherit_falls_back_to_the_ancestors_newest() -> None:
    ledger = node(ROOT, "mid")
    ledger.accept(token(NOW - 9), NOW)
    ledger.accept(token(NOW, at="mid"), NOW)
    ledger.accept(token(NOW + 1), NOW)  # rotated while it was shadowed

    ledger.accept(revocation(NOW + 2, at="mid", inherit=True), NOW)

    assert ledger.in_force("apiToken") == token(NOW + 1)


def test_inherit_walks_on_past_every_authority_that_inherits() -> None:
    ledger = node(*PATH)
    ledger.accept(token(NOW), NOW)
    for authority in ("leaf", "mid"):
        ledger.accept(revocation(NOW, at=authority, inherit=True), NOW)
    assert ledger.in_force("apiToken") == token(NOW)

    ledger.accept(revocation(NOW + 1, at=ROOT, inherit=True), NOW)
    assert ledger.in_force("apiToken") is None


def test_nothing_old_returns_after_inherit() -> None:
    ledger = node(ROOT, "mid")
    ledger.accept(token(NOW - 9), NOW)
    ledger.accept(token(NOW - 5, at="mid"), NOW)
    ledger.accept(token(NOW), NOW)
    ledger.accept(revocation(NOW + 2, at="mid", inherit=True), NOW)

    refuses(ledger, token(NOW - 5, at="mid"), TokenStale)
    refuses(ledger, token(NOW - 9), TokenStale)
    assert ledger.in_force("apiToken") == token(NOW)


def test_names_are_apart() -> None:
    ledger = node()
    ledger.accept(token(NOW, name="github"), NOW)
    ledger.accept(token(NOW - 9, name="billing"), NOW)
    ledger.accept(revocation(NOW + 1, name="billing"), NOW)

    assert ledger.names() == ["billing", "github"]
    assert ledger.in_force("github") == token(NOW, name="github")
    assert ledger.in_force("billing") == revocation(NOW + 1, name="billing")
    assert ledger.in_force("apiToken") is None


# --- withheld at the start -------------------------------------------------------


def test_a_child_started_without_a_name_refuses_it_from_above() -> None:
    root = node()
    root.accept(token(NOW), NOW)
    mid = started(root, "mid", withheld=HARD)

    assert mid.held == {}
    assert mid.is_withheld("apiToken")
    refuses(mid, token(NOW), TokenWithheld)
    refuses(mid, token(NOW + 1), TokenWithheld)
    refuses(mid, revocation(NOW + 1), TokenWithheld)


def test_it_takes_what_is_set_at_itself_and_passes_that_on() -> None:
    mid = started(node(), "mid", withheld=HARD)
    leaf = started(mid, "leaf")

    assert mid.accept(token(at="mid"), NOW) is Verdict.ACCEPTED
    tell(mid, leaf)

    assert mid.in_force("apiToken") == token(at="mid")
    assert leaf.in_force("apiToken") == token(at="mid")


def test_what_is_below_it_refuses_it_from_above_too() -> None:
    mid = started(node(), "mid", withheld=HARD)
    leaf = started(mid, "leaf")
    deeper = started(leaf, "deeper", withheld=HARD)

    refuses(leaf, token(NOW), TokenWithheld)
    assert leaf.accept(token(NOW, at="mid"), NOW) is Verdict.ACCEPTED
    assert leaf.accept(token(NOW, at="leaf"), NOW) is Verdict.ACCEPTED
    for authority in (ROOT, "mid", "leaf"):
        refuses(deeper, token(NOW, at=authority), TokenWithheld)
    assert deeper.accept(token(NOW, at="deeper"), NOW) is Verdict.ACCEPTED


def test_inherit_does_not_lift_what_was_withheld_at_the_start() -> None:
    mid = started(node(), "mid", withheld=HARD)
    mid.accept(revocation(NOW, at="mid", inherit=True), NOW)

    refuses(mid, token(NOW), TokenWithheld)
    assert mid.in_force("apiToken") is None


def test_only_the_names_it_was_started_without_are_refused() -> None:
    root = node()
    root.accept(token(NOW, name="github"), NOW)
    root.accept(token(NOW, name="billing"), NOW)
    mid = started(root, "mid", withheld=frozenset({"billing"}))

    assert mid.names() == ["github"]
    assert mid.is_withheld("billing")
    assert not mid.is_withheld("github")
    refuses(mid, token(NOW + 1, name="billing"), TokenWithheld)
    assert mid.accept(token(NOW + 1, name="github"), NOW) is Verdict.ACCEPTED


def test_the_lowest_boundary_counts_whether_it_is_for_a_name_or_for_every_name() -> None:
    for upper, lower in ((frozenset({"billing"}), HARD), (HARD, frozenset({"billing"}))):
        mid = started(node(), "mid", withheld=upper)
        leaf = started(mid, "leaf", withheld=lower)
        for authority in (ROOT, "mid"):
            refuses(leaf, token(NOW, at=authority, name="billing"), TokenWithheld)
        assert leaf.accept(token(NOW, at="leaf", name="billing"), NOW) is Verdict.ACCEPTED


def test_a_header_that_says_more_is_held_than_may_be_puts_nothing_in_force() -> None:
    state = started(node(), "mid", withheld=HARD).dump()
    state["held"] = [token(NOW).text, token(NOW, at="stranger").text]
    assert Ledger.load(state).in_force("apiToken") is None


def test_the_boundary_outlives_the_run() -> None:
    mid = restarted(started(node(), "mid", withheld=HARD))
    refuses(mid, token(NOW), TokenWithheld)
    refuses(restarted(started(mid, "leaf")), token(NOW), TokenWithheld)


# --- what a child starts with ----------------------------------------------------


def test_a_child_starts_with_all_that_is_held_and_lacks_nothing() -> None:
    root = node(trusts=("ours", "theirs"))
    root.accept(token(NOW), NOW)
    root.accept(token(NOW, name="billing"), NOW)
    mid = started(root, "mid")

    assert mid.path == (ROOT, "mid")
    assert mid.tree == TREE
    assert mid.trusted == trusted("ours", "theirs")
    assert mid.held == root.held
    assert mid.floors == root.floors
    assert mid.children == {}
    assert told(root) == {}


def test_shadowed_messages_go_to_a_child_as_well() -> None:
    mid = node(ROOT, "mid")
    mid.accept(token(NOW), NOW)
    mid.accept(token(NOW, at="mid"), NOW)
    leaf = started(mid, "leaf")

    leaf.accept(revocation(NOW + 1, at="mid", inherit=True), NOW)
    assert leaf.in_force("apiToken") == token(NOW)


@pytest.mark.parametrize(
    "settings",
    [{}, {"withheld": HARD}, {"with_messages": False}],
    ids=["shared", "withheld", "without messages"],
)
def test_floors_go_to_every_child_so_that_what_is_old_is_old_everywhere(settings: Json) -> None:
    root = node()
    root.accept(token(NOW - 1), NOW)
    root.accept(token(NOW), NOW)
    mid = started(root, "mid", **settings)

    assert mid.floor("apiToken", ROOT) == token(NOW).order
    with pytest.raises((TokenStale, TokenWithheld)):
        mid.accept(token(NOW - 1), NOW)


def test_a_child_started_without_messages_takes_the_one_exactly_at_its_floor() -> None:
    root = node()
    root.accept(token(NOW), NOW)
    mid = started(root, "mid", with_messages=False)
    assert mid.held == {}
    assert told(root) == {"mid": [token(NOW)]}

    refuses(mid, token(NOW - 1), TokenStale)
    assert mid.accept(token(NOW), NOW) is Verdict.ACCEPTED


def test_a_floor_without_its_message_bounds_other_issuers_too() -> None:
    root = node(trusts=("ours", "theirs"))
    root.accept(token(NOW), NOW)
    mid = started(root, "mid", with_messages=False)
    refuses(mid, token(NOW - 1, by="theirs"), TokenConflict)


# --- what a child is given -------------------------------------------------------


def test_a_newer_message_is_pending_for_a_child_until_it_was_given() -> None:
    root = node()
    mid = started(root, "mid")
    root.accept(token(NOW), NOW)
    assert told(root) == {"mid": [token(NOW)]}

    root.delivered("mid", [token(NOW)])
    assert told(root) == {}

    root.accept(token(NOW + 1), NOW)
    assert told(root) == {"mid": [token(NOW + 1)]}
    tell(root, mid)
    assert mid.in_force("apiToken") == token(NOW + 1)


def test_only_the_newest_is_pending() -> None:
    root = node()
    started(root, "mid")
    for version in range(NOW, NOW + 5):
        root.accept(token(version), NOW)
    assert told(root) == {"mid": [token(NOW + 4)]}


def test_a_message_accepted_while_an_older_one_was_on_its_way_is_pending() -> None:
    root = node()
    started(root, "mid")
    root.accept(token(NOW), NOW)
    [(_, on_its_way)] = root.to_tell()
    root.accept(token(NOW + 1), NOW)
    root.delivered("mid", on_its_way)
    assert told(root) == {"mid": [token(NOW + 1)]}


def test_a_child_whose_start_is_not_confirmed_is_not_told_yet() -> None:
    root = node()
    root.start_child(Child("mid", "Node"))
    root.accept(token(NOW), NOW)
    assert told(root) == {}

    assert root.confirm_child("mid", root.starts)
    assert told(root) == {"mid": [token(NOW)]}


def test_confirming_says_whether_anything_moved_since_the_start() -> None:
    root = node()
    root.start_child(Child("mid", "Node"))
    assert not root.confirm_child("mid", root.starts)
    assert not root.confirm_child("stranger", root.starts)

    root.start_child(Child("empty-handed", "Node"), with_messages=False)
    assert root.confirm_child("empty-handed", root.starts)


def test_a_child_that_closed_or_is_forgotten_is_told_nothing() -> None:
    root = node()
    started(root, "mid")
    started(root, "other")
    root.accept(token(NOW), NOW)
    close(root, "mid")
    root.forget_child("other")

    assert told(root) == {}
    assert root.children == {}
    assert list(root.closed) == ["mid"]


def test_news_of_a_child_that_is_not_known_is_ignored() -> None:
    root = node()
    assert not root.confirm_child("stranger", 1)
    assert not root.close_child("stranger", 1)
    assert not root.doubt_child("stranger", 1)
    assert not root.restored(1, Child("stranger", "Node", Life.RUNNING))
    root.start_failed("stranger", 1)
    root.delivered("stranger", [token()])
    root.forget_child("stranger")
    assert root.children == root.closed == {}


def test_news_of_an_earlier_start_leaves_the_later_child_of_its_id_alone() -> None:
    root = node()
    root.start_child(Child("mid", "Node"))
    earlier = root.starts
    root.start_child(Child("mid", "Node"))
    later = root.children["mid"]

    assert not root.confirm_child("mid", earlier)
    assert not root.close_child("mid", earlier)
    assert not root.doubt_child("mid", earlier)
    root.start_failed("mid", earlier)

    assert root.children == {"mid": later}
    assert root.closed == {}
    assert root.is_of("mid", later.start)
    assert not root.is_of("mid", earlier)


def test_a_child_started_without_a_name_is_never_told_it() -> None:
    root = node()
    started(root, "mid", withheld=frozenset({"billing"}))
    for name in ("github", "billing"):
        root.accept(token(NOW, name=name), NOW)
    assert told(root) == {"mid": [token(NOW, name="github")]}
    assert root.withheld_from("mid") == ("billing",)


def test_a_withheld_name_is_passed_to_a_child_no_more() -> None:
    root = node()
    root.accept(token(NOW), NOW)
    mid = started(root, "mid")
    root.withhold("mid", None)
    root.accept(token(NOW + 1), NOW)
    tell(root, mid)

    assert root.withheld_from("mid") == (ALL,)
    assert mid.in_force("apiToken") == token(NOW)  # what it has it keeps
    assert not mid.is_withheld("apiToken")  # only its parent knows


def test_sharing_again_gives_the_newest_at_once_and_nothing_else() -> None:
    root = node()
    mid = started(root, "mid")
    root.withhold("mid", None)
    for version in (NOW, NOW + 1):
        root.accept(token(version), NOW)
    assert told(root) == {}

    root.share("mid", None)

    assert told(root) == {"mid": [token(NOW + 1)]}
    tell(root, mid)
    assert mid.in_force("apiToken") == token(NOW + 1)


def test_withholding_before_the_start_keeps_messages_but_not_floors_from_the_child() -> None:
    root = node()
    root.accept(token(NOW), NOW)
    root.withhold("mid", "apiToken")
    mid = started(root, "mid")

    assert mid.held == {}
    assert mid.floor("apiToken", ROOT) == token(NOW).order
    assert told(root) == {}

    root.share("mid", "apiToken")
    tell(root, mid)
    assert mid.in_force("apiToken") == token(NOW)


def test_withholding_before_the_start_holds_although_the_first_start_failed() -> None:
    root = node()
    root.accept(token(NOW), NOW)
    root.withhold("mid", None)
    root.start_child(Child("mid", "Node"))
    root.forget_child("mid")

    assert started(root, "mid").held == {}


def test_each_name_is_withheld_and_shared_on_its_own() -> None:
    root = node()
    started(root, "mid")
    for name in ("github", "billing"):
        root.accept(token(NOW, name=name), NOW)

    root.withhold("mid", "billing")
    assert told(root) == {"mid": [token(NOW, name="github")]}

    root.withhold("mid", None)
    assert told(root) == {}

    root.share("mid", "billing")
    assert told(root) == {"mid": [token(NOW, name="billing")]}

    root.share("mid", None)
    assert [message.claims.name for message in told(root)["mid"]] == ["github", "billing"]

    root.withhold("mid", "github")
    root.share("mid", "github")
    assert root.withheld_from("mid") == ()


def test_sharing_does_not_lift_what_was_withheld_at_the_start() -> None:
    root = node()
    root.accept(token(NOW), NOW)
    started(root, "mid", withheld=HARD)
    for name in ("apiToken", None):
        root.share("mid", name)
        assert told(root) == {}
        assert root.withheld_from("mid") == (ALL,)


# --- whether a child was started at all -------------------------------------------


def test_a_start_that_failed_for_good_is_forgotten() -> None:
    root = node()
    root.start_child(Child("a", "Node"))

    root.start_failed("a", root.starts)

    assert root.children == root.closed == {}


def test_a_start_under_a_running_childs_id_that_fails_leaves_that_child_as_it_was() -> None:
    root = node()
    started(root, "a", withheld=frozenset({"billing"}))
    root.accept(token(NOW), NOW)
    running = root.children["a"]
    root.start_child(Child("a", "Other", withheld=HARD))
    assert told(root) == {}

    assert root.restored(root.starts, running)

    assert root.children == {"a": running}
    assert told(root) == {"a": [token(NOW)]}


def test_one_that_is_confirmed_puts_the_running_child_of_its_id_among_the_closed() -> None:
    root = node()
    started(root, "a", withheld=HARD)
    before = root.children["a"]
    root.start_child(Child("a", "Node"))

    assert root.replaced("a", before)
    root.confirm_child("a", root.starts)

    assert root.closed == {"a": replace(before, life=Life.CLOSED)}
    assert life(root) == {"a": Life.RUNNING}
    assert root.withheld_from("a") == ()  # what is shown is of the one that runs


@pytest.mark.parametrize("before", [None, *Life], ids=str)
def test_a_known_child_is_left_or_closed_by_a_later_start_of_its_id(before: Life | None) -> None:
    root = node()
    child = None if before is None else Child("a", "Node", before)
    root.start_child(Child("a", "Node"))
    later = root.children["a"]
    is_known = before not in (None, Life.STARTING)

    assert root.replaced("a", child) is is_known
    assert list(root.closed) == (["a"] if is_known else [])
    assert root.children == {"a": later}
    assert root.restored(root.starts, child) is is_known
    assert (root.children["a"] == child) is is_known


def test_a_later_start_has_whom_a_closed_child_of_its_id_left_looked_for() -> None:
    root = node()
    started(root, "a")
    close(root, "a")
    closed = root.closed["a"]
    root.start_child(Child("a", "Node"))

    assert root.replaced("a", None)
    assert root.closed == {"a": closed}
    assert not root.replaced("b", None)


def test_of_two_starts_under_a_running_childs_id_that_fail_the_later_one_is_in_doubt() -> None:
    root = node()
    started(root, "a")
    running = root.children["a"]
    root.start_child(Child("a", "Node"))
    first = root.children["a"]
    root.start_child(Child("a", "Node"))
    second = root.children["a"]

    assert not root.restored(first.start, running)
    assert not root.doubt_child("a", first.start)
    assert root.children == {"a": second}
    assert not root.restored(second.start, first)
    assert root.doubt_child("a", second.start)
    assert life(root) == {"a": Life.IN_DOUBT}


def test_a_child_in_doubt_is_not_told_by_the_next_run_either() -> None:
    root = node()
    doubt(root, "a")
    root.accept(token(NOW), NOW)
    assert told(root) == {}

    later = restarted(root)
    later.confirm_children()

    assert life(later) == {"a": Life.IN_DOUBT}
    assert told(later) == {}


def test_a_child_whose_handle_was_given_up_is_in_doubt_and_keeps_what_it_was_given() -> None:
    root = node()
    root.accept(token(NOW), NOW)
    started(root, "a")
    running = root.children["a"]

    assert root.doubt_child("a", running.start)

    assert root.children == {"a": replace(running, life=Life.IN_DOUBT)}


def test_a_child_that_an_earlier_start_began_is_taken_back_and_told_everything() -> None:
    root = node()
    root.accept(token(NOW), NOW)
    doubt(root, "a")

    root.take_back("a")

    assert life(root) == {"a": Life.RUNNING}
    assert told(root) == {"a": [token(NOW)]}


@pytest.mark.parametrize("withheld", [HARD, frozenset({"apiToken"})], ids=["all", "one name"])
def test_one_taken_back_that_was_to_be_started_without_tokens_gets_revocations_only(
    withheld: frozenset[str],
) -> None:
    root = node()
    root.accept(token(NOW), NOW)
    doubt(root, "a", withheld=withheld)
    root.take_back("a")
    assert told(root) == {}

    root.accept(revocation(NOW + 1), NOW)

    assert told(root) == {"a": [revocation(NOW + 1)]}


def test_whose_id_stands_above_the_node_is_no_child_of_it_and_not_asked_for() -> None:
    mid = node(ROOT, "mid")
    for id in (ROOT, "mid"):
        mid.start_child(Child(id, "Node"))
        assert not mid.doubt_child(id, mid.starts)
    assert mid.children == {}


def test_a_later_run_takes_every_child_for_started_whose_start_is_open() -> None:
    root = node()
    started(root, "running")
    root.start_child(Child("starting", "Node"))
    doubt(root, "doubted")
    root.adopt("gone", [orphan("untold", None)])

    later = restarted(root)
    later.confirm_children()

    assert life(later) == {
        "running": Life.RUNNING,
        "starting": Life.RUNNING,
        "doubted": Life.IN_DOUBT,
        "untold": Life.UNTOLD,
    }


# --- a closed child's children ---------------------------------------------------


def test_a_closed_child_keeps_its_place_until_whom_it_leaves_is_found() -> None:
    root = node()
    started(root, "mid", withheld=frozenset({"billing"}))
    started(root, "other")
    root.withhold("mid", "github")
    close(root, "mid")

    for ledger in (root, restarted(root)):
        assert ledger.closed["mid"].life is Life.CLOSED
        assert list(ledger.children) == ["other"]
        assert ledger.withheld_from("mid") == ("billing", "github")

        ledger.adopt("mid", [])

        assert ledger.closed == {}
        assert list(ledger.children) == ["other"]


def test_a_closed_child_keeps_its_place_beside_a_later_one_of_its_id() -> None:
    root = node()
    started(root, "mid", withheld=HARD)
    close(root, "mid")
    started(root, "mid")

    for ledger in (root, restarted(root)):
        assert life(ledger) == {"mid": Life.RUNNING}
        ledger.adopt("mid", [orphan("leaf", {})])

        assert ledger.closed == {}
        assert life(ledger) == {"mid": Life.RUNNING, "leaf": Life.RUNNING}
        assert ledger.withheld_from("leaf") == (ALL,)


def test_the_children_of_a_closed_child_are_adopted_and_told_everything() -> None:
    root = node()
    root.accept(token(NOW), NOW)
    mid = started(root, "mid")
    leaf = started(mid, "leaf")
    close(root, "mid")
    root.accept(token(NOW + 1), NOW)

    root.adopt("mid", [orphan("leaf", {})])

    assert life(root) == {"leaf": Life.RUNNING}
    assert told(root) == {"leaf": [token(NOW + 1)]}
    tell(root, leaf)
    assert leaf.in_force("apiToken") == token(NOW + 1)


def test_so_are_those_of_a_child_that_is_found_closed_before_its_parent_hears_of_it() -> None:
    root = node()
    started(root, "mid")
    root.accept(token(NOW), NOW)

    root.adopt("mid", [orphan("leaf", {})])

    assert told(root) == {"leaf": [token(NOW)]}
    assert root.closed == {}


def test_an_adopted_child_is_told_even_what_it_may_have() -> None:
    root = node()
    root.accept(token(NOW), NOW)
    mid = started(root, "mid")
    started(mid, "leaf")
    root.adopt("mid", [orphan("leaf", {})])
    assert told(root) == {"leaf": [token(NOW)]}


@pytest.mark.parametrize("knows", ["that it closed", "nothing"])
@pytest.mark.parametrize("withheld_from", ["mid", "leaf"])
def test_what_was_withheld_at_a_start_stays_so_after_an_adoption(
    withheld_from: str, knows: str
) -> None:
    root = node()
    started(root, "mid", withheld=HARD if withheld_from == "mid" else frozenset[str]())
    if knows == "that it closed":
        close(root, "mid")
    root.adopt("mid", [orphan("leaf", {}, hard=(ALL,) if withheld_from == "leaf" else ())])
    root.accept(token(NOW), NOW)

    assert told(root) == {}
    assert root.withheld_from("leaf") == (ALL,)
    root.share("leaf", None)
    assert told(root) == {}


def test_what_the_parent_withheld_from_the_closed_child_is_withheld_from_its_children() -> None:
    root = node()
    for name in ("github", "billing"):
        root.accept(token(NOW, name=name), NOW)
    mid = started(root, "mid")
    started(mid, "leaf")
    root.withhold("mid", "billing")

    root.adopt("mid", [orphan("leaf", {})])
    assert told(root) == {"leaf": [token(NOW, name="github")]}

    root.share("leaf", "billing")
    assert [message.claims.name for message in told(root)["leaf"]] == ["github", "billing"]


def test_what_was_withheld_from_a_grandchild_by_its_id_stays_so_after_an_adoption() -> None:
    root = node()
    for name in ("github", "billing"):
        root.accept(token(NOW, name=name), NOW)
    root.withhold("leaf", None)
    mid = started(root, "mid")
    started(mid, "leaf")
    root.withhold("mid", "billing")
    root.share("mid", "billing")

    root.adopt("mid", [orphan("leaf", {})])

    assert told(root) == {}


def test_what_a_closed_child_withheld_from_its_own_stays_withheld() -> None:
    root = node()
    for name in ("github", "billing"):
        root.accept(token(NOW, name=name), NOW)
    mid = started(root, "mid")
    started(mid, "leaf")

    root.adopt("mid", [orphan("leaf", {"billing": True})])

    assert [message.claims.name for message in told(root)["leaf"]] == ["github"]


KEPT: dict[str, dict[str, bool]] = {
    "nothing": {},
    "it": {"apiToken": True},
    "everything": {ALL: True},
    "everything but it": {ALL: True, "apiToken": False},
    "nothing any more": {"apiToken": False},
    "another": {"billing": True},
}
"""What is kept from a child softly, and whether each name is."""


def keep(parent: Ledger, child_id: str, kept: dict[str, bool]) -> None:
    """Withhold and share as the code of a parent does."""
    for name, on in kept.items():
        (parent.withhold if on else parent.share)(child_id, None if name == ALL else name)


@pytest.mark.parametrize("of_closed", KEPT)
@pytest.mark.parametrize("of_orphan", KEPT)
@pytest.mark.parametrize("of_id", KEPT)
def test_what_any_of_them_kept_is_withheld_although_another_gave_it(
    of_closed: str, of_orphan: str, of_id: str
) -> None:
    """The parent from the closed child, that one from the orphan, and the parent from its id."""
    root = node()
    root.accept(token(NOW), NOW)
    started(root, "mid")
    keep(root, "mid", KEPT[of_closed])
    keep(root, "leaf", KEPT[of_id])
    close(root, "mid")

    root.adopt("mid", [orphan("leaf", KEPT[of_orphan])])

    is_kept = not {of_closed, of_orphan, of_id}.isdisjoint({"it", "everything"})
    assert told(root) == ({} if is_kept else {"leaf": [token(NOW)]})
    assert told(restarted(root)) == told(root)
    if not is_kept and "everything but it" in (of_closed, of_orphan, of_id):
        assert root.shared_with("leaf") == ("apiToken",)


def test_what_was_withheld_at_the_starts_of_a_closed_child_and_of_its_own_is_joined() -> None:
    root = node()
    for name in ("a", "b", "c"):
        root.accept(token(NOW, name=name), NOW)
    started(root, "mid", withheld=frozenset({"a"}))
    close(root, "mid")

    root.adopt("mid", [orphan("leaf", {}, hard=("b",))])

    assert root.children["leaf"].withheld == {"a", "b"}
    assert told(root) == {"leaf": [token(NOW, name="c")]}


def test_an_adoption_takes_over_neither_a_known_child_nor_an_ancestor() -> None:
    root = node(*PATH[:2])
    started(root, "leaf", withheld=HARD)
    started(root, "other")
    root.adopt("other", [orphan(id, {}) for id in ("leaf", ROOT, "mid")])

    assert list(root.children) == ["leaf"]
    assert root.withheld_from("leaf") == (ALL,)


def test_orphans_of_a_child_that_is_not_known_are_adopted_too() -> None:
    root = node()
    root.adopt("stranger", [orphan("leaf", {})])
    assert list(root.children) == ["leaf"]


def test_a_closed_child_that_stands_below_itself_is_gone_all_the_same() -> None:
    root = node()
    started(root, "a")
    close(root, "a")

    root.adopt("a", [orphan("a", {})])

    assert root.children == root.closed == {}


# --- one of whom nobody can say what was kept from it ----------------------------


def untold(parent: Ledger) -> None:
    """A node adopts one of whom its closed parent does not say what it kept from it."""
    started(parent, "mid")
    close(parent, "mid")
    parent.adopt("mid", [orphan("leaf", None)])
    assert life(parent) == {"leaf": Life.UNTOLD}


def test_one_untold_gets_nothing_not_even_a_revocation() -> None:
    root = node()
    root.accept(token(NOW), NOW)
    untold(root)
    assert told(root) == {}

    root.accept(revocation(NOW + 1), NOW)

    assert told(root) == {}
    assert told(restarted(root)) == {}
    assert life(restarted(root)) == {"leaf": Life.UNTOLD}


@pytest.mark.parametrize("name", ["apiToken", None])
def test_its_parent_may_say_that_it_is_told(name: str | None) -> None:
    root = node()
    untold(root)
    root.accept(token(NOW), NOW)

    root.share("leaf", name)

    assert life(root) == {"leaf": Life.RUNNING}
    assert told(root) == {"leaf": [token(NOW)]}


def test_withholding_from_one_untold_does_not_have_it_told() -> None:
    root = node()
    untold(root)
    for name in ("github", "billing"):
        root.accept(token(NOW, name=name), NOW)
    root.withhold("leaf", None)
    assert told(root) == {}

    root.share("leaf", "billing")

    assert told(root) == {"leaf": [token(NOW, name="billing")]}


def test_what_is_known_to_be_withheld_from_one_untold_stays_so_when_it_is_told() -> None:
    root = node()
    for name in ("a", "b", "c", "d"):
        root.accept(token(NOW, name=name), NOW)
    started(root, "mid", withheld=frozenset({"a"}))
    root.withhold("mid", "b")
    close(root, "mid")
    root.adopt("mid", [orphan("leaf", None, hard=("c",))])
    assert root.withheld_from("leaf") == ("a", "b", "c")

    root.share("leaf", "d")

    assert told(root) == {"leaf": [token(NOW, name="d")]}


# --- what was refused ------------------------------------------------------------


def test_refusals_are_counted_by_their_reason_and_say_which_message() -> None:
    ledger = node()
    ledger.reject(TokenStale("older"), NOW, token())
    ledger.reject(TokenStale("older"), NOW + 1, token(NOW - 1))
    ledger.reject(TokenMalformed("not a string"), NOW + 2)

    assert ledger.rejected == {"TokenStale": 2, "TokenMalformed": 1}
    first, _, last = ledger.rejections
    assert (first.at, first.reason) == (NOW, "TokenStale")
    assert (first.fingerprint, first.issuer) == (token().fingerprint, issuer())
    assert (last.reason, last.fingerprint, last.issuer) == ("TokenMalformed", None, None)


def test_only_the_last_20_refusals_are_remembered_whatever_is_sent() -> None:
    ledger = node()
    for number in range(9000):
        ledger.reject(TokenForged("x"), number, token())
    assert ledger.rejected == {"TokenForged": 9000}
    assert REMEMBERED_REJECTIONS == 20
    assert [rejection.at for rejection in ledger.rejections] == list(range(8980, 9000))
    assert list(restarted(ledger).rejections) == list(ledger.rejections)

    ledger = restarted(ledger)
    ledger.reject(TokenStale("x"), 9000)
    assert len(ledger.rejections) == 20


# --- across runs -----------------------------------------------------------------


def busy() -> Ledger:
    """A ledger with something of everything."""
    mid = started(node(trusts=("ours", "theirs")), "mid", withheld=frozenset({"billing"}))
    mid.accept(token(NOW), NOW)
    mid.accept(token(NOW, at="mid", by="theirs"), NOW)
    mid.accept(revocation(NOW + 1, at="mid"), NOW)
    mid.accept(revocation(NOW, at="mid", name="billing", inherit=True), NOW)
    started(mid, "leaf", withheld=frozenset({"github"}))
    started(mid, "again", withheld=frozenset({"github"}))
    close(mid, "again")
    started(mid, "again")
    started(mid, "closed")
    close(mid, "closed")
    doubt(mid, "doubted", withheld=HARD)
    mid.adopt("gone", [orphan("untold", None), orphan("orphan", {"github": True})])
    mid.start_child(Child("starting", "Node"), with_messages=False)
    mid.withhold("leaf", "billing")
    mid.withhold("later", None)
    mid.share("later", "apiToken")
    mid.accept(token(NOW + 2), NOW)
    mid.trust(trusted("successor"), revoked=[issuer("gone")])
    mid.reject(TokenForged("no"), NOW, token())
    mid.reject(TokenMalformed("no"), NOW)
    return mid


def test_a_ledger_comes_back_from_json_as_it_was() -> None:
    before, after = busy(), restarted(busy())

    assert json.dumps(after.dump()) == json.dumps(before.dump())
    assert after.path == before.path
    assert after.tree == before.tree
    assert after.trusted == before.trusted
    assert after.revoked == before.revoked
    assert after.boundary == before.boundary
    assert after.held == before.held
    assert after.floors == before.floors
    assert after.soft == before.soft
    assert after.rejected == before.rejected
    assert after.rejections == before.rejections
    assert after.last == before.last
    assert list(after.children) == list(before.children)
    assert life(after) == life(before)
    assert set(life(after).values()) == {*Life} - {Life.CLOSED}
    assert list(after.closed) == list(before.closed) == ["again", "closed"]
    assert told(after) == told(before)
    for name in ("apiToken", "billing", "github"):
        assert after.in_force(name) == before.in_force(name)
    for child in before.children:
        assert after.withheld_from(child) == before.withheld_from(child)
        assert after.pending(child) == before.pending(child)
    for child in before.closed:
        assert after.closed[child].withheld == before.closed[child].withheld


def test_the_carried_state_is_sealed_tokens_and_public_keys_only() -> None:
    carried = json.dumps(busy().dump())
    assert TOKEN not in carried
    for owner in ("ours", "theirs", "successor"):
        for key in json.loads(keyring(owner).to_json())["keys"]:
            assert key["d"] not in carried


def test_a_state_of_a_later_format_is_told_from_a_malformed_one() -> None:
    with pytest.raises(StateTooNew, match=r"has format 2, .* reads formats up to 1\. Upgrade"):
        Ledger.load({"format": 2, "and": "anything else"})


@pytest.mark.parametrize("number", [0, -1, "1", "2", None, 1.5, []])
def test_a_state_without_a_known_format_is_malformed(number: object) -> None:
    with pytest.raises(StateUnreadable, match="no known format"):
        Ledger.load({**busy().dump(), "format": number})
    with pytest.raises(StateUnreadable):
        Ledger.load({})


@pytest.mark.parametrize("member", sorted(busy().dump().keys() - {"format"}))
def test_a_state_that_lacks_a_member_is_not_read(member: str) -> None:
    state = busy().dump()
    del state[member]
    with pytest.raises(StateUnreadable):
        Ledger.load(state)


MALFORMED: dict[str, Callable[[Json], Json]] = {
    "no path": lambda state: {**state, "path": []},
    "a path that is null": lambda state: {**state, "path": None},
    "trusted that is a list": lambda state: {**state, "trusted": ["key"]},
    "an issuer's key of small order": lambda state: {**state, "trusted": {"key": "A" * 43}},
    "revoked that is null": lambda state: {**state, "revoked": None},
    "a boundary that is a word": lambda state: {**state, "boundary": {"apiToken": "low"}},
    "an infinite boundary": lambda state: {**state, "boundary": {"apiToken": float("inf")}},
    "a boundary that is no number": lambda state: {**state, "boundary": {"*": float("nan")}},
    "held that is no message": lambda state: {**state, "held": ["x"]},
    "held that is null": lambda state: {**state, "held": [None]},
    "floors that are an object": lambda state: {**state, "floors": {"a": 1}},
    "a floor without an order": lambda state: {**state, "floors": [["apiToken", ROOT]]},
    "an infinite floor": lambda state: {
        **state,
        "floors": [["apiToken", ROOT, {"kid": [float("inf"), "hash"]}]],
    },
    "a child that is a string": lambda state: {**state, "children": ["mid"]},
    "a child without an id": lambda state: {**state, "children": [{"type": "Node"}]},
    "a child of an unknown life": lambda state: {
        **state,
        "children": [{**state["children"][0], "life": "undead"}],
    },
    "last that is no message": lambda state: {**state, "last": ["x"]},
    "soft that is a list": lambda state: {**state, "soft": [1]},
    "soft names that are a list": lambda state: {**state, "soft": {"mid": ["*"]}},
    "rejected that is a list": lambda state: {**state, "rejected": [1]},
    "a rejection of two parts": lambda state: {**state, "rejections": [[1, "x"]]},
    "a rejection at infinity": lambda state: {
        **state,
        "rejections": [[float("inf"), "x", None, None]],
    },
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_state_is_not_read(change: Callable[[Json], Json]) -> None:
    # It comes in a header, which whoever starts the workflow may have written.
    state = json.loads(json.dumps(change(busy().dump())))
    with pytest.raises(StateUnreadable):
        Ledger.load(state)
