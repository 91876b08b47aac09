"""Expiry and age go by the server's time in activities, wherever the worker's clock stands."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio import activity, workflow
from temporalio.api.testservice.v1 import UnlockTimeSkippingRequest
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from stateful_workflow import (
        Keyring,
        SealedToken,
        StatefulPlugin,
        StatefulWorkflow,
        TokenClient,
        TokenExpired,
        current_token,
        seal_token,
    )
    from stateful_workflow.engine import EmbeddedEngine
    from stateful_workflow.sealed.message import parse
    from tests.faults.processes import Process
    from tests.support.asking import sealed_at

ORIGINS = ["https://api.example.com"]
SOON = timedelta(seconds=30)
HOUR = 3600.0


@activity.defn
async def mint(secret: str, expires_in: float) -> SealedToken:
    return seal_token(secret, origins=ORIGINS, expires_in=expires_in)


@activity.defn
async def use() -> str:
    try:
        return current_token().reveal()
    except TokenExpired as error:
        return type(error).__name__


async def run_use() -> str:
    return await workflow.execute_activity(use, start_to_close_timeout=SOON)


@workflow.defn
class Monthly(StatefulWorkflow):
    """Mints a token each month, and uses it at once and an hour after its end."""

    @workflow.run
    async def run(self, months: int) -> list[str]:
        said: list[str] = []
        for month in range(months):
            await workflow.sleep(timedelta(days=30))
            said += [await run_use(), await self.minted(f"tok-{month}"), await run_use()]
        return said

    async def minted(self, secret: str) -> str:
        sealed = await workflow.execute_activity(
            mint, args=[secret, HOUR], start_to_close_timeout=SOON
        )
        return (await self.set_api_token(sealed)).state

    @workflow.update
    async def mint(self, secret: str) -> str:
        return await self.minted(secret)

    @workflow.update
    async def use(self) -> str:
        return await run_use()


async def test_a_token_minted_after_skipped_months_is_good_until_its_time_has_come(
    skipping: Client, keyring: Keyring
) -> None:
    async with Worker(skipping, task_queue="q", workflows=[Monthly], activities=[mint, use]):
        await TokenClient(skipping, keyring).start_workflow(
            Monthly.run,
            3,
            id="root",
            task_queue="q",
            api_token="first",
            origins=ORIGINS,
            expires_in=HOUR,
        )
        await skipping.test_service.unlock_time_skipping(UnlockTimeSkippingRequest())
        said = await skipping.get_workflow_handle("root", result_type=list[str]).result()

    months = [("TokenExpired", "held", f"tok-{month}") for month in range(3)]
    assert said == [word for month in months for word in month]


@pytest.mark.parametrize("off", [-HOUR, HOUR], ids=["behind", "ahead"])
async def test_a_worker_whose_clock_is_off_uses_and_seals_as_any_other(
    engine: EmbeddedEngine,
    client: Client,
    tokens: TokenClient,
    keyring: Keyring,
    queue: str,
    tmp_path: Path,
    off: float,
) -> None:
    keyring.save(tmp_path / "keyring.json")
    root = await tokens.start_workflow(
        Monthly.run,
        1,
        id=queue,
        task_queue=queue,
        api_token="first",
        origins=ORIGINS,
        expires_in=HOUR / 2,
    )
    here = [sys.executable, "-m", "tests.use.test_clock"]
    worker = Process(
        [*here, engine.address, queue, tmp_path / "keyring.json", str(off)], tmp_path / "output"
    )
    try:
        assert await root.execute_update(Monthly.use) == "first"

        held = parse(await sealed_at(client, queue))
        ended = replace(held.claims, version=held.claims.version + 1, expires_at=int(time.time()))
        await root.execute_update("apiToken", keyring.seal(ended, "ended"))
        assert await root.execute_update(Monthly.use) == "TokenExpired"

        assert await root.execute_update(Monthly.mint, "tok") == "held"
        assert await root.execute_update(Monthly.use) == "tok"
        minted = parse(await sealed_at(client, queue)).claims
        assert abs(minted.version / 1000 - time.time()) < HOUR / 2
        assert minted.expires_at is not None
        assert abs(minted.expires_at - HOUR - time.time()) < HOUR / 2
    finally:
        worker.kill()


async def work(address: str, queue: str, keyring: str, off: str) -> None:
    """A worker whose clock is off by so many seconds."""
    real = time.time
    time.time = lambda: real() + float(off)
    client = await Client.connect(address, plugins=[StatefulPlugin(Keyring.load(keyring))])
    async with Worker(client, task_queue=queue, workflows=[Monthly], activities=[mint, use]):
        await asyncio.Event().wait()  # until it is killed


def main(arguments: Sequence[str]) -> None:
    asyncio.run(work(*arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
