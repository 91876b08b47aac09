"""What a run of the demo comes to, counted from records and not from what its code believes.

Calls are counted by the API's own log, failures by the histories of all workflows, and
the tokens are looked for in the engine's database.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast

from rich.table import Table
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client

from ..audit import read, verify
from ..errors import AuditBroken, OperationFailed
from ..node.status import TokenTree
from .api import Call, TokenApi
from .search import occurrences
from .workflows import Cleanup, has_token

VERSIONS: Final = 4
"""Versions the token has in a run: the first and three rotations."""

_FAILED: Final = frozenset(
    {
        EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED,
        EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT,
        EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED,
    }
)
_ASKED_AT_ONCE: Final = 8
_MARKER_BYTES: Final = 40


@dataclass(frozen=True)
class Rotations:
    """What happened while calls flowed, as the one who rotated saw it.

    Attributes:
        tree: as it was after the last rotation.
        convergence_ms: from the call of each `rotate` to its return.
        versions: version of each token, by its serial at the API.
        sealed: the sealed token of each version.
    """

    tree: TokenTree
    convergence_ms: Sequence[float]
    versions: Mapping[int, int]
    sealed: Sequence[str]


@dataclass(frozen=True)
class AuditRecord:
    """What the demo's audit file comes to.

    Attributes:
        events: in the file.
        uses: those of requests that carried a token.
        verified: whether the file is what was written.
    """

    events: int
    uses: int
    verified: bool


@dataclass(frozen=True)
class Report:
    """The report of one run.

    Attributes:
        nodes: workflows in the tree.
        rotations: how many converged.
        convergence_ms: milliseconds from the call of each `rotate` to its return.
        api_calls: calls the API answered.
        api_calls_by_version: the same by the version of the token presented.
        unauthorized_responses: how many of them it answered with 401.
        failed_activities: activities that failed for good, by the histories of all nodes.
        withheld_nodes_with_token: nodes that are to have no token and were found with one:
            in force, at hand in their activity, or sealed in their history.
        token_occurrences_in_engine: how often any token issued was found in the database.
        audit_events: events in the demo's audit file.
        audit_verified: whether the file is what was written, up to its last event.
        audit_api_uses: requests with a token that stand in it; as many as `api_calls`.
        web_ui: address of the engine's Web UI.
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

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    def table(self) -> Table:
        """The same for a person."""
        table = Table(title="Report", show_header=False, title_justify="left")
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in asdict(self).items():
            table.add_row(name, _shown(value))
        return table


def read_record(path: Path, checkpoints: Sequence[str]) -> AuditRecord:
    """Read the audit file, and check it against the checkpoints that were handed out.

    Args:
        path: the file, closed.
        checkpoints: the last one covers the last event.
    """
    actions: Counter[str] = Counter()
    with suppress(AuditBroken):
        actions.update(event.action for event in read(path))
    try:
        verified = verify(path, anchors=checkpoints)
    except AuditBroken:
        intact = False
    else:
        intact = verified.intact_to is not None and verified.intact_to == verified.last_sequence
    return AuditRecord(actions.total(), actions["use"], intact)


async def count(
    client: Client,
    api: TokenApi,
    seen: Rotations,
    recorded: AuditRecord,
    *,
    db: Path,
    web_ui: str | None,
) -> Report:
    """Make the report, once all workflows of the tree have ended.

    Args:
        client: of the engine.
        api: the API, with its log.
        seen: what was seen meanwhile.
        recorded: what the audit file came to.
        db: the engine's database file.
        web_ui: address of the engine's Web UI.

    Raises:
        OperationFailed: where the search does not find even what is known to be there.
    """
    slots = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def events(workflow_id: str) -> list[HistoryEvent]:
        async with slots:
            history = await client.get_workflow_handle(workflow_id).fetch_history()
        return list(history.events)

    nodes = seen.tree.nodes
    histories = dict(
        zip(
            [node.id for node in nodes],
            await asyncio.gather(*(events(node.id) for node in nodes)),
            strict=True,
        )
    )
    sealed = [text.encode() for text in seen.sealed]
    # By what they are, not by what the tree says of itself: it may be that which is wrong.
    with_token = [
        node.id
        for node in nodes
        if node.type == Cleanup.__name__
        and (node.version is not None or _has_token(histories[node.id], sealed))
    ]
    found = await asyncio.to_thread(_search, db, api, seen)
    return Report(
        nodes=len(nodes),
        rotations=len(seen.convergence_ms),
        convergence_ms=[round(milliseconds, 1) for milliseconds in seen.convergence_ms],
        api_calls=len(api.log),
        api_calls_by_version=_by_version(api.log, seen.versions),
        unauthorized_responses=sum(call.status == 401 for call in api.log),
        failed_activities=sum(_is_failure(e) for history in histories.values() for e in history),
        withheld_nodes_with_token=len(with_token),
        token_occurrences_in_engine=found,
        audit_events=recorded.events,
        audit_verified=recorded.verified,
        audit_api_uses=recorded.uses,
        web_ui=web_ui,
    )


def _by_version(log: Iterable[Call], versions: Mapping[int, int]) -> dict[str, int]:
    calls = Counter(call.serial for call in log)
    return {
        str(version): calls[serial]
        for serial, version in sorted(versions.items())
        if calls[serial] > 0
    }


def _is_failure(event: HistoryEvent) -> bool:
    # A local activity leaves a marker, of failures too.
    return event.event_type in _FAILED or event.marker_recorded_event_attributes.HasField("failure")


def _has_token(history: Sequence[HistoryEvent], sealed: Sequence[bytes]) -> bool:
    """Whether a token was at hand in one of these activities, or came to this history."""
    asking = {
        event.event_id
        for event in history
        if event.activity_task_scheduled_event_attributes.activity_type.name == has_token.__name__
    }
    for event in history:
        completed = event.activity_task_completed_event_attributes
        if completed.scheduled_event_id in asking and completed.result.payloads[0].data != b"false":
            return True
        raw = event.SerializeToString()
        if any(text in raw for text in sealed):
            return True
    return False


def _search(db: Path, api: TokenApi, seen: Rotations) -> int:
    tokens = [token.encode() for token in api.issued]
    known = list(_known(seen))
    found = occurrences(db, [*tokens, *known])
    missed = [marker for marker in known if found[marker] == 0]
    if missed:
        raise OperationFailed(
            f"the search of the engine's database cannot be trusted: it did not find {missed[0]!r}"
        )
    return sum(found[token] for token in tokens)


def _known(seen: Rotations) -> Iterator[bytes]:
    """What stands in the database for certain: as it is, and in base64 in each alignment."""
    yield seen.tree.nodes[-1].id.encode()
    for sealed in seen.sealed:
        yield sealed.encode()
        # A JWS holds its payload as base64url, and there alone.
        payload = sealed.split(".")[1]
        decoded = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
        for start in range(3):
            yield decoded[start : start + _MARKER_BYTES]


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, cast("list[object]", value)))
    if isinstance(value, dict):
        counts = cast("dict[str, int]", value)
        return ", ".join(f"{version}: {calls}" for version, calls in counts.items())
    return str(value)
