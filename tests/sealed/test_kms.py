"""The worked example of docs/kms.md, word for word, against a key service."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
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
from tests.docs.reader import read_blocks
from tests.support.asking import eventually, sealed_at
from tests.support.builders import jwks
from tests.support.use_workflows import SYNC_ACTIVITIES, USE_WORKFLOWS, Caller, Job

PROJECT = Path(__file__).parents[2]
ORIGIN = "https://api.example.com"


# --- the key service -----------------------------------------------------------------------------


class Kms:
    """A service that can go down and come back under the same address, and gives out no key."""

    def __init__(self) -> None:
        self.caller = secrets.token_hex(16)
        self.calls: list[str] = []
        self._reader = X25519PrivateKey.generate()
        self._issuers = {name: Ed25519PrivateKey.generate() for name in ("issuer", "other")}
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        answer, caller = self._answer, f"Bearer {self.caller}"

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Authorization"] == caller
                _, _, name, operation = self.path.split("/")
                answered = answer(
                    name, operation, self.rfile.read(int(self.headers["Content-Length"]))
                )
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answered)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, name: str, operation: str, data: bytes) -> bytes:
        if operation == "public":
            key = self._reader if name == "reader" else self._issuers[name]
            return key.public_key().public_bytes_raw()
        self.calls.append(f"{operation} {name}")
        if operation == "sign":
            return self._issuers[name].sign(data)
        return self._reader.exchange(X25519PublicKey.from_public_bytes(data))


@pytest.fixture
def kms() -> Iterator[Kms]:
    kms = Kms()
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
        assert kms.calls == ["sign issuer"]
        assert (await root.execute_update(Caller.do, LOOK))[0] == "first"
        assert kms.calls == ["sign issuer", "agree reader"]

        await tokens.rotate(queue, "second", timeout=20)
        assert (await root.execute_update(Caller.do, LOOK))[0] == "second"
        await tokens.revoke(queue)
        assert (await root.execute_update(Caller.do, LOOK))[0].startswith("TokenRevoked: ")
        assert kms.calls == ["sign issuer", "agree reader"] * 2 + ["sign issuer"]


async def test_each_process_can_do_its_own_part_only_and_has_no_private_key(
    tokens: TokenClient, client: Client, example: Any, queue: str, threads: ThreadPoolExecutor
) -> None:
    for keyring in (example.sealing, example.opening, Keyring.load("public.json")):
        assert not any("d" in key for key in jwks(keyring))
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
