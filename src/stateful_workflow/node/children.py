"""A child as the ledger of its parent knows it: its life, and what it was given. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class Child:
    """A child as its parent knows it.

    Attributes:
        withheld: names it was started without (hard); may contain `ALL`.
        delivered: the newest message it was given for each place.
        start: which of this node's starts it is; the same id can be started again.
        joined: this node did not start it: it asked for its state, and to be told from then on.
    """

    id: str
    type: str
    life: Life = Life.STARTING
    withheld: frozenset[str] = frozenset()
    delivered: Mapping[Place, Order] = field(default_factory=dict[Place, Order])
    start: int = 0
    joined: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a node's state carries it: without the start, of which a later run hears nothing."""
        return {
            "id": self.id,
            "type": self.type,
            "life": self.life.value,
            "withheld": sorted(self.withheld),
            "delivered": [[*place, *order] for place, order in self.delivered.items()],
            "joined": self.joined,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Child:
        """Read what `to_json` wrote; raises as a malformed dictionary does."""
        return cls(
            id=str(data["id"]),
            type=str(data["type"]),
            life=Life(data["life"]),
            withheld=frozenset(str(name) for name in data["withheld"]),
            delivered={
                (str(name), str(authority)): (int(version), str(digest))
                for name, authority, version, digest in data["delivered"]
            },
            joined=bool(data.get("joined", False)),
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
