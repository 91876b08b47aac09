"""What a node answers to queries and updates: each answer as a node writes and anybody reads it.

A field without a check is written and not read. Pure.
"""

# ruff: noqa: RUF009 - what `member` gives is a field

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, get_args

from ..errors import AnswerMalformed, NotSealed
from ..sealed.message import MAX_MESSAGE_BYTES, Kind, valid_name
from ..text.times import utc
from .carried import Rejected
from .children import Life, read_life
from .ledger import ALL, is_among
from .members import (
    ANY,
    FLAG,
    ID,
    MAX_ENTRIES,
    NAME,
    OBJECT,
    VERSION,
    integer,
    list_of,
    member,
    one_of,
    optional,
    read,
    text,
)
from .renewal import SourceStatus
from .status import TokenStatus

Refusal = Literal["not_open", "no_token", "not_ready"]
"""Why a node gives no state to one that asks to join: its class does not admit that type, it
holds nothing, or it cannot say yet."""

_TEXTS: Final = list_of(ANY)
_KIND: Final = one_of(get_args(Kind))
_MESSAGE: Final = optional(text(1, MAX_MESSAGE_BYTES))
_UNDELIVERED: Final = 2 * MAX_ENTRIES  # shorter ones, of several messages for each child


def _names(value: object) -> tuple[str, ...]:
    # Workflow code may withhold what no credential can be called.
    return tuple(name for name in _TEXTS(value) if name == ALL or valid_name(name))


@dataclass(frozen=True)
class TokenAnswer:
    """An answer to the query `apiToken`: what is known, and the sealed token where one is held."""

    status: TokenStatus = member(partial(read, TokenStatus), is_part=True)
    sealed: str | None = member(_MESSAGE)


@dataclass(frozen=True)
class HeldToken:
    """A message that a workflow holds, a revocation too; `inherit` as its claims have it.

    Of one that was set at the workflow itself also the text, and of a revocation the token before
    it: what an issuer verifies before the next one is signed.
    """

    status: TokenStatus = member(partial(read, TokenStatus), is_part=True)
    authority: str = member(ID)
    version: int = member(VERSION)
    kind: Kind = member(_KIND)
    inherit: bool | None = member(optional(FLAG))
    in_force: bool = member(FLAG)
    message: str | None = member(_MESSAGE, None, omit_null=True)
    last: str | None = member(_MESSAGE, None, omit_null=True)


@dataclass(frozen=True)
class NarrowedStatus:
    """A token that a source derives for a child: the version that it was given last, 0 for none,
    and why it lacks its own of what is in force at the parent; null where it does not."""

    name: str = member(NAME)
    scopes: tuple[str, ...] = member(_TEXTS)
    version: int = member(integer(0))
    pending: str | None = member(optional(ANY), None)


@dataclass(frozen=True)
class ChildStatus:
    """A child as its parent says: `ledger.Child`, and the names that it is kept from now.

    One that `joined` is none of the server's, and may never have had a state from here.

    The reason is why the parent could not tell it, or not find out about it.
    """

    id: str = member(ID)
    type: str = member(optional(text(0, 1_000), ""))
    life: Life = member(optional(read_life, Life.RUNNING))
    reason: str | None = member(optional(ANY))
    withheld: tuple[str, ...] = member(optional(_names, ()))
    shared: tuple[str, ...] = member(optional(_names, ()))
    hard: tuple[str, ...] = member(optional(_names, ()))
    joined: bool = member(optional(FLAG, False), False)
    narrowed: tuple[NarrowedStatus, ...] = member(
        optional(list_of(partial(read, NarrowedStatus)), ()), ()
    )

    def narrowing(self, name: str) -> NarrowedStatus | None:
        """What is known of the narrower token of this name that it is to have, if it is."""
        return next((one for one in self.narrowed if one.name == name), None)

    def is_kept_from(self, name: str) -> bool:
        """Whether its parent does not give it this name."""
        return name not in self.shared and is_among(name, self.withheld)


@dataclass(frozen=True)
class Lacking:
    """What a running child lacks, and why it does."""

    id: str = member(ID)
    name: str = member(NAME)
    authority: str = ""
    version: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Waiting:
    """A message that waits for its issuer to be known."""

    name: str = member(NAME)
    issuer: str = ""
    version: int = 0
    fingerprint: str = ""


@dataclass(frozen=True)
class Rejections:
    """How many messages were not taken, by reason, and the last few."""

    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    last: tuple[Rejected, ...] = member(optional(list_of(partial(read, Rejected)), ()), ())


_NONE: Final = Rejections()


@dataclass(frozen=True)
class NodeStatus:
    """An answer to `apiTokenStatus`; an empty root where the run closed before it ran.

    `signals` are those that its run has taken, `replaced` children that closed and run again, while
    whom they left is looked for; `courier` is the task queue of its workers' couriers.
    """

    root: str = member(ID)
    tree: str = member(ID)
    type: str = member(ID)
    # As long as a node took it: who signals one is not to make its status unreadable.
    api_url: str | None = member(optional(ANY))
    tokens: tuple[HeldToken, ...] = member(list_of(partial(read, HeldToken)))
    children: tuple[ChildStatus, ...] = member(list_of(partial(read, ChildStatus)))
    withheld: tuple[str, ...] = member(_names)
    undelivered: tuple[Lacking, ...] = member(list_of(partial(read, Lacking), _UNDELIVERED))
    waiting: tuple[Waiting, ...] = member(list_of(partial(read, Waiting)))
    needs_set: bool = member(FLAG)
    recovering: bool = member(FLAG)
    replaced: tuple[str, ...] = member(optional(list_of(ID), ()), ())
    signals: int = member(optional(integer(0), 0), 0)
    courier: str | None = member(optional(ID), None)
    parent: str | None = member(optional(ID), None)
    id: str = ""
    waiting_count: int = 0
    rejections: Rejections = member(optional(partial(read, Rejections), _NONE), _NONE)
    sources: tuple[SourceStatus, ...] = member(
        optional(list_of(partial(read, SourceStatus)), ()), ()
    )
    reports: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, "dict[str, int]"])

    def names(self) -> frozenset[str]:
        """The credential names that it knows of."""
        held, waits = (held.status.name for held in self.tokens), (one.name for one in self.waiting)
        minted = (one.name for one in self.sources)
        return frozenset({*held, *waits, *self.withheld, *minted} - {ALL})

    def source(self, name: str) -> SourceStatus | None:
        """What is known of the source that mints a name here; None where none does."""
        return next((one for one in self.sources if one.name == name), None)

    def waits(self, name: str) -> str | None:
        """What is amiss where a message waits that counts once the workers know its issuer."""
        issuers = sorted({one.issuer for one in self.waiting if one.name == name})
        if not issuers:
            return None
        return (
            f"a message of issuer {', '.join(issuers)} waits here, and counts as soon as the "
            "workers' keyring has that issuer: add or revoke that key, or set a newer one"
        )

    def clear_text(self, name: str) -> str | None:
        """What is amiss where something came by signal that is no sealed message, and no token of
        this name was set since: it may have been that token."""
        last = self.rejections.last
        at = max((one.at for one in last if one.reason == NotSealed.__name__), default=0)
        of_name = (one.version for one in self.tokens if one.status.name == name)
        if at <= max(of_name, default=0):
            return None
        return (
            f"what came by signal at {utc(at / 1000)} is no sealed message: if it was a token in "
            "clear text, it stands in the history; rotate that token"
        )


def node_status(answer: object) -> NodeStatus:
    """Read an answer to `apiTokenStatus`.

    Raises:
        AnswerMalformed: a member that is read is not what it has to be.
    """
    status = read(NodeStatus, answer)
    if len({child.id for child in status.children}) != len(status.children):
        raise AnswerMalformed("it names a child twice")
    return status


@dataclass(frozen=True)
class Joiner:
    """The argument of `apiTokenJoin`: who asks for a place, or is to be told from now on.

    `as_child` says that the server names the node as its parent: another one of the id of a child
    has no part in what that child may have.
    """

    id: str = member(ID)
    type: str = member(ID)
    as_child: bool = member(optional(FLAG, False), False)


@dataclass(frozen=True)
class JoinAnswer:
    """An answer to the query `apiTokenJoin`: the state of such a child, or why there is none.

    `registered` says whether the node tells it what is set from now on.
    """

    ledger: Mapping[str, Any] | None = member(optional(OBJECT))
    parent_api_url: str | None = member(optional(text(0, 2_048)))
    refused: Refusal | None = member(optional(one_of(get_args(Refusal))))
    registered: bool = member(FLAG)


@dataclass(frozen=True)
class RenewalRequest:
    """The argument of `apiTokenRenew`: of which name a new token is wanted, and whether the one
    before is to be revoked at its provider then."""

    name: str = member(NAME)
    retire: bool = member(optional(FLAG, False), False)


def token_answer(answer: object, name: str) -> TokenAnswer | None:
    """Read an answer to the query `apiToken` for a name; raises as `node_status`."""
    if answer is None:
        return None
    found = read(TokenAnswer, answer)
    if found.status.name != name:
        raise AnswerMalformed("it is about another credential than was asked for")
    return found


def kept_children(answer: object) -> Mapping[str, ChildStatus]:
    """The children in an `apiTokenStatus` answer that can be read, by id.

    Raises:
        AnswerMalformed: there are too many of them, or it is no object.
    """
    children: dict[str, ChildStatus] = {}
    for entry in optional(list_of(lambda value: value), ())(OBJECT(answer).get("children")):
        try:
            child = read(ChildStatus, entry)
        except AnswerMalformed:
            continue
        children[child.id] = child
    return children
