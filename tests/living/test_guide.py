"""What docs/guide-sources.md says of homes and their grants, done as it stands there."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from temporalio.client import Client

from stateful_workflow import (
    Keyring,
    SourceWorker,
    StatefulPlugin,
    TokenClient,
    TokenHome,
)
from stateful_workflow.engine import start_engine
from stateful_workflow.source import Grant, Minted, Source, Webhook
from tests.docs.reader import BLOCKS, Block, Reader
from tests.support.api import start_api
from tests.support.asking import lower
from tests.support.living import Provider, source_is

BESIDE: Final = """\
from temporalio import workflow

from stateful_workflow import StatefulWorkflow


"""
NAMES: Final[dict[str, Any]] = {
    each.__name__: each
    for each in (
        *(Client, Keyring, SourceWorker, StatefulPlugin, TokenHome, Webhook),
        *(Source, os, timedelta),
    )
}


class Tenants(Provider):
    """The same, with grants as OAuth 2.0 has them."""

    async def mint(self, grant: Grant) -> Minted:
        minted = await super().mint({"refresh": grant["refresh_token"]})
        return replace(minted, grant={"refresh_token": self.grant})


def block(heading: str, kind: str) -> Block:
    (found,) = [
        b
        for b in BLOCKS
        if (b.document, b.heading, b.kind) == ("docs/guide-sources.md", heading, kind)
    ]
    return found


def blocks(heading: str) -> list[Block]:
    return [b for b in BLOCKS if (b.document, b.heading) == ("docs/guide-sources.md", heading)]


@pytest.mark.timeout(200)
async def test_the_life_of_a_grant_as_the_guide_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lower(monkeypatch, fresh_seconds=0.5)
    provider, names = Tenants(), dict(NAMES)
    monkeypatch.setenv("REFRESH_TOKEN", provider.grant)
    monkeypatch.setenv("HOOK_SECRET", "hook")
    monkeypatch.syspath_prepend(tmp_path)  # pyright: ignore[reportUnknownMemberType]
    async with start_engine(ui=False) as engine:
        with start_api() as api:
            reader = Reader(tmp_path, engine, api)
            reader.names = names
            monkeypatch.setenv("TEMPORAL_ADDRESS", engine.address)
            await reader.run(block("Where they run", "sh"))
            monkeypatch.chdir(tmp_path)
            await reader.python(block("Where they run", "python"))
            sources = asyncio.create_task(names["run_sources"]({"tenants": provider}))
            named, start, command = blocks("Authorize a workflow")
            async with reader.worker_of(BESIDE + named.text, "tenants") as (tokens, module):
                names["tokens"] = tokens
                await reader.python(start)
                await is_fresh(tokens, "tenant-beta")

                acme: dict[str, Any] = {"id": "tenant-acme", "task_queue": "tenants"}
                await tokens.start_workflow(module.Tenant.run, **acme)
                await source_is(tokens, "tenant-acme", lambda status: status.needs_authorization)
                reader.environment["REFRESH_TOKEN"] = provider.grant
                await reader.run(command)
                await is_fresh(tokens, "tenant-acme")
                await reader.python(block("How tokens are renewed", "python"))
                assert "fresh" in capsys.readouterr().out
                await reader.python(block("Retire tokens", "python"))
                await reader.run(block("Retire tokens", "sh"))

                names["grant"] = {"refresh_token": provider.grant}
                await reader.python(block("A home for schedules", "python"))
                await is_fresh(tokens, "home")
                names |= {"keyring": reader.keyring, "source": provider}
                await reader.python(block("A dead grant", "python"))
            sources.cancel()
            await asyncio.wait([sources])


async def is_fresh(tokens: TokenClient, home: str) -> None:
    await source_is(tokens, home, lambda status: status.state == "fresh")
