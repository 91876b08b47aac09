"""A foreign worker schedules an issuer's activity with a header of its own making.

The activity does what many do: `return seal_token(secret)`. What it seals has to be what the
issuer's own keyring and the server vouch for, whatever the header says.
"""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any, cast

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import (
    Interceptor,
    StartActivityInput,
    Worker,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import Keyring
    from stateful_workflow.node.contract import USE_HEADER
    from stateful_workflow.node.headers import Use
    from stateful_workflow.sealed.message import Claims

from tests.support.asking import start_worker
from tests.support.workflows import fetch_and_seal

EVIL = "https://evil.example.com"


@workflow.defn
class Hostile:
    """Has the issuer's workers seal a token for it; its header is what it was started with."""

    @workflow.run
    async def run(self, use: dict[str, Any], queue: str) -> str:
        self.use = use
        sealed: str = await workflow.execute_activity(
            fetch_and_seal,
            args=["secret-of-a-customer", None],
            task_queue=queue,
            start_to_close_timeout=timedelta(seconds=20),
            retry_policy=RetryPolicy(maximum_attempts=1),
        )
        return sealed


class Forges(Interceptor):
    def workflow_interceptor_class(
        self, input: WorkflowInterceptorClassInput
    ) -> type[WorkflowInboundInterceptor]:
        return _Inbound


class _Inbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_Outbound(outbound))


class _Outbound(WorkflowOutboundInterceptor):
    def start_activity(self, input: StartActivityInput) -> workflow.ActivityHandle[Any]:
        # No isinstance: the sandbox has a class of its own.
        header = Use(**cast("Hostile", workflow.instance()).use).to_payload()
        input.headers = {**input.headers, USE_HEADER: header}
        return super().start_activity(input)


def forged(root: str, **changes: Any) -> dict[str, Any]:
    use = Use(root=root, tree="t" * 32, api_url=EVIL, tokens={}, own={}, last={})
    return {**dataclasses.asdict(use), **changes}


def strangers_token(root: str, namespace: str) -> str:
    claims = Claims("apiToken", namespace, root, "t" * 32, root, 1, origins=(EVIL,))
    return Keyring.generate().seal(claims, "x")


@pytest.mark.parametrize(
    "said", ["an address", "a token", "a token that was revoked", "a root", "another tree's token"]
)
async def test_nothing_of_a_forged_header_is_sealed(
    client: Client, outsider: Client, keyring: Keyring, queue: str, said: str
) -> None:
    token = strangers_token(queue, client.namespace)
    of_another = Claims(
        "apiToken", client.namespace, "acme", "t" * 32, "acme", 1, origins=("https://a.example",)
    )
    genuine = keyring.seal(of_another, "x")
    use = {
        "another tree's token": forged(
            "acme", tokens={"apiToken": {"state": "held", "sealed": genuine}}
        ),
        "an address": forged(queue),
        "a token": forged(queue, tokens={"apiToken": {"state": "held", "sealed": token}}),
        "a token that was revoked": forged(queue, last={"apiToken": token}),
        "a root": forged("tenant-of-another"),
    }[said]
    foreign = Worker(
        outsider, task_queue=f"{queue}-foreign", workflows=[Hostile], interceptors=[Forges()]
    )
    async with start_worker(client, queue), foreign:
        with pytest.raises(WorkflowFailureError) as failed:
            await outsider.execute_workflow(
                Hostile.run, args=[use, queue], id=queue, task_queue=f"{queue}-foreign"
            )
    cause = failed.value.cause
    assert isinstance(cause, ActivityError)
    assert isinstance(cause.cause, ApplicationError)
    is_elsewhere = said in ("a root", "another tree's token")
    assert cause.cause.type == ("WrongTree" if is_elsewhere else "OriginsMissing")
