"""The demo's parts that need no engine: the search it trusts, and the API it is measured by."""

from __future__ import annotations

import base64
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from stateful_workflow.demo.api import TokenApi
from stateful_workflow.demo.provider import CLIENT_ID, AuthorizationServer
from stateful_workflow.demo.report import Report
from stateful_workflow.demo.search import forms, occurrences

NEEDLE = b"sk-live_4f/9+xyzzy-plugh"


def database(path: Path, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (value)")
        connection.executemany("INSERT INTO t VALUES (?)", [(value,) for value in values])


@pytest.mark.parametrize("before", range(7))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_needle_is_found_inside_base64_at_every_alignment(
    before: int, encode: Callable[[bytes], bytes]
) -> None:
    for after in range(4):
        text = encode(b"\xff" * before + NEEDLE + b"\xff" * after)
        assert any(form in text for form in forms(NEEDLE))
        assert NEEDLE not in text


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    database(tmp_path / "db", NEEDLE[:-1], base64.b64encode(NEEDLE[:-2]))
    assert occurrences(tmp_path / "db", [NEEDLE]) == {NEEDLE: 0}


@pytest.mark.parametrize("value", [b"x" + NEEDLE, NEEDLE.decode(), base64.b64encode(NEEDLE)])
def test_blobs_text_and_base64_in_a_table_are_found(tmp_path: Path, value: object) -> None:
    database(tmp_path / "db", value)
    found = occurrences(tmp_path / "db", [NEEDLE, b"absent"])
    assert found[NEEDLE] > 0
    assert found[b"absent"] == 0


def test_a_value_spread_over_pages_is_searched_whole(tmp_path: Path) -> None:
    # Long enough that one of them lies across two pages, wherever pages end.
    database(tmp_path / "db", NEEDLE * 1000)
    on_disk = (tmp_path / "db").read_bytes().count(NEEDLE)
    assert on_disk < 1000
    assert occurrences(tmp_path / "db", [NEEDLE]) == {NEEDLE: on_disk + 1000}


def test_what_was_deleted_is_found_while_its_bytes_are_there(tmp_path: Path) -> None:
    database(tmp_path / "db", NEEDLE)
    with closing(sqlite3.connect(tmp_path / "db")) as connection, connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("DELETE FROM t")
    assert occurrences(tmp_path / "db", [NEEDLE])[NEEDLE] == 1


@pytest.mark.parametrize("mode", ["wal", "persist"])
def test_the_log_beside_the_file_is_searched(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        for change in ("CREATE TABLE t (value)", "INSERT INTO t VALUES (?)", "DELETE FROM t"):
            connection.execute(change, [NEEDLE] * change.count("?"))
            connection.commit()
        assert NEEDLE in (tmp_path / f"db-{mode.replace('persist', 'journal')}").read_bytes()
        assert occurrences(path, [NEEDLE])[NEEDLE] >= 1


async def test_the_api_takes_what_it_issued_until_it_is_revoked() -> None:
    api = TokenApi()
    transport = httpx.ASGITransport(api.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1") as http:

        async def answered(token: str | None) -> int:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            return (await http.get("/accounts/a/items", headers=headers)).status_code

        first, second = api.issue(), api.issue()
        assert [await answered(token) for token in (None, "made up", first)] == [401, 401, 200]
        api.revoked.add(first)
        assert [await answered(first), await answered(second)] == [401, 200]
        assert await answered(api.issue(expires=time.time())) == 401
    assert api.log == [(None, 401), (None, 401), (1, 200), (1, 401), (2, 200), (3, 401)]


class Client:
    """The one client of an authorization server."""

    def __init__(self, server: AuthorizationServer) -> None:
        self.server = server

    async def post(self, path: str, secret: str | None = None, **form: str) -> tuple[int, Any]:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(self.server.app()),
            base_url="http://127.0.0.1:1",
            auth=(CLIENT_ID, secret or self.server.client_secret),
        ) as http:
            answer = await http.post(path, data=form)
        return answer.status_code, answer.json()

    async def refresh(self, refresh: str) -> tuple[int, Any]:
        return await self.post("/token", grant_type="refresh_token", refresh_token=refresh)

    async def is_active(self, token: str) -> bool:
        return (await self.post("/introspect", token=token))[1]["active"]


async def test_a_refresh_token_is_good_once_and_gives_the_next_one() -> None:
    server = AuthorizationServer(TokenApi(), lives=5)
    client, first = Client(server), server.consent()
    status, answer = await client.refresh(first)
    assert (status, answer["expires_in"], server.exchanges) == (200, 5, 1)
    assert await client.is_active(answer["access_token"])
    assert (await client.refresh(answer["refresh_token"]))[0] == 200
    assert await client.is_active(answer["access_token"])
    assert len({server.client_secret, first, *server.secrets}) == 4


async def test_a_refresh_token_that_comes_again_ends_the_grant_and_no_other() -> None:
    server = AuthorizationServer(TokenApi(), lives=5)
    client, first, other = Client(server), server.consent(), server.consent()
    _, answer = await client.refresh(first)
    refused = (400, {"error": "invalid_grant"})
    assert await client.refresh(first) == refused
    assert await client.refresh(answer["refresh_token"]) == refused
    assert not await client.is_active(answer["access_token"])
    assert (await client.refresh(other))[0] == 200
    assert server.exchanges == 2


async def test_its_client_revokes_a_token_which_the_api_then_refuses() -> None:
    server = AuthorizationServer(TokenApi(), lives=5)
    client = Client(server)
    token = (await client.refresh(server.consent()))[1]["access_token"]
    assert server.api.is_good(token)
    assert await client.post("/revoke", token=token) == (200, {})
    assert await client.post("/revoke", token="made up") == (200, {})  # RFC 7009 section 2.2
    assert (server.api.is_good(token), await client.is_active(token)) == (False, False)
    assert server.retired == [token]


async def test_it_answers_nobody_else_and_no_other_grant() -> None:
    server = AuthorizationServer(TokenApi(), lives=5)
    client, refresh = Client(server), server.consent()
    for path in ("/token", "/revoke", "/introspect"):
        stranger = await client.post(path, "guessed", refresh_token=refresh, token=refresh)
        assert stranger == (401, {"error": "invalid_client"})
    answer = await client.post("/token", grant_type="password")
    assert answer == (400, {"error": "unsupported_grant_type"})
    assert await client.refresh("made up") == (400, {"error": "invalid_grant"})
    assert server.exchanges == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"failed_activities": 1},
        {"withheld_nodes_with_token": 1},
        {"token_occurrences_in_engine": 1},
        {"api_calls_by_version": {"v1": 1, "v2": 1, "v3": 1}},
        {"audit_verified": False},
        {"exchanges_at_provider": 6},
        {"refreshes": 4, "exchanges_at_provider": 4},
        {"reports_of_401": 0},
        {"reports_of_401": 2},
        {"retired_and_refused": 0},
        {"audit_api_uses": 3},
    ],
)
def test_a_report_is_good_only_with_every_zero_every_version_and_one_exchange_a_token(
    bad: dict[str, Any],
) -> None:
    good = Report(
        nodes=36,
        rotations=3,
        convergence_ms=[1.0, 2.0, 3.0],
        api_calls=4,
        api_calls_by_version={"v1": 1, "v2": 1, "v3": 1, "v4": 1},
        unauthorized_responses=2,
        refreshes=5,
        exchanges_at_provider=5,
        reports_of_401=1,
        retired_and_refused=1,
        failed_activities=0,
        withheld_nodes_with_token=0,
        token_occurrences_in_engine=0,
        audit_events=9,
        audit_verified=True,
        audit_api_uses=4,
        web_ui=None,
    )
    assert good.is_good
    assert not replace(good, **bad).is_good
