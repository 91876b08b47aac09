"""What a node answers to queries: JSON data about its ledger, never a secret. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .ledger import Ledger
from .messages import Message
from .status import TokenStatus


def status_of(ledger: Ledger, message: Message, now: int) -> TokenStatus:
    """What is known of a message that a ledger holds; `now` is Unix milliseconds."""
    claims = message.claims
    return TokenStatus(
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
        overtaken=ledger.overtaken(message),
    ).at(now / 1000)


def describe_ledger(
    ledger: Ledger,
    now: int,
    unjudged: Iterable[Message],
    reasons: Mapping[str, str],
    by_update: Collection[str] = (),
) -> dict[str, Any]:
    """The part of the `apiTokenStatus` answer that follows from the ledger.

    Args:
        now: Unix milliseconds.
        unjudged: messages that wait.
        reasons: for children that could not be told, why.
        by_update: children that are told by update.
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
            }
            for message in ledger.held.values()
        ],
        "children": [
            {
                "id": child.id,
                "type": child.type,
                "confirmed": child.confirmed,
                "ended": child.ended,
                "withheld": list(ledger.withheld_from(child.id)),
                "shared": list(ledger.shared_with(child.id)),
                "hard": sorted(child.withheld),
                "by_update": child.id in by_update,
            }
            for child in ledger.children.values()
        ],
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
            for message in unjudged
        ],
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
