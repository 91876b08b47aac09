"""What a run of the demo comes to, counted from records and not from what its code believes.

Calls and exchanges are counted by the vendor's own log, failures and reports by the histories of
all workflows, and the secrets are looked for in the engine's database.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import httpx
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

from ..audit import read, verify
from ..engine import EmbeddedEngine
from ..errors import OperationFailed
from ..node.contract import REPORT
from ..node.status import TokenTree
from .api import TokenApi
from .provider import AuthorizationServer
from .search import occurrences
from .workflows import Cleanup

VERSIONS: Final = 4
"""Versions the token has before a source mints it: the first and three rotations."""

_EXCHANGES: Final = 5
"""At least: the first token, a renewal of it, one that lives long, one that heals, one for the
retirement."""

_FAILED: Final = (
    EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED,
    EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT,
)


class Seen(NamedTuple):
    """What the one who rotated saw: the tree and the sealed token after the last rotation, tokens
    that the home says were minted, and the fingerprint of the one that was revoked unsaid."""

    tree: TokenTree
    sealed: bytes
    convergence_ms: list[float]
    refreshes: int
    revoked: str


@dataclass(frozen=True)
class Report:
    """The report of one run.

    Attributes:
        convergence_ms: milliseconds from the call of each `rotate` to its return.
        refreshes: tokens that the home had minted; each is one of `exchanges_at_provider`.
        reports_of_401: that its home took of the token which was revoked and nobody was told.
        retired_and_refused: tokens that the library revoked while they were good, and that the API
            answers 401.
        failed_activities: those that failed for good, at all nodes.
        withheld_nodes_with_token: nodes that are to have no token and were found with one:
            in force, at hand in their activity, or sealed in their history.
        token_occurrences_in_engine: how often any token, refresh token or client secret was found
            in the database.
        audit_verified: whether a checkpoint covers the audit file up to its last event.
        audit_api_uses: requests with a token that stand in it; as many as `api_calls`.
    """

    nodes: int
    rotations: int
    convergence_ms: list[float]
    api_calls: int
    api_calls_by_version: dict[str, int]
    unauthorized_responses: int
    refreshes: int
    exchanges_at_provider: int
    reports_of_401: int
    retired_and_refused: int
    failed_activities: int
    withheld_nodes_with_token: int
    token_occurrences_in_engine: int
    audit_events: int
    audit_verified: bool
    audit_api_uses: int
    web_ui: str | None

    @property
    def is_good(self) -> bool:
        """Whether all that must be zero is, every version was really used, and each token minted,
        healed and retired by one exchange, one report and one revocation."""
        first = [f"v{number}" for number in range(1, VERSIONS + 1)]
        return (
            self.failed_activities == 0
            and self.withheld_nodes_with_token == 0
            and self.token_occurrences_in_engine == 0
            and self.audit_verified
            and self.audit_api_uses == self.api_calls
            and list(self.api_calls_by_version)[:VERSIONS] == first
            and self.refreshes == self.exchanges_at_provider >= _EXCHANGES
            and self.reports_of_401 == 1
            and self.retired_and_refused == 1
        )


async def count(
    client: Client,
    engine: EmbeddedEngine,
    server: AuthorizationServer,
    seen: Seen,
    record: Path,
    checkpoints: Sequence[str],
) -> Report:
    """Make the report, once all workflows of the tree have ended and the audit file is closed.

    Raises:
        AuditBroken: the audit file is not what was written.
        OperationFailed: the search does not find even what is known to be there.
    """
    api = server.api
    calls = Counter(call.number for call in api.log)
    refused = sum(call.status == 401 for call in api.log)
    actions = Counter(event.action for event in read(record))
    verified = verify(record, anchors=checkpoints)
    failed, reports, with_token = await _read_histories(client, seen)
    return Report(
        nodes=len(seen.tree.nodes),
        rotations=len(seen.convergence_ms),
        convergence_ms=seen.convergence_ms,
        api_calls=calls.total(),
        api_calls_by_version={f"v{n}": calls[n] for n in api.issued.values() if calls[n] > 0},
        unauthorized_responses=refused,
        refreshes=seen.refreshes,
        exchanges_at_provider=server.exchanges,
        reports_of_401=reports,
        retired_and_refused=await _refused(api, server.retired),
        failed_activities=failed,
        withheld_nodes_with_token=with_token,
        token_occurrences_in_engine=await asyncio.to_thread(_search, engine, server, seen.sealed),
        audit_events=actions.total(),
        audit_verified=verified.intact_to == verified.last_sequence,
        audit_api_uses=actions["use"],
        web_ui=engine.ui_url,
    )


async def _refused(api: TokenApi, tokens: Sequence[str]) -> int:
    """How many of these the API refuses, in a call of ours for each."""
    transport = httpx.ASGITransport(api.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
        bearers = [{"Authorization": f"Bearer {token}"} for token in tokens]
        answers = [await http.get("/accounts/ours/items", headers=bearer) for bearer in bearers]
    return sum(answer.status_code == 401 for answer in answers)


async def _read_histories(client: Client, seen: Seen) -> tuple[int, int, int]:
    """How many activities failed, how often it was reported that the token is refused which was
    revoked, and how many nodes have a token that is withheld from them."""
    failed = reports = with_token = 0
    for node in seen.tree.nodes:
        handle = client.get_workflow_handle(node.id, result_type=bool)
        history = await handle.fetch_history()
        failed += sum(event.event_type in _FAILED for event in history.events)
        reports += sum(_is_report(event, seen.revoked) for event in history.events)
        if node.type == Cleanup.__name__:
            was_sent = any(seen.sealed in event.SerializeToString() for event in history.events)
            with_token += was_sent or node.version is not None or await handle.result()
    return failed, reports, with_token


def _is_report(event: HistoryEvent, fingerprint: str) -> bool:
    update = event.workflow_execution_update_accepted_event_attributes.accepted_request.input
    signal = event.workflow_execution_signaled_event_attributes
    name, args = (
        (signal.signal_name, signal.input) if signal.signal_name else (update.name, update.args)
    )
    return name == REPORT and fingerprint.encode() in args.SerializeToString()


def _search(engine: EmbeddedEngine, server: AuthorizationServer, sealed: bytes) -> int:
    assert engine.db is not None  # noqa: S101 - the demo's is a file
    tokens = [secret.encode() for secret in (*server.api.issued, *server.secrets)]
    found = occurrences(engine.db, [*tokens, sealed])
    if found[sealed] == 0:
        raise OperationFailed("the search of the database finds not even what is known to be there")
    return sum(found[token] for token in tokens)
