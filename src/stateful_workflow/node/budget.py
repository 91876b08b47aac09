"""How many more rotations a run takes before a limit of the server ends it. Pure.

Temporal limits a run's history, signals and updates, and ends one that goes beyond its history's
limits. A rotation costs a node a little of each; continuing as new starts afresh. The costs were
measured (docs/scaling.md) and are rounded up, so that the estimate is rather too low.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from .ledger import Child, Ledger

MAX_EVENTS: Final = 51_200
MAX_BYTES: Final = 50 * 1024 * 1024
MAX_SIGNALS: Final = 10_000
MAX_UPDATES: Final = 2_000

FEW_ROTATIONS: Final = 100
"""Fewer are warned of: at one each quarter of an hour there is a day left to act."""

_EVENTS_IN: Final = 5
_EVENTS_OUT: Final = 1
_EVENTS_OUT_BY_ACTIVITY: Final = 6
_BYTES: Final = 1_500
_BYTES_A_CHILD: Final = 30
_MESSAGE_BYTES: Final = 1_500
"""For a node that holds no message yet."""

_AS_ENCODED: Final = 1.5
"""A payload codec makes a message longer: encrypted and in base64 by somewhat more than a third."""


@dataclass(frozen=True)
class Used:
    """What a run has used of what the server allows it.

    Attributes:
        events, bytes: of its history.
        signals, updates: those it has taken, the user's own too.
    """

    events: int
    bytes: int
    signals: int
    updates: int


@dataclass(frozen=True)
class Cost:
    """What one rotation adds to a run's history, at most."""

    events: int
    bytes: int


def cost_of_rotation(ledger: Ledger, *, by_activity: bool) -> Cost:
    """What a rotation costs a node as it is now.

    Args:
        ledger: of the node.
        by_activity: whether telling the children takes more than the local attempt. That one's
            marker does not grow with their number; an ordinary activity's request does.
    """
    message = max((len(one.text) for one in ledger.held.values()), default=_MESSAGE_BYTES)
    encoded = int(message * _AS_ENCODED)
    events, size = _EVENTS_IN, _BYTES + encoded
    if ledger.children:
        events += _EVENTS_OUT
    if ledger.children and by_activity:
        events += _EVENTS_OUT_BY_ACTIVITY
        size += _BYTES + encoded + int(_named(ledger.children.values()) * _AS_ENCODED)
    return Cost(events, size)


def rotations_left(used: Used, cost: Cost, *, is_root: bool) -> int:
    """How many more rotations fit into a run; never negative.

    Args:
        used: so far.
        cost: of one.
        is_root: it is told by update; any other by signal, and by update when those are used up.
    """
    told = MAX_UPDATES - used.updates
    if not is_root:
        told += max(MAX_SIGNALS - used.signals, 0)
    # The history is counted as the last task began: what that one's rotation wrote is not in it.
    events = (MAX_EVENTS - used.events) // cost.events - 1
    size = (MAX_BYTES - used.bytes) // cost.bytes - 1
    return max(min(events, size, told), 0)


def _named(children: Collection[Child]) -> int:
    return sum(len(child.id) + len(child.type) + _BYTES_A_CHILD for child in children)
