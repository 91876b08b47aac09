"""The worked example of docs/kms.md, word for word, against a key service in another process."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from temporalio.client import Client, WorkflowUpdateStage
from temporalio.worker import Worker

from stateful_workflow import (
    Keyring,
    KeyringError,
    NoIssuerKey,
    NoReaderKey,
    StatefulPlugin,
    TokenClient,
)
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.sealed.message import parse
from tests.docs.reader import read_blocks

from .support import eventually, sealed_at
from .use_workflows import SYNC_ACTIVITIES, USE_WORKFLOWS, Caller, Job

PROJECT = Path(__file__).parents[2]
ORIGIN = "https://api.example.com"


# --- the key service -----------------------------------------------------------------------------


def service(store: Path, caller: str) -> Starlette:
    """Keys that are made at the first start, kept in a file of the service's, and never given out.

    Args:
        store: where they are kept.
        caller: the token that callers show.
    """
    if not store.exists():
        made = {name: secrets.token_hex(32) for name in ("issuer", "reader", "other")}
        store.write_text(json.dumps(made))
    kept = {name: bytes.fromhex(key) for name, key in json.loads(store.read_text()).items()}
    reader = X25519PrivateKey.from_private_bytes(kept.pop("reader"))
    issuers = {name: Ed25519PrivateKey.from_private_bytes(key) for name, key in kept.items()}
    calls: list[str] = []

    async def ask(request: Request) -> Response:
        if request.headers.get("Authorization") != f"Bearer {caller}":
            return Response(status_code=403)
        name, operation = request.path_params["name"], request.path_params["operation"]
        calls.append(f"{operation} {name}")
        data = await request.body()
        if operation == "public":
            key = reader if name == "reader" else issuers[name]
            return Response(key.public_key().public_bytes_raw())
        if operation == "sign":
            return Response(issuers[name].sign(data))
        return Response(reader.exchange(X25519PublicKey.from_public_bytes(data)))

    async def log(_: Request) -> Response:
        return JSONResponse(calls)

    return Starlette(
        routes=[
            Route("/keys/{name}/{operation}", ask, methods=["POST"]),
            Route("/log", log),
        ]
    )


def serve(store: str, caller: str, port: str) -> None:
    """Serve until killed; the port is printed, 0 takes a free one."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(port)))
        listener.listen()
        print(listener.getsockname()[1], flush=True)
        config = uvicorn.Config(service(Path(store), caller), log_level="error", lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


class Kms:
    """The service as a process that can go down and come back under the same address."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.caller = secrets.token_hex(16)
        self._port = 0
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        module = "import sys; from tests.server.test_kms import serve; serve(*sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", module, str(self.store), self.caller, str(self._port)],
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        # It listens from here on, whenever it comes to answer.
        self._port = int(self._process.stdout.readline())

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.communicate(timeout=20)
            self._process = None

    def calls(self) -> list[str]:
        """What it was asked to do since it started."""
        asked: list[str] = httpx.get(f"{self.url}/log", timeout=20).raise_for_status().json()
        return [call for call in asked if not call.startswith("public ")]


@pytest.fixture
def kms(tmp_path: Path) -> Iterator[Kms]:
    kms = Kms(tmp_path / "store.json")
    try:
        yield kms
    finally:
        kms.stop()


# --- the example ---------------------------------------------------------------------------------


@pytest.fixture
def example(kms: Kms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the one Python block of the document defines, run as it stands there."""
    text = (PROJECT / "docs" / "kms.md").read_text("utf-8")
    (block,) = [block for block in read_blocks("docs/kms.md", text) if block.kind == "python"]
    monkeypatch.setenv("KMS_URL", kms.url)
    monkeypatch.setenv("KMS_TOKEN", kms.caller)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block.text, block.place, "exec", dont_inherit=True), names)
    return SimpleNamespace(**names)


async def connect(engine: EmbeddedEngine, keyring: Keyring) -> Client:
    return await Client.connect(
        engine.address, namespace=engine.namespace, plugins=[StatefulPlugin(keyring)]
    )


@pytest.fixture
async def client(engine: EmbeddedEngine, example: Any) -> Client:
    """The worker's."""
    return await connect(engine, example.opening)


@pytest.fixture
async def tokens(engine: EmbeddedEngine, example: Any) -> TokenClient:
    """The client of the process that seals."""
    return TokenClient(await connect(engine, example.sealing), example.sealing)


def worker_for(client: Client, queue: str, threads: ThreadPoolExecutor) -> Worker:
    return Worker(
        client,
        task_queue=queue,
        workflows=USE_WORKFLOWS,
        activities=SYNC_ACTIVITIES,
        activity_executor=threads,
    )


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


LOOK = Job(activity="look_sync", attempts=0)


async def start(tokens: TokenClient, queue: str) -> Any:
    return await tokens.start_workflow(
        Caller.run, id=queue, task_queue=queue, api_token="first", origins=[ORIGIN]
    )


async def test_tokens_are_sealed_and_opened_by_the_service(
    kms: Kms, tokens: TokenClient, client: Client, queue: str, threads: ThreadPoolExecutor
) -> None:
    async with worker_for(client, queue, threads):
        root = await start(tokens, queue)
        assert kms.calls() == ["sign issuer"]
        assert (await root.execute_update(Caller.do, LOOK))[0] == "first"
        assert kms.calls() == ["sign issuer", "agree reader"]

        await tokens.rotate(queue, "second", timeout=20)
        assert (await root.execute_update(Caller.do, LOOK))[0] == "second"
        await tokens.revoke(queue)
        assert (await root.execute_update(Caller.do, LOOK))[0].startswith("TokenRevoked: ")
        assert kms.calls() == ["sign issuer", "agree reader"] * 2 + ["sign issuer"]


async def test_neither_process_has_a_private_key(kms: Kms, example: Any, tmp_path: Path) -> None:
    stored = json.loads(kms.store.read_text())
    assert len(stored) == 3
    private = {key.kind: key.private for key in example.sealing.keys()}
    assert private == {"issuer": True, "reader": False}
    private = {key.kind: key.private for key in example.opening.keys()}
    assert private == {"issuer": False, "reader": True}
    for keyring in (example.sealing, example.opening):
        assert not any("d" in key for key in json.loads(keyring.to_json())["keys"])
    assert "d" not in {
        name for key in json.loads((tmp_path / "public.json").read_text())["keys"] for name in key
    }


async def test_each_process_can_do_its_own_part_only(
    tokens: TokenClient, client: Client, example: Any, queue: str, threads: ThreadPoolExecutor
) -> None:
    async with worker_for(client, queue, threads):
        await start(tokens, queue)
        with pytest.raises(NoReaderKey):
            await tokens.get(queue)
        worker = TokenClient(client, example.opening)
        assert (await worker.get(queue)).reveal() == "first"
        with pytest.raises(NoIssuerKey):
            await worker.set(queue, "second")


async def test_while_the_service_is_down_an_activity_is_retried_and_succeeds_when_it_is_back(
    kms: Kms, tokens: TokenClient, client: Client, queue: str, threads: ThreadPoolExecutor
) -> None:
    async with worker_for(client, queue, threads):
        root = await start(tokens, queue)
        before = await sealed_at(client, queue)
        kms.stop()
        running = await root.start_update(
            Caller.do, LOOK, wait_for_stage=WorkflowUpdateStage.ACCEPTED
        )

        async def failed() -> None:
            description = await root.describe()
            (pending,) = description.raw_description.pending_activities
            assert pending.attempt > 1
            # The server may shorten a failure and keep its cause.
            assert "connect" in str(pending.last_failure).lower()

        await eventually(failed)
        with pytest.raises(httpx.ConnectError):
            await tokens.set(queue, "second")
        assert await sealed_at(client, queue) == before, "nothing was sent"

        kms.start()

        assert (await running.result())[0] == "first"
        await tokens.set(queue, "second")
        assert (await root.execute_update(Caller.do, LOOK))[0] == "second"


async def test_a_signer_that_signs_with_another_key_is_refused_and_nothing_is_set(
    engine: EmbeddedEngine,
    tokens: TokenClient,
    client: Client,
    example: Any,
    queue: str,
    threads: ThreadPoolExecutor,
) -> None:
    public = Keyring.load("public.json")
    with pytest.raises(KeyringError, match="no issuer of this keyring"):
        public.with_signer(example.KmsSigner(example.http, "other"))

    class Confused(example.KmsSigner):
        def sign(self, data: bytes) -> bytes:
            return example.KmsSigner(example.http, "other").sign(data)

    confused = public.with_signer(Confused(example.http, "issuer"))
    async with worker_for(client, queue, threads):
        root = await start(tokens, queue)
        before = await sealed_at(client, queue)
        with pytest.raises(KeyringError, match="did not sign as it"):
            await TokenClient(await connect(engine, confused), confused).set(queue, "second")
        assert await sealed_at(client, queue) == before
        assert (await root.execute_update(Caller.do, LOOK))[0] == "first"


async def test_the_service_says_no_to_who_may_not_use_it(example: Any, kms: Kms) -> None:
    stranger = httpx.Client(base_url=kms.url, headers={"Authorization": "Bearer x"})
    with stranger, pytest.raises(httpx.HTTPStatusError):
        example.KmsSigner(stranger, "issuer")


async def test_the_holders_stay_with_their_keys_when_the_file_changes(
    tokens: TokenClient, client: Client, example: Any, queue: str, threads: ThreadPoolExecutor
) -> None:
    async with worker_for(client, queue, threads):
        root = await start(tokens, queue)
        before = Keyring.load("public.json")
        before.add_reader("others").public().replace_file_of(before)

        async def sealed_for_both() -> None:
            await tokens.set(queue, "second")
            assert len(parse(await sealed_at(client, queue)).readers) == 2

        await eventually(sealed_for_both)
        assert (await root.execute_update(Caller.do, LOOK))[0] == "second"
