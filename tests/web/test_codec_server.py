"""What the Web UI and the command line are shown of sealed messages, and what they never are."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadConverter

from stateful_workflow.cli.codec_server import BEARER_VARIABLE
from stateful_workflow.errors import StatefulError
from stateful_workflow.node.describe import details_line
from stateful_workflow.node.status import TokenStatus
from stateful_workflow.sealed.keyring import Keyring
from stateful_workflow.sealed.message import MAX_VERSION, Message, parse
from stateful_workflow.web.codec_server import MAX_REQUEST_BYTES, codec_app, serve_codec
from stateful_workflow.web.payloads import describe_message, describe_payload
from tests.support.builders import (
    CLAIMS,
    NOW,
    ROOT,
    TOKEN,
    TREE,
    header_of,
    issuer,
    jwe_of,
    jwks,
    keyring,
    keyring_of,
    marked,
    revocation,
    signed,
    token,
)

Process = subprocess.Popen[str]

UI = "https://temporal.example.com"
PUBLIC = keyring().public()
SEALED = token().text
FORGED = SEALED[:-8] + ("A" * 7 + "Q")
MESSAGES = [token(), token(by="theirs"), revocation(), revocation(inherit=True)]


def of_json(value: object) -> Payload:
    return Payload(metadata={"encoding": b"json/plain"}, data=json.dumps(value).encode())


def shown(value: object, keys: Keyring = PUBLIC) -> Any:
    return json.loads(describe_payload(of_json(value), keys).data)


# --- a payload -------------------------------------------------------------------------


def test_a_token_is_shown_as_its_claims() -> None:
    claims = replace(CLAIMS, expires_at=NOW // 1000 + 60, types=("Sync",), audiences=("default",))
    message = parse(keyring().seal(claims, TOKEN))

    assert shown(message.text) == {
        "kind": "token",
        "name": "apiToken",
        "verified": True,
        "fingerprint": message.fingerprint,
        "version": NOW,
        "time": "2027-01-15T08:00:00.000Z",
        "authority": ROOT,
        "root": ROOT,
        "tree": TREE,
        "namespace": "default",
        "issuer": issuer(),
        "origins": ["https://api.example.com"],
        "types": ["Sync"],
        "readers": ["default"],
        "reader_keys": list(message.readers),
        "expires": "2027-01-15T08:01:00Z",
    }


@pytest.mark.parametrize(
    ("message", "kind"),
    [(token(), "token"), (revocation(), "revocation"), (revocation(inherit=True), "inherit")],
)
def test_each_kind_is_named(message: Message, kind: str) -> None:
    assert shown(message.text)["kind"] == kind
    assert ("origins" in shown(message.text)) == (kind == "token")


def test_what_does_not_end_or_is_past_the_calendar_has_no_time() -> None:
    assert shown(SEALED)["expires"] is None
    late = parse(keyring().seal(replace(CLAIMS, expires_at=MAX_VERSION), TOKEN))
    assert shown(late.text)["expires"] is None
    assert shown(token(MAX_VERSION).text)["time"] is None


def limited() -> Keyring:
    (key, *_) = jwks(PUBLIC)
    return keyring_of(marked(key, origins=["https://elsewhere.example.com"]))


def revoked() -> Keyring:
    return keyring().revoke(issuer())


@pytest.mark.parametrize(
    ("text", "keys", "problem"),
    [
        (SEALED, lambda: Keyring(), "issuer unknown"),
        (token(by="theirs").text, lambda: PUBLIC, "issuer unknown"),
        (SEALED, revoked, "issuer revoked"),
        (FORGED, lambda: PUBLIC, "forged"),
        (SEALED, limited, "outside the issuer's limits"),
        (
            signed({**header_of(), "kid": issuer("theirs")}, jwe_of(token())),
            revoked,
            "issuer unknown",
        ),
    ],
    ids=["no keys", "of a stranger", "revoked", "forged", "limited", "under another's id"],
)
def test_what_is_not_genuine_says_so(text: str, keys: Callable[[], Keyring], problem: str) -> None:
    described = shown(text, keys())
    assert (described["verified"], described["problem"]) == (False, problem)
    assert described["authority"] == ROOT


def test_what_is_around_a_message_stays_as_it_was_written() -> None:
    around = '{ "a":1e400,"a":1.10 ,"b\\"":"\\"\\\\" ,\n"c": %s, "d":%s%s}'
    before = around % (f'"{SEALED}"', 10**30, "0" * 5000)
    payload = Payload(
        metadata={"encoding": b"json/plain", "more": b"\x00\xff"}, data=before.encode()
    )

    after = describe_payload(payload, PUBLIC)

    described = json.dumps(describe_message(token(), PUBLIC))
    assert after.data.decode() == around % (described, 10**30, "0" * 5000)
    assert after.metadata == payload.metadata
    assert payload.data.decode() == before


def test_a_message_written_with_escapes_is_found() -> None:
    escaped = "".join(f"\\u{ord(character):04x}" for character in SEALED)
    payload = Payload(metadata={"encoding": b"json/plain"}, data=f'"{escaped}"'.encode())
    assert json.loads(describe_payload(payload, PUBLIC).data)["kind"] == "token"


@pytest.mark.parametrize(
    "payload",
    [
        Payload(),
        Payload(data=f'"{SEALED}"'.encode()),
        Payload(metadata={"encoding": b"binary/encrypted"}, data=f'"{SEALED}"'.encode()),
        Payload(metadata={"encoding": b"json/plain"}, data=b"\xff"),
        Payload(metadata={"encoding": b"json/plain"}, data=f'"{SEALED}'.encode()),
        of_json({"token": "no.message.this", "list": [1, None, "ä"]}),
        PayloadConverter.default.to_payload(None),
    ],
)
def test_any_other_payload_is_the_same_object(payload: Payload) -> None:
    assert describe_payload(payload, PUBLIC) is payload


def replaced(value: Any) -> Any:
    """What `describe_payload` should make of JSON data, by the plain way."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {name: replaced(member) for name, member in members.items()}
    if isinstance(value, list):
        return [replaced(entry) for entry in cast("list[Any]", value)]
    if isinstance(value, str) and value in {message.text for message in MESSAGES}:
        return json.loads(json.dumps(describe_message(parse(value), PUBLIC)))
    return value


texts = st.text() | st.sampled_from([message.text for message in MESSAGES]) | st.just(f'"{SEALED}"')
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)


@given(value=values, ascii_only=st.booleans(), indent=st.none() | st.just(1))
def test_any_json_is_the_same_but_for_its_messages(
    value: Any, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    payload = Payload(
        metadata={"encoding": b"json/plain"}, data=text.encode(errors="surrogatepass")
    )
    try:
        payload.data.decode()
    except UnicodeDecodeError:
        assert describe_payload(payload, PUBLIC) is payload
        return
    assert json.loads(describe_payload(payload, PUBLIC).data) == replaced(value)


@given(
    data=st.binary() | st.lists(texts).map(lambda parts: '"'.join(parts).encode(errors="replace"))
)
@example(data=b'"' + b'\\"' * 100_000)
@example(data=b"[" * 100_000)
def test_no_data_raises(data: bytes) -> None:
    describe_payload(Payload(metadata={"encoding": b"json/plain"}, data=data), PUBLIC)


def test_private_halves_are_not_used() -> None:
    assert describe_message(token(), keyring()) == describe_message(token(), PUBLIC)


# --- the server ------------------------------------------------------------------------


async def ask(
    app: Starlette,
    body: bytes | object,
    *,
    at: str = "/decode",
    method: str = "POST",
    **headers: str,
) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return await http.request(method, at, content=content, headers=named)


@pytest.fixture
def app() -> Starlette:
    return codec_app(PUBLIC, ui_origins=[UI])


def as_json(*values: object) -> dict[str, Any]:
    """The body that the Web UI sends for these values."""
    encoding = base64.b64encode(b"json/plain").decode()
    return {
        "payloads": [
            {
                "metadata": {"encoding": encoding},
                "data": base64.b64encode(json.dumps(value).encode()).decode(),
            }
            for value in values
        ]
    }


def values_of(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    return [json.loads(base64.b64decode(p["data"])) for p in response.json()["payloads"]]


@pytest.mark.parametrize(
    "at", ["/decode", "/default/decode", "/a/b/decode?preserveStorageRefs=true"]
)
async def test_decode_shows_claims_at_any_depth_of_path(app: Starlette, at: str) -> None:
    answer = await ask(app, as_json({"a": 1}, [SEALED]), at=at)

    described = json.loads(json.dumps(describe_message(token(), PUBLIC)))
    assert values_of(answer) == [{"a": 1}, [described]]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"


async def test_neither_secret_nor_sealed_text_is_in_the_answer(app: Starlette) -> None:
    sealed = [message.text for message in MESSAGES]
    answer = await ask(app, as_json(SEALED, {"held": [*sealed, FORGED]}))

    data = b"".join(json.dumps(value).encode() for value in values_of(answer)) + answer.content
    for secret in (TOKEN, *sealed, FORGED):
        assert secret.encode() not in data
        for start in range(3):  # as it would look in base64
            inner = base64.b64encode(b"\0" * start + secret.encode())[4:-4]
            assert inner not in data
    for segment in (part for text in (*sealed, FORGED) for part in text.split(".")[1:]):
        assert segment.encode() not in data


@pytest.mark.parametrize(
    "body",
    [
        b'{"payloads" : [ {"metadata":{"encoding":"anNvbi9wbGFpbg"},"data":"MS4xMA"} ],"x":1.10}',
        b'{"payloads":[{"metadata":{"encoding":"YmluYXJ5L251bGw="}, "later": {"\\ud800": 1}}]}',
        b'{"payloads":[{"metadata":{"encoding":"YmluYXJ5L2VuY3J5cHRlZA=="},"data":"-_8"}]}',
        b'{"payloads":null}',
    ],
)
@pytest.mark.parametrize("at", ["/decode", "/encode"])
async def test_payloads_without_a_message_come_back_byte_for_byte(
    app: Starlette, body: bytes, at: str
) -> None:
    answer = await ask(app, body, at=at)
    assert (answer.status_code, answer.content) == (200, body)


async def test_payloads_beside_one_with_a_message_are_unchanged(app: Starlette) -> None:
    body = as_json(SEALED, {"a": [1]})
    body["payloads"][1] |= {"externalPayloads": [{"sizeBytes": "1"}], "odd": "\ud800"}
    answer = await ask(app, body)
    assert answer.json()["payloads"][1] == body["payloads"][1]


async def test_encode_hands_a_sealed_message_back(app: Starlette) -> None:
    assert values_of(await ask(app, as_json(SEALED), at="/encode")) == [SEALED]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"payloads":[1]}',
        b'{"payloads":[{},{"metadata":[1]}]}',
        b'{"payloads":[{"metadata":"\\ud800"}]}',
        b'{"payloads":[{"metadata":{"encoding":1}}]}',
        b'{"payloads":[{"data":1}]}',
        b'{"payloads":[{"data":"a"}]}',
        b'{"payloads":' + b"[" * 200_000,
    ],
    ids=range(10),
)
async def test_what_is_malformed_is_told_as_json(app: Starlette, body: bytes) -> None:
    answer = await ask(app, body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("not payloads as JSON")


@settings(deadline=None)
@given(
    body=st.binary()
    | values.map(lambda value: json.dumps({"payloads": value}).encode())
    | st.lists(st.dictionaries(st.sampled_from(["metadata", "data", "x"]), values)).map(
        lambda payloads: json.dumps({"payloads": payloads}).encode()
    ),
    at=st.sampled_from(["/decode", "/encode", "/decode/", "/", "/x/encode"]),
    method=st.sampled_from(["POST", "GET", "OPTIONS"]),
)
async def test_no_request_is_an_error_of_the_servers_own(body: bytes, at: str, method: str) -> None:
    answer = await ask(codec_app(PUBLIC, ui_origins=[UI]), body, at=at, method=method)
    assert answer.status_code < 500
    if answer.status_code >= 400:
        assert set(answer.json()) == {"error"}


async def test_a_request_of_any_size_is_bounded(app: Starlette) -> None:
    answer = await ask(app, b" " * (MAX_REQUEST_BYTES + 1))
    assert answer.status_code == 413
    assert f"at most {MAX_REQUEST_BYTES}" in answer.json()["error"]


async def test_deep_data_is_answered(app: Starlette) -> None:
    body = as_json("here")
    deep = "[" * 100_000 + f'"{SEALED}"' + "]" * 100_000
    body["payloads"][0]["data"] = base64.b64encode(deep.encode()).decode()
    answer = await ask(app, body)
    data = base64.b64decode(answer.json()["payloads"][0]["data"])
    assert data.startswith(b"[" * 100_000 + b'{"kind": "token"')


# --- the Web UI's browser ----------------------------------------------------------------


async def test_a_preflight_as_the_web_ui_sends_it(app: Starlette) -> None:
    answer = await ask(
        app,
        b"",
        at="/decode?preserveStorageRefs=true",
        method="OPTIONS",
        Origin=UI,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization,authorization-extras,content-type,x-namespace",
        Access_Control_Request_Private_Network="true",
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == UI
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "POST" in answer.headers["access-control-allow-methods"]


async def test_only_the_named_pages_may_read_the_answer(app: Starlette) -> None:
    ours = await ask(app, as_json(1), Origin=UI, X_Namespace="default")
    theirs = await ask(app, as_json(1), Origin="https://evil.example.com")
    assert ours.headers["access-control-allow-origin"] == UI
    assert "access-control-allow-origin" not in theirs.headers


async def test_a_page_may_read_why_it_was_refused() -> None:
    app = codec_app(PUBLIC, ui_origins=[UI], bearer="s3cret")
    answer = await ask(app, b"garbage", Origin=UI)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json() == {"error": "a bearer secret is needed"}
    assert answer.headers["access-control-allow-origin"] == UI


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("http://LOCALHOST:8233/", "http://localhost:8233"),
        ("https://temporal.example.com:443", "https://temporal.example.com"),
        ("http://[::1]:8233", "http://[::1]:8233"),
    ],
)
async def test_an_origin_is_compared_as_the_browser_writes_it(given: str, written: str) -> None:
    answer = await ask(codec_app(PUBLIC, ui_origins=[given]), as_json(1), Origin=written)
    assert answer.headers["access-control-allow-origin"] == written


@pytest.mark.parametrize(
    "origin",
    ["*", "https://*.example.com", "temporal.example.com", "https://a/b", "https://u@a", "ftp://a"],
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        codec_app(PUBLIC, ui_origins=[origin])


# --- the host it is asked under --------------------------------------------------------------


OURS = ("localhost", "localhost:8234", "LocalHost:1", "127.0.0.1", "127.0.0.1:80", "[::1]:8234")
THEIRS = (
    *("", "evil.example.com", "evil.example.com:8234", "localhost.evil.example.com"),
    *("evil.localhost", "localhost:8234.evil.example.com", "localhost:80@evil.example.com"),
    *("127.0.0.1.evil.example.com:8234", "[::1", "::1", "0.0.0.0"),
)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (None, OURS),
        ("Codec.example.com", ("codec.example.com", "CODEC.example.com:443", *OURS)),
        ("10.0.0.5", ("10.0.0.5:8234",)),
        ("fd00::5", ("[fd00::5]:8234",)),
        ("[FD00::5]", ("[fd00::5]",)),
    ],
)
async def test_it_answers_under_the_names_of_this_machine_and_those_given_and_no_other(
    given: str | None, asked: tuple[str, ...]
) -> None:
    app = codec_app(PUBLIC, ui_origins=[UI], host_names=[] if given is None else [given])
    for host in asked:
        assert (await ask(app, as_json(SEALED), Host=host)).status_code == 200
    for host in THEIRS:
        for at in ("/decode", "/encode", "/default/decode"):
            answer = await ask(app, as_json(SEALED), at=at, Host=host, X_Forwarded_Host="localhost")
            assert answer.status_code == 421
            assert "--host-name" in answer.json()["error"]


@pytest.mark.parametrize(
    "name", ["", "*", "*.example.com", "https://a", "a:8234", "a/b", "u@a", "bücher.example", "[x]"]
)
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        codec_app(PUBLIC, ui_origins=[UI], host_names=[name])


# --- slow clients, and many of them --------------------------------------------------------------

HEAD = b"POST /decode HTTP/1.1\r\nHost: localhost\r\n"
WHOLE = HEAD + b"Content-Length: 2\r\n\r\n{}"

SLOW: dict[str, tuple[bytes, bytes]] = {
    "silence": (b"", b""),
    "half a head": (HEAD, b""),
    "a head that trickles": (HEAD + b"X-Long: ", b"x"),
    "a body that trickles": (HEAD + b"Content-Length: 1000000\r\n\r\n{", b" "),
    "chunks that trickle": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a second request that trickles": (WHOLE + HEAD + b"X-Long: ", b"x"),
    "no second request": (WHOLE, b""),
    "a refused body that trickles": (
        b"POST /decode HTTP/1.1\r\nHost: evil\r\nContent-Length: 1000000\r\n\r\n",
        b" ",
    ),
}


def connected(endpoint: str) -> socket.socket:
    host, port = endpoint.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(0.01)
    return connection


def ended(connection: socket.socket, trickle: bytes = b"") -> None:
    """Send a little at a time, and read what comes, until the server ends the connection."""
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        try:
            connection.sendall(trickle)
            if not connection.recv(65536):
                return
        except TimeoutError:
            continue
        except OSError:
            return
    pytest.fail("the connection was never ended")


async def served_again(endpoint: str) -> None:
    """Ask until an answer comes."""
    give_up = time.monotonic() + 20
    async with httpx.AsyncClient(trust_env=False) as http:
        while True:
            try:
                answer = await http.post(f"{endpoint}/decode", json=as_json(SEALED))
            except httpx.TransportError:
                assert time.monotonic() < give_up, "no request was answered"
                await asyncio.sleep(0.02)
            else:
                assert values_of(answer)[0]["verified"]
                return


@pytest.mark.parametrize(("first", "trickle"), SLOW.values(), ids=SLOW)
async def test_a_client_that_takes_too_long_is_cut_off(
    app: Starlette, first: bytes, trickle: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_codec(app, max_seconds=0.3) as endpoint:
        with connected(endpoint) as connection:
            connection.sendall(first)
            await asyncio.to_thread(ended, connection, trickle)
        await served_again(endpoint)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_client_that_does_not_read_its_answer_is_cut_off(app: Starlette) -> None:
    body = json.dumps(as_json("a" * 5_000_000)).encode()
    head = HEAD.replace(b"decode", b"encode") + b"Content-Length: %d\r\n\r\n" % len(body)
    async with serve_codec(app, max_seconds=0.3, max_connections=1) as endpoint:
        with connected(endpoint) as connection:
            connection.settimeout(20)
            await asyncio.to_thread(connection.sendall, head + body)
            await served_again(endpoint)


async def test_one_connection_too_many_is_closed_and_the_others_go_on(app: Starlette) -> None:
    async with serve_codec(app, max_connections=2) as endpoint:
        with connected(endpoint) as first, connected(endpoint) as second:
            second.sendall(HEAD)
            with connected(endpoint) as third:
                await asyncio.to_thread(ended, third)
            first.settimeout(20)
            first.sendall(WHOLE)
            assert (await asyncio.to_thread(first.recv, 65536)).startswith(b"HTTP/1.1 200")
        await served_again(endpoint)


async def test_a_connection_that_is_in_use_lasts_longer_than_one_request_may(
    app: Starlette,
) -> None:
    async with serve_codec(app, max_seconds=2) as endpoint:
        with connected(endpoint) as connection:
            connection.settimeout(20)
            end = time.monotonic() + 3
            while time.monotonic() < end:
                await asyncio.sleep(0.02)
                connection.sendall(WHOLE)
                answer = b""
                while not answer.endswith(b"{}"):
                    answer += await asyncio.to_thread(connection.recv, 65536)
                    assert answer, "the connection was ended"
                assert answer.startswith(b"HTTP/1.1 200")


# --- the secret ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
        ("Bearer s3cre", 401),
        ("Bearer s3cret2", 401),
        ("Bearer ", 401),
        ("Basic s3cret", 401),
        ("s3cret", 401),
    ],
)
async def test_a_bearer_secret_is_asked_for(authorization: str, status: int) -> None:
    app = codec_app(PUBLIC, ui_origins=[UI], bearer="s3cret")
    answer = await ask(app, as_json(SEALED), Authorization=authorization)
    assert answer.status_code == status
    assert "s3cret" not in answer.text


@pytest.mark.parametrize("bearer", ["", " ", "ä", "a\nb"])
def test_a_secret_that_no_header_holds_is_refused(bearer: str) -> None:
    with pytest.raises(ValueError, match="visible"):
        codec_app(PUBLIC, ui_origins=[UI], bearer=bearer)


# --- while it runs -------------------------------------------------------------------------


async def test_it_follows_its_keyring_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stateful_workflow.sealed.keyring._LOOK_EVERY_SECONDS", 0)
    path = tmp_path / "public.json"
    PUBLIC.save(path)
    app = codec_app(Keyring.load(path), ui_origins=[UI])
    assert values_of(await ask(app, as_json(SEALED)))[0]["verified"]

    Keyring.change_file(path, lambda _: revoked().public())

    assert values_of(await ask(app, as_json(SEALED)))[0]["problem"] == "issuer revoked"


async def test_it_is_served_and_its_end_leaves_the_port_free(app: Starlette) -> None:
    async with serve_codec(app) as endpoint:
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.post(f"{endpoint}/decode", json=as_json(SEALED))
        assert values_of(answer)[0]["verified"]
        port = int(endpoint.rpartition(":")[2])
        with pytest.raises(StatefulError, match=f"cannot listen on 127.0.0.1 port {port}"):
            async with serve_codec(app, port=port):
                pass
    async with serve_codec(app, port=port) as again:
        assert again == endpoint


# --- the command ---------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Process]]:
    path = tmp_path / "public.json"
    PUBLIC.save(path)
    monkeypatch.delenv(BEARER_VARIABLE, raising=False)
    code = "from stateful_workflow.cli import main; main()"
    with ExitStack() as stack:

        def start(*arguments: str, **variables: str) -> Process:
            process = subprocess.Popen(
                [sys.executable, "-c", code, "codec-server", "--port", "0", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "STATEFUL_KEYRING": str(path), **variables},
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


@pytest.mark.parametrize("secret_in", [None, "file", "variable"])
def test_the_command_serves_until_it_is_stopped(
    secret_in: str | None, command: Callable[..., Process], tmp_path: Path
) -> None:
    file = tmp_path / "bearer"
    file.write_text("s3cret\n")
    process = command(
        *("--ui-origin", UI, "--host-name", "codec.example.com"),
        *(("--bearer-file", str(file)) if secret_in == "file" else ()),
        **({BEARER_VARIABLE: "s3cret"} if secret_in == "variable" else {}),
    )
    assert process.stdout is not None
    said = ""
    while "Ctrl-C" not in said:
        line = process.stdout.readline()
        assert line, process.communicate()
        said += line
    endpoint = re.search(r"http://127\.0\.0\.1:\d+", said)
    assert endpoint is not None
    headers = {"Origin": UI}
    with httpx.Client(trust_env=False, base_url=endpoint[0]) as http:
        before = http.post("/decode", json=as_json(SEALED), headers=headers)
        headers |= {"Authorization": "Bearer s3cret", "Host": "codec.example.com"}
        answer = http.post("/decode", json=as_json(SEALED), headers=headers)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)

    assert before.status_code == (200 if secret_in is None else 401)
    assert values_of(answer)[0]["verified"]
    assert answer.headers["access-control-allow-origin"] == UI
    assert f"--codec-endpoint {endpoint[0]}" in said
    assert f"--ui-codec-endpoint {endpoint[0]}" in said
    assert "s3cret" not in said
    assert ("TEMPORAL_CODEC_AUTH" in said) == (secret_in is not None)
    assert (process.returncode, rest, errors) == (0, "", "")


@pytest.mark.parametrize(
    ("option", "value", "status", "reason"),
    [
        ("--ui-origin", "*", 1, "origin"),
        ("--host-name", "https://codec.example.com", 1, "host name"),
        ("--bearer-file", "/nowhere/file", 2, "--bearer-file takes FILE"),
        ("--bearer-file", os.devnull, 1, "visible ASCII"),
        ("--keyring", "/nowhere/keyring", 1, "the keyring --keyring cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(
    option: str, value: str, status: int, reason: str, command: Callable[..., Process]
) -> None:
    process = command(option, value)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (status, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert reason in errors
    assert value not in errors or value == "*"


# --- a workflow's own details ----------------------------------------------------------------

HELD = TokenStatus(
    "apiToken", "held", version=NOW, fingerprint="0123456789abcdef", authority="acme"
)
LINE = "`apiToken` **held** `01234567` of 2027-01-15T08:00:00Z"


@pytest.mark.parametrize(
    ("status", "own", "withheld", "line"),
    [
        (HELD, "acme", (), LINE),
        (HELD, "acme-1", (), f"{LINE}, set at `acme`"),
        (HELD, "acme", ["*"], f"{LINE}, withheld by a workflow above"),
        (TokenStatus("apiToken", "withheld"), "acme", ["apiToken"], "`apiToken` **withheld**"),
        (TokenStatus("apiToken", "needs_set"), "acme", [], "`apiToken` **needs set**"),
        (
            replace(HELD, version=MAX_VERSION),
            "acme",
            [],
            f"`apiToken` **held** `01234567` of version {MAX_VERSION}",
        ),
    ],
)
def test_a_node_is_one_line(status: TokenStatus, own: str, withheld: list[str], line: str) -> None:
    assert details_line([status], own, withheld) == line


def test_credentials_are_beside_each_other() -> None:
    none = TokenStatus("other", "none")
    assert details_line([none, HELD], "acme") == f"`other` **none** · {LINE}"


@pytest.mark.parametrize(
    ("authority", "code"),
    [
        ("a**b**<img>", "`a**b**<img>`"),
        ("a`b", "``a`b``"),
        ("`a```", "```` `a``` ````"),
        ("a\r\n\n# b", "`a   # b`"),
    ],
)
def test_a_workflow_id_is_no_markdown(authority: str, code: str) -> None:
    line = details_line([replace(HELD, authority=authority)], "acme")
    assert line.endswith(f", set at {code}")
    assert "\n" not in line
