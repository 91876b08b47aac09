"""What a user's program may write; pyright and mypy accept each line, and nothing is run."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import requests
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker
from typing_extensions import assert_type

from stateful_workflow import (
    ApiToken,
    AsyncOriginTransport,
    Keyring,
    NewToken,
    NotConverged,
    OriginTransport,
    SealedToken,
    StatefulPlugin,
    StatefulWorkflow,
    TokenAuth,
    TokenClient,
    TokenProvider,
    TokenState,
    TokenStatus,
    TokenTree,
    TokenUnavailable,
    TreeNode,
    current_api_url,
    current_token,
    seal_token,
)
from stateful_workflow.aiohttp import TokenMiddleware
from stateful_workflow.audit import (
    AuditEvent,
    AuditFile,
    Finding,
    RecordedEvent,
    Verified,
    read,
    review,
    verify,
)
from stateful_workflow.engine import start_engine
from stateful_workflow.requests import TokenAdapter


@activity.defn
async def pull(url: str) -> int:
    async with httpx.AsyncClient(auth=TokenAuth()) as http:
        return (await http.get(url)).status_code


@activity.defn
def pull_in_a_thread(url: str) -> int:
    token = current_token("billing")
    assert_type(token, ApiToken)
    assert_type(token.origins, tuple[str, ...])
    assert_type(token.expires_at, int | None)
    assert_type(current_api_url(), str | None)
    assert_type(current_api_url("billing"), str | None)
    transport = OriginTransport(httpx.HTTPTransport(), header="X-API-Key", name="billing")
    with httpx.Client(transport=transport) as http:
        return http.get(url, headers={"X-Token": token.reveal()}).status_code


def is_refusal(response: httpx.Response) -> bool:
    return response.status_code in (401, 403)


async def is_refusal_of_aiohttp(response: aiohttp.ClientResponse) -> bool:
    return "expired" in await response.text()


@activity.defn
async def pull_otherwise(url: str) -> int:
    basic = TokenAuth(scheme="Basic", username="admin", refused=is_refusal, wait_for_newer=10)
    bridged = TokenAuth(fallback=lambda: "x", origins=[url], wait_for_newer=timedelta(seconds=1))
    async with httpx.AsyncClient(auth=basic) as http:
        await http.get(url, auth=bridged)
    late = TokenMiddleware("billing", refused=is_refusal_of_aiohttp, wait_for_newer=10)
    async with aiohttp.ClientSession(middlewares=[late]) as session, session.get(url) as answer:
        assert_type(await TokenProvider(url).call_async(), str)
        return answer.status


@activity.defn
def pull_with_requests(url: str) -> int:
    session = requests.Session()
    session.mount(url, TokenAdapter(header="X-API-Key", refused=lambda answer: not answer.ok))
    assert_type(TokenProvider(url)(), str)
    assert_type(current_token().for_url(url), str)
    return session.get(url).status_code


@activity.defn
async def renew(secret: str) -> SealedToken:
    httpx.AsyncClient(transport=AsyncOriginTransport(httpx.AsyncHTTPTransport()))
    return seal_token(secret, origins=["https://api.example.com"], expires_in=timedelta(hours=1))


@workflow.defn
class Sync(StatefulWorkflow, api_url="https://api.example.com"):
    @workflow.run
    async def run(self, url: str) -> int:
        return await workflow.execute_activity(
            pull, url, start_to_close_timeout=timedelta(seconds=30)
        )


@workflow.defn
class Tenant(StatefulWorkflow, share=("Sync",), withhold=("Cleanup",)):
    @workflow.run
    async def run(self) -> None:
        with self.withholding():
            await workflow.start_child_workflow(Sync.run, "/public", id="public")
        child = await workflow.start_child_workflow(Sync.run, "/orders", id="orders")
        self.withhold(child.id, name="billing")
        self.share(child.id)
        assert_type(self.api_url, str | None)
        self.api_url = "https://eu.example.com"
        assert_type(self.token_status("billing"), TokenStatus | None)
        status = self.api_token_status
        state: TokenState = "none" if status is None else status.state
        if state == "expired":
            sealed = await workflow.execute_activity(
                renew, "a handle", start_to_close_timeout=timedelta(seconds=30)
            )
            await self.set_api_token(sealed)
            assert_type(await self.set_api_token(sealed, converged=True, timeout=5), TokenStatus)
        assert_type(await self.token_held(timedelta(minutes=1), name="billing"), TokenStatus)


async def work(client: Client) -> None:
    plugin = StatefulPlugin(
        Keyring.load(),
        audit=AuditFile(Path("audit.jsonl")),
        audit_failure="block",
        max_signals_per_second=200,
    )
    connected = await Client.connect("localhost:7233", plugins=[plugin])
    await Worker(
        connected, task_queue="tenants", workflows=[Tenant, Sync], activities=[pull, renew]
    ).run()


async def administer(client: Client) -> None:
    tokens = TokenClient(client, Keyring.load("keyring.json"))
    tenant = await tokens.start_workflow(
        Tenant.run,
        id="tenant",
        task_queue="tenants",
        api_token="secret",
        api_url="https://api.example.com",
    )
    assert_type(tenant, WorkflowHandle[Tenant, None])
    sync = await tokens.start_workflow(Sync.run, "/orders", id="sync", task_queue="tenants")
    assert_type(await sync.result(), int)
    await tokens.start_workflow(
        Tenant.run,
        id="several",
        task_queue="tenants",
        api_tokens={"apiToken": "secret", "billing": NewToken("other", types=["Sync"])},
        api_url="https://api.example.com",
    )
    await tokens.set_api_url("sync", "https://eu.example.com")
    assert_type(await tokens.set("tenant", "secret", types="any", readers=["eu"]), TokenStatus)
    try:
        tree = await tokens.rotate("tenant", "next", timeout=timedelta(minutes=1), expires_in=3600)
        assert_type(tree, TokenTree)
    except NotConverged as error:
        assert_type(error.tree.behind, tuple[TreeNode, ...])
    assert_type(await tokens.status("tenant"), TokenStatus | None)
    assert_type(await tokens.revoke("tenant", "billing"), TokenStatus)
    assert_type(await tokens.inherit("tenant", "billing"), TokenStatus)
    assert_type(await tokens.reseal("tenant"), TokenStatus)
    with suppress(TokenUnavailable):
        assert_type((await tokens.get("tenant")).reveal(), str)


async def start_in_other_ways(tokens: TokenClient) -> None:
    later = await tokens.start_workflow(
        Sync.run, "/", id="i", task_queue="q", start_delay=timedelta(minutes=1)
    )
    assert_type(later, WorkflowHandle[Sync, int])
    several = await tokens.start_workflow(Sync.run, args=["/"], id="i", task_queue="q")
    assert_type(several, WorkflowHandle[Any, int])
    by_name = await tokens.start_workflow(
        "Sync", "/", id="i", task_queue="q", origins=["https://a"]
    )
    assert_type(by_name, WorkflowHandle[Any, Any])


async def what_is_an_error(tokens: TokenClient) -> None:
    await tokens.start_workflow(Sync.run, 7, id="i", task_queue="q")  # type: ignore[misc] # pyright: ignore[reportCallIssue, reportArgumentType]
    await tokens.start_workflow(Tenant.run, id="i", task_queue="q", api_tokn="t")  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    await tokens.set("tenant", "next", orgins=["https://a"])  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    seal_token("next", orgins=["https://a"])  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await tokens.rotate("tenant", "next")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


class OwnSink:
    def __init__(self) -> None:
        self.attributes: list[Mapping[str, Any]] = []

    def record(self, event: AuditEvent) -> None:
        self.attributes.append(event.attributes())


async def look_at_records() -> None:
    StatefulPlugin(audit=OwnSink())
    assert_type(verify("audit.jsonl"), Verified)
    recorded = list(read("audit.jsonl"))
    assert_type(recorded, list[RecordedEvent])
    assert_type(review(recorded), list[Finding])


async def on_a_laptop() -> None:
    async with start_engine() as engine:
        await Client.connect(engine.address)
