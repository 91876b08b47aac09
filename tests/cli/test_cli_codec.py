"""The command at a fleet whose payloads are encoded: it reads them, or says that it cannot."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from google.protobuf.json_format import MessageToJson, Parse
from temporalio.api.common.v1 import Payloads
from temporalio.client import Client

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from tests.cli.test_cli_in_trees import Run
from tests.cli.test_cli_in_trees import environment as environment
from tests.cli.test_cli_in_trees import run as run
from tests.support.asking import start_pair, start_worker
from tests.support.codecs import CONVERTER

AUTH = "Bearer for-the-codec"
NAMED = ("--data-converter", "tests.support.codecs:CONVERTER")


class CodecServer(BaseHTTPRequestHandler):
    """As the Web UI asks one, with a secret."""

    def log_message(self, format: str, *args: object) -> None: ...

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        codec = CONVERTER.payload_codec
        assert codec is not None
        convert = {"/codec/encode": codec.encode, "/codec/decode": codec.decode}[self.path]
        is_known = self.headers["Authorization"] == AUTH
        is_known &= self.headers["X-Namespace"] == "default"
        payloads = Parse(body if is_known else b"{}", Payloads()).payloads
        answer = Payloads(payloads=asyncio.run(convert(payloads)))
        self.send_response(200 if is_known else 401)
        self.end_headers()
        self.wfile.write(MessageToJson(answer).encode())


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), CodecServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/codec"
    server.shutdown()
    server.server_close()


@pytest.fixture
async def encoded(engine: EmbeddedEngine, keyring: Keyring, queue: str) -> AsyncIterator[str]:
    """A root and a child whose payloads are encrypted: the root's id."""
    client = await Client.connect(
        engine.address, plugins=[StatefulPlugin(keyring)], data_converter=CONVERTER
    )
    tokens = TokenClient(client, keyring)
    async with start_worker(client, queue):
        await start_pair(tokens, queue)
        yield queue


async def test_what_cannot_be_decoded_is_said_in_one_line(encoded: str, run: Run) -> None:
    for command in (("token", "status"), ("token", "rotate"), ("tree",)):
        done = await run(*command, encoded)

        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "--codec-endpoint, --data-converter" in done.stderr


@pytest.mark.parametrize("how", ["a data converter", "a codec server"])
async def test_a_fleet_with_a_codec_is_rotated_and_shown(
    encoded: str, run: Run, endpoint: str, how: str
) -> None:
    by = NAMED if how == "a data converter" else ("--codec-endpoint", endpoint)

    done = await run("token", "rotate", encoded, "--json", *by, TEMPORAL_CODEC_AUTH=AUTH)

    assert done.returncode == 0, done.stderr
    assert [node["state"] for node in json.loads(done.stdout)["nodes"]] == ["held", "held"]
    for command in (("token", "status"), ("tree",)):
        done = await run(*command, encoded, *by, "--codec-auth", AUTH)
        assert done.returncode == 0, done.stderr


async def test_a_codec_server_that_refuses_or_a_converter_that_is_none_is_said_in_one_line(
    encoded: str, run: Run, endpoint: str
) -> None:
    wrong = {
        ("--codec-endpoint", endpoint): "it answered 401",
        ("--codec-endpoint", "http://127.0.0.1:1"): "ConnectError",
        ("--data-converter", "nowhere:CONVERTER"): "there is no data converter",
        ("--data-converter", "tests.support.codecs:AESGCM"): "there is no data converter",
        ("--data-converter", "tests.support.codecs"): "there is no data converter",
        ("--data-converter", "tests.nothing.at.all:X"): "cannot be imported: ModuleNotFound",
    }
    for options, why in wrong.items():
        done = await run("token", "status", encoded, *options)

        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert why in done.stderr
