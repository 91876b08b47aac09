"""Whatever size and shape an argument has, a node takes it.

Everything is sent while no worker runs, so that one activation gets it all, and an activity's
worth of work afterwards shows that the run goes on.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.client import Client

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.sealed.message import Claims, decode_base64url, encode_base64url, parse
from tests.attacks.conftest import ORIGIN, start_root
from tests.attacks.messages.unsent import failed_tasks, send, slow_tasks
from tests.support.asking import events_of, eventually, sealed_at, start_worker, status_of

SCHEDULED = "ACTIVITY_TASK_SCHEDULED"
SIGNALS: Final = ("apiToken", "apiUrl", "apiTokenReport")
LARGEST: Final = 1_200_000
"""Thirty of them are less than the 50 MB that the server lets a history have."""

SIZES: Final = (0, 1, 253, 2_048, 16_384, 32_768, 300_000, LARGEST)


def shapes(size: int) -> Iterator[Payload]:
    """Payloads of about this many bytes: JSON of every kind, addresses, what is no JSON."""
    values: list[object] = [
        "a" * size,
        [1] * (size // 3),
        {f"m{n}": None for n in range(size // 14)},
        f"{ORIGIN}/{'a' * size}",
        f"https://{'a.' * (size // 2)}example.com",
        f"https://{'é' * (size // 2)}.example.com",
        f"https://{'a' * size}.example.com",
    ]
    for value in values:
        data = json.dumps(value, ensure_ascii=False).encode()[:LARGEST]
        yield Payload(metadata={"encoding": b"json/plain"}, data=data)
    for encoding in (b"json/plain", b"binary/plain", b"unheard/of"):
        yield Payload(metadata={"encoding": encoding}, data=b"[" * size)


async def takes_it(client: Client, workflow_id: str) -> bool:
    described = await client.get_workflow_handle(workflow_id).describe()
    handle = client.get_workflow_handle(workflow_id)
    return (
        described.status is not None
        and described.status.name == "RUNNING"
        and await failed_tasks(handle) == []
        and await slow_tasks(handle) == []
    )


@pytest.mark.timeout(240)
@pytest.mark.parametrize("size", SIZES)
async def test_every_shape_is_taken_and_the_run_goes_on(
    client: Client, outsider: Client, tokens: TokenClient, queue: str, size: int
) -> None:
    await start_root(tokens, queue)
    for signal in SIGNALS:
        for payload in shapes(size):
            await send(outsider, queue, signal, [payload])
    async with start_worker(client, queue):
        assert (await tokens.rotate(queue, "second", timeout=60)).converged
        assert await takes_it(client, queue)
        url: str | None = await client.get_workflow_handle(queue).query("apiUrl")
        assert len(url or "") <= 2_048


@pytest.mark.timeout(400)
async def test_reports_of_megabytes_and_thousands_of_large_messages_fit_their_activations(
    client: Client, outsider: Client, tokens: TokenClient, queue: str
) -> None:
    await start_root(tokens, queue)
    async with start_worker(client, queue):
        tree = (await status_of(client, queue))["tree"]
    report: dict[str, object] = {"name": "apiToken", "more": [[{}]] * (LARGEST // 6)}
    data = json.dumps(report).encode()[:LARGEST]
    for _ in range(20):
        payload = Payload(metadata={"encoding": b"json/plain"}, data=data)
        await send(outsider, queue, "apiTokenReport", [payload])
    claims = Claims("apiToken", client.namespace, queue, tree, queue, int(time.time() * 1000))
    sealed = parse(of_twelve_readers(claims))
    for _ in range(2_000):
        await outsider.get_workflow_handle(queue).signal("apiToken", resigned(sealed.text))
    async with start_worker(client, queue):
        assert (await tokens.rotate(queue, "second", timeout=60)).converged
        assert (await tokens.get(queue)).reveal() == "second"
        assert await takes_it(client, queue)

        async def all_judged() -> None:
            # So much that waits for unknown issuers is looked up at once, and again, in vain.
            status = await status_of(client, queue)
            assert status["rejections"]["counts"] == {"TokenForged": 2_000}

        await eventually(all_judged, within=200)


def of_twelve_readers(claims: Claims) -> str:
    """A well-formed message of 4,600 characters, by a stranger."""
    strangers = Keyring.generate()
    for n in range(11):
        strangers = strangers.add_reader(f"r{n}")
    return strangers.seal(claims, "x")


def resigned(text: str) -> str:
    """The same message under a signature and a key id that nobody has."""
    header, payload, _ = text.split(".")
    said: dict[str, Any] = json.loads(decode_base64url(header, "header"))
    said["kid"] = encode_base64url(secrets.token_bytes(32))
    first = encode_base64url(json.dumps(said, separators=(",", ":")).encode())
    return f"{first}.{payload}.{encode_base64url(secrets.token_bytes(64))}"


async def test_of_the_messages_that_wait_a_status_lists_a_few_and_counts_all(
    client: Client, outsider: Client, tokens: TokenClient, queue: str
) -> None:
    await start_root(tokens, queue)
    async with start_worker(client, queue):
        text = await sealed_at(client, queue)
        for _ in range(100):
            await outsider.get_workflow_handle(queue).signal("apiToken", resigned(text))

        async def all_wait() -> None:
            status = await status_of(client, queue)
            assert (status["waiting_count"], len(status["waiting"])) == (100, 20)

        await eventually(all_wait)


async def test_a_strangers_message_does_not_hold_off_a_new_issuer(
    client: Client, outsider: Client, tokens: TokenClient, queue: str
) -> None:
    """The lookup that a stranger's key id caused is no reason to wait for the next one."""
    await start_root(tokens, queue)
    async with start_worker(client, queue):
        first = parse(await sealed_at(client, queue))
        handle = outsider.get_workflow_handle(queue)
        for _ in range(3):
            await handle.signal("apiToken", resigned(first.text))

        async def is_looked_up() -> bool:
            return len(await events_of(client.get_workflow_handle(queue), SCHEDULED)) > 0

        await eventually(is_looked_up)
        other = Keyring.generate()
        claims = replace(first.claims, version=first.claims.version + 10)
        await handle.signal("apiToken", other.seal(claims, "of another issuer"))

        async def looked_up_again() -> bool:
            return len(await events_of(client.get_workflow_handle(queue), SCHEDULED)) > 1

        await eventually(looked_up_again)


@pytest.mark.timeout(120)
async def test_thousands_of_messages_of_an_issuer_who_becomes_known_are_judged_in_turns(
    engine: EmbeddedEngine, keyring: Keyring, tokens: TokenClient, queue: str
) -> None:
    """What waited for him goes back into the queue: no activation judges all of it."""
    both = keyring.add_issuer()
    newcomer = both.only(issuers=True)
    plugin = StatefulPlugin(both)
    client = await Client.connect(engine.address, namespace=engine.namespace, plugins=[plugin])
    await start_root(tokens, queue)
    async with start_worker(client, queue):
        first = parse(await sealed_at(client, queue)).claims
    handle = client.get_workflow_handle(queue)
    texts = [
        newcomer.seal(replace(first, version=first.version + 1 + n), f"token {n}")
        for n in range(1_500)
    ]
    for text in texts:
        await handle.signal("apiToken", text)
    async with start_worker(client, queue):

        async def all_judged() -> None:
            status = await status_of(client, queue)
            assert (status["waiting_count"], status["rejections"]["counts"]) == (0, {})
            assert await sealed_at(client, queue) == texts[-1]

        await eventually(all_judged, within=200)
        assert await takes_it(client, queue)
