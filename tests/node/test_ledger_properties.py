"""The ledger under any order, duplication and loss of messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from stateful_workflow.errors import MessageRefused
from stateful_workflow.node.contract import Orphan
from stateful_workflow.node.ledger import (
    ALL,
    Ledger,
    Life,
    Place,
    Starting,
    Verdict,
)
from stateful_workflow.sealed.message import Message
from tests.support.builders import (
    NOW,
    ROOT,
    TREE,
    close,
    floors,
    issuer,
    restarted,
    revocation,
    start_of,
    starting,
    token,
    trusted,
)

PATH = (ROOT, "mid", "leaf")
NAMES = ("github", "billing")
ISSUERS = ("ours", "theirs")
SUCCESSOR = "successor"
KINDS = ("token", "revocation", "inherit")

kinds = st.sampled_from(KINDS)
names = st.sampled_from(NAMES)
name_sets = st.frozensets(names)
hard_sets = name_sets | st.just(frozenset({ALL}))
some_names = names | st.none()
versions = st.integers(1, 3)


def message(kind: str, name: str, authority: str, by: str, version: int) -> Message:
    """A message of one kind; few versions, so that they often meet."""
    version = NOW + version
    if kind == "token":
        return token(version, at=authority, by=by, name=name)
    return revocation(version, at=authority, by=by, name=name, inherit=kind == "inherit")


messages = st.builds(
    message, kinds, names, st.sampled_from(PATH), st.sampled_from(ISSUERS), versions
)


def place_of(message: Message) -> Place:
    return message.claims.name, message.claims.authority


def give(ledger: Ledger, message: Message) -> Verdict | None:
    """Let a node judge a message as it does a signal: None where it was refused."""
    try:
        return ledger.accept(message, NOW)
    except MessageRefused as error:
        ledger.reject(error, NOW, message)
        return None


def newest(of: Iterable[Message]) -> dict[Place, Message]:
    """The newest message of each place: what docs/decisions/02 and 03 say is held."""
    found: dict[Place, Message] = {}
    for one in sorted(of, key=lambda message: message.order):
        found[place_of(one)] = one
    return found


def nearest(held: Mapping[Place, Message], name: str, path: Iterable[str]) -> Message | None:
    """What docs/decisions/07 says is in force at the end of a path."""
    for authority in reversed(list(path)):
        found = held.get((name, authority))
        if found is not None and found.claims.inherit is not True:
            return found
    return None


# --- one node --------------------------------------------------------------------


class Revoked(NamedTuple):
    """The news that an issuer's key was revoked and another made."""

    owner: str


@given(st.lists(messages | st.sampled_from([Revoked(owner) for owner in ISSUERS])), st.data())
@settings(max_examples=150, deadline=None)
def test_no_floor_of_a_trusted_issuer_ever_falls(
    events: list[Message | Revoked], data: st.DataObject
) -> None:
    ledger = Ledger(PATH, TREE, trusted(*ISSUERS))
    for event in events:
        before = floors(ledger)
        if isinstance(event, Revoked):
            ledger.trust(trusted(SUCCESSOR), [issuer(event.owner)])
        else:
            verdict = give(ledger, event)
            assert verdict is not Verdict.ACCEPTED or ledger.held[place_of(event)] == event
        if data.draw(st.booleans(), label="restart"):
            ledger = restarted(ledger)
        after = floors(ledger)
        for (kid, place), order in before.items():
            assert kid not in ledger.trusted or after[kid, place] >= order


@given(st.lists(messages, max_size=12), st.integers(0, 2), st.data())
@settings(max_examples=150, deadline=None)
def test_nodes_that_saw_the_same_messages_hold_the_same_in_any_order(
    seen: list[Message], lowest: int, data: st.DataObject
) -> None:
    boundary = {NAMES[0]: lowest}
    expected = newest(
        one
        for one in seen
        if one.claims.name != NAMES[0] or PATH.index(one.claims.authority) >= lowest
    )
    again = data.draw(st.lists(st.sampled_from(seen))) if seen else []
    for order in (seen, data.draw(st.permutations([*seen, *again]), label="order")):
        ledger = Ledger(PATH, TREE, trusted(*ISSUERS), boundary)
        for one in order:
            give(ledger, one)
            if data.draw(st.booleans(), label="restart"):
                ledger = restarted(ledger)
        assert ledger.held == expected
        for name in NAMES:
            assert ledger.in_force(name) == nearest(expected, name, PATH)


@given(st.lists(messages, max_size=12), st.lists(messages, max_size=6))
@settings(max_examples=100, deadline=None)
def test_messages_seen_before_never_change_what_is_held(
    seen: list[Message], later: list[Message]
) -> None:
    ledger = Ledger(PATH, TREE, trusted(*ISSUERS))
    for one in [*seen, *later]:
        give(ledger, one)
    held = dict(ledger.held)
    for captured in seen:
        assert give(ledger, captured) in (Verdict.KNOWN, None)
    assert ledger.held == held


@given(st.lists(messages, max_size=12), st.data())
@settings(max_examples=150, deadline=None)
def test_a_child_started_at_any_moment_ends_with_what_its_parent_holds(
    seen: list[Message], data: st.DataObject
) -> None:
    parent = Ledger(PATH[:2], TREE, trusted(*ISSUERS))
    start = data.draw(st.integers(0, len(seen)), label="start")
    for one in seen[:start]:
        give(parent, one)
    with_messages = data.draw(st.booleans(), label="with messages")
    child, begun = starting(parent, "leaf", with_messages=with_messages)
    for one in seen[start:]:
        give(parent, one)
        if data.draw(st.booleans(), label="this one got through"):
            give(child, one)
    parent.child_started(begun)

    for target, lacking in list(parent.to_tell()):
        for one in data.draw(st.permutations(lacking), label="order"):
            give(child, one)
        parent.delivered(target.id, lacking)

    assert list(parent.to_tell()) == []
    above = {place: one for place, one in child.held.items() if place[1] != "leaf"}
    assert above == parent.held


# --- withholding -----------------------------------------------------------------


class Known(NamedTuple):
    """A child, or a closed one, as the model has it: what it was started without, and its life."""

    hard: frozenset[str]
    life: Life


class Opened(NamedTuple):
    """A start that is neither confirmed nor refused, and the child of its id before it."""

    start: Starting
    known: Known | None


class Withholding(RuleBasedStateMachine):
    """One parent that starts, loses sight of, adopts, withholds and shares in any order.

    Beside the ledger stands what its users were promised: from which child which name
    is withheld, for good or for now, and what is known of each child's life.
    """

    ids = st.sampled_from(["a", "b", "c"])
    softly = st.none() | st.dictionaries(names | st.just(ALL), st.booleans())

    def __init__(self) -> None:
        super().__init__()
        self.parent = Ledger(PATH[:2], TREE, trusted(*ISSUERS))
        self.known: dict[str, Known] = {}
        self.closed: dict[str, Known] = {}
        self.opened: dict[str, list[Opened]] = {}
        self.soft: dict[str, set[str]] = {}

    def withheld(self, child: str, name: str) -> bool:
        hard = self.known[child].hard
        return ALL in hard or name in hard or name in self.soft.get(child, set())

    def kept_from(self, child: str, one: Message) -> bool:
        """As `withheld`, but a revocation goes on to a child that may hold what it ends."""
        hard = self.known[child].hard
        if one.claims.inherit is False:
            return ALL in hard or one.claims.name in hard
        return self.withheld(child, one.claims.name)

    def those(self, *lives: Life) -> st.SearchStrategy[str]:
        """Children of such a life."""
        found = sorted(child for child, known in self.known.items() if known.life in lives)
        return st.sampled_from(found)

    def any_is(self, life: Life) -> bool:
        return any(known.life is life for known in self.known.values())

    @initialize(seen=st.lists(messages, max_size=4), withheld=name_sets, runs=st.booleans())
    def start_one(self, seen: list[Message], withheld: frozenset[str], runs: bool) -> None:
        for one in seen:
            self.accept(one)
        self.start("a", withheld, True)
        if runs:
            self.confirm_opened("a", 0)

    @rule(one=messages)
    def accept(self, one: Message) -> None:
        give(self.parent, one)

    # --- starts, also under the id of a child that is known ----------------------

    @rule(child=ids, withheld=hard_sets, full=st.booleans())
    def start(self, child: str, withheld: frozenset[str], full: bool) -> None:
        known = self.known.get(child)
        self.known[child] = Known(withheld, Life.STARTING)
        ledger, start = starting(self.parent, child, with_messages=full, withheld=withheld)
        self.opened.setdefault(child, []).append(Opened(start, known))
        for one in ledger.held.values():
            assert full
            assert not self.kept_from(child, one)

    def one_opened(self, data: st.DataObject) -> tuple[str, int]:
        """A child's id, and which of the open starts of that id is settled now."""
        child = data.draw(st.sampled_from(sorted(self.opened)), label="child")
        return child, data.draw(st.integers(0, len(self.opened[child]) - 1), label="which")

    def take_opened(self, child: str, which: int) -> tuple[Opened, bool]:
        """An open start, and whether none of its id came after it."""
        one = self.opened[child].pop(which)
        if not self.opened[child]:
            del self.opened[child]
        return one, self.parent.is_of(child, one.start.start)

    @precondition(lambda self: self.opened)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        self.confirm_opened(*self.one_opened(data))

    def confirm_opened(self, child: str, which: int) -> None:
        one, is_last = self.take_opened(child, which)
        if one.known is not None and one.known.life is not Life.STARTING:
            self.closed[child] = one.known._replace(life=Life.CLOSED)
        has_news = self.parent.child_started(one.start)
        assert has_news or child not in self.closed
        if is_last:
            self.known[child] = self.known[child]._replace(life=Life.RUNNING)

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), may_run=st.booleans())
    def fail(self, data: st.DataObject, may_run: bool) -> None:
        child, which = self.one_opened(data)
        one, is_last = self.take_opened(child, which)
        before_runs = one.known is not None and one.known.life is not Life.STARTING
        may_run = may_run or one.known is not None
        has_news = self.parent.child_failed_to_start(one.start, may_run=may_run)
        assert has_news is (is_last and may_run)
        if is_last and before_runs:
            assert one.known is not None
            self.known[child] = one.known
        elif is_last and may_run:
            self.known[child] = self.known[child]._replace(life=Life.IN_DOUBT)
        elif is_last:
            del self.known[child]

    @rule(child=ids, start=st.integers(0, 5))
    def hear_of_another_start(self, child: str, start: int) -> None:
        """News of an earlier child of an id changes nothing of the later one."""
        if not self.parent.is_of(child, start):
            earlier = Starting(child, start)
            assert not self.parent.doubt_child(earlier)
            assert not self.parent.close_child(earlier)
            assert not self.parent.child_failed_to_start(earlier, may_run=False)

    @precondition(lambda self: self.any_is(Life.RUNNING))
    @rule(data=st.data())
    def lose_sight_of(self, data: st.DataObject) -> None:
        child = data.draw(self.those(Life.RUNNING), label="child")
        assert self.parent.doubt_child(start_of(self.parent, child))
        self.known[child] = self.known[child]._replace(life=Life.IN_DOUBT)

    @precondition(lambda self: self.any_is(Life.IN_DOUBT))
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        child = data.draw(self.those(Life.IN_DOUBT), label="child")
        self.parent.take_back(child)
        hard = self.known[child].hard
        self.soft.setdefault(child, set()).update(NAMES if ALL in hard else hard)
        self.known[child] = Known(frozenset(), Life.RUNNING)
        # It got nothing with the start that failed, and of the first one nothing is known.
        open_ = [one for one in self.parent.held.values() if not self.kept_from(child, one)]
        assert self.parent.pending(self.parent.children[child]) == open_

    @precondition(lambda self: self.any_is(Life.IN_DOUBT))
    @rule(data=st.data())
    def find_it_gone(self, data: st.DataObject) -> None:
        child = data.draw(self.those(Life.IN_DOUBT), label="child")
        self.parent.forget_child(child)
        del self.known[child]

    # --- ends --------------------------------------------------------------------

    @precondition(lambda self: self.any_is(Life.RUNNING) or self.any_is(Life.IN_DOUBT))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        child = data.draw(self.those(Life.RUNNING, Life.IN_DOUBT), label="child")
        close(self.parent, child)
        self.closed[child] = self.known.pop(child)._replace(life=Life.CLOSED)

    @precondition(
        lambda self: self.closed or self.any_is(Life.RUNNING) or self.any_is(Life.IN_DOUBT)
    )
    @rule(data=st.data(), orphan=ids, hard=name_sets, soft=softly)
    def adopt(
        self,
        data: st.DataObject,
        orphan: str,
        hard: frozenset[str],
        soft: dict[str, bool] | None,
    ) -> None:
        """From one among the closed, or from one that was found closed just now."""
        lives = (Life.RUNNING, Life.IN_DOUBT)
        alive = {child for child, known in self.known.items() if known.life in lives}
        closed = data.draw(st.sampled_from(sorted({*self.closed, *alive})), label="closed")
        before = self.closed.pop(closed) if closed in self.closed else self.known.pop(closed)
        if orphan != closed and orphan not in self.known:
            life = Life.UNTOLD if soft is None else Life.RUNNING
            self.known[orphan] = Known(hard | before.hard, life)
            kept = {name for name in NAMES if soft and soft.get(name, soft.get(ALL, False))}
            kept |= self.soft.get(orphan, set()) | self.soft.get(closed, set())
            self.soft[orphan] = kept
        self.parent.adopt(closed, [Orphan(orphan, "Node", sorted(hard), soft)])

    # --- withholding -------------------------------------------------------------

    @rule(child=ids, name=some_names)
    def withhold(self, child: str, name: str | None) -> None:
        self.parent.withhold(child, name)
        self.soft.setdefault(child, set()).update(NAMES if name is None else [name])

    @rule(child=ids, name=some_names)
    def share(self, child: str, name: str | None) -> None:
        self.parent.share(child, name)
        self.soft.setdefault(child, set()).difference_update(NAMES if name is None else [name])
        known = self.known.get(child)
        if known is not None and known.life is Life.UNTOLD:
            self.known[child] = known._replace(life=Life.RUNNING)
            self.soft[child] = set() if name is None else {*NAMES} - {name}

    @rule()
    def tell(self) -> None:
        for child, lacking in list(self.parent.to_tell()):
            self.parent.delivered(child.id, lacking)
        assert list(self.parent.to_tell()) == []

    @rule()
    def restart(self) -> None:
        """The next run is told of none of the starts that are open."""
        self.parent = restarted(self.parent)
        self.parent.confirm_children()
        self.opened.clear()
        for child, known in self.known.items():
            if known.life is Life.STARTING:
                self.known[child] = known._replace(life=Life.RUNNING)

    # --- what always holds -------------------------------------------------------

    @invariant()
    def of_each_child_is_known_what_happened_to_it(self) -> None:
        for ledger in (self.parent, restarted(self.parent)):
            assert {
                child.id: Known(child.withheld, child.life) for child in ledger.children.values()
            } == self.known
            assert {
                child.id: Known(child.withheld, child.life) for child in ledger.closed.values()
            } == self.closed

    @invariant()
    def no_child_is_to_be_told_a_name_withheld_from_it(self) -> None:
        for child, lacking in self.parent.to_tell():
            assert self.known[child.id].life is Life.RUNNING
            assert not any(self.kept_from(child.id, one) for one in lacking)
        for child in self.parent.children.values():
            assert not any(self.kept_from(child.id, one) for one in self.parent.pending(child))

    @invariant()
    def every_other_name_is_pending_or_was_given(self) -> None:
        for child in self.parent.children.values():
            pending = self.parent.pending(child)
            for place, one in self.parent.held.items():
                if not self.kept_from(child.id, one):
                    assert one in pending or child.delivered[place] == one.order

    @invariant()
    def what_a_running_child_lacks_is_to_be_told(self) -> None:
        told = {child.id: lacking for child, lacking in self.parent.to_tell()}
        for child in self.parent.children.values():
            if child.life is Life.RUNNING:
                assert told.get(child.id, []) == self.parent.pending(child)

    @invariant()
    def what_is_shown_as_withheld_and_as_shared_is(self) -> None:
        for child in self.parent.children.values():
            withheld = self.parent.withheld_from(child)
            shared = self.parent.shared_with(child)
            for name in NAMES:
                is_kept = (name in withheld or ALL in withheld) and name not in shared
                assert is_kept is self.withheld(child.id, name)


TestWithholding = Withholding.TestCase
TestWithholding.settings = settings(max_examples=400, stateful_step_count=30, deadline=None)
