"""What may be shown of tokens and trees: plain data, never a secret."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

from ..sealed.message import Message
from .members import CLAIMS, ID, NAME, VERSION, VERSIONS, member, one_of, optional, to_json

TokenState = Literal["none", "held", "revoked", "expired", "withheld", "waiting", "needs_set"]
"""What is known of a credential at a workflow.

none: nothing was set here or above. held: a token is in force. revoked: a revocation
is. expired: the token is past its expiry. withheld: the workflow was started without
it. waiting: a message of an issuer who is not known yet. needs_set: the state of the
run before was lost (past retention); set the token again.
"""

_CURES: Final[Mapping[str, str]] = {
    "none": "set one here or at a workflow above",
    "withheld": "it was started without it; only an issuer can set one at it",
    "waiting": "its issuer is not known here yet; give the workers the new public keyring",
    "needs_set": "the state of its last run was lost; set the token again",
}


def cure(state: str) -> str:
    """What to do at a workflow that has no token to use, for its `TokenState`."""
    return f"state {state}; {_CURES.get(state, 'see its status')}"


def state_without(*, waiting: bool, needs_set: bool, withheld: bool) -> TokenState:
    """The state of a credential of which no message is in force: the first of these that is so."""
    if waiting:
        return "waiting"
    if needs_set:
        return "needs_set"
    return "withheld" if withheld else "none"


@dataclass(frozen=True)
class TokenStatus:
    """What is known of one credential at one workflow, without opening it.

    Attributes:
        name: credential name.
        state: see `TokenState`.
        version: Unix milliseconds at issue (docs/decisions/02-few-claims.md), or None.
        fingerprint: names the version; 16 hex characters.
        authority: workflow id at which it was set.
        issuer: key id of who signed it.
        origins: where it may be sent.
        types: workflow types whose activities may open it; None means any.
        readers: audiences of the readers it is sealed for; None means any.
        expires_at: Unix seconds, or None.
        overtaken: other issuers who had set one at that authority, which this one replaced:
            key id to version.
    """

    name: str = member(NAME)
    state: TokenState = member(one_of(get_args(TokenState)))  # noqa: RUF009 - a dataclass field
    version: int | None = member(optional(VERSION), None)
    fingerprint: str | None = member(optional(ID), None)
    authority: str | None = member(optional(ID), None)
    issuer: str | None = member(optional(ID), None)
    origins: tuple[str, ...] = member(CLAIMS, ())
    types: tuple[str, ...] | None = member(optional(CLAIMS), None)
    readers: tuple[str, ...] | None = member(optional(CLAIMS), None)
    expires_at: int | None = member(optional(VERSION), None)
    overtaken: Mapping[str, int] = field(
        default_factory=dict[str, int], metadata={"check": optional(VERSIONS, {})}
    )

    @classmethod
    def of_message(cls, message: Message) -> TokenStatus:
        """What a message says, whatever the time."""
        claims = message.claims
        return cls(
            name=claims.name,
            state="held" if message.kind == "token" else "revoked",
            version=claims.version,
            fingerprint=message.fingerprint,
            authority=claims.authority,
            issuer=message.issuer,
            origins=claims.origins,
            types=claims.types,
            readers=claims.audiences,
            expires_at=claims.expires_at,
        )

    def at(self, now: float) -> TokenStatus:
        """The same at a time (Unix seconds): a token held past its expiry is expired."""
        is_past = self.expires_at is not None and now >= self.expires_at
        return replace(self, state="expired") if is_past and self.state == "held" else self

    def to_json(self) -> dict[str, Any]:
        """The same as JSON data."""
        return to_json(self)


@dataclass(frozen=True)
class TreeNode:
    """One workflow of a tree, seen for one credential name.

    Attributes:
        id, type: of the workflow.
        parent: workflow id above it in the tree, None for the node the walk began at.
        state, version, fingerprint, authority: of the token in force there.
        api_url: the workflow's own API address.
        withheld: the token is kept from it (at its start, or by its parent now).
        closed: the workflow has ended.
        current: it has accepted the newest version it is entitled to.
        undelivered: ids of children it has not yet reached.
        signals: how many its run has taken, where these are 80% of the server's limit or more, so
            that it should continue as new; None below.
        problem: why it could not be asked, or None.
    """

    id: str
    type: str
    parent: str | None
    state: TokenState = "none"
    version: int | None = None
    fingerprint: str | None = None
    authority: str | None = None
    api_url: str | None = None
    withheld: bool = False
    closed: bool = False
    current: bool = True
    undelivered: tuple[str, ...] = ()
    signals: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class TokenTree:
    """A tree of workflows as it was seen, for one credential name.

    Attributes:
        name: credential name.
        nodes: every node found, parents before children.
        signed: what a rotation signed, with the terms that it carried on; None for a tree that
            was only read.
    """

    name: str
    nodes: tuple[TreeNode, ...]
    signed: TokenStatus | None = None

    @property
    def behind(self) -> tuple[TreeNode, ...]:
        """The live, entitled nodes that have not accepted the newest version."""
        return tuple(node for node in self.nodes if not node.current)

    @property
    def nearly_full(self) -> tuple[TreeNode, ...]:
        """The live nodes that should continue as new, since their run takes few more signals."""
        return tuple(node for node in self.nodes if node.signals is not None)

    @property
    def converged(self) -> bool:
        """Whether every live entitled node has accepted the newest version."""
        return not self.behind
