"""The demo's parts that need no engine: the search it trusts, and the API it is measured by."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from stateful_workflow.demo.api import TokenApi
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
    assert occurrences(tmp_path / "db", [NEEDLE, b"absent"]) == {NEEDLE: 1, b"absent": 0}


def test_a_value_spread_over_pages_is_searched_whole(tmp_path: Path) -> None:
    # Long enough that one of them lies across two pages, wherever pages end.
    database(tmp_path / "db", NEEDLE * 1000)
    on_disk = (tmp_path / "db").read_bytes().count(NEEDLE)
    assert on_disk < 1000
    assert occurrences(tmp_path / "db", [NEEDLE]) == {NEEDLE: 1000}


def test_what_was_deleted_is_found_while_its_bytes_are_there(tmp_path: Path) -> None:
    database(tmp_path / "db", NEEDLE)
    with closing(sqlite3.connect(tmp_path / "db")) as connection, connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("DELETE FROM t")
    assert occurrences(tmp_path / "db", [NEEDLE])[NEEDLE] == 1


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_the_log_beside_the_file_is_searched(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "db"
    with closing(sqlite3.connect(path)) as connection:
        mode = suffix.removeprefix("-").replace("journal", "persist")
        connection.execute(f"PRAGMA journal_mode = {mode}")
        database_open = connection.cursor()
        database_open.execute("CREATE TABLE t (value)")
        database_open.execute("INSERT INTO t VALUES (?)", (NEEDLE,))
        connection.commit()
        assert (tmp_path / f"db{suffix}").exists()
        assert occurrences(path, [NEEDLE])[NEEDLE] >= 1


async def test_the_api_issues_expires_and_revokes() -> None:
    now = [0.0]
    api = TokenApi(clock=lambda: now[0])
    transport = httpx.ASGITransport(api.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1") as http:

        async def items(token: str | None) -> int:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            return (await http.get("/accounts/a/items", headers=headers)).status_code

        async def issue(lifetime: float) -> str:
            owner = {"Authorization": f"Bearer {api.client_secret}"}
            answer = await http.post("/token", json={"expires_in": lifetime}, headers=owner)
            return str(answer.json()["access_token"])

        assert (await http.post("/token", json={"expires_in": 1})).status_code == 401
        assert (await http.post("/revoke", json={"token": "x"})).status_code == 401
        first, second = await issue(10), await issue(60)
        assert [await items(token) for token in (None, "made up", first, second)] == [
            401,
            401,
            200,
            200,
        ]
        now[0] = 10.0
        assert [await items(first), await items(second)] == [401, 200]
        owner = {"Authorization": f"Bearer {api.client_secret}"}
        await http.post("/revoke", json={"token": second}, headers=owner)
        assert await items(second) == 401
    assert [(call.serial, call.status) for call in api.log] == [
        (None, 401),
        (None, 401),
        (1, 200),
        (2, 200),
        (1, 401),
        (2, 200),
        (2, 401),
    ]
    assert api.client_secret not in repr(api)
    assert first not in repr(api)


@pytest.mark.parametrize(
    "bad",
    [
        {"failed_activities": 1},
        {"withheld_nodes_with_token": 1},
        {"token_occurrences_in_engine": 1},
        {"api_calls_by_version": {"1": 1, "2": 1, "3": 1}},
        {"audit_verified": False},
        {"audit_api_uses": 3},
    ],
)
def test_a_report_is_good_only_with_every_zero_and_every_version(bad: dict[str, object]) -> None:
    good: dict[str, object] = {
        "nodes": 36,
        "rotations": 3,
        "convergence_ms": [1.0, 2.0, 3.0],
        "api_calls": 4,
        "api_calls_by_version": {"1": 1, "2": 1, "3": 1, "4": 1},
        "unauthorized_responses": 2,
        "failed_activities": 0,
        "withheld_nodes_with_token": 0,
        "token_occurrences_in_engine": 0,
        "audit_events": 9,
        "audit_verified": True,
        "audit_api_uses": 4,
        "web_ui": None,
    }
    assert Report(**good).is_good  # pyright: ignore[reportArgumentType]
    assert not Report(**{**good, **bad}).is_good  # pyright: ignore[reportArgumentType]
