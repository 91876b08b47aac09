"""What a run of the demo comes to, counted from records and not from what its code believes.

Calls are counted by the API's own log, failures by the histories of all workflows, and
the tokens are looked for in the engine's database.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from ..audit import read, verify
from ..engine import EmbeddedEngine
from ..errors import OperationFailed
from ..node.status import TokenTree
from .api import TokenApi
from .search import occurrences
from .workflows import Cleanup

VERSIONS: Final = 4
"""Versions the token has in a run: the first and three rotations."""

_FAILED: Final = (
    EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED,
    EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT,
)


class Seen(NamedTuple):
    """What the one who rotated saw: the tree and the sealed token after the last rotation."""

    tree: TokenTree
    sealed: bytes
    convergence_ms: list[float]


@dataclass(frozen=True)
class Report:
    """The report of one run.

    Attributes:
        convergence_ms: milliseconds from the call of each `rotate` to its return.
        failed_activities: those that failed for good, at all nodes.
        withheld_nodes_with_token: nodes that are to have no token and were found with one:
            in force, at hand in their activity, or sealed in their history.
        token_occurrences_in_engine: how often any token issued was found in the database.
        audit_verified: whether a checkpoint covers the audit file up to its last event.
        audit_api_uses: requests with a token that stand in it; as many as `api_calls`.
    """

    nodes: int
    rotations: int
    convergence_ms: list[float]
    api_calls: int
    api_calls_by_version: dict[str, int]
    unauthorized_responses: int
    failed_activities: int
    withheld_nodes_with_token: int
    token_occurrences_in_engine: int
    audit_events: int
    audit_verified: bool
    audit_api_uses: int
    web_ui: str | None

    @property
    def is_good(self) -> bool:
        """Whether all that must be zero is, and every version was really used."""
        return (
            self.failed_activities == 0
            and self.withheld_nodes_with_token == 0
            and self.token_occurrences_in_engine == 0
            and self.audit_verified
            and self.audit_api_uses == self.api_calls
            and len(self.api_calls_by_version) == VERSIONS
        )


async def count(
    client: Client,
    engine: EmbeddedEngine,
    api: TokenApi,
    seen: Seen,
    record: Path,
    checkpoints: Sequence[str],
) -> Report:
    """Make the report, once all workflows of the tree have ended and the audit file is closed.

    Raises:
        AuditBroken: the audit file is not what was written.
        OperationFailed: the search does not find even what is known to be there.
    """
    calls = Counter(call.number for call in api.log)
    actions = Counter(event.action for event in read(record))
    verified = verify(record, anchors=checkpoints)
    failed, with_token = await _read_histories(client, seen)
    return Report(
        nodes=len(seen.tree.nodes),
        rotations=len(seen.convergence_ms),
        convergence_ms=seen.convergence_ms,
        api_calls=len(api.log),
        api_calls_by_version={f"v{n}": calls[n] for n in api.issued.values() if calls[n] > 0},
        unauthorized_responses=sum(call.status == 401 for call in api.log),
        failed_activities=failed,
        withheld_nodes_with_token=with_token,
        token_occurrences_in_engine=await asyncio.to_thread(_search, engine, api, seen.sealed),
        audit_events=actions.total(),
        audit_verified=verified.intact_to == verified.last_sequence,
        audit_api_uses=actions["use"],
        web_ui=engine.ui_url,
    )


async def _read_histories(client: Client, seen: Seen) -> tuple[int, int]:
    """How many activities failed, and how many nodes have a token that is withheld from them."""
    failed = with_token = 0
    for node in seen.tree.nodes:
        handle = client.get_workflow_handle(node.id, result_type=bool)
        history = await handle.fetch_history()
        failed += sum(event.event_type in _FAILED for event in history.events)
        if node.type == Cleanup.__name__:
            was_sent = any(seen.sealed in event.SerializeToString() for event in history.events)
            with_token += was_sent or node.version is not None or await handle.result()
    return failed, with_token


def _search(engine: EmbeddedEngine, api: TokenApi, sealed: bytes) -> int:
    assert engine.db is not None  # noqa: S101 - the demo's is a file
    tokens = [token.encode() for token in api.issued]
    found = occurrences(engine.db, [*tokens, sealed])
    if found[sealed] == 0:
        raise OperationFailed("the search of the database finds not even what is known to be there")
    return sum(found[token] for token in tokens)
