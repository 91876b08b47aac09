"""What nodes, workers and clients say to each other: names, requests and results.

The names stand in histories, so they never change.
"""

# ruff: noqa: RUF009 - what `member` gives is a field

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, get_args

from ..sealed.message import MAX_MESSAGE_BYTES
from .members import (
    ANY,
    FLAG,
    ID,
    OBJECT,
    integer,
    list_of,
    mapping_of,
    member,
    one_of,
    optional,
    read,
    text,
    tuple_of,
)

MESSAGE: Final = "apiToken"
"""Signal and update that take a message, and the query for a status with the sealed token."""

STATUS_QUERY: Final = "apiTokenStatus"
STATE_QUERY: Final = "statefulState"
METADATA_QUERY: Final = "__temporal_workflow_metadata"
"""Temporal's own: what its UI asks a workflow for. It lists the queries that there are."""

URL: Final = "apiUrl"
REPORT: Final = "apiTokenReport"
RENEW: Final = "apiTokenRenew"
"""Update: mint a new token from the source now."""

JOIN: Final = "apiTokenJoin"
"""Query for the state that a workflow without a place would start with, and signal to be told."""

TELL: Final = "statefulTell"
TRUST: Final = "statefulTrust"
RECOVER: Final = "statefulRecover"
PLACE: Final = "statefulJoin"
MINT: Final = "statefulMint"
RETIRE: Final = "statefulRetire"
ANNOUNCE: Final = "statefulNeedsAuthorization"
NARROW: Final = "statefulNarrow"
ACTIVITIES: Final = frozenset({TELL, TRUST, RECOVER, PLACE, MINT, RETIRE, ANNOUNCE, NARROW})

FORMAT: Final = 1
"""Of the courier's requests; a courier that does not know it leaves the task to a later one."""

MAX_SIGNALS: Final = 10_000
"""Signals that the server, as it is shipped, lets one run take."""

NODE_HEADER: Final = "stateful-node"
USE_HEADER: Final = "stateful-use"


_MOST_IDS: Final = 1_000_000
"""In one result; the server takes 2 MB of it."""


_MESSAGE: Final = optional(text(1, MAX_MESSAGE_BYTES))


def _ids(value: object) -> list[str]:
    return list(list_of(ID, _MOST_IDS)(value))


def courier_queue_of(task_queue: str) -> str:
    """The task queue of the couriers of a workflow's workers, from the workflow's own."""
    return f"{task_queue}:stateful"


def source_queue_of(source: str) -> str:
    """The task queue of the workers of a source, in any namespace."""
    return f"stateful-source:{source}"


@dataclass(frozen=True)
class TellRequest:
    """What to tell whom, and whom to look for: docs/wire-format.md#statefultell.

    Attributes:
        targets: for each child its id, its type, and the indexes of its messages.
        in_doubt: ids of workflows that may be running children of this one.
        closed: id and type of closed children, whose own running children are to be found.
        joined: id and type of workflows that say that they joined this one's tree.
        since: when this workflow's first run began, in Unix milliseconds.
        patient: the server repeats it until something comes of it, and whom its list does not have
            by now is not there.
        more: others found no room in this request; the result says so too.
    """

    messages: list[str]
    targets: list[tuple[str, str, list[int]]]
    in_doubt: list[str]
    closed: list[tuple[str, str]]
    since: int
    patient: bool
    more: bool
    joined: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    format: int = FORMAT


@dataclass(frozen=True)
class Orphan:
    """A running workflow below a closed child, and what the closed ones kept from it.

    Attributes:
        hard: names it was started without; may contain `ALL`.
        soft: names it was kept from later (true), or given although all are kept (false); None
            where nobody can say, since its parent is gone or did not name it.
    """

    id: str = member(ID)
    type: str = member(text(0, 1_000))
    hard: list[str] = member(_ids)
    soft: dict[str, bool] | None = member(optional(mapping_of(FLAG)))


def _orphans(value: object) -> list[Orphan]:
    return list(list_of(partial(read, Orphan))(value))


@dataclass(frozen=True)
class TellResult:
    """What came of it; a target that is not named was told.

    Attributes:
        sent: how many of its messages one that was not told got all the same.
        left: ids that were not tried in time.
        failed: ids that could not be told, found or asked, with the reason.
        plain: ids whose workflow takes no part; they are not told again.
        mine: ids in doubt that are running children of this workflow, and such as joined it.
        orphans: for each closed child, also one that was a target, whom it leaves.
        gone: ids in doubt that are nobody's, or another's.
        more: as the request had it.
    """

    sent: dict[str, int] = member(mapping_of(integer(0)), factory=dict)
    left: list[str] = member(_ids, factory=list)
    failed: dict[str, str] = member(mapping_of(ANY), factory=dict)
    plain: list[str] = member(_ids, factory=list)
    mine: list[str] = member(_ids, factory=list)
    orphans: dict[str, list[Orphan]] = member(mapping_of(_orphans), factory=dict)
    gone: list[str] = member(_ids, factory=list)
    more: bool = member(FLAG, False)


@dataclass(frozen=True)
class PlaceRequest:
    """Whom to ask for the state of a child, on behalf of a workflow that has no place.

    Attributes:
        at: id of the workflow that is asked.
        as_child: it is asked because it is the server's parent of this one; nobody else answers.
        register: it is to tell this workflow from now on.
    """

    at: str
    as_child: bool = False
    register: bool = False
    format: int = FORMAT


@dataclass(frozen=True)
class PlaceResult:
    """What it answered: a state to begin with, or why there is none and will be none."""

    ledger: dict[str, Any] | None = member(optional(OBJECT), None)
    parent_api_url: str | None = member(optional(ANY), None)
    refused: str | None = member(optional(ANY), None)


@dataclass(frozen=True)
class RecoverResult:
    """What a closed run answered.

    Attributes:
        asked: whether it could be asked.
        state: its last state, or None where it takes no part in a tree.
    """

    asked: bool = member(FLAG)
    state: dict[str, Any] | None = member(optional(OBJECT), None)


@dataclass(frozen=True)
class TrustResult:
    """The issuers this worker's keyring knows, as `Issuer.to_json` writes them, and revoked ids."""

    trusted: dict[str, Any] = member(OBJECT)
    revoked: list[str] = member(_ids)


# --- sources -----------------------------------------------------------------

Outcome = Literal[
    "minted",
    "alive",
    "unchanged",
    "newer",
    "refused_grant",
    "unreachable",
    "rate_limited",
    "malformed",
    "lost_reply",
    "not_ready",
]
"""What came of one exchange. alive: the source says that the token is good, so none was minted.
unchanged: it gave the token that stands there already. newer: the run that a reset left behind had
minted since, and what it got was taken over. not_ready: the source's worker could not begin, as
without keys. Only `refused_grant` is a dead grant."""

OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)

Why = Literal["first", "expiry", "every", "refused", "asked"]
"""Why a token is minted: there is none to use, or none by this grant, it expires soon or is old
enough, an API refused it, or somebody asked for it."""


@dataclass(frozen=True)
class MintRequest:
    """Mint a token of a name: docs/wire-format.md#statefulmint.

    Attributes:
        name: credential name.
        why: see `Why`.
        grant: the message that holds the grant.
        standing: the message that stands at the workflow itself, if any.
        last: where that is a revocation, the token before it.
        is_lost: an answer to this very grant was lost before.
        trusted: key ids of the issuers whose messages count there.
    """

    name: str
    why: Why
    grant: str
    standing: str | None
    last: str | None
    is_lost: bool
    trusted: list[str]
    format: int = FORMAT


@dataclass(frozen=True)
class MintResult:
    """What came of it.

    Attributes:
        outcome: see `Outcome`.
        token: the sealed token.
        grant: the sealed grant for the next one, where the exchange has changed it.
        revocation: of the token that an API refused, where no other can be minted.
        detail: what is shown of a failure, without any secret.
        reached: the provider may have done what was asked, though nothing came of it.
        retry_after: seconds that the provider asked for.
    """

    outcome: Outcome = member(one_of(OUTCOMES))
    token: str | None = member(_MESSAGE, None)
    grant: str | None = member(_MESSAGE, None)
    revocation: str | None = member(_MESSAGE, None)
    detail: str | None = member(optional(text(0, 2_000)), None)
    reached: bool = member(FLAG, False)
    retry_after: int | None = member(optional(integer(0)), None)


@dataclass(frozen=True)
class RetireRequest:
    """Revoke a token at the provider, once its successor is in use everywhere.

    Attributes:
        name: credential name.
        source: that minted it.
        old: the token, as it travels.
        after: version of its successor.
    """

    name: str
    source: str
    old: str
    after: int
    format: int = FORMAT


@dataclass(frozen=True)
class RetireResult:
    """What came of it.

    Attributes:
        done: nothing more is tried: it is revoked at the provider or has expired, unless there is
            a problem.
        proven: the provider was seen to refuse it; None where it cannot be asked.
        behind: ids of workflows that do not hold the successor, so that the old one was kept.
        problem: why it is not revoked.
    """

    done: bool = member(FLAG)
    proven: bool | None = member(optional(FLAG), None)
    behind: list[str] = member(_ids, factory=list)
    problem: str | None = member(optional(text(0, 2_000)), None)


@dataclass(frozen=True)
class AnnounceRequest:
    """Say once that a grant is dead.

    Attributes:
        name: credential name.
        source: that refused it.
        grant: fingerprint of the grant.
        after_lost: an answer to the same grant had been lost before.
        detail: what the provider said, without any secret.
    """

    name: str
    source: str
    grant: str
    after_lost: bool
    detail: str | None
    format: int = FORMAT


@dataclass(frozen=True)
class NarrowRequest:
    """Give children tokens derived from their parent's: docs/wire-format.md#statefulnarrow.

    Attributes:
        name: credential name.
        message: in force at the parent. Where it is no token, what was derived is to be revoked.
        children: for each its id, the scopes, and the fingerprint of what it was given last.
        more: others found no room in this request; the result says so too.
    """

    name: str
    message: str | None
    children: list[tuple[str, list[str], str | None]]
    more: bool
    format: int = FORMAT


@dataclass(frozen=True)
class NarrowResult:
    """What came of it.

    Attributes:
        given: for each child the version and the fingerprint of what it was given. Of what
            somebody else set there, which is left, the version and null; of nothing 0 and null.
        failed: ids of those that were given nothing, with the reason.
        plain: ids of those that take no part in a tree.
        more: as the request had it.
    """

    given: dict[str, tuple[int, str | None]] = member(
        mapping_of(tuple_of(integer(0), optional(ID))), factory=dict
    )
    failed: dict[str, str] = member(mapping_of(text(0, 2_000)), factory=dict)
    plain: list[str] = member(_ids, factory=list)
    more: bool = member(FLAG, False)
