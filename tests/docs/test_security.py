"""The commands of docs/security.md run, in their order, against a tree whose calls go on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from temporalio.client import Client
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin
from stateful_workflow.engine import start_engine
from tests.docs.reader import BLOCKS, Block, Reader
from tests.support.api import start_api
from tests.support.workflows import ACTIVITIES, WORKFLOWS, Plan, shown

ROOT, CHILD = "tenant-acme", "tenant-acme-sync-0"
FIRST, NEW, BILLING = "security-token-1", "security-token-2", "billing-token"
STEPS: Final = [b for b in BLOCKS if b.document == "docs/security.md" and b.kind == "sh"]


def _kid(keyring: Keyring, kind: str) -> str:
    """The key of this kind that was in use last, of the default audience or without limits."""
    return next(
        key.kid
        for key in reversed(keyring.keys())
        if key.kind == kind and key.is_active and not key.names and key.audience != "billing"
    )


KEYS: Final = {
    f"{state}_{kind.upper()}": kind for state in ("OLD", "LEAKED") for kind in ("issuer", "reader")
}
"""Variables that hold a key id, and of which kind it is."""


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[Reader]:
    async with start_engine(ui=False) as engine:
        with start_api() as api:
            yield Reader(tmp_path, engine, api)


def test_there_is_a_step_for_every_kind_of_key() -> None:
    headings = [block.heading for block in STEPS]
    assert headings == [
        "Keys, and who gets which",
        "A fleet that opens its own tokens only",
        "Change an issuer's key",
        "An issuer's key leaked",
        "Change a reader's key",
        "A reader's key leaked",
        "A token leaked, or a branch is to lose it",
    ]


@pytest.mark.timeout(180)
async def test_every_step_leaves_a_tree_whose_activities_open_the_newest(reader: Reader) -> None:
    Keyring.generate().save(reader.home / "keyring.json")
    reader.secrets = {FIRST, NEW, BILLING}
    reader.environment.update(FIRST_TOKEN=FIRST, NEW_TOKEN=NEW, BILLING_TOKEN=BILLING)
    first, *others = STEPS
    await follow(reader, first)
    worker_keyring = Keyring.load(reader.home / "worker.json")
    client = await Client.connect(reader.engine.address, plugins=[StatefulPlugin(worker_keyring)])
    async with Worker(client, task_queue="q", workflows=WORKFLOWS, activities=ACTIVITIES):
        await client.start_workflow("Node", Plan({"sync-0": Plan()}), id=ROOT, task_queue="q")
        await reader.shell(
            f"stateful token set {ROOT} --from-env FIRST_TOKEN --origin https://api.example.com",
            "before",
        )
        expected = FIRST
        for block in others:
            await follow(reader, block)
            expected = NEW if "rotate" in block.text else expected
            await reader.shell(f"stateful tree {ROOT}", block.place)
            for node in (ROOT, CHILD):
                handle = client.get_workflow_handle(node)
                opened = await handle.execute_update("use_token", "apiToken")
                assert opened == shown(expected), block.place

        billing = await client.get_workflow_handle(CHILD).execute_update("use_token", "billing")
        assert billing == "NoReaderKey", "this fleet has no key of the audience billing"


async def follow(reader: Reader, block: Block) -> None:
    keyring = reader.keyring
    reader.environment |= {name: _kid(keyring, kind) for name, kind in KEYS.items()}
    await reader.run(block)
    for name in ("issuer.json", "worker.json"):
        assert (reader.home / name).stat().st_mode & 0o777 == 0o600
    public = json.loads((reader.home / "public.json").read_text())
    assert not any("d" in key for key in public["keys"])
