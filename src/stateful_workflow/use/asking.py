"""Read a workflow's answer: how large it is, is looked at before it is decoded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from enum import Enum
from functools import partial
from typing import Final, TypeVar

from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.common import RawValue
from temporalio.converter import (
    ActivitySerializationContext,
    DefaultPayloadConverter,
    SerializationContext,
    WorkflowSerializationContext,
)
from temporalio.service import RPCError, RPCStatusCode

from ..errors import AnswerMalformed
from ..node.answers import JoinAnswer, TokenAnswer, token_answer
from ..node.contract import JOIN, MESSAGE, METADATA_QUERY, RENEW, STATE_QUERY, STATUS_QUERY
from ..node.members import ANY, OBJECT, list_of, optional, read
from .server import never_ran, start_of_run

T = TypeVar("T")

MAX_BYTES: Final[Mapping[str, int]] = {
    STATUS_QUERY: 2 * 1024 * 1024,
    STATE_QUERY: 2 * 1024 * 1024,
    METADATA_QUERY: 2 * 1024 * 1024,
    MESSAGE: 64 * 1024,
    JOIN: 1024 * 1024,
    RENEW: 65_536,
}
"""Of an answer, by the name of what was asked. The server takes no larger status."""

_RUNS_THAT_NEVER_RAN: Final = 20
"""In a row, that are gone back over for one that did."""


def read_answer(
    client: Client, workflow_id: str, asked: str, answer: object, read: Callable[[object], T]
) -> T:
    """Decode and read the answer of a query or an update, sent with ``result_type=RawValue``.

    A payload codec has been at it by then; `read` is one of `stateful_workflow.node.answers`.

    Raises:
        AnswerMalformed: it is too large, cannot be decoded, or is not what it has to be.
    """
    try:
        return read(_decoded(client, workflow_id, answer, MAX_BYTES[asked]))
    except AnswerMalformed as error:
        raise AnswerMalformed(
            f"workflow {workflow_id} answered {asked} with what cannot be read: {error}"
        ) from None


async def ask(
    client: Client,
    workflow_id: str,
    query: str,
    read: Callable[[object], T],
    *args: object,
    run_id: str | None = None,
    timeout: timedelta,
) -> T:
    """Ask a workflow one of these queries, with at most one argument, and read its answer.

    Raises:
        WorkflowQueryFailedError, RPCError: it cannot be asked, or has no such query.
        AnswerMalformed: see `read_answer`.
    """
    handle = client.get_workflow_handle(workflow_id, run_id=run_id)
    raw: object = await handle.query(query, *args, result_type=RawValue, rpc_timeout=timeout)
    return read_answer(client, workflow_id, query, raw, read)


async def ask_token(
    client: Client, workflow_id: str, name: str, timeout: timedelta, run_id: str | None = None
) -> TokenAnswer | None:
    """Ask a workflow what it holds of a credential, as `ask`; None where nothing is known of it."""
    read = partial(token_answer, name=name)
    return await ask(client, workflow_id, MESSAGE, read, name, run_id=run_id, timeout=timeout)


def _decoded(client: Client, workflow_id: str, answer: object, most: int) -> object:
    if not isinstance(answer, RawValue):
        return answer  # none was given, or the client's converter knows no raw values
    size = len(answer.payload.data)
    if size > most:
        raise AnswerMalformed(f"it has {size:,} bytes, more than {most:,}")
    context = WorkflowSerializationContext(namespace=client.namespace, workflow_id=workflow_id)
    converter = client.data_converter.with_context(context).payload_converter
    try:
        return converter.from_payload(answer.payload)
    except Exception as error:  # noqa: BLE001 - the converter is the user's, and may raise anything
        raise AnswerMalformed(
            f"it cannot be decoded ({type(error).__name__}): has this client the data converter "
            "and the payload codec of the workflow's worker?"
        ) from None


def activity_context(info: activity.Info) -> ActivitySerializationContext:
    """What the payloads of an activity are bound to."""
    return ActivitySerializationContext(
        namespace=info.namespace,
        workflow_id=info.workflow_id,
        workflow_type=info.workflow_type,
        activity_type=info.activity_type,
        activity_id=info.activity_id,
        activity_task_queue=info.task_queue,
        is_local=info.is_local,
    )


async def decoded_payload(
    client: Client, payload: Payload, context: SerializationContext | None
) -> Payload | None:
    """A payload as it was before this client's codec and external storage; None if they cannot."""
    converter = replace(client.data_converter, payload_converter_class=DefaultPayloadConverter)
    if context is not None:
        converter = converter.with_context(context)
    try:
        (value,) = await converter.decode([payload], [RawValue])
    except Exception:  # noqa: BLE001 - a codec may raise anything
        return None
    return value.payload if isinstance(value, RawValue) else None


async def ask_for_place(
    client: Client,
    at: str,
    workflow_id: str,
    workflow_type: str,
    timeout: timedelta,
    *,
    as_child: bool = False,
) -> JoinAnswer:
    """Ask a node, as `ask`, for the state that a child of this id and type would start with.

    `as_child`: the server says that it is one.
    """
    joiner = {"id": workflow_id, "type": workflow_type, "as_child": as_child}
    answer = await ask(client, at, JOIN, partial(read, JoinAnswer), joiner, timeout=timeout)
    if answer.refused is None and (answer.ledger or {}).get("path", [])[-2:] != [at, workflow_id]:
        raise AnswerMalformed(f"workflow {at} answered {JOIN} with a state for another place")
    return answer


_NO_QUERY: Final = (
    "expected but not found",
    "KnownQueryTypes=",
    "did not register a handler for",
    "Unknown query type",
)
"""How SDKs say that a workflow has no such query: of those that do not list what they have."""


async def is_plain(
    client: Client,
    workflow_id: str,
    error: Exception | None = None,
    *,
    run_id: str | None = None,
    timeout: timedelta,
) -> bool:
    """Whether a workflow takes no part in a tree: its SDK lists its queries, without ours.

    Where it lists none, the words of `error` decide, which came of another question to it.
    """
    handle = client.get_workflow_handle(workflow_id, run_id=run_id)
    try:
        raw: object = await handle.query(METADATA_QUERY, result_type=RawValue, rpc_timeout=timeout)
        about = client, workflow_id, METADATA_QUERY
        return STATUS_QUERY not in read_answer(*about, _as_json(raw), query_names)
    except Exception:  # noqa: BLE001 - a codec may raise anything
        words = error.message if isinstance(error, WorkflowQueryFailedError) else ""
        return any(known in words for known in _NO_QUERY)


def query_names(answer: object) -> tuple[str | None, ...]:
    """The names of a workflow's queries, in its answer to `__temporal_workflow_metadata`.

    Raises:
        AnswerMalformed: it does not list them.
    """
    if isinstance(answer, WorkflowMetadata):
        return tuple(one.name for one in answer.definition.query_definitions)
    definition: Mapping[str, object] = OBJECT(OBJECT(answer).get("definition"))
    named: tuple[str | None, ...] = optional(list_of(_name), ())(definition.get("queryDefinitions"))
    return named


def _name(definition: object) -> str | None:
    """Of one query; a handler of any name has none."""
    name: str | None = optional(ANY)(OBJECT(definition).get("name"))
    return name


def _as_json(raw: object) -> object:
    """As any JSON: a newer SDK's message has members that this one's class refuses."""
    if not isinstance(raw, RawValue) or len(raw.payload.data) > MAX_BYTES[METADATA_QUERY]:
        return raw
    is_json = raw.payload.metadata.get("encoding", b"").startswith(b"json/")
    return json.loads(raw.payload.data) if is_json else raw


class Silence(Enum):
    """Why a closed run says nothing, and never will."""

    FORGOTTEN = "it is past retention"
    NEVER_RAN = "it closed before its first task"
    PLAIN = "it takes no part in a tree"


async def ask_closed(
    client: Client,
    workflow_id: str,
    run_id: str,
    query: str,
    read: Callable[[object], T],
    timeout: Callable[[], timedelta],
    until: str | None = None,
) -> tuple[str, T | Silence]:
    """Ask a closed run, or the nearest one before it that ran, but none from `until` on.

    Returns:
        the run, and what it says; `timeout` gives that of each call.

    Raises:
        Exception: as `ask`, or what a codec raises, where it may answer later; RPCError also where
            the server does not say whether it ran.
    """
    for _ in range(_RUNS_THAT_NEVER_RAN):
        try:
            asked = ask(client, workflow_id, query, read, run_id=run_id, timeout=timeout())
            return run_id, await asked
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                break
            if not await never_ran(client, workflow_id, run_id, timeout=timeout()):
                raise
        except (WorkflowQueryFailedError, AnswerMalformed) as error:
            if await is_plain(client, workflow_id, error, run_id=run_id, timeout=timeout()):
                return run_id, Silence.PLAIN
            raise
        start = await start_of_run(client, workflow_id, run_id, timeout=timeout())
        if start.continued_execution_run_id in ("", until):
            return run_id, Silence.NEVER_RAN
        run_id = start.continued_execution_run_id
    return run_id, Silence.FORGOTTEN
