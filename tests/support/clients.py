"""One request by each HTTP client that this library serves, and one activity's tokens for it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import httpx
import requests
from temporalio.testing import ActivityEnvironment

from stateful_workflow import AsyncOriginTransport, OriginTransport, TokenAuth
from stateful_workflow.aiohttp import TokenMiddleware
from stateful_workflow.audit import AuditEvent
from stateful_workflow.node.headers import Use
from stateful_workflow.record.metrics import Metrics
from stateful_workflow.record.recorder import Recorder, SinkWriter
from stateful_workflow.requests import TokenAdapter
from stateful_workflow.sealed.message import DEFAULT_NAME
from stateful_workflow.use.newest import Newest
from stateful_workflow.use.tokens import ActivityTokens, running
from tests.support.builders import CLAIMS, ROOT, TOKEN, TREE, keyring

Maker = Callable[[], ActivityTokens]

SYNC = ["httpx", "requests"]
ASYNC = ["httpx.async", "aiohttp"]
CLIENTS = [*SYNC, *ASYNC]


@dataclass(frozen=True)
class Answer:
    """What a client gave back: a status with a body, or the error it raised, and who saw what.

    Attributes:
        shown: the headers that the answer, or the error, shows of its request.
    """

    status: int | None
    text: str
    shown: str = ""


@dataclass(frozen=True)
class Asking:
    """A request, by one of `CLIENTS`.

    Attributes:
        header: None for Authorization by httpx's auth; else by the transport of each client.
        body: as the client takes it; `files` as well.
        how: arguments of this library's classes.
    """

    client: str
    url: str
    name: str = DEFAULT_NAME
    header: str | None = None
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: Any = None
    files: dict[str, Any] | None = None
    follow: bool = True
    how: dict[str, Any] = field(default_factory=dict[str, Any])


def send(asking: Asking) -> Answer:
    """Send it by a synchronous client."""
    with ExitStack() as stack:
        if asking.client == "httpx":
            http = stack.enter_context(httpx.Client(**_of_httpx(asking, OriginTransport)))
            response = http.request(
                asking.method,
                asking.url,
                headers=asking.headers,
                content=asking.body,
                files=asking.files,
            )
            return Answer(response.status_code, response.text)
        session = stack.enter_context(requests.Session())
        header = {} if asking.header is None else {"header": asking.header}
        for scheme in ("http://", "https://"):
            session.mount(scheme, TokenAdapter(asking.name, **header, **asking.how))
        try:
            answer = session.request(
                asking.method,
                asking.url,
                headers=asking.headers,
                data=asking.body,
                files=asking.files,
                allow_redirects=asking.follow,
            )
        except requests.RequestException as error:
            shown = None if error.request is None else error.request.headers
            return Answer(None, type(error).__name__, str(shown))
        return Answer(answer.status_code, answer.text, str(answer.request.headers))


async def send_async(asking: Asking) -> Answer:
    """Send it by an asynchronous client."""
    async with AsyncExitStack() as stack:
        if asking.client == "httpx.async":
            options = _of_httpx(asking, AsyncOriginTransport)
            http = await stack.enter_async_context(httpx.AsyncClient(**options))
            response = await http.request(
                asking.method,
                asking.url,
                headers=asking.headers,
                content=asking.body,
                files=asking.files,
            )
            return Answer(response.status_code, response.text)
        header = {} if asking.header is None else {"header": asking.header}
        middleware = TokenMiddleware(asking.name, **header, **asking.how)
        # aiohttp makes its own context when it is imported.
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context())
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, middlewares=[middleware], trust_env=True)
        )
        try:
            answer = await stack.enter_async_context(
                session.request(
                    asking.method,
                    asking.url,
                    headers=asking.headers,
                    data=asking.files or asking.body,
                    allow_redirects=asking.follow,
                )
            )
            text = await answer.text()
        except aiohttp.ClientError as error:
            return Answer(None, type(error).__name__, repr(error))
        return Answer(answer.status, text, str(answer.request_info))


def _of_httpx(asking: Asking, transport: Any) -> dict[str, Any]:
    follow = {"follow_redirects": asking.follow}
    if asking.header is None:
        return {"auth": TokenAuth(asking.name, **asking.how), **follow}
    inner: Any = httpx.AsyncHTTPTransport()
    if transport is OriginTransport:
        inner = httpx.HTTPTransport()
    keyed = transport(inner, header=asking.header, name=asking.name, **asking.how)
    return {"transport": keyed, **follow}


# --- without a server ----------------------------------------------------------------------------


@dataclass
class Kept:
    """A sink that keeps what it is given."""

    is_local = True
    events: list[AuditEvent] = field(default_factory=list[AuditEvent])

    def record(self, event: AuditEvent) -> None:
        self.events.append(event)

    def said(self, action: str = "use") -> list[tuple[Any, ...]]:
        """Of each event of an action the name, origin, method, status, outcome and reason."""
        return [
            (one.name, one.origin, one.method, one.status, one.outcome, one.reason)
            for one in self.events
            if one.action == action
        ]


def holding(
    kept: Kept, origins: Iterable[str], secret: str = TOKEN
) -> Callable[[], ActivityTokens]:
    """Makes the tokens of an activity that was scheduled just now, and asks nobody."""
    sealed = str(keyring().seal(replace(CLAIMS, origins=tuple(origins)), secret))
    holds = {DEFAULT_NAME: {"state": "held", "sealed": sealed}}

    def tokens() -> ActivityTokens:
        use = Use(ROOT, TREE, None, holds, own={}, last={})
        recorder = Recorder(SinkWriter(kept), Metrics.of(None))
        return ActivityTokens(Newest(use, None, time.monotonic()), keyring, recorder)

    return tokens


async def in_activity(tokens: Maker, asking: Asking) -> Answer:
    """What an activity with these tokens gets."""

    def ask() -> Answer:
        with running(tokens()):
            return send(asking)

    async def ask_async() -> Answer:
        with running(tokens()):
            return await send_async(asking)

    if asking.client in SYNC:
        return await asyncio.to_thread(ActivityEnvironment().run, ask)
    run: Callable[[], Awaitable[Answer]] = ask_async
    return await ActivityEnvironment().run(run)
