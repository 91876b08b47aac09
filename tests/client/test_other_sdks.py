"""A workflow that takes no part is known by the queries that its SDK lists, not by error texts."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, cast

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.api.sdk.v1 import (
    WorkflowDefinition,
    WorkflowInteractionDefinition,
    WorkflowMetadata,
)
from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.common import RawValue
from temporalio.converter import DataConverter

from stateful_workflow import NoWorkerAnswers
from stateful_workflow.client.calls import what_it_means
from stateful_workflow.errors import AnswerMalformed, NotStateful
from stateful_workflow.use.asking import is_plain, query_names

SOON = timedelta(seconds=1)

LISTED: dict[str, tuple[str, object]] = {
    "Python, Go, Java and .NET": ("json/protobuf", {"queryDefinitions": [{"name": "a"}]}),
    "TypeScript": ("json/plain", {"type": "W", "queryDefinitions": [{"name": "a"}]}),
    "any name": ("json/protobuf", {"queryDefinitions": [{"description": "whatever"}]}),
    "a later SDK": ("json/protobuf", {"queryDefinitions": [{"name": "a", "since": 9}], "new": {}}),
    "no queries": ("json/protobuf", {"type": "W"}),
}
"""How a definition is written, and of which encoding; none has the contract's query."""

WORDS = {
    "Python": "Query handler for 'apiTokenStatus' expected but not found, known queries: [a]",
    ".NET": "Query handler for apiTokenStatus expected but not found, known queries: [a]",
    "Go": "unknown queryType apiTokenStatus. KnownQueryTypes=[__stack_trace]",
    "PHP": "unknown queryType apiTokenStatus. KnownQueryTypes=[a]",
    "TypeScript": "Workflow did not register a handler for apiTokenStatus. Registered queries: [a]",
    "Java": "Unknown query type: apiTokenStatus, knownTypes=[a]",
}
"""Of an SDK that lists no queries."""


class Asked:
    """A client of one workflow, which answers the question for its queries so."""

    def __init__(self, answer: RawValue | Exception) -> None:
        self.answer = answer
        self.namespace = "default"
        self.data_converter = DataConverter.default

    def get_workflow_handle(self, _id: str, *, run_id: str | None) -> Asked:
        return self

    async def query(self, name: str, **_: object) -> RawValue:
        assert name == "__temporal_workflow_metadata"
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def client(answer: RawValue | Exception) -> Client:
    return cast("Any", Asked(answer))


def raw(encoding: str, value: object) -> RawValue:
    return RawValue(
        Payload(metadata={"encoding": encoding.encode()}, data=json.dumps(value).encode())
    )


def failed(words: str) -> WorkflowQueryFailedError:
    return WorkflowQueryFailedError(words)


@pytest.mark.parametrize("sdk", LISTED)
async def test_a_workflow_that_lists_its_queries_without_ours_takes_no_part(sdk: str) -> None:
    encoding, definition = LISTED[sdk]
    asked = client(raw(encoding, {"definition": definition}))

    for error in (failed("Encoded failure"), AnswerMalformed("it is no object")):
        assert await is_plain(asked, "order-7", error, timeout=SOON)
        assert isinstance(await what_it_means(asked, "order-7", error, SOON), NotStateful)


async def test_one_that_lists_ours_takes_part_whatever_its_failure_says() -> None:
    queries = [{"name": "a"}, {"name": "apiTokenStatus"}]
    asked = client(raw("json/protobuf", {"definition": {"queryDefinitions": queries}}))

    assert not await is_plain(asked, "order-7", failed(WORDS["Python"]), timeout=SOON)


def test_a_converter_may_give_the_message_itself() -> None:
    queries = [WorkflowInteractionDefinition(name="a"), WorkflowInteractionDefinition()]
    metadata = WorkflowMetadata(definition=WorkflowDefinition(query_definitions=queries))

    assert query_names(metadata) == ("a", "")


@pytest.mark.parametrize("sdk", WORDS)
async def test_where_an_sdk_lists_no_queries_its_words_say_it(sdk: str) -> None:
    error, asked = failed(WORDS[sdk]), client(failed("unknown query"))

    assert await is_plain(asked, "order-7", error, timeout=SOON)
    assert isinstance(await what_it_means(asked, "order-7", error, SOON), NotStateful)


@pytest.mark.parametrize(
    "answer",
    [
        failed("no worker"),
        raw("json/plain", {"status": "fine"}),
        raw("json/plain", {"definition": {"queryDefinitions": [7]}}),
        raw("binary/encrypted", {}),
        RuntimeError("a codec's"),
    ],
    ids=["fails", "a handler of any query", "malformed", "cannot be decoded", "codec"],
)
@pytest.mark.parametrize("words", ["Workflow not found", "Encoded failure", "", "no worker"])
async def test_nothing_else_says_that_a_workflow_takes_no_part(
    answer: RawValue | Exception, words: str
) -> None:
    assert not await is_plain(client(answer), "order-7", failed(words), timeout=SOON)
    meant = await what_it_means(client(answer), "order-7", failed(words), SOON)
    assert isinstance(meant, NoWorkerAnswers)
