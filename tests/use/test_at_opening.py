"""What a node takes because a trusted issuer signed it is checked whole where it is opened.

A node judges for order and has no reader's key: that the ciphertext belongs to the claims,
the namespace and the expiry show first in the activity. What the workflow sees then is a
failure of a name, and the secret is not in it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulError, StatefulPlugin, TokenClient, current_token
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.errors import TokenExpired, TokenMalformed, WrongNamespace
from stateful_workflow.sealed.crypto import Key, encrypt
from stateful_workflow.sealed.message import Claims, Message, encode_base64url, parse
from tests.support import builders
from tests.support.api import Api, start_api
from tests.support.asking import events_of, eventually, sealed_at
from tests.support.builders import TOKEN, header_of, jwe_of, jwks, keyring_of, signed
from tests.support.use_workflows import ASYNC_ACTIVITIES, USE_WORKFLOWS, Caller, Job

Root = WorkflowHandle[Caller, None]

EVIL = "https://evil.example.net"


@activity.defn
async def open_token(job: Job) -> list[str]:
    """Opens the token as users' activities do, and catches nothing."""
    return [digest(current_token(job.name).reveal())]


def digest(secret: str) -> str:
    """What a test may see of a secret: an activity must not return it."""
    return hashlib.sha256(secret.encode()).hexdigest()


@pytest.fixture(scope="module")
def keyring() -> Keyring:
    """Two issuers are trusted: "ours", who seals, and a "thief"."""
    (thief,) = [key for key in jwks(builders.keyring("thief").public()) if key["crv"] == "Ed25519"]
    return keyring_of(thief, *jwks(builders.keyring()))


@pytest.fixture(scope="module")
async def client(engine: EmbeddedEngine, keyring: Keyring) -> Client:
    plugin = StatefulPlugin(keyring)
    return await Client.connect(engine.address, namespace=engine.namespace, plugins=[plugin])


@pytest.fixture(scope="module")
def tokens(client: Client, keyring: Keyring) -> TokenClient:
    return TokenClient(client, keyring)


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        yield api


@pytest.fixture
async def root(tokens: TokenClient, client: Client, queue: str, api: Api) -> AsyncIterator[Root]:
    """A workflow whose activities open the token, which is good still."""
    async with Worker(
        client,
        task_queue=queue,
        workflows=USE_WORKFLOWS,
        activities=[*ASYNC_ACTIVITIES, open_token],
    ):
        root = await tokens.start_workflow(
            Caller.run, id=queue, task_queue=queue, api_token=TOKEN, api_url=api.origin
        )
        assert await root.execute_update(Caller.do, Job(activity="open_token")) == [digest(TOKEN)]
        yield root


async def fails_to_open(
    tokens: TokenClient, api: Api, root: Root, text: str, error: type[StatefulError]
) -> None:
    """A node takes a message, and whatever opens it fails with an error of this name."""
    await is_held(tokens, root, text)

    for local in (False, True):
        job = Job(activity="open_token", local=local)
        with pytest.raises(WorkflowUpdateFailedError) as failed:
            await root.execute_update(Caller.do, job)
        seen = failed.value.cause
        cause = seen.cause if isinstance(seen, ActivityError) else seen
        assert isinstance(cause, ApplicationError)
        assert cause.type == error.__name__
        assert isinstance(seen, ApplicationError if local else ActivityError)
    (event,) = await events_of(root, "ACTIVITY_TASK_FAILED")
    failure = event.activity_task_failed_event_attributes.failure
    assert failure.application_failure_info.type == error.__name__

    (said,) = await root.execute_update(Caller.do, Job([api.url("x")]))
    assert said.startswith(f"{error.__name__}: ")
    assert api.calls == []
    with pytest.raises(error):
        await tokens.get(root.id)
    history = await root.fetch_history()
    stored = b"".join(event.SerializeToString() for event in history.events)
    assert api.url("x").encode() in stored, "what an activity's argument holds is found"
    assert TOKEN.encode() not in stored

    # The control: it takes no more than a good token.
    await tokens.set(root.id, "another", origins=[api.origin])
    assert await root.execute_update(Caller.do, Job(activity="open_token")) == [digest("another")]


async def is_held(tokens: TokenClient, root: Root, text: str) -> None:
    """Signal a message and wait until it is in force: the node took it."""
    await root.signal("apiToken", text)

    async def in_force() -> bool:
        status = await tokens.status(root.id)
        return status is not None and status.fingerprint == parse(text).fingerprint

    await eventually(in_force)


def newer(message: Message, **claims: Any) -> Claims:
    """The claims of a message a moment later, and changed."""
    later = {"version": max(int(time.time() * 1000), message.claims.version + 1), **claims}
    return replace(message.claims, **later)


def lifted(message: Message, claims: Claims) -> str:
    """Another issuer's ciphertext under claims of the thief's own."""
    jwe = {**jwe_of(message), "aad": encode_base64url(claims.encode())}
    return signed(header_of(by="thief"), jwe, by="thief")


def swapped(message: Message, *members: str) -> str:
    """A token with parts of the ciphertext of another one, both of our own issuer."""
    claims = newer(message)
    ours, other = (jwe_of(parse(builders.keyring().seal(claims, TOKEN))) for _ in range(2))
    return signed(header_of(), {**ours, **{member: other[member] for member in members}})


def under_other_claims(message: Message) -> str:
    """What even the issuer of a ciphertext cannot do with it."""
    aad = encode_base64url(newer(message, origins=(EVIL,)).encode())
    return signed(header_of(), {**jwe_of(message), "aad": aad})


def of_another_tree(message: Message) -> str:
    captured = replace(message.claims, tree="victim", root="victim", authority="victim")
    return lifted(parse(builders.keyring().seal(captured, TOKEN)), newer(message))


def holding(message: Message, plaintext: bytes) -> str:
    claims = newer(message)
    (reader,) = [key for key in jwks(builders.keyring()) if key["crv"] == "X25519"]
    return signed(header_of(), encrypt(plaintext, claims.encode(), [Key.from_jwk(reader)]).encode())


def sealed(message: Message, **claims: Any) -> str:
    return builders.keyring().seal(newer(message, **claims), TOKEN)


CASES: dict[str, tuple[Callable[[Message], str], type[StatefulError]]] = {
    "lifted to another origin": (
        lambda message: lifted(message, newer(message, origins=(EVIL,))),
        TokenMalformed,
    ),
    "lifted to a higher version": (lambda message: lifted(message, newer(message)), TokenMalformed),
    "lifted to another workflow type": (
        lambda message: lifted(message, newer(message, types=("Caller",))),
        TokenMalformed,
    ),
    "lifted to a longer life": (
        lambda message: lifted(message, newer(message, expires_at=2**40)),
        TokenMalformed,
    ),
    "lifted from another tree": (of_another_tree, TokenMalformed),
    "under other claims by its own issuer": (under_other_claims, TokenMalformed),
    "the key of another": (lambda message: swapped(message, "recipients"), TokenMalformed),
    "the text of another": (
        lambda message: swapped(message, "iv", "ciphertext", "tag"),
        TokenMalformed,
    ),
    "an empty text": (lambda message: holding(message, b""), TokenMalformed),
    "no UTF-8": (lambda message: holding(message, b"\xff" + TOKEN.encode()), TokenMalformed),
    "another namespace": (lambda message: sealed(message, namespace="other"), WrongNamespace),
    "almost this namespace": (lambda message: sealed(message, namespace="DEFAULT"), WrongNamespace),
    "expired": (lambda message: sealed(message, expires_at=int(time.time()) - 1), TokenExpired),
}


@pytest.mark.parametrize(("make", "error"), CASES.values(), ids=CASES)
async def test_what_a_node_takes_and_is_not_whole_does_not_open(
    client: Client,
    tokens: TokenClient,
    api: Api,
    root: Root,
    make: Callable[[Message], str],
    error: type[StatefulError],
) -> None:
    text = make(parse(await sealed_at(client, root.id)))

    await fails_to_open(tokens, api, root, text, error)
