"""What one node holds and owes: the pure state machine of the protocol.

A ledger judges messages, holds the newest of each (name, authority), knows which token is in force
here, and which messages each child still lacks. It takes the time as an argument and knows nothing
of Temporal. Rules: docs/decisions/03-judging.md to 08-floors.md, 13 and 17.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from ..errors import (
    MessageRefused,
    TokenConflict,
    TokenForged,
    TokenMalformed,
    TokenStale,
    TokenWithheld,
    WrongAuthority,
    WrongTree,
)
from ..sealed.keys import Issuer, verify
from ..sealed.message import CLOCK_TOLERANCE_MS, Message
from .carried import REMEMBERED_REJECTIONS, Carried, Rejected
from .children import Child, Life, Order, Place, Starting
from .contract import Orphan

ALL: Final = "*"
"""In a set of withheld names: every name."""


class Verdict(enum.Enum):
    """What became of a message that was not refused."""

    ACCEPTED = "accepted"
    KNOWN = "known"
    WAITING = "waiting"


def is_among(name: str, names: Collection[str]) -> bool:
    """Whether a set of withheld names has this one."""
    return name in names or ALL in names


class Ledger(Carried):
    """The state of one node, and what becomes of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._accepted = 0
        self._starts = 0

    # --- judging -------------------------------------------------------------

    def check(self, message: Message, now: int) -> Verdict:
        """Judge a message and change nothing; `now` is Unix milliseconds.

        Raises:
            MessageRefused: the subclass says why.
        """
        claims = message.claims
        where = f"workflow {self.path[-1]}"
        if claims.root != self.path[0] or claims.tree != self.tree:
            raise WrongTree(
                f"{where}: the message is for tree {claims.tree} of root {claims.root}, "
                f"this is tree {self.tree} of root {self.path[0]}; read the status and seal again"
            )
        if message.kind == "grant" and claims.authority != self.path[-1]:
            raise WrongAuthority(
                f"{where}: the grant is for {claims.authority}, and no other workflow may use it"
            )
        if claims.authority not in self.path:
            raise WrongAuthority(
                f"{where}: the message was set at {claims.authority}, which is not above this node"
            )
        if self.path.index(claims.authority) < self._lowest(claims.name):
            raise TokenWithheld(
                f"{where} or one above it was started without {claims.name}; "
                "only a message set at or below there is taken"
            )
        place = message.place
        held = self.grants.get(place[0]) if message.kind == "grant" else self.held.get(place)
        if held is not None and held.hash == message.hash:
            return Verdict.KNOWN
        if claims.version > now + CLOCK_TOLERANCE_MS:
            raise TokenMalformed(
                f"{where}: version {claims.version} is more than 5 minutes ahead of the clock"
            )
        if message.issuer in self.revoked:
            raise TokenForged(f"{where}: issuer {message.issuer} was revoked")
        # Before the floors: the answer of the keyring may take the one in the way.
        if message.issuer not in self.trusted:
            return Verdict.WAITING
        # A floor ahead of that was never accepted by anybody, whoever's state it came with.
        floors = [
            (order, issuer)
            for issuer, order in self._floors_of(message).items()
            if order[0] <= now + CLOCK_TOLERANCE_MS
        ]
        floor, by = max(floors, default=((0, ""), ""))
        # One exactly at the floor was accepted above this node and never reached it.
        if message.order < floor:
            if by == message.issuer:
                raise TokenStale(
                    f"{where}: version {claims.version} of {claims.name} is not newer than "
                    f"{floor[0]}; read the status and set again"
                )
            raise TokenConflict(
                f"{where}: issuer {by} has set version {floor[0]} of {claims.name}, "
                f"newer than {claims.version}; read the status and decide which one stands"
            )
        verify(message, self.trusted)
        return Verdict.ACCEPTED

    def accept(self, message: Message, now: int) -> Verdict:
        """Judge a message and hold it where it is accepted.

        Raises:
            MessageRefused: the state is unchanged; see `reject` for the record of it.
        """
        verdict = self.check(message, now)
        if verdict is Verdict.ACCEPTED:
            self._hold(message)
            self._accepted += 1
        return verdict

    def _floors_of(self, message: Message) -> dict[str, Order]:
        if message.kind != "grant":
            return self._floors(message.place)
        held = self.grant(message.claims.name)
        return {} if held is None else {held.issuer: held.order}

    def _hold(self, message: Message) -> None:
        place = message.place
        if message.kind == "grant":
            self.grants[place[0]] = message
            return
        before = self.held.get(place)
        self.held[place] = message
        if place[1] == self.path[-1]:
            # Of a token that is revoked here the next one keeps the terms.
            if message.kind == "token":
                self.last.pop(place[0], None)
            elif before is not None and before.kind == "token":
                self.last[place[0]] = before
        self.floors.setdefault(place, {})[message.issuer] = message.order

    def reject(self, error: MessageRefused, now: int, message: Message | None = None) -> None:
        """Count a refusal by its reason and remember the last few."""
        reason = type(error).__name__
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        about = (None, None) if message is None else (message.fingerprint, message.issuer)
        last = (*self.rejections, Rejected(now, reason, *about))
        self.rejections = last[-REMEMBERED_REJECTIONS:]

    def trust(self, issuers: Mapping[str, Issuer], revoked: Iterable[str] = ()) -> bool:
        """Learn issuers, and whether any key was new or newly revoked.

        It only adds and revokes, so that an answer from an older keyring takes nothing back; of
        the limits of an issuer the last answer counts. A revoked one is never trusted again, and
        its floors fall away.
        """
        before = set(self.trusted), set(self.revoked)
        self.revoked |= set(revoked)
        self.trusted = {
            kid: issuer
            for kid, issuer in {**self.trusted, **issuers}.items()
            if kid not in self.revoked
        }
        return (set(self.trusted), self.revoked) != before

    # --- what is in force ----------------------------------------------------

    def grant(self, name: str) -> Message | None:
        """What a source mints tokens of this name with, here; None of an issuer revoked since."""
        grant = self.grants.get(name)
        if grant is None or grant.claims.authority != self.path[-1]:
            return None
        return None if grant.issuer in self.revoked else grant

    def _floors(self, place: Place) -> dict[str, Order]:
        """The highest order that each issuer trusted now has had accepted in a place."""
        floors = self.floors.get(place, {})
        return {issuer: order for issuer, order in floors.items() if issuer in self.trusted}

    def overtaken(self, message: Message) -> dict[str, int]:
        """The other trusted issuers who had set one in a held message's place, and its version."""
        return {
            issuer: order[0]
            for issuer, order in self._floors(message.place).items()
            if issuer != message.issuer and order < message.order
        }

    def _lowest(self, name: str) -> int:
        """Index in the path of the highest authority that counts here for a name."""
        return max(self.boundary.get(name, 0), self.boundary.get(ALL, 0))

    def in_force(self, name: str) -> Message | None:
        """The nearest authority's message: a token, a revocation that ends the search, or None."""
        found = (m for m in self.held_here(name) if m.claims.inherit is not True)
        return next(found, None)

    def held_here(self, name: str) -> Iterator[Message]:
        """What is held for a name and counts here, the nearest authority's first."""
        for authority in reversed(self.path[self._lowest(name) :]):
            message = self.held.get((name, authority))
            if message is not None:
                yield message

    def names(self) -> list[str]:
        """The credential names anything is held for, sorted."""
        return sorted({name for name, _ in self.held})

    def withheld(self) -> tuple[str, ...]:
        """The names that this node or one above it was started without; may contain `ALL`."""
        return tuple(sorted(name for name, index in self.boundary.items() if index > 0))

    # --- the life of children ------------------------------------------------

    def start_child(
        self, child: Child, *, with_messages: bool = True
    ) -> tuple[dict[str, Any], Starting]:
        """Register a child about to start, and return the state it starts with.

        Floors go to every child, messages to those they are not withheld from, or to
        none where `with_messages` is false (they are pending then).
        """
        before = self.children.get(child.id)
        state = self.state_for(child, with_messages=with_messages)
        self._register(child, state)
        accepted = self._accepted if with_messages else -1
        return state.dump(), Starting(child.id, self._starts, before, accepted)

    def state_for(self, child: Child, *, with_messages: bool = True) -> Ledger:
        """The state that a child starts with, or one that joins; changes nothing."""
        boundary = {**self.boundary, **dict.fromkeys(child.withheld, len(self.path))}
        state = Ledger((*self.path, child.id), self.tree, self.trusted, boundary)
        state.revoked = self.revoked
        state.floors = self.floors
        state.held = {
            place: message
            for place, message in self.held.items()
            if with_messages and not self._is_kept_from(child, message)
        }
        return state

    def _register(self, child: Child, state: Ledger) -> None:
        """Note a child that holds what stands in the state that it was given."""
        self._starts += 1
        delivered = {place: message.order for place, message in state.held.items()}
        self.children[child.id] = replace(child, start=self._starts, delivered=delivered)

    def child_started(self, start: Starting) -> bool:
        """Note that a start is confirmed, so that the child of its id before it has closed.

        Returns:
            Whether anything was accepted since its header, or a closed one may have left somebody.
        """
        if start.known is not None:
            self.closed[start.id] = replace(start.known, life=Life.CLOSED)
        has_moved = False
        if self.is_of(start.id, start.start):
            self._live(start.id, Life.RUNNING)
            has_moved = start.accepted != self._accepted
        return has_moved or start.id in self.closed

    def child_failed_to_start(self, start: Starting, *, may_run: bool) -> bool:
        """Note that a start failed or was given up; one of its id may run all the same.

        This run may be a reset one, which starts what it has started before.

        Returns:
            Whether somebody is to be told, or to be asked for.
        """
        if start.known is not None and self.is_of(start.id, start.start):
            self.children[start.id] = start.known
            return True
        if may_run or start.before is not None:
            return self.doubt_child(start)
        if self.is_of(start.id, start.start):
            self.forget_child(start.id)
        return False

    def doubt_child(self, start: Starting) -> bool:
        """Note that one of this id may run; whether it is to be asked for.

        Not where a later start is under way, and not where the id stands above this node.
        """
        if not self.is_of(start.id, start.start):
            return False
        if start.id in self.path:
            self.forget_child(start.id)
            return False
        self._live(start.id, Life.IN_DOUBT)
        return True

    # --- who joins -----------------------------------------------------------

    def join(self, child: Child, most: int) -> None:
        """Tell a workflow that has asked for its state from now on, once the server knows it.

        Not one of an id that this node started itself or stands below, nor more than so many. Of
        one that is known nothing changes: anybody may say that it joins, and with another type.
        """
        if child.id in self.path or child.id in self.children:
            return
        if sum(one.joined for one in self.children.values()) >= most:
            return
        child = replace(child, life=Life.IN_DOUBT, joined=True)
        self._register(child, self.state_for(child))

    def doubt_joined(self) -> None:
        """Have the server asked for all who joined: one that ends says nothing of it."""
        for child in list(self.children.values()):
            if child.joined:
                self._live(child.id, Life.IN_DOUBT)

    def enter(self, state: Ledger) -> list[Message]:
        """Take a place in another tree, or learn what was set above since this one was taken.

        What this node and those above were started without stays so, no floor falls, and what was
        set in a tree that it leaves falls away. Its own children lack all that it holds then.

        Args:
            state: as `state_for` gives it, for this very workflow.

        Returns:
            What is to be accepted now, of the state's messages.
        """
        lowest = [(name, self.path[index]) for name, index in self.boundary.items() if index > 0]
        if (state.path, state.tree) != (self.path, self.tree):
            self.path, self.tree, self.boundary = state.path, state.tree, {}
            self.held, self.last, self.grants = {}, {}, {}
            for child in self.children.values():
                self.children[child.id] = replace(child, delivered={})
        own = len(self.path) - 1
        kept = {name: self.path.index(at) if at in self.path else own for name, at in lowest}
        for name, index in (*kept.items(), *state.boundary.items()):
            self.boundary[name] = max(index, self.boundary.get(name, 0))
        self.trust(state.trusted, state.revoked)
        for place, orders in state.floors.items():
            floors = self.floors.setdefault(place, {})
            for issuer, order in orders.items():
                floors[issuer] = max(order, floors.get(issuer, order))
        return list(state.held.values())

    # --- children in doubt, closed and taken over ----------------------------

    def take_back(self, child_id: str) -> None:
        """Take one in doubt for a child, which an earlier start of this node began.

        What the later start was to withhold it may have got from the first one, so that is
        withheld from now on: it still gets revocations.
        """
        child = self.children[child_id]
        if child.joined:
            self._live(child_id, Life.RUNNING)
            return
        self.children[child_id] = replace(
            child, life=Life.RUNNING, withheld=frozenset(), delivered={}
        )
        for name in sorted(child.withheld):
            self.withhold(child_id, None if name == ALL else name)

    def confirm_children(self) -> None:
        """Take every child for started: a later run is told of none of their starts."""
        for child in self.children.values():
            if child.life is Life.STARTING:
                self._live(child.id, Life.RUNNING)

    def close_child(self, start: Starting) -> bool:
        """Note that a child has closed; it stays until its running children are found.

        Returns:
            Whether it was the child of that start, and no later one of its id.
        """
        if not self.is_of(start.id, start.start):
            return False
        self.closed[start.id] = replace(self.children.pop(start.id), life=Life.CLOSED)
        return True

    def is_of(self, child_id: str, start: int) -> bool:
        """Whether a child is the one of that start, and not a later one of its id."""
        child = self.children.get(child_id)
        return child is not None and child.start == start

    def forget_child(self, child_id: str) -> None:
        """Drop a child that never started or is plain; what is withheld by its id stays so."""
        self.children.pop(child_id, None)

    def adopt(self, closed_id: str, orphans: Iterable[Orphan]) -> None:
        """Take over whom a closed child leaves; whatever was withheld on the way stays so."""
        closed = self.closed.pop(closed_id, None) or self.children.pop(closed_id, None)
        soft = self.soft.get(closed_id, {})
        for orphan in orphans:
            if orphan.id == closed_id or orphan.id in self.children or orphan.id in self.path:
                continue
            hard = frozenset(orphan.hard) | (closed.withheld if closed else frozenset[str]())
            life = Life.UNTOLD if orphan.soft is None else Life.RUNNING
            self.children[orphan.id] = Child(orphan.id, orphan.type, life, withheld=hard)
            every = (soft, orphan.soft or {}, self.soft.get(orphan.id, {}))
            if any(every):
                self.soft[orphan.id] = {
                    name: any(_is_on(one, name) for one in every)
                    for name in sorted({ALL}.union(*every))
                }

    def _live(self, child_id: str, life: Life) -> None:
        self.children[child_id] = replace(self.children[child_id], life=life)

    # --- what children are given ---------------------------------------------

    def withhold(self, child_id: str, name: str | None) -> None:
        """From now on pass a name (None: every one) to this child no more (soft)."""
        if name is None:
            self.soft[child_id] = {ALL: True}
        else:
            self.soft.setdefault(child_id, {})[name] = True

    def share(self, child_id: str, name: str | None) -> None:
        """Undo `withhold`; what was withheld at the child's start stays withheld.

        Who is untold is told this name from now on, since its parent says so.
        """
        child = self.children.get(child_id)
        if child is not None and child.life is Life.UNTOLD:
            self._live(child_id, Life.RUNNING)
            self.withhold(child_id, None)
        if name is None:
            self.soft.pop(child_id, None)
        else:
            self.soft.setdefault(child_id, {})[name] = False

    def withheld_from(self, child: Child) -> tuple[str, ...]:
        """The names a child is not given by this node, hard or soft; may contain `ALL`."""
        soft = self.soft.get(child.id, {})
        return tuple(sorted(child.withheld | {name for name, is_on in soft.items() if is_on}))

    def shared_with(self, child: Child) -> tuple[str, ...]:
        """The names a child is given by this node although `withheld_from` says `ALL`."""
        soft = self.soft.get(child.id, {})
        return tuple(
            sorted(
                name
                for name, is_on in soft.items()
                if not (is_on or name == ALL or is_among(name, child.withheld))
            )
        )

    def _is_kept_from(self, child: Child, message: Message) -> bool:
        name = message.claims.name
        if is_among(name, child.withheld):
            return True
        # What takes a token away goes on to a child that is not to have it: it may hold it.
        return message.claims.inherit is not False and _is_on(self.soft.get(child.id, {}), name)

    def pending(self, child: Child) -> list[Message]:
        """The held messages a child should have and was not given."""
        return [
            message
            for place, message in self.held.items()
            if child.delivered.get(place) != message.order
            and not self._is_kept_from(child, message)
        ]

    def lacking(self, message: Message) -> list[Child]:
        """The children that should have a message and were given neither it nor a newer one.

        Not those who joined and of whom nobody knows whether they run still.
        """
        return [
            child
            for child in self.children.values()
            if child.delivered.get(message.place, (0, "")) < message.order
            and not self._is_kept_from(child, message)
            and not (child.joined and child.life is Life.IN_DOUBT)
        ]

    def to_tell(self) -> Iterator[tuple[Child, list[Message]]]:
        """The running children that lack something, with what they lack."""
        for child in self.children.values():
            if child.life is Life.RUNNING and (messages := self.pending(child)):
                yield child, messages

    def delivered(self, child_id: str, messages: Iterable[Message]) -> None:
        """Note what a child was given, of what is held still: the rest is not what it lacks."""
        child = self.children.get(child_id)
        if child is not None:
            told = {m.place: m.order for m in messages if self.held.get(m.place) == m}
            self.children[child_id] = replace(child, delivered={**child.delivered, **told})


def _is_on(soft: Mapping[str, bool], name: str) -> bool:
    return soft.get(name, soft.get(ALL, False))
