"""What a node takes because a trusted issuer signed it is checked whole where it is opened.

A node judges for order and has no reader's key: that the ciphertext belongs to the claims,
the namespace and the expiry show first in the activity. What the workflow sees then is a
failure of a name, and the secret is not in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any, cast

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
from tests import builders
from tests.builders import TOKEN, Json, header_of, jwe_of, jwks, keyring_of, signed

from .api import Api, start_api
from .support import events_of, eventually, sealed_at
from .use_workflows import ASYNC_ACTIVITIES, USE_WORKFLOWS, Caller, Job

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
    history = (await root.fetch_history()).to_json()
    assert found(api.url("x"), history), "what an activity's argument holds is found"
    assert not found(TOKEN, history)

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


def found(secret: str, history: str) -> bool:
    """Whether a secret stands in a history, as it is or in a payload."""
    texts = [history, *map(decoded, strings(json.loads(history)))]
    return any(secret in text for text in texts)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in cast("Json", value).values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from strings(item)


def decoded(text: str) -> str:
    """What a payload of a history holds; nothing for a text that is no base64."""
    try:
        return base64.b64decode(text, validate=True).decode("utf-8", "replace")
    except ValueError:
        return ""


def newer(message: Message, **claims: Any) -> Claims:
    """The claims of a message a moment later, and changed."""
    later = {"version": max(int(time.time() * 1000), message.claims.version + 1), **claims}
    return replace(message.claims, **later)


def lifted(message: Message, claims: Claims) -> str:
    """Another issuer's ciphertext under claims of the thief's own."""
    jwe = {**jwe_of(message), "aad": encode_base64url(claims.encode())}
    return signed(header_of(by="thief"), jwe, by="thief")


async def genuine_at(client: Client, root: Root) -> Message:
    return parse(await sealed_at(client, root.id))


# --- a ciphertext under other claims -------------------------------------------------------------

CHANGES: dict[str, Json] = {
    "another origin": {"origins": (EVIL,)},
    "any origin of a name": {"origins": (EVIL, "https://*.example.net")},
    "a higher version": {},
    "another workflow type": {"types": ("Caller",)},
    "a longer life": {"expires_at": 2**40},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_ciphertext_lifted_under_other_claims_does_not_open(
    client: Client, tokens: TokenClient, api: Api, root: Root, change: Json
) -> None:
    message = await genuine_at(client, root)

    text = lifted(message, newer(message, **change))

    await fails_to_open(tokens, api, root, text, TokenMalformed)


async def test_a_ciphertext_lifted_from_another_tree_does_not_open(
    client: Client, tokens: TokenClient, api: Api, root: Root, queue: str
) -> None:
    victim = f"{queue}-victim"
    await tokens.start_workflow(
        Caller.run, id=victim, task_queue=queue, api_token=TOKEN, api_url=api.origin
    )
    captured = parse(await sealed_at(client, victim))

    text = lifted(captured, newer(await genuine_at(client, root)))

    await fails_to_open(tokens, api, root, text, TokenMalformed)


async def test_even_its_own_issuer_cannot_put_a_ciphertext_under_other_claims(
    client: Client, tokens: TokenClient, api: Api, root: Root
) -> None:
    message = await genuine_at(client, root)
    aad = encode_base64url(newer(message, origins=(EVIL,)).encode())

    text = signed(header_of(), {**jwe_of(message), "aad": aad})

    await fails_to_open(tokens, api, root, text, TokenMalformed)


# --- a ciphertext that is none -------------------------------------------------------------------


def recipient(jwe: Json) -> Json:
    return jwe["recipients"][0]


def with_low_order(jwe: Json, _: Json) -> None:
    recipient(jwe)["header"]["epk"]["x"] = encode_base64url(bytes(32))


def with_a_key_of_zeros(jwe: Json, _: Json) -> None:
    recipient(jwe)["encrypted_key"] = encode_base64url(bytes(40))


def with_the_key_of_another(jwe: Json, other: Json) -> None:
    jwe["recipients"] = other["recipients"]


def with_the_text_of_another(jwe: Json, other: Json) -> None:
    jwe.update({name: other[name] for name in ("iv", "ciphertext", "tag")})


def with_the_iv_of_another(jwe: Json, other: Json) -> None:
    jwe["iv"] = other["iv"]


def with_a_tag_of_zeros(jwe: Json, _: Json) -> None:
    jwe["tag"] = encode_base64url(bytes(16))


def with_no_text(jwe: Json, _: Json) -> None:
    jwe["ciphertext"] = ""


BROKEN = [
    with_low_order,
    with_a_key_of_zeros,
    with_the_key_of_another,
    with_the_text_of_another,
    with_the_iv_of_another,
    with_a_tag_of_zeros,
    with_no_text,
]


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda change: change.__name__)
async def test_a_ciphertext_that_is_broken_does_not_open(
    client: Client,
    tokens: TokenClient,
    api: Api,
    root: Root,
    break_it: Callable[[Json, Json], None],
) -> None:
    claims = newer(await genuine_at(client, root))
    ours, other = (jwe_of(parse(builders.keyring().seal(claims, TOKEN))) for _ in range(2))

    break_it(ours, other)

    await fails_to_open(tokens, api, root, signed(header_of(), ours), TokenMalformed)


@pytest.mark.parametrize("plaintext", [b"", b"\xff" + TOKEN.encode()], ids=["empty", "no UTF-8"])
async def test_what_is_sealed_and_no_text_does_not_open(
    client: Client, tokens: TokenClient, api: Api, root: Root, plaintext: bytes
) -> None:
    claims = newer(await genuine_at(client, root))
    (reader,) = [key for key in jwks(builders.keyring()) if key["crv"] == "X25519"]

    jwe = encrypt(plaintext, claims.encode(), [Key.from_jwk(reader)])

    text = signed(header_of(), jwe.encode())
    await fails_to_open(tokens, api, root, text, TokenMalformed)


# --- for another place or time -------------------------------------------------------------------


@pytest.mark.parametrize("namespace", ["other", "DEFAULT", "default "])
async def test_a_token_for_another_namespace_does_not_open(
    client: Client, tokens: TokenClient, api: Api, root: Root, namespace: str
) -> None:
    claims = newer(await genuine_at(client, root), namespace=namespace)

    text = builders.keyring().seal(claims, TOKEN)

    await fails_to_open(tokens, api, root, text, WrongNamespace)


@pytest.mark.parametrize("expires_at", [1, int(time.time()) - 1], ids=["long ago", "just now"])
async def test_an_expired_token_does_not_open(
    client: Client, tokens: TokenClient, api: Api, root: Root, expires_at: int
) -> None:
    claims = newer(await genuine_at(client, root), expires_at=expires_at)

    text = builders.keyring().seal(claims, TOKEN)

    await fails_to_open(tokens, api, root, text, TokenExpired)
