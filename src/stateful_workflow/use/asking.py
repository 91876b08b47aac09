"""Read a workflow's answer: how large it is, is looked at before it is decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.common import RawValue
from temporalio.converter import WorkflowSerializationContext
from temporalio.service import RPCError, RPCStatusCode

from ..errors import AnswerMalformed
from ..node.contract import MESSAGE, STATUS_QUERY

T = TypeVar("T")

MAX_BYTES: Final[Mapping[str, int]] = {STATUS_QUERY: 2 * 1024 * 1024, MESSAGE: 64 * 1024}
"""Of an answer, by the name of what was asked. The server takes no larger status."""


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
        raise AnswerMalformed(f"it cannot be decoded: {type(error).__name__}") from None


_NO_QUERY: Final = (
    "expected but not found",  # Python, .NET, Ruby
    "KnownQueryTypes=",  # Go, PHP
    "did not register a handler for",  # TypeScript
    "Unknown query type",  # Java
)


def has_no_query(error: WorkflowQueryFailedError) -> bool:
    """Whether a query failed because the workflow has none of this name: it takes no part.

    Each SDK has its own words for it.
    """
    return any(words in error.message for words in _NO_QUERY)


def never_ran(error: RPCError) -> bool:
    """Whether a query failed because the run closed before its first workflow task."""
    return error.status == RPCStatusCode.FAILED_PRECONDITION and "closed before" in error.message
