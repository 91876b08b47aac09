"""Who the server saw bring a message: the principals that it puts on the events of a history.

Only a server with an authorizer records any. A message is found by its fingerprint.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Final

from temporalio.api.common.v1 import Payload
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from ..node.contract import NODE_HEADER
from .asleep import brought

_MOST_RUNS: Final = 100
# From where a word begins: from each character on, a long one would take hours.
_COMPACT: Final = re.compile(rb"(?<![\w-])[\w-]+\.[\w-]+\.[\w-]+")


async def principals(
    client: Client, workflow_id: str, fingerprints: Collection[str]
) -> dict[str, str | None]:
    """For each of these messages that a workflow's last runs were brought, the principal.

    Returns:
        by fingerprint, type and name of the principal of the first event that brought it; None
        where the server recorded nobody.

    Raises:
        RPCError: the history cannot be read; of a workflow that is gone nothing is found.
    """
    found: dict[str, str | None] = {}
    run_id: str | None = None
    for _ in range(_MOST_RUNS):
        before, in_run = "", dict[str, str | None]()
        try:
            handle = client.get_workflow_handle(workflow_id, run_id=run_id)
            async for event in handle.fetch_history_events():
                started = event.workflow_execution_started_event_attributes
                before = before or started.continued_execution_run_id
                for one in await _brought(client, event):
                    in_run.setdefault(one, _principal(event))
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
        found |= {one: who for one, who in in_run.items() if one in fingerprints}
        if not before or found.keys() >= set(fingerprints):
            break
        run_id = before
    return found


def _principal(event: HistoryEvent) -> str | None:
    if not event.HasField("principal"):
        return None
    return f"{event.principal.type} {event.principal.name}".strip() or None


async def _brought(client: Client, event: HistoryEvent) -> list[str]:
    """The fingerprints of what an event brought in the form of a message."""
    payloads = list(_payloads(event))
    codec = client.data_converter.payload_codec
    if payloads and codec is not None:
        with suppress(Exception):  # the codec is the user's, and a header may not be encoded
            payloads = [*payloads, *await codec.decode(payloads)]
    texts = (text for payload in payloads for text in _COMPACT.findall(payload.data))
    return [hashlib.sha256(text).hexdigest()[:16] for text in texts]


def _payloads(event: HistoryEvent) -> Iterator[Payload]:
    yield from brought(event)
    fields = event.workflow_execution_started_event_attributes.header.fields
    if NODE_HEADER in fields:
        yield fields[NODE_HEADER]
