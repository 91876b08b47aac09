"""Headers that a payload codec or external storage has been at: read, or said to be unreadable."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.common import HeaderCodecBehavior
from temporalio.converter import (
    DataConverter,
    ExternalStorage,
    StorageDriver,
    StorageDriverClaim,
    StorageDriverRetrieveContext,
    StorageDriverStoreContext,
)

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from tests.support.asking import events_of, eventually
from tests.support.codecs import encrypting
from tests.support.trees import Tree
from tests.support.workflows import Node, Plan

URL = "https://api.example.com"
ENCODED, PLAIN = HeaderCodecBehavior.CODEC, HeaderCodecBehavior.NO_CODEC
BETWEEN_WORKERS = HeaderCodecBehavior.WORKFLOW_ONLY_CODEC


class Stores(StorageDriver):
    """External storage in this process."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def name(self) -> str:
        return "here"

    async def store(
        self, context: StorageDriverStoreContext, payloads: Sequence[Payload]
    ) -> list[StorageDriverClaim]:
        ids = [uuid.uuid4().hex for _ in payloads]
        self._kept |= zip(ids, (one.SerializeToString() for one in payloads), strict=True)
        return [StorageDriverClaim({"id": one}) for one in ids]

    async def retrieve(
        self, context: StorageDriverRetrieveContext, claims: Sequence[StorageDriverClaim]
    ) -> list[Payload]:
        return [Payload.FromString(self._kept[claim.claim_data["id"]]) for claim in claims]


async def tree_of(
    engine: EmbeddedEngine,
    keyring: Keyring,
    queue: str,
    headers: HeaderCodecBehavior,
    converter: DataConverter,
) -> Tree:
    client = await Client.connect(
        engine.address,
        plugins=[StatefulPlugin(keyring)],
        data_converter=converter,
        header_codec_behavior=headers,
    )
    return Tree(client, TokenClient(client, keyring), queue, queue)


CONVERTERS = {
    "a codec bound to its context": encrypting(binds=True),
    "external storage": DataConverter(
        external_storage=ExternalStorage([Stores()], payload_size_threshold=1)
    ),
}


@pytest.mark.parametrize("kind", CONVERTERS)
async def test_an_activity_has_its_tokens_at_hand_however_its_header_came(
    engine: EmbeddedEngine, keyring: Keyring, queue: str, kind: str
) -> None:
    tree = await tree_of(engine, keyring, queue, BETWEEN_WORKERS, CONVERTERS[kind])
    async with tree.worker():
        await tree.start(Plan({"a": Plan()}))
        await tree.rotate("second")

        assert await tree.opened("", "a") == ["second", "second"]
        assert await tree.update("a", "use_address") == URL
        assert await tree.update("", "fetch_token", "third", None) == "held"
        assert await tree.update("", "use_token_locally") == "third"


async def test_a_start_that_a_worker_cannot_read_fails_the_task_until_one_can(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    writing = await tree_of(engine, keyring, queue, ENCODED, encrypting())
    other = await tree_of(engine, keyring, queue, PLAIN, encrypting())
    async with other.worker():
        await writing.tokens.start_workflow(
            Node.run, Plan(), id=queue, task_queue=queue, api_token="first", origins=[URL]
        )

        async def is_said() -> None:
            failures = await events_of(writing[""], "WORKFLOW_TASK_FAILED")
            said = [e.workflow_task_failed_event_attributes.failure.message for e in failures]
            assert said
            assert "the same header_codec_behavior=" in said[0]

        await eventually(is_said)

    async with writing.worker():
        await writing.opens("first", "")


async def test_a_child_on_workers_that_read_no_encoded_headers_waits_for_ones_that_do(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    above = await tree_of(engine, keyring, queue, BETWEEN_WORKERS, encrypting())
    plain = await tree_of(engine, keyring, queue, PLAIN, encrypting())
    below = Tree(plain.client, plain.tokens, f"{queue}-b", queue)
    async with above.worker(), below.worker():
        await above.start()
        await above.signal("", "add_elsewhere", "a", f"{queue}-b")

        async def is_said() -> bool:
            return await events_of(above["a"], "WORKFLOW_TASK_FAILED") != []

        await above.exists("a")
        await eventually(is_said)
        await above.set("second")

    readable = Tree(above.client, above.tokens, f"{queue}-b", queue)
    async with above.worker(), readable.worker():
        await above.opens("second", "", "a")


async def test_workers_that_decode_headers_read_a_start_that_came_plain(
    engine: EmbeddedEngine, keyring: Keyring, queue: str
) -> None:
    plain = await tree_of(engine, keyring, queue, PLAIN, encrypting())
    decoding = await tree_of(engine, keyring, queue, ENCODED, encrypting())
    async with decoding.worker():
        await plain.start(Plan({"a": Plan()}))

        assert await decoding.opened("", "a") == ["first", "first"]
