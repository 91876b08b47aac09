"""Updates hold a workflow's ten places, or have used up its run's: control gets through."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from contextlib import suppress
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from temporalio.client import (
    Client,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
    WorkflowUpdateStage,
)
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import start_engine
from stateful_workflow.sealed.message import Claims, encode_base64url
from tests.attacks.conftest import start_root
from tests.attacks.test_sizes import of_twelve_readers, resigned
from tests.support.asking import (
    events_of,
    eventually,
    sealed_at,
    start_pair,
    start_worker,
    status_of,
)

POINT = Ed25519PrivateKey.generate().public_key().public_bytes_raw()


def forged(root: str, tree: str) -> str:
    """A well-formed revocation of an issuer that nobody knows."""
    claims = {"v": 1, "name": "apiToken", "ns": "default", "root": root, "tree": tree}
    claims |= {"auth": root, "ver": int(time.time() * 1000), "inherit": False}
    kid = encode_base64url(secrets.token_bytes(32))
    header = {"alg": "Ed25519", "kid": kid, "typ": "stateful-revocation+jws"}
    parts = [json.dumps(part, separators=(",", ":")).encode() for part in (header, claims)]
    signature = POINT + secrets.token_bytes(31) + b"\x00"
    return ".".join(encode_base64url(part) for part in (*parts, signature))


@pytest.mark.timeout(240)
async def test_updates_of_strangers_hold_nobody_off(
    client: Client, outsider: Client, tokens: TokenClient, queue: str
) -> None:
    async with start_worker(client, queue):
        await start_pair(tokens, queue)
        tree = (await status_of(client, queue))["tree"]
        handle = outsider.get_workflow_handle(queue)
        turned_down: set[str | None] = set()
        over = asyncio.Event()

        async def hold() -> None:
            while not over.is_set():
                try:
                    await handle.execute_update(
                        "apiToken", forged(queue, tree), rpc_timeout=timedelta(seconds=15)
                    )
                except WorkflowUpdateFailedError as error:
                    if isinstance(error.cause, ApplicationError):
                        turned_down.add(error.cause.type)
                except (RPCError, WorkflowUpdateRPCTimeoutOrCancelledError):
                    pass

        holders = [asyncio.create_task(hold()) for _ in range(15)]
        try:
            while "TooManyWaiting" not in turned_down:
                await asyncio.sleep(0.05)
            assert (await tokens.rotate(queue, "second", timeout=60)).converged
            assert (await tokens.revoke(queue)).state == "revoked"
            assert (await tokens.set(queue, "third")).state == "held"
        finally:
            over.set()  # the SDK makes another error of a cancellation
            await asyncio.gather(*holders)
        assert (await tokens.get(f"{queue}-a")).reveal() == "third"
        # Those that waited were looked up in vain, the others found no place to wait.
        assert turned_down == {"TokenForged", "TooManyWaiting"}
        # What is turned down stands in no history: three of them wait at a time, for 10 s.
        accepted = await events_of(
            client.get_workflow_handle(queue), "WORKFLOW_EXECUTION_UPDATE_ACCEPTED"
        )
        assert len(accepted) < 100


@pytest.mark.parametrize(
    ("limit", "opened"), [((), 10), (("history.maxTotalUpdates=2",), 2)], ids=["open", "used up"]
)
@pytest.mark.timeout(120)
async def test_where_no_update_finds_room_a_rotation_and_a_revocation_are_signalled(
    queue: str, keyring: Keyring, limit: tuple[str, ...], opened: int
) -> None:
    extra = [argument for value in limit for argument in ("--dynamic-config-value", value)]
    async with start_engine(ui=False, extra_args=extra) as engine:
        client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        tokens = TokenClient(client, keyring)
        async with start_worker(client, queue):
            await start_pair(tokens, queue)
            handle = client.get_workflow_handle(queue)
            for _ in range(opened):
                with suppress(RPCError):
                    await handle.start_update(
                        "wait_for_note" if not limit else "use_token",
                        "never",
                        wait_for_stage=WorkflowUpdateStage.ACCEPTED,
                        rpc_timeout=timedelta(seconds=10),
                    )
            assert (await tokens.rotate(queue, "second", timeout=40)).converged
            assert (await tokens.get(f"{queue}-a")).reveal() == "second"
            assert (await tokens.revoke(queue)).state == "revoked"


@pytest.mark.timeout(120)
async def test_an_update_with_what_is_queued_after_ten_answers_stops_no_loop(
    client: Client, outsider: Client, tokens: TokenClient, queue: str
) -> None:
    """A message of an unknown issuer comes by update while its copy is about to be given up."""
    async with start_worker(client, queue):
        await start_pair(tokens, queue)
        tree = (await status_of(client, queue))["tree"]
        handle = outsider.get_workflow_handle(queue)
        # So much that it is looked up again and again at once, and judged in several turns.
        claims = Claims("apiToken", client.namespace, queue, tree, queue, int(time.time() * 1000))
        large = of_twelve_readers(claims)
        flood = [resigned(large) for _ in range(1_100)]
        for text in flood:
            await handle.signal("apiToken", text)

        async def given_up() -> bool:
            counts = (await status_of(client, queue))["rejections"]["counts"]
            for text in flood[-3:]:
                with suppress(WorkflowUpdateFailedError):
                    await handle.execute_update("apiToken", text)
            return counts.get("TokenForged", 0) > 0

        await eventually(given_up, within=60)
        assert (await tokens.rotate(queue, "second", timeout=30)).converged
        assert (await tokens.revoke(queue)).state == "revoked"

        async def is_told() -> bool:
            status = await tokens.status(f"{queue}-a")
            return status is not None and status.state == "revoked"

        await eventually(is_told)


async def test_a_message_that_is_held_already_uses_up_no_update(
    client: Client, outsider: Client, tokens: TokenClient, queue: str
) -> None:
    async with start_worker(client, queue):
        root = await start_root(tokens, queue)
        held = await sealed_at(client, queue)
        for _ in range(3):
            with pytest.raises(WorkflowUpdateFailedError) as failed:
                await outsider.get_workflow_handle(queue).execute_update("apiToken", held)
            assert isinstance(failed.value.cause, ApplicationError)
            assert failed.value.cause.type == "TokenKnown"
        assert await events_of(root, "WORKFLOW_EXECUTION_UPDATE_ACCEPTED") == []
