"""What nodes, workers and clients say to each other: names, requests and results.

The names stand in histories, so they never change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

MESSAGE: Final = "apiToken"
"""Signal and update that take a message, and the query for a status with the sealed token."""

STATUS_QUERY: Final = "apiTokenStatus"
STATE_QUERY: Final = "statefulState"
URL: Final = "apiUrl"
REPORT: Final = "apiTokenReport"

FORWARD: Final = "statefulForward"
ASK: Final = "statefulAsk"
TRUST: Final = "statefulTrust"
RECOVER: Final = "statefulRecover"
ACTIVITIES: Final = frozenset({FORWARD, ASK, TRUST, RECOVER})

MAX_SIGNALS: Final = 10_000
"""Signals that the server, as it is shipped, lets one run take."""

MANY_SIGNALS: Final = 8_000
"""From so many on a run should continue as new: the server suggests that for other limits only."""

NODE_HEADER: Final = "stateful-node"
USE_HEADER: Final = "stateful-use"

NO_ANSWER: Final = "NoAnswer"
"""The type of the error with which `statefulAsk` says that nothing was answered."""


@dataclass(frozen=True)
class ForwardRequest:
    """What to tell whom.

    Attributes:
        messages: the distinct messages, as they travel.
        targets: for each child its id, its type, and the indexes of its messages.
        ended: ids of children known to be closed, whose own children are to be found.
        seconds: no delivery is begun after this time.
    """

    messages: list[str]
    targets: list[tuple[str, str, list[int]]]
    ended: list[str]
    seconds: float


@dataclass(frozen=True)
class ForwardResult:
    """What came of it; a target that is not named was told.

    Attributes:
        left: ids that were not tried in time.
        failed: ids that could not be told, with the reason.
        plain: ids whose workflow takes no part; they are not told again.
        by_update: ids that were told by update, since their run takes no more signals.
        closed: ids of closed children, with the children each last knew.
        sent: how many of its messages one that is left or failed was sent all the same.
        ordinary: whether this worker runs ordinary activities too.
    """

    left: list[str] = field(default_factory=list[str])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    plain: list[str] = field(default_factory=list[str])
    by_update: list[str] = field(default_factory=list[str])
    closed: dict[str, list[dict[str, Any]]] = field(
        default_factory=dict[str, "list[dict[str, Any]]"]
    )
    sent: dict[str, int] = field(default_factory=dict[str, int])
    ordinary: bool = True


@dataclass(frozen=True)
class AskRequest:
    """Who is asked what.

    Attributes:
        closed: ids of closed children, for the children they leave alive.
        running: ids of workflows that ran when they were to be started, for whose they are.
    """

    closed: list[str]
    running: list[str]


@dataclass(frozen=True)
class AskResult:
    """What was answered; who is named nowhere did not answer.

    Attributes:
        closed: of those taken for closed, the children each last knew; none where its id is
            another workflow's by now.
        open: ids of those of them that run all the same, as this workflow's children.
        running: for those that ran when they were to be started, the first run of the parent
            that started each, in this workflow's chain of runs; None where the parent is another
            workflow, or there is none.
    """

    closed: dict[str, list[dict[str, Any]]] = field(
        default_factory=dict[str, "list[dict[str, Any]]"]
    )
    open: list[str] = field(default_factory=list[str])
    running: dict[str, str | None] = field(default_factory=dict[str, "str | None"])

    @property
    def any(self) -> bool:
        """Whether there is any answer."""
        return bool(self.closed or self.open or self.running)


@dataclass(frozen=True)
class RecoverResult:
    """What a closed run answered.

    Attributes:
        asked: whether it could be asked.
        state: its last state, or None where it takes no part in a tree.
        again: whether an ordinary activity may succeed where this local one did not.
        too_new: whether a worker was asked that cannot read the run's state, and a newer one can.
    """

    asked: bool
    state: dict[str, Any] | None = None
    again: bool = False
    too_new: bool = False


@dataclass(frozen=True)
class TrustResult:
    """The issuers this worker's keyring knows, as `Issuer.to_json` writes them, and revoked ids."""

    trusted: dict[str, Any]
    revoked: list[str]
