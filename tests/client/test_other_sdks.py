"""A workflow that takes no part says so in the words of its SDK."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowQueryFailedError

from stateful_workflow import NoWorkerAnswers
from stateful_workflow.client.calls import query_error
from stateful_workflow.errors import NotStateful
from stateful_workflow.use.asking import has_no_query

WORDS = {
    "Python": "Query handler for 'apiTokenStatus' expected but not found, known queries: [a]",
    ".NET": "Query handler for apiTokenStatus expected but not found, known queries: [a]",
    "Go": "unknown queryType apiTokenStatus. KnownQueryTypes=[__stack_trace]",
    "PHP": "unknown queryType apiTokenStatus. KnownQueryTypes=[a]",
    "TypeScript": "Workflow did not register a handler for apiTokenStatus. Registered queries: [a]",
    "Java": "Unknown query type: apiTokenStatus, knownTypes=[a]",
}


@pytest.mark.parametrize("sdk", WORDS)
def test_a_workflow_without_the_query_takes_no_part(sdk: str) -> None:
    error = WorkflowQueryFailedError(WORDS[sdk])

    assert has_no_query(error)
    assert isinstance(query_error(error, "order-7"), NotStateful)


@pytest.mark.parametrize("words", ["Workflow not found", "KeyError: 'not found'", "", "no worker"])
def test_any_other_failure_of_a_query_says_nothing_of_that(words: str) -> None:
    error = WorkflowQueryFailedError(words)

    assert not has_no_query(error)
    assert isinstance(query_error(error, "order-7"), NoWorkerAnswers)
