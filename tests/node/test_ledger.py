"""One node's ledger: what it takes, what is in force, and what its children are given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

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
from stateful_workflow.node.carried import (
    REMEMBERED_REJECTIONS,
    Rejected,
    StateTooNew,
    StateUnreadable,
)
from stateful_workflow.node.ledger import (
    ALL,
    CLOCK_TOLERANCE_MS,
    Child,
    Ledger,
    Life,
    Verdict,
)
from stateful_workflow.sealed.message import Message, parse
from tests.support.builders import (
    NOW,
    ROOT,
    TOKEN,
    TREE,
    Json,
    close,
    doubt,
    header_of,
    issuer,
    jwe_of,
    keyring,
    life,
    node,
    orphan,
    restarted,
    revocation,
    signed,
    start_of,
    started,
    starting,
    token,
    told,
    trusted,
)

PATH = (ROOT, "mid", "leaf")
HARD = frozenset({ALL})
LIMIT = NOW + CLOCK_TOLERANCE_MS


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


def withheld_from(parent: Ledger, child_id: str) -> tuple[str, ...]:
    return parent.withheld_from(parent.children[child_id])


# --- what is taken ---------------------------------------------------------------


def test_a_node_has_a_path_that_ends_with_itself() -> None:
    with pytest.raises(ValueError, match="path"):
        Ledger((), TREE)


@pytest.mark.parametrize("message", [token(), revocation(), revocation(inherit=True)])
def test_a_genuine_message_is_accepted_and_held_and_known_when_it_comes_again(
    message: Message,
) -> None:
    ledger = node()
    assert ledger.check(message, NOW) is Verdict.ACCEPTED
    assert ledger.held == {}

    assert ledger.accept(message, NOW) is Verdict.ACCEPTED
    assert ledger.held == {("apiToken", ROOT): message}
    assert ledger.accept(message, NOW) is Verdict.KNOWN


def test_a_newer_message_replaces_an_older_one_which_is_stale_from_then_on() -> None:
    ledger = node()
    for message in (token(NOW), token(NOW + 1), revocation(NOW + 2), token(NOW + 3)):
        assert ledger.accept(message, NOW) is Verdict.ACCEPTED
        assert ledger.held == {("apiToken", ROOT): message}

    for old in (token(NOW + 1), revocation(NOW + 2)):
        assert str(old.claims.version) in refuses(ledger, old, TokenStale)


def test_another_issuers_newer_message_is_a_conflict_that_names_it() -> None:
    ledger = node(trusts=("ours", "theirs"), holds=[token(by="theirs")])
    assert issuer("theirs") in refuses(ledger, token(NOW - 1), TokenConflict)


def test_equal_versions_are_ordered_by_their_hash_everywhere() -> None:
    lower, higher = sorted((token(by="ours"), token(by="theirs")), key=lambda m: m.hash)
    first = node(trusts=("ours", "theirs"), holds=[lower, higher])
    second = node(trusts=("ours", "theirs"), holds=[higher])
    refuses(second, lower, TokenConflict)

    assert first.held == second.held == {("apiToken", ROOT): higher}


@pytest.mark.parametrize(
    "message",
    [token(tree="tree-0"), token(root="other"), token(root="mid", at="mid")],
    ids=["an earlier tree of the same root", "another root", "a root that is an inner node"],
)
def test_a_message_for_another_tree_is_refused(message: Message) -> None:
    refuses(node(), message, WrongTree)
    refuses(node(*PATH), message, WrongTree)


def test_a_message_is_taken_by_its_authority_and_below_and_not_above_or_beside() -> None:
    for authority in PATH:
        assert node(*PATH).accept(token(at=authority), NOW) is Verdict.ACCEPTED
    refuses(node(), token(at="mid"), WrongAuthority)
    refuses(node(ROOT, "mid"), token(at="leaf"), WrongAuthority)
    refuses(node(*PATH), token(at="sibling"), WrongAuthority)


def test_a_version_may_be_5_minutes_ahead_of_the_clock_and_one_further_raises_no_floor() -> None:
    assert CLOCK_TOLERANCE_MS == 300_000
    ledger = node()
    refuses(ledger, token(LIMIT + 1), TokenMalformed)
    refuses(ledger, token(2**53 - 1), TokenMalformed)

    assert ledger.accept(token(LIMIT), NOW) is Verdict.ACCEPTED
    assert ledger.accept(token(LIMIT + 1), NOW + 1) is Verdict.ACCEPTED


def test_a_message_in_a_trusted_issuers_name_that_he_did_not_sign_is_forged() -> None:
    ledger = node()
    forgery = parse(signed(header_of(), jwe_of(token(LIMIT)), by="stranger"))
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
    refuses(node(), token(LIMIT + 1, by="successor"), TokenMalformed)


def test_trust_only_adds_but_a_revoked_issuer_is_never_trusted_again() -> None:
    ledger = node(trusts=("ours", "theirs"))
    ledger.trust(trusted("successor"), revoked=[issuer("ours")])
    ledger.trust(trusted("ours"))  # the answer of a worker with an older keyring

    for each in (ledger, started(ledger, "mid")):
        assert each.trusted == trusted("theirs", "successor")
        assert each.revoked == {issuer("ours")}
        refuses(each, token(), TokenForged)  # there is nothing to wait for


def test_the_floors_of_a_revoked_issuer_fall_away_and_what_they_covered_may_be_taken() -> None:
    ledger = node(trusts=("ours", "theirs"), holds=[token(by="theirs"), token(NOW + 9)])
    refuses(ledger, token(NOW, by="theirs"), TokenConflict)

    ledger.trust({}, revoked=[issuer("ours")])

    assert ledger.in_force("apiToken") == token(NOW + 9)
    refuses(ledger, token(NOW - 1, by="theirs"), TokenStale)
    assert ledger.accept(token(NOW, by="theirs"), NOW) is Verdict.ACCEPTED


def test_a_high_version_of_a_stolen_key_does_not_keep_the_successor_from_being_asked_for() -> None:
    # Who has a revoked key may set anything where the revocation is not known yet. The
    # message that would tell of it must not be turned down for its lower version.
    ledger = node(holds=[token(LIMIT)])
    assert ledger.accept(token(NOW, by="successor"), NOW) is Verdict.WAITING

    ledger.trust(trusted("successor"), revoked=[issuer("ours")])
    assert ledger.in_force("apiToken") == token(LIMIT)
    assert ledger.accept(token(NOW, by="successor"), NOW) is Verdict.ACCEPTED
    assert ledger.in_force("apiToken") == token(NOW, by="successor")


# --- what is in force ------------------------------------------------------------

MID_INHERITS = revocation(NOW + 2, at="mid", inherit=True)
IN_FORCE: dict[str, tuple[Sequence[str], list[Message], Message | None]] = {
    "nothing where nothing was set": (PATH, [], None),
    "the nearest authority's, whatever is newer": (
        PATH,
        [token(NOW - 9, at="leaf"), token(NOW, at="mid"), token(NOW + 9)],
        token(NOW - 9, at="leaf"),
    ),
    "and whatever came first": (
        PATH,
        [token(NOW + 9), token(NOW, at="mid"), token(NOW - 9, at="leaf")],
        token(NOW - 9, at="leaf"),
    ),
    "a revocation at its node": (
        PATH[:2],
        [token(), revocation(at="mid")],
        revocation(at="mid"),
    ),
    "a revocation below its node": (PATH, [token(), revocation(at="mid")], revocation(at="mid")),
    "a token set below a revocation": (
        PATH,
        [token(at="leaf"), revocation(NOW + 1, at="mid")],
        token(at="leaf"),
    ),
    "a token newer than the revocation": ((ROOT,), [revocation(), token(NOW + 1)], token(NOW + 1)),
    "with inherit the ancestors' newest": (
        PATH[:2],
        [token(NOW - 9), token(at="mid"), token(NOW + 1), MID_INHERITS],
        token(NOW + 1),
    ),
    "past every authority that inherits": (
        PATH,
        [token(), revocation(at="leaf", inherit=True), MID_INHERITS],
        token(),
    ),
    "nothing where all of them inherit": (
        PATH[:2],
        [token(), MID_INHERITS, revocation(NOW + 1, inherit=True)],
        None,
    ),
}


@pytest.mark.parametrize(("path", "messages", "expected"), IN_FORCE.values(), ids=IN_FORCE)
def test_in_force_is(
    path: Sequence[str], messages: list[Message], expected: Message | None
) -> None:
    ledger = node(*path, holds=messages)
    for each in (ledger, restarted(ledger)):
        assert each.in_force("apiToken") == expected
        assert each.names() == (["apiToken"] if messages else [])


def test_nothing_old_returns_after_inherit() -> None:
    ledger = node(
        *PATH[:2], holds=[token(NOW - 9), token(NOW - 5, at="mid"), token(), MID_INHERITS]
    )
    refuses(ledger, token(NOW - 5, at="mid"), TokenStale)
    refuses(ledger, token(NOW - 9), TokenStale)


def test_names_are_apart() -> None:
    revoked = revocation(NOW + 1, name="billing")
    ledger = node(holds=[token(name="github"), token(NOW - 9, name="billing"), revoked])

    assert ledger.names() == ["billing", "github"]
    assert ledger.in_force("github") == token(NOW, name="github")
    assert ledger.in_force("billing") == revoked
    assert ledger.in_force("apiToken") is None


# --- withheld at the start -------------------------------------------------------


def test_a_child_started_without_a_name_refuses_it_from_above_and_in_its_next_run() -> None:
    mid = started(node(holds=[token()]), "mid", withheld=HARD)
    assert mid.held == {}
    assert mid.withheld() == (ALL,)

    mid.accept(revocation(NOW, at="mid", inherit=True), NOW)

    for each in (mid, restarted(mid), restarted(started(mid, "leaf"))):
        for message in (token(NOW), token(NOW + 1), revocation(NOW + 1)):
            refuses(each, message, TokenWithheld)
        assert each.in_force("apiToken") is None


def test_it_takes_what_is_set_at_itself_or_below_and_passes_that_on() -> None:
    mid = started(node(), "mid", withheld=HARD)
    leaf = started(mid, "leaf")
    deeper = started(leaf, "deeper", withheld=HARD)

    assert mid.accept(token(at="mid"), NOW) is Verdict.ACCEPTED
    tell(mid, leaf)
    assert leaf.in_force("apiToken") == token(at="mid")
    assert leaf.accept(token(NOW, at="leaf"), NOW) is Verdict.ACCEPTED
    for authority in (ROOT, "mid", "leaf"):
        refuses(deeper, token(NOW, at=authority), TokenWithheld)
    assert deeper.accept(token(NOW, at="deeper"), NOW) is Verdict.ACCEPTED


def test_only_the_names_it_was_started_without_are_refused() -> None:
    root = node(holds=[token(name="github"), token(name="billing")])
    mid = started(root, "mid", withheld=frozenset({"billing"}))

    assert mid.names() == ["github"]
    assert mid.withheld() == ("billing",)
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


# --- what a child starts with ----------------------------------------------------


def test_a_child_starts_with_all_that_is_held_and_lacks_nothing() -> None:
    above = node(
        *PATH[:2],
        trusts=("ours", "theirs"),
        holds=[token(), token(at="mid"), token(name="billing")],
    )
    leaf = started(above, "leaf")

    assert (leaf.path, leaf.tree) == (PATH, TREE)
    assert leaf.trusted == trusted("ours", "theirs")
    assert (leaf.held, leaf.floors) == (above.held, above.floors)
    assert leaf.children == {}
    assert told(above) == {}


@pytest.mark.parametrize(
    "settings",
    [{}, {"withheld": HARD}, {"with_messages": False}],
    ids=["shared", "withheld", "without messages"],
)
def test_floors_go_to_every_child_so_that_what_is_old_is_old_everywhere(settings: Json) -> None:
    root = node(holds=[token(NOW - 1), token(NOW)])
    mid = started(root, "mid", **settings)

    assert mid.floors == root.floors
    with pytest.raises((TokenStale, TokenWithheld)):
        mid.accept(token(NOW - 1), NOW)


def test_a_child_started_without_messages_takes_the_one_exactly_at_its_floor() -> None:
    root = node(trusts=("ours", "theirs"), holds=[token()])
    mid = started(root, "mid", with_messages=False)
    assert mid.held == {}
    assert told(root) == {"mid": [token()]}

    refuses(mid, token(NOW - 1), TokenStale)
    refuses(mid, token(NOW - 1, by="theirs"), TokenConflict)
    assert mid.accept(token(), NOW) is Verdict.ACCEPTED


# --- what a child is given -------------------------------------------------------


def test_the_newest_message_is_pending_for_a_child_until_it_was_given() -> None:
    root = node()
    mid = started(root, "mid")
    for version in range(NOW, NOW + 5):
        root.accept(token(version), NOW)
    assert told(root) == {"mid": [token(NOW + 4)]}

    tell(root, mid)
    assert told(root) == {}
    assert mid.in_force("apiToken") == token(NOW + 4)


def test_a_message_accepted_while_an_older_one_was_on_its_way_is_pending() -> None:
    root = node()
    started(root, "mid")
    root.accept(token(NOW), NOW)
    [(_, on_its_way)] = root.to_tell()
    root.accept(token(NOW + 1), NOW)
    root.delivered("mid", on_its_way)
    assert told(root) == {"mid": [token(NOW + 1)]}


def test_a_child_is_told_once_its_start_is_confirmed_which_says_whether_anything_moved() -> None:
    root = node()
    _, start = starting(root, "mid")
    root.accept(token(), NOW)
    assert told(root) == {}

    assert root.child_started(start)
    assert told(root) == {"mid": [token()]}
    assert not root.child_started(starting(root, "later")[1])
    assert root.child_started(starting(root, "empty-handed", with_messages=False)[1])


def test_a_child_that_closed_or_is_forgotten_is_told_nothing() -> None:
    root = node()
    started(root, "mid")
    started(root, "other")
    root.accept(token(), NOW)
    close(root, "mid")
    root.forget_child("other")

    assert told(root) == root.children == {}
    assert list(root.closed) == ["mid"]


def test_news_of_a_child_that_is_not_known_is_ignored() -> None:
    root = node()
    started(root, "stranger")
    _, start = starting(root, "stranger")
    root.forget_child("stranger")

    assert not root.close_child(start)
    assert not root.doubt_child(start)
    assert not root.child_failed_to_start(start, may_run=True)
    assert not root.child_failed_to_start(start, may_run=False)
    root.delivered("stranger", [token()])
    root.forget_child("stranger")
    assert root.children == root.closed == {}


def test_news_of_an_earlier_start_leaves_the_later_child_of_its_id_alone() -> None:
    root = node()
    _, earlier = starting(root, "mid")
    _, start = starting(root, "mid")
    later = root.children["mid"]

    assert not root.child_started(earlier)
    assert not root.close_child(earlier)
    assert not root.doubt_child(earlier)
    assert not root.child_failed_to_start(earlier, may_run=False)

    assert root.children == {"mid": later}
    assert root.closed == {}
    assert root.is_of("mid", start.start)
    assert not root.is_of("mid", earlier.start)


def test_a_child_started_without_a_name_is_never_told_it() -> None:
    root = node()
    started(root, "mid", withheld=frozenset({"billing"}))
    for name in ("github", "billing"):
        root.accept(token(NOW, name=name), NOW)

    for name in (None, "billing"):
        assert told(root) == {"mid": [token(NOW, name="github")]}
        assert withheld_from(root, "mid") == ("billing",)
        root.share("mid", name)


def test_a_withheld_name_is_passed_to_a_child_no_more_and_shared_again_the_newest_is() -> None:
    root = node(holds=[token()])
    mid = started(root, "mid")
    root.withhold("mid", None)
    for version in (NOW + 1, NOW + 2):
        root.accept(token(version), NOW)
    tell(root, mid)

    assert withheld_from(root, "mid") == (ALL,)
    assert mid.in_force("apiToken") == token(NOW)  # what it has it keeps
    assert mid.withheld() == ()  # only its parent knows

    root.share("mid", None)
    assert told(root) == {"mid": [token(NOW + 2)]}


def test_withholding_before_the_start_keeps_messages_but_not_floors_from_the_child() -> None:
    root = node(holds=[token()])
    root.withhold("mid", "apiToken")
    _, start = starting(root, "mid")
    root.child_failed_to_start(start, may_run=False)
    mid = started(root, "mid")

    assert mid.held == {}
    assert mid.floors == root.floors
    assert told(root) == {}

    root.share("mid", "apiToken")
    tell(root, mid)
    assert mid.in_force("apiToken") == token()


def test_each_name_is_withheld_and_shared_on_its_own() -> None:
    github, billing = token(name="github"), token(name="billing")
    root = node()
    started(root, "mid")
    for message in (github, billing):
        root.accept(message, NOW)

    for act, name, expected in (
        (root.withhold, "billing", {"mid": [github]}),
        (root.withhold, None, {}),
        (root.share, "billing", {"mid": [billing]}),
        (root.share, None, {"mid": [github, billing]}),
    ):
        act("mid", name)
        assert told(root) == expected

    root.withhold("mid", "github")
    root.share("mid", "github")
    assert withheld_from(root, "mid") == ()


# --- whether a child was started at all -------------------------------------------


def test_a_start_that_failed_for_good_is_forgotten() -> None:
    root = node()
    assert not root.child_failed_to_start(starting(root, "a")[1], may_run=False)
    assert root.children == root.closed == {}


@pytest.mark.parametrize("before", [None, *Life], ids=str)
def test_a_known_child_is_left_or_closed_by_a_later_start_of_its_id(before: Life | None) -> None:
    """Unless it was starting itself, of which it is not known what became of it."""
    child = None if before is None else Child("a", "Node", before, withheld=HARD)
    is_known = child is not None and before is not Life.STARTING

    def with_later() -> tuple[Ledger, Child, bool]:
        root = node()
        if child is not None:
            root.children["a"] = child
        _, start = starting(root, "a")
        later = root.children["a"]
        if is_confirmed:
            return root, later, root.child_started(start)
        return root, later, root.child_failed_to_start(start, may_run=False)

    is_confirmed = True
    root, later, has_news = with_later()
    assert has_news is is_known
    assert root.children == {"a": replace(later, life=Life.RUNNING)}
    assert list(root.closed.values()) == (
        [replace(child, life=Life.CLOSED)] if child and is_known else []
    )

    is_confirmed = False
    root, later, has_news = with_later()
    assert has_news is (child is not None)
    in_doubt = {} if child is None else {"a": replace(later, life=Life.IN_DOUBT)}
    assert root.children == ({"a": child} if is_known else in_doubt)
    assert root.closed == {}


def test_a_later_start_has_whom_a_closed_child_of_its_id_left_looked_for() -> None:
    root = node()
    started(root, "a")
    close(root, "a")
    closed = root.closed["a"]

    assert root.child_started(starting(root, "a")[1])
    assert root.closed == {"a": closed}


def test_of_two_starts_under_a_running_childs_id_that_fail_the_later_one_is_in_doubt() -> None:
    root = node()
    started(root, "a")
    _, first = starting(root, "a")
    _, second = starting(root, "a")
    later = root.children["a"]

    assert not root.child_failed_to_start(first, may_run=True)
    assert root.children == {"a": later}
    assert root.child_failed_to_start(second, may_run=True)
    assert life(root) == {"a": Life.IN_DOUBT}


def test_a_child_in_doubt_is_not_told_by_the_next_run_either() -> None:
    root = node()
    doubt(root, "a")
    root.accept(token(), NOW)
    later = restarted(root)
    later.confirm_children()

    for each in (root, later):
        assert life(each) == {"a": Life.IN_DOUBT}
        assert told(each) == {}


def test_a_child_whose_handle_was_given_up_is_in_doubt_and_keeps_what_it_was_given() -> None:
    root = node(holds=[token()])
    started(root, "a")
    running = root.children["a"]

    assert root.doubt_child(start_of(root, "a"))

    assert root.children == {"a": replace(running, life=Life.IN_DOUBT)}


@pytest.mark.parametrize("withheld", [frozenset[str](), HARD, frozenset({"apiToken"})], ids=str)
def test_one_that_an_earlier_start_began_is_told_all_that_this_start_was_not_to_withhold(
    withheld: frozenset[str],
) -> None:
    root = node(holds=[token()])
    doubt(root, "a", withheld=withheld)
    root.take_back("a")
    assert life(root) == {"a": Life.RUNNING}
    assert told(root) == ({} if withheld else {"a": [token()]})

    root.accept(revocation(NOW + 1), NOW)
    assert told(root) == {"a": [revocation(NOW + 1)]}


def test_whose_id_stands_above_the_node_is_no_child_of_it_and_not_asked_for() -> None:
    mid = node(ROOT, "mid")
    for id in (ROOT, "mid"):
        assert not mid.child_failed_to_start(starting(mid, id)[1], may_run=True)
    assert mid.children == {}


def test_a_later_run_takes_every_child_for_started_whose_start_is_open() -> None:
    later = restarted(busy())
    later.confirm_children()

    assert life(later) == {**life(busy()), "starting": Life.RUNNING}


# --- a closed child's children ---------------------------------------------------


@pytest.mark.parametrize("again", [False, True])
def test_a_closed_child_keeps_its_place_until_whom_it_leaves_is_found(again: bool) -> None:
    root = node()
    started(root, "mid", withheld=frozenset({"billing"}))
    started(root, "other")
    root.withhold("mid", "github")
    close(root, "mid")
    if again:
        started(root, "mid")
    running = list(root.children)

    for ledger in (root, restarted(root)):
        assert ledger.closed["mid"].life is Life.CLOSED
        assert ledger.withheld_from(ledger.closed["mid"]) == ("billing", "github")

        ledger.adopt("mid", [orphan("leaf", {})])

        assert ledger.closed == {}
        assert list(ledger.children) == [*running, "leaf"]
        assert withheld_from(ledger, "leaf") == ("billing", "github")


@pytest.mark.parametrize("knows", ["that it closed", "nothing"])
def test_the_children_of_a_closed_child_are_adopted_and_told_even_what_they_may_have(
    knows: str,
) -> None:
    root = node(holds=[token()])
    leaf = started(started(root, "mid"), "leaf")
    if knows == "that it closed":
        close(root, "mid")
    root.adopt("mid", [orphan("leaf", {})])
    assert root.closed == {}
    assert told(root) == {"leaf": [token()]}

    root.accept(token(NOW + 1), NOW)
    tell(root, leaf)
    assert leaf.in_force("apiToken") == token(NOW + 1)


@pytest.mark.parametrize("knows", ["that it closed", "nothing"])
def test_what_was_withheld_at_the_starts_of_a_closed_child_and_of_its_own_stays_so(
    knows: str,
) -> None:
    root = node()
    started(root, "mid", withheld=frozenset({"a"}))
    if knows == "that it closed":
        close(root, "mid")
    root.adopt("mid", [orphan("leaf", {}, hard=("b",))])
    for name in ("a", "b", "c"):
        root.accept(token(NOW, name=name), NOW)

    for name in (None, "a"):
        assert told(root) == {"leaf": [token(NOW, name="c")]}
        assert withheld_from(root, "leaf") == ("a", "b")
        root.share("leaf", name)


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
def test_what_any_of_them_kept_is_withheld_although_another_gave_it_until_it_is_shared(
    of_closed: str, of_orphan: str, of_id: str
) -> None:
    """The parent from the closed child, that one from the orphan, and the parent from its id."""
    root = node(holds=[token()])
    started(root, "mid")
    keep(root, "mid", KEPT[of_closed])
    keep(root, "leaf", KEPT[of_id])
    close(root, "mid")

    root.adopt("mid", [orphan("leaf", KEPT[of_orphan])])

    is_kept = not {of_closed, of_orphan, of_id}.isdisjoint({"it", "everything"})
    assert told(root) == ({} if is_kept else {"leaf": [token()]})
    assert told(restarted(root)) == told(root)
    if not is_kept and "everything but it" in (of_closed, of_orphan, of_id):
        assert root.shared_with(root.children["leaf"]) == ("apiToken",)

    root.share("leaf", "apiToken")
    assert told(root) == {"leaf": [token()]}


def test_an_adoption_takes_over_neither_a_known_child_nor_an_ancestor_nor_the_closed_one() -> None:
    root = node(*PATH[:2])
    started(root, "leaf", withheld=HARD)
    started(root, "other")
    close(root, "other")
    root.adopt("other", [orphan(id, {}) for id in ("leaf", ROOT, "mid", "other")])

    assert list(root.children) == ["leaf"]
    assert withheld_from(root, "leaf") == (ALL,)
    assert root.closed == {}


def test_orphans_of_a_child_that_is_not_known_are_adopted_too() -> None:
    root = node()
    root.adopt("stranger", [orphan("leaf", {})])
    assert list(root.children) == ["leaf"]


# --- one of whom nobody can say what was kept from it ----------------------------


def with_untold(**kept: tuple[str, ...]) -> Ledger:
    """A node that adopted one of whom its closed parent does not say what it kept from it."""
    root = node(holds=[token(name=name) for name in ("a", "b", "c", "d")])
    started(root, "mid", withheld=frozenset(kept.get("at_start", ())))
    for name in kept.get("later", ()):
        root.withhold("mid", name)
    close(root, "mid")
    root.adopt("mid", [orphan("leaf", None, hard=kept.get("below", ()))])
    return root


def test_one_untold_gets_nothing_not_even_a_revocation() -> None:
    root = with_untold()
    root.accept(revocation(NOW + 1, name="a"), NOW)

    for each in (root, restarted(root)):
        assert life(each) == {"leaf": Life.UNTOLD}
        assert told(each) == {}


@pytest.mark.parametrize(("name", "given"), [("d", ["d"]), (None, ["a", "b", "c", "d"])])
@pytest.mark.parametrize("withholds", [False, True])
def test_its_parent_may_say_that_it_is_told(
    name: str | None, given: list[str], withholds: bool
) -> None:
    root = with_untold()
    if withholds:
        root.withhold("leaf", None)
        assert told(root) == {}

    root.share("leaf", name)

    assert life(root) == {"leaf": Life.RUNNING}
    assert told(root) == {"leaf": [token(NOW, name=one) for one in given]}


def test_what_is_known_to_be_withheld_from_one_untold_stays_so_when_it_is_told() -> None:
    root = with_untold(at_start=("a",), later=("b",), below=("c",))
    assert withheld_from(root, "leaf") == ("a", "b", "c")

    root.share("leaf", "d")

    assert told(root) == {"leaf": [token(NOW, name="d")]}


# --- what was refused ------------------------------------------------------------


def test_refusals_are_counted_by_their_reason_and_the_last_20_say_which_message() -> None:
    ledger = node()
    ledger.reject(TokenMalformed("not a string"), NOW)
    for number in range(9000):
        ledger.reject(TokenStale("x"), number, token())
    assert REMEMBERED_REJECTIONS == 20

    for each in (ledger, restarted(ledger)):
        assert each.rejected == {"TokenStale": 9000, "TokenMalformed": 1}
        assert [rejection.at for rejection in each.rejections] == list(range(8980, 9000))
        first = Rejected(8980, "TokenStale", token().fingerprint, issuer())
        assert each.rejections[0] == first
        each.reject(TokenMalformed("not a string"), 9000)
        assert len(each.rejections) == 20
        assert each.rejections[-1] == Rejected(9000, "TokenMalformed")


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
    starting(mid, "starting", with_messages=False)
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

    def members(ledger: Ledger) -> Json:
        """All that it consists of, but for which of this run's starts a child is."""
        members = {name: value for name, value in vars(ledger).items() if name[0] != "_"}
        for name in ("children", "closed"):
            members[name] = [replace(child, start=0) for child in members[name].values()]
        return members

    assert members(after) == members(before)
    assert set(life(after).values()) == {*Life} - {Life.CLOSED}
    assert list(after.closed) == ["again", "closed"]
    assert told(after) == told(before)


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


@pytest.mark.parametrize("member", sorted(busy().dump().keys() - {"grants"}))  # newer
def test_a_state_that_lacks_a_member_is_not_read(member: str) -> None:
    state = busy().dump()
    del state[member]
    with pytest.raises(StateUnreadable):
        Ledger.load(state)


INFINITE = float("inf")
MALFORMED: dict[str, Json] = {
    "no path": {"path": []},
    "a path that is null": {"path": None},
    "trusted that is a list": {"trusted": ["key"]},
    "an issuer's key of small order": {"trusted": {"key": "A" * 43}},
    "revoked that is null": {"revoked": None},
    "a boundary that is a word": {"boundary": {"apiToken": "low"}},
    "an infinite boundary": {"boundary": {"apiToken": INFINITE}},
    "a boundary that is no number": {"boundary": {"*": float("nan")}},
    "held that is no message": {"held": ["x"]},
    "held that is null": {"held": [None]},
    "floors that are an object": {"floors": {"a": 1}},
    "a floor without an order": {"floors": [["apiToken", ROOT]]},
    "an infinite floor": {"floors": [["apiToken", ROOT, {"kid": [INFINITE, "hash"]}]]},
    "a child that is a string": {"children": ["mid"]},
    "a child without an id": {"children": [{"type": "Node"}]},
    "a child of an unknown life": {"children": [{**busy().dump()["children"][0], "life": "?"}]},
    "last that is no message": {"last": ["x"]},
    "soft that is a list": {"soft": [1]},
    "soft names that are a list": {"soft": {"mid": ["*"]}},
    "rejected that is a list": {"rejected": [1]},
    "a rejection of two parts": {"rejections": [[1, "x"]]},
    "a rejection at infinity": {"rejections": [[INFINITE, "x", None, None]]},
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_state_is_not_read(change: Json) -> None:
    # It comes in a header, which whoever starts the workflow may have written.
    with pytest.raises(StateUnreadable):
        Ledger.load(json.loads(json.dumps({**busy().dump(), **change})))
