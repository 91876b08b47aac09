"""One activity's tokens, without a server."""

from __future__ import annotations

import time

import httpx
import pytest
from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from stateful_workflow import (
    AsyncOriginTransport,
    NewestUnknown,
    OriginTransport,
    PluginMissing,
    current_api_url,
    current_token,
    seal_token,
)
from stateful_workflow.node.headers import Use
from stateful_workflow.sealed.message import DEFAULT_NAME
from stateful_workflow.use.newest import Newest
from stateful_workflow.use.telling import Asking
from stateful_workflow.use.tokens import ActivityTokens, running
from tests.support.builders import CLAIMS, ROOT, TOKEN, TREE, keyring, unrecorded

URL = "https://api.example.com/x"


def holding(sealed: str | None) -> ActivityTokens:
    holds = {DEFAULT_NAME: {"state": "held", "sealed": sealed}}
    use = Use(ROOT, TREE, None, holds, own={}, last={})
    return ActivityTokens(Newest(use, None, time.monotonic()), keyring, unrecorded())


def test_a_token_that_is_held_and_did_not_come_along_is_not_said_to_be_unset() -> None:
    def open_token() -> None:
        with running(holding(None)):
            current_token()

    with pytest.raises(NewestUnknown):
        ActivityEnvironment().run(open_token)


async def test_what_the_event_loop_cannot_ask_for_is_given_and_said_to_be_old(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def nobody() -> Client:
        raise RuntimeError("nobody answers")

    holds = {DEFAULT_NAME: {"state": "held", "sealed": str(keyring().seal(CLAIMS, TOKEN))}}
    use = Use(ROOT, TREE, None, holds, own={}, last={})

    async def open_token() -> str:
        long_ago = time.monotonic() - 60
        tokens = ActivityTokens(Newest(use, Asking(nobody), long_ago), keyring, unrecorded())
        with running(tokens):
            taken = [current_token().reveal() for _ in range(2)]
        tokens.newest.end()
        assert taken == [TOKEN, TOKEN]
        return taken[0]

    assert await ActivityEnvironment().run(open_token) == TOKEN
    assert caplog.text.count("use `await current_token_async()`") == 1


async def test_where_nothing_came_along_nothing_is_sealed_and_no_address_is_known() -> None:
    def seal() -> None:
        with running(ActivityTokens(Newest(None, None, time.monotonic()), keyring, unrecorded())):
            with pytest.raises(PluginMissing, match="schedule the activity anew"):
                seal_token("secret", origins=["https://api.example.com"])
            with pytest.raises(PluginMissing, match="schedule the activity anew"):
                current_api_url()

    ActivityEnvironment().run(seal)


async def test_the_request_of_a_transports_answer_is_the_callers_without_the_token() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["X-API-Key"])
        return httpx.Response(200)

    inner = httpx.MockTransport(answer)
    request = httpx.Request("GET", URL)
    sealed = str(keyring().seal(CLAIMS, TOKEN))

    def ask() -> httpx.Response:
        with running(holding(sealed)):
            return OriginTransport(inner).handle_request(request)

    async def ask_async() -> httpx.Response:
        with running(holding(sealed)):
            return await AsyncOriginTransport(inner).handle_async_request(request)

    answers = [ActivityEnvironment().run(ask), await ActivityEnvironment().run(ask_async)]

    assert seen == [TOKEN, TOKEN]
    assert all(one.request is request for one in answers)
    assert "X-API-Key" not in request.headers
