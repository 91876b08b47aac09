"""What a node holds and owes, as data that travels: to its children, and to its next run. Pure.

It holds sealed tokens and public keys only. Whoever starts a workflow may have written it: each
member is described once, and read strictly (docs/decisions/24-state-format.md).
"""

# ruff: noqa: RUF009 - what `member` gives is a field

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

from typing_extensions import Self

from ..errors import AnswerMalformed
from ..sealed.keys import Issuer
from ..sealed.message import Message
from .children import MOST, Child, Life, Order, Place
from .members import (
    FLAG,
    ID,
    TEXT,
    VERSION,
    integer,
    list_of,
    mapping_of,
    member,
    message_of,
    optional,
    read,
    to_json,
    tuple_of,
)

FORMAT: Final = 1
"""Of the carried state; raised by a version that older ones would misread."""

REMEMBERED_REJECTIONS: Final = 20


class StateUnreadable(ValueError):
    """A carried state is malformed."""


class StateTooNew(Exception):
    """A carried state is of a format that only a later version of this library reads.

    It fails the workflow task, not the workflow (as a `StatefulError` would), so that the
    state stays in the history until a newer worker takes the task over.
    """


@dataclass(frozen=True)
class Rejected:
    """A message that was not taken: when (Unix milliseconds), why, and which."""

    at: int = member(VERSION)
    reason: str = member(ID)
    fingerprint: str | None = None
    issuer: str | None = None


_CHILDREN: Final = list_of(partial(read, Child), MOST)
_COUNTS: Final = mapping_of(integer(0), TEXT)
_REVOKED: Final = list_of(TEXT, MOST)
_MESSAGES: Final = list_of(message_of("token", "revocation"), MOST)
_GRANTS: Final = list_of(message_of("grant"), MOST)
_ORDERS: Final = mapping_of(tuple_of(integer(0), TEXT), TEXT)
_FLOORS: Final = list_of(tuple_of(TEXT, TEXT, _ORDERS), MOST)
_REJECTION: Final = tuple_of(integer(0), TEXT, optional(TEXT), optional(TEXT))
_REJECTIONS: Final = list_of(lambda value: Rejected(*_REJECTION(value)), MOST)


def read_trusted(data: object) -> dict[str, Issuer]:
    """Read trusted issuers from a state or a keyring's answer.

    Raises:
        ValueError, AnswerMalformed: where they are malformed.
    """
    return mapping_of(Issuer.from_json, TEXT)(data)


def _texts(messages: Mapping[Any, Message]) -> list[str]:
    return [message.text for message in messages.values()]


def _each(children: Mapping[str, Child]) -> list[dict[str, Any]]:
    return to_json([*children.values()])


@dataclass(eq=False, repr=False)
class Carried:
    """The state of one node; `Ledger` says what becomes of it.

    Attributes:
        path: workflow ids from the root to this node, both included.
        tree: the tree's id.
        trusted: issuers whose messages count here, by key id.
        boundary: for a name (or `ALL`) the index in the path of the lowest workflow
            that was started without it; only authorities from there on count.
        revoked: key ids of the issuers that are never trusted again.
        held: the newest message of each place.
        last: of each name that is revoked at this node the token before.
        grants: of each name that a source mints here; they are this node's alone, and no child's.
        floors: for each place the highest order that each issuer has had accepted.
        children, closed: by id; whom a closed one leaves is still to be found.
        soft: for each child the names that are withheld from it (true), or shared again.
        rejected: how many messages were not taken, by reason.
        rejections: the last of them.
    """

    path: tuple[str, ...] = member(list_of(TEXT, MOST))
    tree: str = member(TEXT)
    trusted: Mapping[str, Issuer] = member(
        read_trusted, factory=dict, write=lambda keys: {k: i.to_json() for k, i in keys.items()}
    )
    boundary: dict[str, int] = member(_COUNTS, factory=dict)
    revoked: set[str] = member(lambda value: set(_REVOKED(value)), factory=set, write=sorted)
    held: dict[Place, Message] = member(
        lambda value: {one.place: one for one in _MESSAGES(value)}, factory=dict, write=_texts
    )
    last: dict[str, Message] = member(
        lambda value: {one.claims.name: one for one in _MESSAGES(value)}, factory=dict, write=_texts
    )
    grants: dict[str, Message] = member(
        lambda value: {one.claims.name: one for one in optional(_GRANTS, ())(value)},
        factory=dict,
        write=_texts,
    )
    floors: dict[Place, dict[str, Order]] = member(
        lambda value: {(name, at): orders for name, at, orders in _FLOORS(value)},
        factory=dict,
        write=lambda floors: to_json([[*place, orders] for place, orders in floors.items()]),
    )
    children: dict[str, Child] = member(_CHILDREN, factory=dict, write=_each)
    closed: dict[str, Child] = member(None, factory=dict, write=_each)
    soft: dict[str, dict[str, bool]] = member(
        mapping_of(mapping_of(FLAG, TEXT), TEXT), factory=dict
    )
    rejected: dict[str, int] = member(_COUNTS, factory=dict)
    rejections: tuple[Rejected, ...] = member(
        lambda value: _REJECTIONS(value)[-REMEMBERED_REJECTIONS:],
        (),
        write=lambda rejections: [[*vars(one).values()] for one in rejections],
    )

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("a node's path ends with the node itself")
        if not all(0 <= index < len(self.path) for index in self.boundary.values()):
            raise ValueError("a boundary is not in the path")

    def dump(self) -> dict[str, Any]:
        """The state as JSON data."""
        data = to_json(self)
        data["children"] += data.pop("closed")
        return {"format": FORMAT, **data}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Replace this state by one that `dump` wrote; raises as `load`, and is unchanged then."""
        vars(self).update(vars(type(self).load(data)))

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Self:
        """Read a state that `dump` wrote.

        Raises:
            StateUnreadable: where it is malformed.
            StateTooNew: where it is of a later format.
        """
        check_format(data)
        if data.get("format") not in range(1, FORMAT + 1):
            raise StateUnreadable(f"the carried state has no known format: {data.get('format')!r}")
        try:
            state = read(cls, data)
        except (AnswerMalformed, ValueError) as error:
            raise StateUnreadable(f"the carried state is malformed: {error}") from None
        every = cast("Iterable[Child]", state.children)
        state.children = {child.id: child for child in every if child.life is not Life.CLOSED}
        state.closed = {child.id: child for child in every if child.life is Life.CLOSED}
        return state


def check_format(data: Mapping[str, Any]) -> None:
    """Look at the format of a carried state, before anything else of it is believed.

    Raises:
        StateTooNew: where it is later than this version's.
    """
    found = data.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise StateTooNew(
            f"the carried state has format {found}, and this version of stateful-workflow reads "
            f"formats up to {FORMAT}. Upgrade this worker; the state is kept, and the workflow "
            "goes on where a newer worker takes it over"
        )
