"""Every state that three ledgers can reach within small bounds: each is safe, and heals.

`test_ledger_properties.py` walks far at random; here nothing is left out. The ledgers are the
real ones. Equal ones are kept once and never changed, so that a step of a ledger is computed
once, however many states of the tree it occurs in.

A tree is a root, its child and its grandchild. Its state is what `Ledger.dump` writes of each
(without the record of refusals, which only grows), the messages on their way, and what has
happened so far. From each state every step is taken that a `Story` allows.
"""

from __future__ import annotations

import copy
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from stateful_workflow.errors import MessageRefused
from stateful_workflow.node import ledger as ledger_module
from stateful_workflow.node.contract import Orphan
from stateful_workflow.node.ledger import Ledger, Life, Verdict
from stateful_workflow.sealed.keys import Issuer, verify
from stateful_workflow.sealed.message import DEFAULT_NAME, Message
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
ISSUERS = ("ours", "theirs")
SUCCESSOR = "successor"
MID, LEAF = 1, 2


@dataclass(frozen=True)
class Story:
    """What may happen, each in any order and at any moment or never.

    Attributes:
        messages: may be set, each once; from then on anybody may send copies to any node.
        at_least: states there are, so that a story that was cut short is seen.
        hard: the child that is started without the credential.
        soft: children from which it is withheld, and with which it is shared again.
        ends: the child may close, so that the root adopts the grandchild.
        silent: nobody may be left who can say what the closed child kept from the grandchild.
        doubts: a parent may lose sight of a child, so that the server is to be asked for it.
        stolen: the key of the first issuer may be revoked; the last message is its successor's,
            and the one before it the thief's.
    """

    messages: tuple[Message, ...]
    at_least: int
    hard: int | None = None
    soft: tuple[int, ...] = ()
    ends: bool = False
    silent: bool = False
    doubts: bool = False
    stolen: bool = False


class Tree(NamedTuple):
    """One state. A node is its index in `PATH`, a message its index in the story."""

    ledgers: tuple[Ledger | None, ...]
    on_their_way: frozenset[tuple[int, int]] = frozenset()
    issued: frozenset[int] = frozenset()
    cut: frozenset[int] = frozenset()
    """The children from which their parent withholds the credential for now."""
    closed: bool = False
    untold: bool = False
    """Whether the grandchild was adopted without a word on what was kept from it."""
    revoked: bool = False

    def live(self, node: int) -> Ledger | None:
        """The ledger of a node that was started and lives."""
        return None if self.closed and node == MID else self.ledgers[node]

    @property
    def root(self) -> Ledger:
        root = self.ledgers[0]
        assert root is not None
        return root

    def with_ledger(self, node: int, ledger: Ledger, **changes: Any) -> Tree:
        """The same with another ledger at a node."""
        ledgers = (*self.ledgers[:node], ledger, *self.ledgers[node + 1 :])
        return self._replace(ledgers=ledgers, **changes)


def is_revocation(message: Message | None) -> bool:
    """Whether it takes a token away, so that it goes on to a child cut off as well."""
    return message is not None and message.claims.inherit is False


def copied(ledger: Ledger) -> Ledger:
    """A ledger that can be changed without changing this one."""
    shared = [*ledger.held.values(), *ledger.trusted.values()]
    return copy.deepcopy(ledger, {id(one): one for one in shared})


def carried(ledger: Ledger) -> Ledger:
    """What the next run of a node wakes with."""
    again = restarted(ledger)
    again.confirm_children()
    return again


@dataclass
class Explorer:
    """Takes every step from every state of a story."""

    story: Story
    _known: dict[str, Ledger] = field(default_factory=dict[str, Ledger])
    _steps: dict[tuple[Ledger, str], Ledger] = field(
        default_factory=dict[tuple[Ledger, str], Ledger]
    )
    _lacking: dict[Ledger, list[tuple[int, list[int]]]] = field(
        default_factory=dict[Ledger, "list[tuple[int, list[int]]]"]
    )

    _checked: set[Ledger] = field(default_factory=set[Ledger])

    def explore(self) -> int:
        """Check every state within reach, and return how many there are.

        Every state is checked for safety; it heals when the steps that a quiet network takes
        lead from it to rest, in a state where every node has what it is entitled to.
        """
        start = Tree((self.kept(Ledger((ROOT,), TREE, trusted(*ISSUERS))), None, None))
        seen = {start}
        heals: dict[Tree, Tree] = {}
        todo = deque([start])
        while todo:
            tree = todo.popleft()
            self.check_safety(tree)
            quiet = next(self.quiet_steps(tree), None)
            if quiet is None:
                self.check_rest(tree)
            else:
                heals[tree] = quiet
            for after in (*self.steps(tree), *([] if quiet is None else [quiet])):
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
        self.check_that_quiet_comes_to_rest(heals)
        return len(seen)

    def check_that_quiet_comes_to_rest(self, heals: Mapping[Tree, Tree]) -> None:
        rests: set[Tree] = set()
        for tree in heals:
            way: dict[Tree, None] = {}
            while tree in heals and tree not in rests:
                assert tree not in way, "a quiet network never comes to rest"
                way[tree] = None
                tree = heals[tree]
            rests.update(way)

    # --- ledgers -----------------------------------------------------------------

    def kept(self, ledger: Ledger) -> Ledger:
        """The one ledger that stands for all that carry the same."""
        state = ledger.dump()
        del state["rejected"], state["rejections"]
        return self._known.setdefault(json.dumps(state, sort_keys=True), ledger)

    def step(self, ledger: Ledger, name: str, change: Callable[[Ledger], Ledger | None]) -> Ledger:
        """The ledger after a change; floors of trusted issuers never fall."""
        after = self._steps.get((ledger, name))
        if after is None:
            twin = copied(ledger)
            after = self.kept(change(twin) or twin)
            now = floors(after)
            for (kid, place), order in floors(ledger).items():
                assert kid not in after.trusted or now[kid, place] >= order, "a floor fell"
            self._steps[ledger, name] = after
        return after

    def stepped(
        self,
        tree: Tree,
        node: int,
        name: str,
        change: Callable[[Ledger], Ledger | None],
        **changes: Any,
    ) -> Tree:
        """The tree after a step of one node."""
        ledger = tree.ledgers[node]
        assert ledger is not None
        return tree.with_ledger(node, self.step(ledger, name, change), **changes)

    def judged(self, tree: Tree, node: int, index: int, **changes: Any) -> Tree:
        """A node judges a message, and asks the newest keyring where it does not know the key."""
        message = self.story.messages[index]

        def judge(ledger: Ledger) -> None:
            try:
                if ledger.accept(message, NOW) is Verdict.WAITING and tree.revoked:
                    ledger.trust(trusted(ISSUERS[1], SUCCESSOR), [issuer(ISSUERS[0])])
                    ledger.accept(message, NOW)
            except MessageRefused:
                pass

        rest = tree.on_their_way - {(node, index)}
        name = f"judge {index} {tree.revoked}"
        return self.stepped(tree, node, name, judge, on_their_way=rest, **changes)

    def lacking(self, tree: Tree, parent: int) -> list[tuple[int, list[int]]]:
        """The children that a parent would tell now, each with what it lacks."""
        ledger = tree.live(parent)
        if ledger is None:
            return []
        if ledger not in self._lacking:
            self._lacking[ledger] = [
                (PATH.index(child.id), [self.story.messages.index(one) for one in messages])
                for child, messages in ledger.to_tell()
            ]
        return self._lacking[ledger]

    # --- what may happen ---------------------------------------------------------

    def steps(self, tree: Tree) -> Iterator[Tree]:
        """Every state that one step leads to."""
        yield from self.settings(tree)
        yield from self.starts(tree)
        for node in range(len(PATH)):
            if tree.live(node) is not None:
                for index in tree.issued:  # on its way, delivered twice, or captured
                    yield self.judged(tree, node, index)
                yield self.stepped(tree, node, "carried", carried)
                yield from self.deliveries(tree, node)
        yield from self.withholding(tree)
        yield from self.doubts(tree)
        if self.story.ends and tree.live(MID) and self.life(tree, MID) is not Life.STARTING:
            living = frozenset(one for one in tree.on_their_way if one[0] != MID)
            yield tree._replace(closed=True, on_their_way=living)
        yield from self.news_of_the_end(tree)
        yield from self.adoptions(tree)

    def settings(self, tree: Tree) -> Iterator[Tree]:
        thief, successor = len(self.story.messages) - 2, len(self.story.messages) - 1
        if self.story.stolen and not tree.revoked:
            yield tree._replace(revoked=True)
        for index, message in enumerate(self.story.messages):
            authority = PATH.index(message.claims.authority)
            if index in tree.issued or tree.live(authority) is None:
                continue
            if self.story.stolen:
                if index == successor and not tree.revoked:
                    continue
                if index != thief and tree.revoked and message.issuer == issuer(ISSUERS[0]):
                    continue
            yield self.judged(tree, authority, index, issued=tree.issued | {index})

    def starts(self, tree: Tree) -> Iterator[Tree]:
        for child in (MID, LEAF):
            if tree.ledgers[child] is None and tree.live(child - 1) is not None:
                yield self.started(tree, child, with_messages=True)
                yield self.started(tree, child, with_messages=False)
                return
            yield from self.confirmations(tree, child)

    def started(self, tree: Tree, child: int, *, with_messages: bool) -> Tree:
        parent = tree.ledgers[child - 1]
        assert parent is not None
        twin = copied(parent)
        hard = frozenset({DEFAULT_NAME} if self.story.hard == child else ())
        node, _ = starting(twin, PATH[child], with_messages=with_messages, withheld=hard)
        return tree.with_ledger(child - 1, self.kept(twin)).with_ledger(child, self.kept(node))

    def life(self, tree: Tree, child: int) -> Life | None:
        """What the living parent that started a child knows of its life."""
        parent = tree.live(child - 1)
        known = None if parent is None else parent.children.get(PATH[child])
        return None if known is None else known.life

    def confirmations(self, tree: Tree, child: int) -> Iterator[Tree]:
        if self.life(tree, child) is Life.STARTING:

            def confirm(ledger: Ledger) -> None:
                ledger.child_started(start_of(ledger, PATH[child]))

            yield self.stepped(tree, child - 1, f"confirm {child}", confirm)

    def doubts(self, tree: Tree) -> Iterator[Tree]:
        """A parent loses sight of a child, and asks the server for those it lost sight of."""
        for child in (MID, LEAF) if self.story.doubts else ():
            if self.life(tree, child) in (Life.STARTING, Life.RUNNING):

                def doubt(ledger: Ledger, id: str = PATH[child]) -> None:
                    assert ledger.doubt_child(start_of(ledger, id))

                yield self.stepped(tree, child - 1, f"doubt {child}", doubt)
            yield from self.returns(tree, child)

    def returns(self, tree: Tree, child: int) -> Iterator[Tree]:
        """The server says that a child in doubt runs."""
        if tree.live(child) is not None and self.life(tree, child) is Life.IN_DOUBT:
            yield self.stepped(
                tree, child - 1, f"take back {child}", lambda ledger: ledger.take_back(PATH[child])
            )

    def deliveries(self, tree: Tree, parent: int) -> Iterator[Tree]:
        """A telling whose answer is noted.

        One that is lost changes nothing, and one whose answer is lost, or a part of one, is the
        same as what somebody captured and sent.
        """
        for child, indexes in self.lacking(tree, parent):
            if tree.live(child) is not None:
                yield self.told(tree, parent, child, indexes)

    def told(self, tree: Tree, parent: int, child: int, indexes: list[int]) -> Tree:
        def note(ledger: Ledger) -> None:
            ledger.delivered(PATH[child], [self.story.messages[index] for index in indexes])

        sent = tree.on_their_way | {(child, index) for index in indexes}
        return self.stepped(tree, parent, f"told {child} {indexes}", note, on_their_way=sent)

    def withholding(self, tree: Tree) -> Iterator[Tree]:
        for child in self.story.soft:
            id = PATH[child]
            parent = 0 if id in tree.root.children else child - 1
            if tree.live(parent) is None or tree.live(child) is None:
                continue
            untold = tree.untold and child == LEAF
            if child in tree.cut or untold:
                yield self.stepped(
                    tree,
                    parent,
                    f"share {child}",
                    lambda ledger, id=id: ledger.share(id, None),
                    cut=tree.cut - {child},
                    untold=tree.untold and not untold,
                )
            if child not in tree.cut:
                yield self.stepped(
                    tree,
                    parent,
                    f"withhold {child}",
                    lambda ledger, id=id: ledger.withhold(id, None),
                    cut=tree.cut | {child},
                )

    def news_of_the_end(self, tree: Tree) -> Iterator[Tree]:
        """The root hears that its child closed, before anybody looked for whom it leaves."""
        if tree.closed and PATH[MID] in tree.root.children:
            yield self.stepped(tree, 0, "close", lambda ledger: close(ledger, PATH[MID]))

    def adoptions(self, tree: Tree) -> Iterator[Tree]:
        """The root takes over whom its closed child leaves, with what that one last kept back."""
        closed = tree.ledgers[MID]
        if not tree.closed or closed is None:
            return
        if PATH[MID] not in {**tree.root.children, **tree.root.closed}:
            return
        orphans = [
            Orphan(
                child.id,
                child.type,
                sorted(child.withheld),
                {
                    **dict.fromkeys(set(closed.withheld_from(child)) - child.withheld, True),
                    **dict.fromkeys(closed.shared_with(child), False),
                },
            )
            for child in closed.children.values()
        ]
        cut = tree.cut - {MID}
        if orphans and MID in tree.cut:
            cut |= {LEAF}
        yield self.adopted(tree, orphans, cut=cut)
        if orphans and self.story.silent:
            unnamed = [Orphan(orphan.id, orphan.type, [], None) for orphan in orphans]
            yield self.adopted(tree, unnamed, cut=cut, untold=True)

    def adopted(self, tree: Tree, orphans: list[Orphan], **changes: Any) -> Tree:
        twin = copied(tree.root)
        twin.adopt(PATH[MID], orphans)
        return tree.with_ledger(0, self.kept(twin), **changes)

    # --- what always holds -------------------------------------------------------

    def check_safety(self, tree: Tree) -> None:
        for node, ledger in enumerate(tree.ledgers):
            if ledger is None:
                continue
            self.check_ledger(node, ledger)
            for child, indexes in self.lacking(tree, node):
                assert ledger.children[PATH[child]].life is Life.RUNNING, "one not running is told"
                assert not (tree.untold and child == LEAF), "one untold is told"
                for index in indexes:
                    assert child != self.story.hard, "a withheld node is told"
                    message = self.story.messages[index]
                    assert child not in tree.cut or is_revocation(message), "one cut off is told"

    def check_ledger(self, node: int, ledger: Ledger) -> None:
        if ledger in self._checked:
            return
        self._checked.add(ledger)
        for _, authority in ledger.held:
            assert PATH.index(authority) >= self.lowest(node), "a withheld node holds it"
        assert self.kept(Ledger.load(ledger.dump())) is ledger, "the next run has another state"

    def lowest(self, node: int) -> int:
        """Index of the highest authority whose word counts at a node."""
        hard = self.story.hard
        return hard if hard is not None and hard <= node else 0

    # --- and in the end ----------------------------------------------------------

    def quiet_steps(self, tree: Tree) -> Iterator[Tree]:
        """What still happens once nothing is lost, and nobody does anything new."""
        successor = len(self.story.messages) - 1
        if tree.revoked and successor not in tree.issued:
            yield self.judged(tree, 0, successor, issued=tree.issued | {successor})
        for node, index in sorted(tree.on_their_way):
            yield self.judged(tree, node, index)
        yield from self.confirmations(tree, MID)
        yield from self.confirmations(tree, LEAF)
        yield from self.returns(tree, MID)
        yield from self.returns(tree, LEAF)
        yield from self.adoptions(tree)
        for parent in range(len(PATH)):
            for child, indexes in self.lacking(tree, parent):
                yield self.told(tree, parent, child, indexes)

    def check_rest(self, tree: Tree) -> None:
        """Every node holds, of every authority above it, the newest that it is entitled to."""
        expected = self.newest(tree)
        for node, ledger in enumerate(tree.ledgers):
            if ledger is None or tree.live(node) is None:
                continue
            entitled = range(self.lowest(node), node + 1)
            if tree.untold and node == LEAF:
                entitled = range(LEAF, LEAF + 1)
            open_ = [at for at in entitled if not self.is_cut(tree, at, node)]
            for at in entitled:
                if at not in open_ and not is_revocation(expected.get(at)):
                    continue
                if not (tree.closed and at == MID):  # nobody is left who could tell
                    held = ledger.held.get((DEFAULT_NAME, PATH[at]))
                    assert held == expected.get(at), "a node does not hold the newest"
            if len(open_) == len(entitled) and not tree.closed:
                in_force = ledger.in_force(DEFAULT_NAME)
                assert in_force == self.nearest(expected, entitled), "another one is in force"

    def newest(self, tree: Tree) -> dict[int, Message]:
        found: dict[int, Message] = {}
        for index in sorted(tree.issued, key=lambda index: self.story.messages[index].order):
            message = self.story.messages[index]
            if not (tree.revoked and message.issuer == issuer(ISSUERS[0])):
                found[PATH.index(message.claims.authority)] = message
        return found

    def nearest(self, held: Mapping[int, Message], entitled: range) -> Message | None:
        for at in reversed(entitled):
            if at in held and held[at].claims.inherit is not True:
                return held[at]
        return None

    def is_cut(self, tree: Tree, authority: int, node: int) -> bool:
        return any(child in tree.cut for child in range(authority + 1, node + 1))


def root_token(version: int, by: str = "ours") -> Message:
    return token(NOW + version, by=by)


STORIES = {
    "three versions of two issuers": Story(
        (root_token(1), root_token(2, "theirs"), root_token(3), root_token(3, "theirs")),
        at_least=80_000,
    ),
    "two authorities, a revocation and its end": Story(
        (
            root_token(1),
            revocation(NOW + 3, by="theirs"),
            token(NOW + 2, at="mid", by="theirs"),
            revocation(NOW + 3, at="mid", inherit=True),
        ),
        at_least=120_000,
    ),
    "a child that closes": Story(
        (root_token(1), root_token(3, "theirs"), token(NOW + 2, at="mid", by="theirs")),
        at_least=35_000,
        ends=True,
    ),
    "a child started without it": Story(
        (root_token(1), revocation(NOW + 3, by="theirs"), token(NOW + 2, at="mid", by="theirs")),
        at_least=700,
        hard=MID,
        ends=True,
    ),
    "a grandchild started without it": Story(
        (root_token(1), root_token(2, "theirs"), token(NOW + 3, at="leaf"), revocation(NOW + 3)),
        at_least=6_000,
        hard=LEAF,
        ends=True,
    ),
    "withheld and shared": Story(
        (root_token(1), root_token(2, "theirs"), revocation(NOW + 3)),
        at_least=100_000,
        soft=(MID, LEAF),
        ends=True,
    ),
    "a child that closes and does not say what it kept": Story(
        (root_token(1), revocation(NOW + 3, by="theirs")),
        at_least=14_000,
        soft=(MID, LEAF),
        ends=True,
        silent=True,
    ),
    "children of whom sight is lost": Story(
        (root_token(1), revocation(NOW + 3, by="theirs")),
        at_least=20_000,
        soft=(MID,),
        ends=True,
        doubts=True,
    ),
    "a stolen key": Story(
        (root_token(1), root_token(2, "theirs"), root_token(99), root_token(3, SUCCESSOR)),
        at_least=170_000,
        stolen=True,
    ),
}


@pytest.fixture(autouse=True)
def each_signature_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine: set[tuple[str, str]] = set()

    def verify_once(message: Message, keys: Mapping[str, Issuer]) -> None:
        if message.issuer not in keys or (message.issuer, message.hash) not in genuine:
            verify(message, keys)
            genuine.add((message.issuer, message.hash))

    monkeypatch.setattr(ledger_module, "verify", verify_once)


@pytest.mark.parametrize("name", STORIES)
def test_every_state_within_reach_is_safe_and_heals(name: str) -> None:
    story = STORIES[name]
    count = Explorer(story).explore()
    print(f"{name}: {count} states")
    assert count >= story.at_least
