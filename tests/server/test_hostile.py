"""Whatever is sent to a handler, the workflow stays healthy, answers, and still rotates."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import replace
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from stateful_workflow import Keyring, TokenClient
from stateful_workflow.messages import Claims, encode_base64url, parse

from .support import events_of, nodes_run, sealed_at, status_of
from .workflows import Node, Plan

URL = "https://api.example.com"

JSON = {"encoding": b"json/plain"}

MALFORMED: dict[str, list[Payload]] = {
    "no argument": [],
    "three arguments": [Payload(metadata=JSON, data=b'"a"')] * 3,
    "null": [Payload(metadata={"encoding": b"binary/null"})],
    "json null": [Payload(metadata=JSON, data=b"null")],
    "a number": [Payload(metadata=JSON, data=b"7")],
    "a list": [Payload(metadata=JSON, data=b'["x"]')],
    "an object": [Payload(metadata=JSON, data=b'{"apiToken": "x"}')],
    "a string of 1 MB": [Payload(metadata=JSON, data=b'"' + b"x" * 1_000_000 + b'"')],
    "binary": [Payload(metadata={"encoding": b"binary/plain"}, data=b"\x00\xff\xfe")],
    "invalid UTF-8": [Payload(metadata=JSON, data=b'"\xff\xfe"')],
    "no JSON": [Payload(metadata=JSON, data=b"{")],
    "unknown encoding": [Payload(metadata={"encoding": b"x/y"}, data=b"z")],
    "a lone surrogate": [Payload(metadata=JSON, data=b'"\\ud800"')],
    "nested lists": [Payload(metadata=JSON, data=b"[" * 5000 + b"]" * 5000)],
}


@pytest.fixture
async def tree(tokens: TokenClient, queue: str, worker: Worker) -> str:
    await tokens.start_workflow(
        Node.run,
        Plan({"a": Plan()}),
        id=queue,
        task_queue=queue,
        api_token="first",
        api_url=URL,
    )
    await nodes_run(tokens, queue, 2)
    return queue


async def send(client: Client, workflow_id: str, signal: str, payloads: list[Payload]) -> None:
    await client.workflow_service.signal_workflow_execution(
        SignalWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            signal_name=signal,
            input=Payloads(payloads=payloads),
        )
    )


async def is_healthy(client: Client, tokens: TokenClient, workflow_id: str) -> None:
    assert (await tokens.get(workflow_id)).reveal() == "first"
    assert (await tokens.rotate(workflow_id, "second", timeout=20)).converged
    assert (await tokens.get(f"{workflow_id}-a")).reveal() == "second"
    handle = client.get_workflow_handle(workflow_id)
    assert await events_of(handle, "WORKFLOW_TASK_FAILED") == []


@pytest.mark.parametrize("signal", ["apiToken", "apiUrl", "apiTokenReport"])
async def test_malformed_signals_leave_the_workflow_healthy(
    client: Client, tokens: TokenClient, tree: str, signal: str
) -> None:
    for payloads in MALFORMED.values():
        await send(client, tree, signal, payloads)

    await is_healthy(client, tokens, tree)
    counts = (await status_of(client, tree))["rejections"]["counts"]
    if signal == "apiTokenReport":
        assert counts == {}
    else:
        # The SDK drops what it cannot decode before it reaches a handler, uncounted.
        assert counts["TokenMalformed"] >= 9


async def test_malformed_updates_and_queries_are_refused_by_name(
    client: Client, tokens: TokenClient, tree: str
) -> None:
    handle = client.get_workflow_handle(tree)
    for args in ([], ["a", "b", "c"], [None], [7], [["x"]], [{"a": 1}], ["x" * 1_000_000], [b"\0"]):
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("apiToken", args=args)
        cause = refused.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.type == "TokenMalformed"
    for query in ("apiToken", "apiTokenStatus", "apiUrl", "statefulState"):
        for args in (["a", "b", "c"], [7], [{"a": 1}]):
            [outcome] = await asyncio.gather(handle.query(query, args=args), return_exceptions=True)
            assert "first" not in str(outcome)

    await is_healthy(client, tokens, tree)
    accepted = await events_of(handle, "WORKFLOW_EXECUTION_UPDATE_ACCEPTED")
    assert len(accepted) == 1, "of all those updates only the rotation entered history"


async def forgeries(
    client: Client, tree: str, keyring: Keyring, stranger: Keyring
) -> dict[str, tuple[str, str]]:
    """Messages that must not be taken, with the reason to be counted for each."""
    genuine = parse(await sealed_at(client, tree))
    now = int(time.time() * 1000)
    newer = replace(genuine.claims, version=now)
    header, payload, signature = genuine.text.split(".")

    def with_header(**members: Any) -> str:
        changed = {**json.loads(decode(header)), **members}
        return f"{encode_base64url(json.dumps(changed).encode())}.{payload}.{signature}"

    def flipped(text: str, at: int) -> str:
        return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]

    def sealed_with(**claims: Any) -> str:
        return keyring.seal(replace(newer, **claims), "x")

    sealed = keyring.seal(newer, "x")
    head, body, sign = sealed.split(".")
    return {
        "unsigned": (f"{head}.{body}.", "TokenMalformed"),
        "alg none": (with_header(alg="none"), "TokenMalformed"),
        "HS256": (with_header(alg="HS256"), "TokenMalformed"),
        "EdDSA": (with_header(alg="EdDSA"), "TokenMalformed"),
        "b64 false": (with_header(b64=False, crit=["b64"]), "TokenMalformed"),
        "extra member": (with_header(jku="https://evil.example.net"), "TokenMalformed"),
        "wrong typ": (with_header(typ="JWT"), "TokenMalformed"),
        "kind changed": (with_header(typ="stateful-revocation+jws"), "TokenMalformed"),
        "huge header": (with_header(jku="x" * 20_000), "TokenMalformed"),
        "another body": (f"{head}.{sealed_with(types=[]).split('.')[1]}.{sign}", "TokenForged"),
        "signature changed": (f"{head}.{body}.{flipped(sign, 10)}", "TokenForged"),
        "known kid, stranger's signature": (
            ".".join([head, *stranger.seal(newer, "x").split(".")[1:]]),
            "TokenForged",
        ),
        "another tree": (sealed_with(tree="other"), "WrongTree"),
        "another root": (sealed_with(root="other"), "WrongTree"),
        "an authority below": (sealed_with(authority=f"{tree}-a"), "WrongAuthority"),
        "older": (sealed_with(version=genuine.claims.version - 1), "TokenStale"),
        "far future": (sealed_with(version=now + 3_600_000), "TokenMalformed"),
    }


def decode(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


async def test_forged_and_misplaced_messages_are_counted_by_reason_and_change_nothing(
    client: Client, tokens: TokenClient, keyring: Keyring, tree: str
) -> None:
    stranger = Keyring.generate()
    expected: dict[str, int] = {}
    for text, reason in (await forgeries(client, tree, keyring, stranger)).values():
        expected[reason] = expected.get(reason, 0) + 1
        await client.get_workflow_handle(tree).signal("apiToken", text)

    status = await status_of(client, tree)
    assert status["rejections"]["counts"] == expected
    assert len(status["rejections"]["last"]) == sum(expected.values())
    await is_healthy(client, tokens, tree)


async def test_an_update_by_a_stranger_waits_for_its_issuer_and_the_rotation_goes_on(
    client: Client, tokens: TokenClient, tree: str
) -> None:
    stranger = Keyring.generate()
    genuine = parse(await sealed_at(client, tree))
    newer = replace(genuine.claims, version=int(time.time() * 1000))

    await client.get_workflow_handle(tree).signal("apiToken", stranger.seal(newer, "x"))

    status = await status_of(client, tree)
    assert [waiting["issuer"] for waiting in status["waiting"]] == [
        parse(stranger.seal(newer, "x")).issuer
    ]
    await is_healthy(client, tokens, tree)


async def test_a_flood_of_garbage_does_not_displace_the_genuine_message(
    client: Client, tokens: TokenClient, keyring: Keyring, tree: str
) -> None:
    genuine = parse(await sealed_at(client, tree))
    high = replace(genuine.claims, version=int(time.time() * 1000) + 60_000)
    stranger = Keyring.generate()
    known_head = genuine.text.split(".")[0]
    handle = client.get_workflow_handle(tree)

    for n in range(700):
        body = stranger.seal(replace(high, version=high.version + n), "x").split(".", 1)[1]
        await handle.signal("apiToken", f"{known_head}.{body}" if n % 2 else "garbage")

    await is_healthy(client, tokens, tree)
    rejections = (await status_of(client, tree))["rejections"]
    assert sum(rejections["counts"].values()) == 700
    assert len(rejections["last"]) == 20


async def test_a_token_of_an_earlier_tree_with_the_same_workflow_id_is_refused(
    client: Client, tokens: TokenClient, queue: str, tree: str
) -> None:
    captured = await sealed_at(client, tree)
    await client.get_workflow_handle(tree).terminate()
    await client.get_workflow_handle(f"{tree}-a").terminate()
    await tokens.start_workflow(
        Node.run, Plan(), id=queue, task_queue=queue, api_token="new tree", api_url=URL
    )

    await client.get_workflow_handle(queue).signal("apiToken", captured)

    assert (await tokens.get(queue)).reveal() == "new tree"
    assert (await status_of(client, queue))["rejections"]["counts"] == {"WrongTree": 1}


def test_the_claims_of_these_tests_are_well_formed() -> None:
    claims = Claims("apiToken", "default", "r", "t", "r", 1, origins=(URL,))
    assert parse(Keyring.generate().seal(claims, "x")).claims == claims
