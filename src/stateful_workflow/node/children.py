"""A child as the ledger of its parent knows it: its life, and what it was given. Pure."""

# ruff: noqa: RUF009 - what `member` gives is a field

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from ..sealed.message import Message
from .members import (
    FLAG,
    ID,
    NAME,
    TEXT,
    integer,
    list_of,
    mapping_of,
    member,
    one_of,
    optional,
    read,
    to_json,
    tuple_of,
)

MOST: Final = 1_000_000
"""Entries of a list in a state; the server takes 2 MB of it."""

Order = tuple[int, str]
"""Version, then SHA-256 of the message: newer compares greater."""

Place = tuple[str, str]
"""Credential name and authority: where a message stands."""


class Life(enum.Enum):
    """What a parent knows of a child's life."""

    STARTING = "starting"
    """Its start is neither confirmed nor refused."""

    RUNNING = "running"
    """Its start is confirmed, so that "not found" means it has closed."""

    IN_DOUBT = "in_doubt"
    """Its start was refused since its id runs, or was given up; the server is to be asked."""

    UNTOLD = "untold"
    """It runs, and is told nothing: nobody can say what its closed parent kept from it."""

    CLOSED = "closed"
    """Its own running children are still to be found."""


_LIFE: Final = one_of(tuple(life.value for life in Life))
_TEXTS: Final = list_of(TEXT, MOST)
_DELIVERED: Final = list_of(tuple_of(TEXT, TEXT, integer(0), TEXT), MOST)


def read_life(value: object) -> Life:
    """Read a life; raises `AnswerMalformed` where it is none."""
    return Life(_LIFE(value))


@dataclass(frozen=True)
class Narrowed:
    """A token of a child's own that a source is to derive from the one in force at its parent.

    Attributes:
        scopes: of the child's.
        source: that was named; None for the one that the token says.
        by: the source that did it last.
        of: fingerprint of the parent's message of which the child was given its last one.
        version, given: of what it was given then, the latter its fingerprint.
    """

    scopes: tuple[str, ...] = member(list_of(ID))
    source: str | None = member(optional(NAME), None)
    by: str | None = member(optional(NAME), None)
    of: str | None = member(optional(ID), None)
    version: int = member(integer(0), 0)
    given: str | None = member(optional(ID), None)

    def is_due(self, in_force: Message | None) -> bool:
        """Whether the child lacks its own of what is in force at its parent."""
        if in_force is None or in_force.kind != "token":
            return self.of is not None and self.of != derived_of(in_force)
        return self.of != in_force.fingerprint

    def source_of(self, in_force: Message | None) -> str | None:
        """The source whose workers see to it; None where nobody says which."""
        if in_force is None or in_force.kind != "token":
            return self.source or self.by
        return self.source or in_force.claims.source


def derived_of(in_force: Message | None) -> str:
    """What is noted of the parent's message that a child's was derived of."""
    return "none" if in_force is None else in_force.fingerprint


_NARROWED: Final = mapping_of(partial(read, Narrowed), NAME)


@dataclass(frozen=True)
class Child:
    """A child as its parent knows it.

    Attributes:
        withheld: names it was started without (hard); may contain `ALL`.
        delivered: the newest message it was given for each place.
        start: which of this node's starts it is; the same id can be started again.
        joined: this node did not start it: it asked for its state, and to be told from then on.
        narrowed: the tokens, by name, that a source derives for it; each is withheld from it.
    """

    id: str = member(TEXT)
    type: str = member(TEXT)
    life: Life = member(read_life, Life.STARTING)
    withheld: frozenset[str] = member(
        lambda value: frozenset(_TEXTS(value)), frozenset(), write=sorted
    )
    delivered: Mapping[Place, Order] = member(
        lambda value: {(name, at): (ver, hash) for name, at, ver, hash in _DELIVERED(value)},
        factory=dict,
        write=lambda delivered: [[*place, *order] for place, order in delivered.items()],
    )
    # A later run hears nothing of it.
    start: int = member(None, 0, write=lambda _: {}, is_part=True)
    joined: bool = member(optional(FLAG, False), False)
    narrowed: Mapping[str, Narrowed] = member(
        optional(_NARROWED, {}),
        factory=dict[str, Narrowed],
        write=lambda narrowed: to_json(narrowed) or None,
        omit_null=True,
    )


@dataclass(frozen=True)
class Starting:
    """A start of a child, from its header to its end.

    Attributes:
        id: of the child.
        start: which of the node's starts it is.
        before: the child of that id before it.
        accepted: how many messages the node had accepted that the header holds; -1 where it
            holds none.
    """

    id: str
    start: int
    before: Child | None = None
    accepted: int = 0

    @property
    def known(self) -> Child | None:
        """The child before it, unless that was starting itself: nobody knows what became of it."""
        return None if self.before is None or self.before.life is Life.STARTING else self.before
