"""What workflow code waits for: a token to use, and children that were given one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Final

from temporalio import workflow

from ..errors import NotConverged, TokenExpired, TokenNotSet, TokenRevoked
from ..sealed.message import Message
from .children import Child
from .node import Node
from .status import TokenStatus, cure

_UNAVAILABLE: Final = {
    "expired": TokenExpired,
    "revoked": TokenRevoked,
    "key_revoked": TokenRevoked,
}


async def token_held(node: Node, name: str, timeout: timedelta | None) -> TokenStatus:
    """Wait until there is a token to use.

    Raises:
        TokenUnavailable: there was none in time; the subclass says why.
    """
    found = _usable(node, name)

    def is_held() -> bool:
        nonlocal found
        found = _usable(node, name)
        return found.state == "held"

    if not is_held():
        with suppress(asyncio.TimeoutError):
            await workflow.wait_condition(is_held, timeout=timeout)
    if found.state != "held" and not is_held():
        error = _UNAVAILABLE.get(found.state, TokenNotSet)
        where = f"workflow {node.ledger.path[-1]}"
        raise error(f"{where} had no {name} to use within {timeout}: {cure(found.state)}")
    return found


def _usable(node: Node, name: str) -> TokenStatus:
    return node.view().status(name).under(node.ledger.revoked)


async def all_told(node: Node, message: Message, timeout: timedelta | None) -> None:
    """Wait until every child that may have a message was given it, or a newer one.

    One whose token is narrowed was given its own of it.

    Raises:
        NotConverged: some were not in time.
    """
    ledger, name = node.ledger, message.claims.name

    def lacking() -> list[Child]:
        return [*ledger.lacking(message), *node.narrowing.lacking(name)]

    def are_told() -> bool:
        return node.telling.is_settled and not lacking()

    if not are_told():
        with suppress(asyncio.TimeoutError):
            await workflow.wait_condition(are_told, timeout=timeout)
    behind = lacking()
    if behind:
        named = ", ".join(child.id for child in behind[:5])
        raise NotConverged(
            f"{len(behind)} of {len(ledger.children)} children of workflow {ledger.path[-1]} were "
            f"not given its newest {name} within {timeout} (such as {named}); each is told as soon "
            "as it can be",
            node.view().tree(name, workflow.info().workflow_type, behind),
        )
