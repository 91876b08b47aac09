"""What a node answers to queries, and the line it is known by: never a secret. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Final

from ..sealed.message import Message
from .ledger import ALL, Ledger, Life
from .status import TokenStatus

_SHOWN_WAITING: Final = 20
_UNTOLD: Final = (
    "not told, since nobody can say what its closed parent kept from it: set a token at it, or let "
    "its parent's code share() it"
)


def status_of(ledger: Ledger, message: Message, now: int) -> TokenStatus:
    """What is known of a message that a ledger holds; `now` is Unix milliseconds."""
    status = TokenStatus.of_message(message)
    return replace(status, overtaken=ledger.overtaken(message)).at(now / 1000)


def describe_ledger(
    ledger: Ledger,
    now: int,
    waiting: Sequence[Message],
    reasons: Mapping[str, str],
) -> dict[str, Any]:
    """The part of the `apiTokenStatus` answer that follows from the ledger.

    Args:
        now: Unix milliseconds.
        waiting: messages that wait for their issuer to be known.
        reasons: for children that could not be told, why.
    """
    return {
        "id": ledger.path[-1],
        "root": ledger.path[0],
        "parent": ledger.path[-2] if len(ledger.path) > 1 else None,
        "tree": ledger.tree,
        "tokens": [
            {
                **status_of(ledger, message, now).to_json(),
                "kind": message.kind,
                "inherit": message.claims.inherit,
                "in_force": ledger.in_force(message.claims.name) is message,
                **_signed(ledger, message),
            }
            for message in ledger.held.values()
        ],
        "children": [
            {
                "id": child.id,
                "type": child.type,
                "life": child.life.value,
                "reason": _UNTOLD if child.life is Life.UNTOLD else reasons.get(child.id),
                "withheld": list(ledger.withheld_from(child.id)),
                "shared": list(ledger.shared_with(child.id)),
                "hard": sorted(child.withheld),
            }
            for child in {**ledger.closed, **ledger.children}.values()
        ],
        "replaced": sorted(ledger.closed.keys() & ledger.children.keys()),
        "withheld": sorted(name for name, index in ledger.boundary.items() if index > 0),
        "undelivered": [
            {
                "id": child.id,
                "name": message.claims.name,
                "authority": message.claims.authority,
                "version": message.claims.version,
                "reason": reasons.get(child.id, "on its way"),
            }
            for child, messages in ledger.to_tell()
            for message in messages
        ],
        "waiting": [
            {
                "name": message.claims.name,
                "issuer": message.issuer,
                "version": message.claims.version,
                "fingerprint": message.fingerprint,
            }
            for message in first_of_each_name(waiting)
        ],
        "waiting_count": len(waiting),
        "rejections": {
            "counts": ledger.rejected,
            "last": [
                {
                    "at": rejection.at,
                    "reason": rejection.reason,
                    "fingerprint": rejection.fingerprint,
                    "issuer": rejection.issuer,
                }
                for rejection in ledger.rejections
            ],
        },
    }


def _signed(ledger: Ledger, message: Message) -> dict[str, str]:
    """For what was set at the node itself, what an issuer verifies before the next is signed."""
    if message.claims.authority != ledger.path[-1]:
        return {}
    last = ledger.last.get(message.claims.name)
    return {"message": message.text} | ({} if last is None else {"last": last.text})


def first_of_each_name(waiting: Sequence[Message]) -> list[Message]:
    """The first few that wait, of as many credential names as can be: anybody can send them."""
    seen: set[str] = set()
    first = [m for m in waiting if not (m.claims.name in seen or seen.add(m.claims.name))]
    others = [message for message in waiting if message not in first[:_SHOWN_WAITING]]
    return [*first, *others][:_SHOWN_WAITING]


def details_line(statuses: Iterable[TokenStatus], own: str, withheld: Collection[str] = ()) -> str:
    """What a node holds, as one line of Markdown for Temporal's own workflow details.

    For each credential its name and state, and of a message in force the first 4 bytes of the
    fingerprint, the time of the version, its expiry, and where it was set if not here.

    Args:
        statuses: of each credential name that anything is known of.
        own: the node's workflow id.
        withheld: names the node was started without; may contain `ALL`.
    """
    return " · ".join(_details(status, own, withheld) for status in statuses)


def utc(seconds: float, timespec: str = "seconds") -> str | None:
    """A time in UTC as RFC 3339 writes it, or None where it is after the year 9999.

    Args:
        seconds: Unix seconds.
        timespec: how exact, as `datetime.isoformat` takes it.
    """
    try:
        time = datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None
    return time.isoformat(timespec=timespec).replace("+00:00", "Z")


def _details(status: TokenStatus, own: str, withheld: Collection[str]) -> str:
    line = f"{_code(status.name)} **{status.state.replace('_', ' ')}**"
    if status.version is not None and status.fingerprint is not None:
        time = utc(status.version / 1000) or f"version {status.version}"
        line += f" {_code(status.fingerprint[:8])} of {time}"
    if status.expires_at is not None:
        line += f", expires {utc(status.expires_at) or 'never'}"
    if status.authority is not None and status.authority != own:
        line += f", set at {_code(status.authority)}"
    if status.state != "withheld" and (status.name in withheld or ALL in withheld):
        line += ", withheld by a workflow above"
    return line


def _code(text: str) -> str:
    """A code span (CommonMark 6.1), in which nothing is Markdown, whatever the text holds."""
    text = re.sub(r"\s", " ", text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"
