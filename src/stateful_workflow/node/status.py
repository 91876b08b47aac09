"""What may be shown of tokens and trees: plain data, never a secret."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from ..sealed.message import Message
from .members import (
    ADDRESS,
    CLAIMS,
    FLAG,
    ID,
    NAME,
    VERSION,
    VERSIONS,
    member,
    one_of,
    optional,
    to_json,
)
from .renewal import SourceStatus

TokenState = Literal[
    "none",
    "held",
    "revoked",
    "expired",
    "withheld",
    "waiting",
    "needs_set",
    "key_revoked",
    "needs_authorization",
    "told",
]
"""What is known of a credential at a workflow.

none: nothing was set here or above. held: a token is in force. revoked: a revocation
is. expired: the token is past its expiry. withheld: the workflow was started without
it. waiting: a message of an issuer who is not known yet. needs_set: the state of the
run before was lost (past retention); set the token again. key_revoked: the token is signed by a
key that the keyring of who asks has revoked, so that nobody opens it; no workflow says that itself.
needs_authorization: a source mints it here, and its provider refuses the grant, or nobody has
given one yet; there is no token to use until somebody authorizes the source.
told: it was signalled to a workflow that is asleep (between cron runs, in a retry's backoff, in a
start delay) or paused, which takes it when it goes on: nothing says yet that it was accepted.
"""

NodeState = TokenState | Literal["unknown", "failed"]
"""The same of a workflow in a tree. unknown: it could not be asked. failed: it ended so in the task
in which it was told a message, and has not taken it, as where an interceptor refuses the signal."""

_SAID: Final = tuple(
    state for state in get_args(TokenState) if state not in ("key_revoked", "told")
)

_CURES: Final[Mapping[str, str]] = {
    "none": "set one, or authorize a source, here or at a workflow above",
    "withheld": "it was started without it; only an issuer can set one at it",
    "waiting": "its issuer is not known here yet; give the workers the new public keyring",
    "needs_set": "the state of its last run was lost; set the token again",
    "revoked": "an issuer must set it again, or let it inherit",
    "expired": "an issuer must set a new one",
    "key_revoked": "the key that signed it is revoked; set the token again",
    "needs_authorization": "run `stateful token authorize` there",
    "told": "it waits at a workflow that is asleep or paused",
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
        api_url: the API's address in use with it there: the workflow's own, or the token's.
        refused: an API refused this very version, as an activity reported. Only the workflow at
            which it was set is told (see `authority`); it is always false at one below.
        overtaken: other issuers who had set one at that authority, which this one replaced:
            key id to version.
        asleep_until: Unix seconds at which the workflow goes on, where it is asleep.
    """

    name: str = member(NAME)
    state: TokenState = member(one_of(_SAID))  # noqa: RUF009 - a dataclass field
    version: int | None = member(optional(VERSION), None)
    fingerprint: str | None = member(optional(ID), None)
    authority: str | None = member(optional(ID), None)
    issuer: str | None = member(optional(ID), None)
    origins: tuple[str, ...] = member(CLAIMS, ())
    types: tuple[str, ...] | None = member(optional(CLAIMS), None)
    readers: tuple[str, ...] | None = member(optional(CLAIMS), None)
    expires_at: int | None = member(optional(VERSION), None)
    api_url: str | None = member(optional(ADDRESS), None)
    refused: bool = member(optional(FLAG, False), False)
    overtaken: Mapping[str, int] = member(optional(VERSIONS, {}), factory=dict)
    asleep_until: float | None = member(None, None, omit_null=True)

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
            api_url=claims.api_url,
        )

    def at(self, now: float) -> TokenStatus:
        """The same at a time (Unix seconds): a token held past its expiry is expired."""
        is_past = self.expires_at is not None and now >= self.expires_at
        return replace(self, state="expired") if is_past and self.state == "held" else self

    def under(self, revoked: Collection[str]) -> TokenStatus:
        """The same for whoever has revoked these keys (key ids): nobody opens what they signed."""
        is_dead = self.state == "held" and self.issuer in revoked
        return replace(self, state="key_revoked") if is_dead else self

    def minted_by(self, source: SourceStatus | None) -> TokenStatus:
        """The same at a home whose source this is: a token is gone for want of a grant."""
        if source is None or not source.needs_authorization:
            return self
        is_dead = source.outcome == "refused_grant"
        lacks = self.state in (("none", "expired", "revoked") if is_dead else ("none",))
        is_out = lacks or (is_dead and self.refused)
        return replace(self, state="needs_authorization") if is_out else self

    def to_json(self) -> dict[str, Any]:
        """The same as JSON data."""
        return to_json(self)


@dataclass(frozen=True)
class TreeNode:
    """One workflow of a tree, seen for one credential name.

    Attributes:
        id, type: of the workflow.
        parent: workflow id above it in the tree, None for the node the walk began at.
        state, version, fingerprint, authority: of the token in force there; see `NodeState`.
        api_url: the workflow's own API address, or else the one it follows.
        used_api_url: the one in use: the token's where it is not signed for the workflow's own.
        withheld: the token is kept from it (at its start, or by its parent now).
        closed: the workflow has ended.
        current: it has accepted the newest version it is entitled to.
        undelivered: ids of children it has not yet reached.
        signals: how many its run has taken, where these are 80% of the server's limit or more, so
            that it should continue as new; None below.
        problem: why it could not be asked, or what is amiss there, or None.
        set_here: what is in force was set at this very node, below the one the walk began at, so
            that nothing that is set or revoked further up reaches it.
        beside: it runs beside the tree, since it was started before its parent took part: nothing
            that is set in the tree reaches it.
        http: the signed origins of its token to which it goes in clear text, unless over loopback.
        not_for_type: its issuer signed the token for activities of other workflow types: those of
            this one cannot open it.
        asleep_until: Unix seconds at which it goes on, where it is asleep and can be asked nothing:
            what it was sent waits for it, and it is current all the same.
        source: of a home what is known of the source that mints the token; None of others.
        narrowed: the scopes of the token of its own that a source derives from its parent's.
    """

    id: str
    type: str
    parent: str | None
    state: NodeState = "none"
    version: int | None = None
    fingerprint: str | None = None
    authority: str | None = None
    api_url: str | None = None
    used_api_url: str | None = None
    withheld: bool = False
    closed: bool = False
    current: bool = True
    undelivered: tuple[str, ...] = ()
    signals: int | None = None
    problem: str | None = None
    set_here: bool = False
    beside: bool = False
    http: tuple[str, ...] = ()
    not_for_type: bool = False
    asleep_until: float | None = None
    source: SourceStatus | None = None
    narrowed: tuple[str, ...] = ()

    @property
    def needs_authorization(self) -> bool:
        """Whether somebody has to authorize its source; it may have a token that serves yet."""
        is_out = self.source is not None and self.source.needs_authorization
        return not self.closed and (is_out or self.state == "needs_authorization")

    @property
    def has_own(self) -> bool:
        """Whether it runs and has one of its own, which nothing revoked further up takes away."""
        is_own = self.set_here or (self.beside and self.authority == self.id)
        return is_own and not self.closed and self.state != "revoked"

    @property
    def holds(self) -> bool:
        """Whether it runs and has a token to use, or will when it wakes."""
        return self.state in ("held", "told") and not (self.closed or self.not_for_type)


_UNUSABLE: Final = ("expired", "key_revoked", "waiting", "needs_set", "needs_authorization")
"""The states of a node that is entitled to a token and has none to use."""

_COUNTED: Final[Mapping[str, Callable[[TreeNode], bool]]] = {
    "unreachable": lambda node: node.state == "unknown",
    "failed": lambda node: node.state == "failed",
    "beside": lambda node: node.beside,
    "set here": lambda node: node.set_here and not node.closed,
    **{
        state.replace("_", " "): lambda node, state=state: node.state == state and not node.closed
        for state in (*_UNUSABLE, "revoked")
    },
    "needs authorization": lambda node: node.needs_authorization,
    "pending": lambda node: node.source is not None and node.source.pending is True,
    "not for its type": lambda node: node.not_for_type and not node.closed,
    "withheld": lambda node: node.withheld and not node.closed,
    "asleep": lambda node: node.asleep_until is not None,
}


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
        """The nodes that should have the newest version and have not: also those that cannot be
        asked, that run beside the tree, or that failed when they were told."""
        return tuple(node for node in self.nodes if not node.current)

    @property
    def holding(self) -> tuple[TreeNode, ...]:
        """The live nodes that have a token to use."""
        return tuple(node for node in self.nodes if node.holds)

    @property
    def nearly_full(self) -> tuple[TreeNode, ...]:
        """The live nodes that should continue as new, since their run takes few more signals."""
        return tuple(node for node in self.nodes if node.signals is not None)

    @property
    def asleep(self) -> tuple[TreeNode, ...]:
        """The nodes that wait for their next run, or for their first."""
        return tuple(node for node in self.nodes if node.asleep_until is not None)

    @property
    def converged(self) -> bool:
        """Whether every live entitled node has accepted the newest version: nobody is behind."""
        return not self.behind

    @property
    def usable(self) -> bool:
        """Whether it has converged, and every live node that is entitled to a token has one to use:
        one at least has. Where a token was revoked or withheld on purpose, nobody is entitled."""
        lacking = any(n.state in _UNUSABLE and not (n.closed or n.withheld) for n in self.nodes)
        return self.converged and not lacking and bool(self.holding)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many nodes are not simply current, by what is to be known of them; none is 0."""
        counts = {what: sum(map(is_so, self.nodes)) for what, is_so in _COUNTED.items()}
        others = sum(not (n.beside or n.state in ("unknown", "failed")) for n in self.behind)
        return {what: count for what, count in {"behind": others, **counts}.items() if count}

    @property
    def glance(self) -> str:
        """The tree in a line: `converged · 3 set here · 1 expired`."""
        verdict = "converged" if self.holding else "nothing usable is held"
        counts = (f"{count:,} {what}" for what, count in self.counts.items())
        return " · ".join([verdict if self.converged else "not converged", *counts])
