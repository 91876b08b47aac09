"""A token that somebody sends in clear text: what cannot be refused is said loudly."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from stateful_workflow import NotSealed, TokenClient, TokenMalformed
from stateful_workflow.node.inbox import read_message
from tests.support.asking import eventually, sealed_at, status_of
from tests.support.builders import token
from tests.support.workflows import Node, Plan

SECRET = "clear-text-canary-7d1e"
ORIGIN = "https://api.example.com"
JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJtaWEifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize("sent", ["", "secret", JWT, "schlüssel", "a.b.c", 7, None, {"token": "x"}])
def test_what_has_not_the_form_of_a_message_may_be_a_token(sent: object) -> None:
    with pytest.raises(NotSealed) as caught:
        read_message(sent)
    assert not sent or str(sent) not in str(caught.value)


def test_a_message_that_was_damaged_on_its_way_is_none() -> None:
    for damaged in (token().text[:-1], f"{token().text}\n", token().text.replace(".", "..")):
        with pytest.raises(TokenMalformed) as caught:
            read_message(damaged)
        assert type(caught.value) is TokenMalformed


async def test_one_by_signal_is_warned_of_and_shown_until_a_newer_one_is_set(
    worker: Worker,
    client: Client,
    tokens: TokenClient,
    queue: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    handle = await client.start_workflow(Node.run, Plan(), id=queue, task_queue=queue)
    for given in (SECRET, {"token": SECRET}, SECRET):
        await handle.signal("apiToken", given)

    async def are_counted() -> None:
        rejections = (await status_of(client, queue))["rejections"]
        assert rejections["counts"] == {"NotSealed": 3}

    await eventually(are_counted)
    (node,) = (await tokens.tree(queue)).nodes
    assert node.problem is not None
    assert "no sealed message" in node.problem

    said = [one.getMessage() for one in caplog.records if "no sealed message" in one.getMessage()]
    assert len(said) == 2, "not one a signal, of which anybody can send thousands"
    assert all("rotate" in one and queue in one for one in said)
    assert SECRET not in repr([vars(one) for one in caplog.records])

    await tokens.rotate(queue, "its successor", origins=[ORIGIN], timeout=20)
    (node,) = (await tokens.tree(queue)).nodes
    assert (node.state, node.problem) == ("held", None)


async def test_an_update_refuses_one_before_it_enters_history_and_takes_a_sealed_one(
    worker: Worker, client: Client, tokens: TokenClient, queue: str
) -> None:
    handle = await client.start_workflow(Node.run, Plan(), id=queue, task_queue=queue)
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await handle.execute_update("apiToken", SECRET)
    cause = refused.value.cause
    assert isinstance(cause, ApplicationError)
    assert cause.type == "TokenMalformed"
    assert "stateful token seal" in cause.message

    sealed = await tokens.seal(queue, SECRET, origins=[ORIGIN])
    status: dict[str, Any] = await handle.execute_update("apiToken", sealed)
    assert status["state"] == "held"
    assert await sealed_at(client, queue) == sealed
    assert (await tokens.get(queue)).reveal() == SECRET
    history = await handle.fetch_history()
    assert SECRET.encode() not in b"".join(e.SerializeToString() for e in history.events)
