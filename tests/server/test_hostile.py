"""Whatever is sent to a node, nothing of it is taken, and the next rotation still converges.

Where the tests say *genuinely signed*, the signature is that of the issuer the tree trusts:
what is refused then is what was changed. Each group ends by sending the message that was not
changed, and that one is taken. What only shows when a token is used is in `test_at_opening.py`.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from operator import length_hint
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution
from temporalio.api.enums.v1 import TimeoutType, WorkflowTaskFailedCause
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from stateful_workflow.sealed.message import MAX_VERSION, Message, encode_base64url, parse
from tests import builders
from tests.builders import compact, header_of, jwe_of, jwks, keyring_of, marked, signed

from .conftest import start_worker
from .support import events_of, eventually, nodes_run, sealed_at, status_of
from .workflows import Node, Plan

URL = "https://api.example.com"
TOO_FAR_AHEAD = 5 * 60 * 1000
"""Milliseconds; a version may be so far ahead of the workflow's clock."""


@pytest.fixture(scope="module")
def keyring() -> Keyring:
    """The one whose issuer `signed` signs as."""
    return builders.keyring()


@pytest.fixture(scope="module")
async def client(engine: EmbeddedEngine, keyring: Keyring) -> Client:
    return await connect(engine, keyring)


@pytest.fixture(scope="module")
def tokens(client: Client, keyring: Keyring) -> TokenClient:
    return TokenClient(client, keyring)


@pytest.fixture
async def tree(tokens: TokenClient, queue: str, worker: Worker) -> str:
    """A root with a child, both holding the token "first"."""
    return await start_tree(tokens, queue)


async def connect(engine: EmbeddedEngine, keyring: Keyring) -> Client:
    plugin = StatefulPlugin(keyring)
    return await Client.connect(engine.address, namespace=engine.namespace, plugins=[plugin])


async def start_tree(tokens: TokenClient, queue: str, plan: Plan | None = None) -> str:
    plan = Plan({"a": Plan()}) if plan is None else plan
    await tokens.start_workflow(
        Node.run, plan, id=queue, task_queue=queue, api_token="first", api_url=URL
    )
    await nodes_run(tokens, queue, nodes_in(plan))
    return queue


def nodes_in(plan: Plan) -> int:
    return 1 + sum(nodes_in(child) for child in plan.children.values())


async def send(client: Client, workflow_id: str, signal: str, payloads: list[Payload]) -> None:
    await client.workflow_service.signal_workflow_execution(
        SignalWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            signal_name=signal,
            input=Payloads(payloads=payloads),
        )
    )


def now() -> int:
    """A version of now."""
    return int(time.time() * 1000)


# --- what each test shows ------------------------------------------------------------------------


async def is_healthy(
    client: Client, tokens: TokenClient, workflow_id: str, *, holding: str = "first"
) -> None:
    """Nothing was taken, a rotation converges, and no workflow task failed on the way."""
    children = [child["id"] for child in (await status_of(client, workflow_id))["children"]]
    for node in (workflow_id, *children):
        assert (await tokens.get(node)).reveal() == holding
    assert (await tokens.rotate(workflow_id, "rotated", timeout=20)).converged
    for node in (workflow_id, *children):
        assert (await tokens.get(node)).reveal() == "rotated"
        assert await failed_tasks(client.get_workflow_handle(node)) == []


async def failed_tasks(handle: WorkflowHandle[Any, Any]) -> list[Any]:
    """The workflow tasks that a worker failed, not those that the server itself took back.

    It does so with any workflow when 100 signals have come while one of its tasks runs.
    """
    taken_back = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND
    return [
        event
        for event in await events_of(handle, "WORKFLOW_TASK_FAILED")
        if event.workflow_task_failed_event_attributes.cause != taken_back
    ]


async def slow_tasks(handle: WorkflowHandle[Any, Any]) -> list[Any]:
    """The workflow tasks that a worker did not finish in time, not those it never got.

    The server takes a task back from a worker's own queue after 10 s: when that worker is gone,
    or when it is itself too busy with signals to give any task away, as six callers make it.
    """
    never_got = TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START
    return [
        event
        for event in await events_of(handle, "WORKFLOW_TASK_TIMED_OUT")
        if event.workflow_task_timed_out_event_attributes.timeout_type != never_got
    ]


async def signalled(client: Client, workflow_id: str, text: str) -> str:
    """Why a node refuses a message that is signalled."""
    before = (await status_of(client, workflow_id))["rejections"]["counts"]
    await client.get_workflow_handle(workflow_id).signal("apiToken", text)
    status = await status_of(client, workflow_id)
    after = status["rejections"]["counts"]
    if sum(after.values()) == sum(before.values()):
        return "waiting" if status["waiting"] else "not refused"
    return str(status["rejections"]["last"][-1]["reason"])


async def updated(client: Client, workflow_id: str, text: str) -> str:
    """Why a node refuses a message that is sent as an update."""
    handle = client.get_workflow_handle(workflow_id)
    try:
        await handle.execute_update("apiToken", text)
    except WorkflowUpdateFailedError as error:
        cause = error.cause
    else:
        return "not refused"
    assert isinstance(cause, ApplicationError)
    return str(cause.type)


async def are_refused(
    client: Client, workflow_id: str, messages: dict[str, str], reason: str
) -> None:
    """Each of the messages is refused for the one reason, signalled or sent as an update."""
    handle = client.get_workflow_handle(workflow_id)
    held = await sealed_at(client, workflow_id)
    entered = len(await events_of(handle, "WORKFLOW_EXECUTION_UPDATE_ACCEPTED"))

    said = {
        what: (await signalled(client, workflow_id, text), await updated(client, workflow_id, text))
        for what, text in messages.items()
    }

    assert said == dict.fromkeys(messages, (reason, reason))
    assert await sealed_at(client, workflow_id) == held
    # What an update is refused for is judged before it enters history.
    assert len(await events_of(handle, "WORKFLOW_EXECUTION_UPDATE_ACCEPTED")) == entered


@dataclass(frozen=True)
class Unsent:
    """A genuine token for a node, newer than the one held there, that nobody has sent yet."""

    message: Message

    @property
    def header(self) -> dict[str, Any]:
        return header_of()

    @property
    def segments(self) -> list[str]:
        return self.message.text.split(".")

    def signed(self, header: object) -> str:
        """The same payload under another header, genuinely signed."""
        return signed(header, self.message.payload)

    def sealed(self, **claims: Any) -> str:
        """A genuine token under other claims."""
        return builders.keyring().seal(replace(self.message.claims, **claims), "unsent")

    async def is_taken(self, client: Client, tokens: TokenClient) -> None:
        """The control: unchanged it is taken, and the tree is healthy with it."""
        authority = self.message.claims.authority
        await client.get_workflow_handle(authority).signal("apiToken", self.message.text)
        await is_everywhere(tokens, authority, self.message)
        await is_healthy(client, tokens, authority, holding="unsent")


async def is_everywhere(tokens: TokenClient, workflow_id: str, message: Message) -> None:
    """Wait until every node of a tree holds a message."""

    async def everywhere() -> bool:
        nodes = (await tokens.tree(workflow_id)).nodes
        return {node.fingerprint for node in nodes} == {message.fingerprint}

    await eventually(everywhere)


async def unsent_for(client: Client, workflow_id: str, by: str = "ours") -> Unsent:
    held = parse(await sealed_at(client, workflow_id))
    claims = replace(held.claims, version=now())
    return Unsent(parse(builders.keyring(by).seal(claims, "unsent")))


@pytest.fixture
async def unsent(client: Client, tree: str) -> Unsent:
    return await unsent_for(client, tree)


# --- what is no string, or no single one ---------------------------------------------------------

JSON = {"encoding": b"json/plain"}

NOT_A_MESSAGE: dict[str, list[Payload]] = {
    "no argument": [],
    "three arguments": [Payload(metadata=JSON, data=b'"a"')] * 3,
    "null": [Payload(metadata={"encoding": b"binary/null"})],
    "json null": [Payload(metadata=JSON, data=b"null")],
    "a number": [Payload(metadata=JSON, data=b"7")],
    "a list": [Payload(metadata=JSON, data=b'["x"]')],
    "an object": [Payload(metadata=JSON, data=b'{"apiToken": "x"}')],
    "a string of 1.9 MB": [Payload(metadata=JSON, data=b'"' + b"x" * 1_900_000 + b'"')],
    "binary": [Payload(metadata={"encoding": b"binary/plain"}, data=b"\x00\xff\xfe")],
    "invalid UTF-8": [Payload(metadata=JSON, data=b'"\xff\xfe"')],
    "no JSON": [Payload(metadata=JSON, data=b"{")],
    "unknown encoding": [Payload(metadata={"encoding": b"x/y"}, data=b"z")],
    "a lone surrogate": [Payload(metadata=JSON, data=b'"\\ud800"')],
    "nested lists": [Payload(metadata=JSON, data=b"[" * 5000 + b"]" * 5000)],
}


@pytest.mark.parametrize("signal", ["apiToken", "apiUrl", "apiTokenReport"])
async def test_malformed_signals_leave_the_workflow_healthy(
    client: Client, tokens: TokenClient, tree: str, signal: str
) -> None:
    for payloads in NOT_A_MESSAGE.values():
        await send(client, tree, signal, payloads)

    await is_healthy(client, tokens, tree)
    counts = (await status_of(client, tree))["rejections"]["counts"]
    if signal == "apiTokenReport":
        assert counts == {}
    else:
        # The SDK drops what it cannot decode before it reaches a handler, uncounted.
        assert counts["TokenMalformed"] >= 9


async def test_malformed_updates_and_queries_are_refused_by_name(
    client: Client, tokens: TokenClient, tree: str
) -> None:
    handle = client.get_workflow_handle(tree)
    for args in ([], ["a", "b", "c"], [None], [7], [["x"]], [{"a": 1}], ["x" * 1_900_000], [b"\0"]):
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("apiToken", args=args)
        cause = refused.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.type == "TokenMalformed"
    for query in ("apiToken", "apiTokenStatus", "apiUrl", "statefulState"):
        for args in (["a", "b", "c"], [7], [{"a": 1}]):
            [outcome] = await asyncio.gather(handle.query(query, args=args), return_exceptions=True)
            assert "first" not in str(outcome)

    await is_healthy(client, tokens, tree)
    accepted = await events_of(handle, "WORKFLOW_EXECUTION_UPDATE_ACCEPTED")
    assert len(accepted) == 1, "of all those updates only the rotation entered history"


async def test_strings_of_100_kb_and_1_9_mb_are_malformed(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    head, body, sign = unsent.segments
    for size in (100_000, 1_900_000):
        header = encode_base64url(compact({**unsent.header, "x": "x" * (size * 3 // 4 - 200)}))
        await are_refused(
            client,
            tree,
            {
                f"letters, {size}": "x" * size,
                f"dots, {size}": "." * size,
                f"digits, {size}": "9" * size,
                f"a genuine message and more, {size}": unsent.message.text + "A" * size,
                f"a genuine message after more, {size}": " " * size + unsent.message.text,
                f"a huge header, {size}": f"{header}.{body}.{sign}",
                f"a huge payload, {size}": f"{head}.{'A' * size}.{sign}",
                f"a huge signature, {size}": f"{head}.{body}.{'A' * size}",
            },
            "TokenMalformed",
        )

    await unsent.is_taken(client, tokens)


# --- signatures ----------------------------------------------------------------------------------


async def test_an_unsigned_message_is_malformed(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    head, body, sign = unsent.segments
    await are_refused(
        client,
        tree,
        {
            "no signature": f"{head}.{body}.",
            "no segment for one": f"{head}.{body}",
            "a cut one": f"{head}.{body}.{sign[:-2]}",
            "half of one": f"{head}.{body}.{sign[:43]}",
            "two of them": f"{head}.{body}.{sign}.{sign}",
            "the payload alone": body,
            "the claims alone": unsent.message.claims.encode().decode(),
        },
        "TokenMalformed",
    )
    await unsent.is_taken(client, tokens)


async def test_a_signature_that_is_not_the_named_issuers_is_forged(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    head, body, sign = unsent.segments
    other = unsent.sealed().split(".")
    stranger = builders.keyring("stranger").seal(unsent.message.claims, "x").split(".")
    raw = base64.urlsafe_b64decode(sign + "==")
    order = 2**252 + 27742317777372353535851937790883648493
    above = int.from_bytes(raw[32:], "little") + order
    await are_refused(
        client,
        tree,
        {
            "a stranger's": f"{head}.{stranger[1]}.{stranger[2]}",
            "a stranger's of the same payload": f"{head}.{body}.{stranger[2]}",
            "of another message": f"{head}.{body}.{other[2]}",
            "under another payload": f"{head}.{other[1]}.{sign}",
            "of the payload alone": signed_over(head, body, body),
            "zeros": f"{head}.{body}.{encode_base64url(bytes(64))}",
            "a MAC of its length, the public key as secret": (
                f"{head}.{body}.{mac(f'{head}.{body}', public_key()['raw'], 'sha512')}"
            ),
            # The same to a library that does not check S against the order (RFC 8032, 5.1.7).
            "the group order added": (
                f"{head}.{body}.{encode_base64url(raw[:32] + above.to_bytes(32, 'little'))}"
            ),
        },
        "TokenForged",
    )
    await unsent.is_taken(client, tokens)


def signed_over(head: str, body: str, data: str) -> str:
    """A message whose signature is the issuer's, of other data."""
    return f"{head}.{body}.{encode_base64url(issuers_key().sign(data.encode()))}"


def issuers_key() -> Ed25519PrivateKey:
    secret = next(key["d"] for key in jwks(builders.keyring()) if key["crv"] == "Ed25519")
    return Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(secret + "="))


def mac(data: str, secret: bytes, digest: str) -> str:
    return encode_base64url(hmac.digest(secret, data.encode(), digest))


def public_key() -> dict[str, bytes]:
    """The issuer's public key, in each form that was ever taken for a MAC's secret."""
    jwk = next(key for key in jwks(builders.keyring().public()) if key["crv"] == "Ed25519")
    key = issuers_key().public_key()
    return {
        "raw": key.public_bytes_raw(),
        "x": jwk["x"].encode(),
        "JWK": compact(jwk),
        "DER": key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "PEM": key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    }


# --- algorithms ----------------------------------------------------------------------------------


def under(alg: object, unsent: Unsent) -> str:
    """Header and payload under another algorithm, to be signed by it."""
    header = encode_base64url(compact({**unsent.header, "alg": alg}))
    return f"{header}.{unsent.segments[1]}"


async def test_alg_none_is_malformed(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    names = ["none", "None", "NONE", "nOnE", "", None]
    await are_refused(
        client,
        tree,
        {
            **{f"{alg}, no signature": f"{under(alg, unsent)}." for alg in names},
            **{
                f"{alg}, the old one": f"{under(alg, unsent)}.{unsent.segments[2]}" for alg in names
            },
            **{f"{alg}, signed": unsent.signed({**unsent.header, "alg": alg}) for alg in names},
        },
        "TokenMalformed",
    )
    await unsent.is_taken(client, tokens)


async def test_a_mac_with_the_issuers_public_key_as_its_secret_is_malformed(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    digests = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
    forged = {
        f"{alg}, {form}": f"{under(alg, unsent)}.{mac(under(alg, unsent), secret, digest)}"
        for alg, digest in digests.items()
        for form, secret in public_key().items()
    }
    await are_refused(client, tree, forged, "TokenMalformed")
    await unsent.is_taken(client, tokens)


async def test_any_other_algorithm_is_malformed_though_its_signature_is_good(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    rsa_key = rsa.generate_private_key(65537, 2048)

    def sign(alg: str, data: bytes) -> bytes:
        """A good signature by a key of one's own (RFC 7518 section 3, RFC 8812, RFC 9864)."""
        match alg:
            case "RS256":
                return rsa_key.sign(data, padding.PKCS1v15(), SHA256())
            case "PS256":
                return rsa_key.sign(data, padding.PSS(padding.MGF1(SHA256()), 32), SHA256())
            case "Ed448":
                return ed448.Ed448PrivateKey.generate().sign(data)
            case "ES256":
                return ecdsa(ec.SECP256R1(), SHA256(), 32, data)
            case "ES256K":
                return ecdsa(ec.SECP256K1(), SHA256(), 32, data)
            case _:
                return ecdsa(ec.SECP384R1(), SHA384(), 48, data)

    forged = {
        alg: f"{under(alg, unsent)}.{encode_base64url(sign(alg, under(alg, unsent).encode()))}"
        for alg in ("RS256", "PS256", "Ed448", "ES256", "ES256K", "ES384")
    }
    # By the issuer's own key: these are refused for the name alone.
    for alg in ("EdDSA", "ed25519", "ED25519", "Ed25519ph", "Ed448", "ES256", ["Ed25519"]):
        forged[f"{alg}, genuinely signed"] = unsent.signed({**unsent.header, "alg": alg})

    await are_refused(client, tree, forged, "TokenMalformed")
    await unsent.is_taken(client, tokens)


def ecdsa(curve: ec.EllipticCurve, digest: HashAlgorithm, size: int, data: bytes) -> bytes:
    """The two numbers side by side, as JWS has them, not in DER."""
    der = ec.generate_private_key(curve).sign(data, ec.ECDSA(digest))
    return b"".join(number.to_bytes(size, "big") for number in decode_dss_signature(der))


# --- headers -------------------------------------------------------------------------------------


async def test_an_unencoded_payload_is_malformed(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    # RFC 7797: what is signed and sent is the payload itself.
    header = encode_base64url(compact({**unsent.header, "b64": False, "crit": ["b64"]}))
    payload = unsent.message.payload.decode()
    assert "." not in payload
    await are_refused(
        client,
        tree,
        {
            "as RFC 7797 says": signed_over(header, payload, f"{header}.{payload}"),
            "detached": signed_over(header, "", f"{header}.{payload}"),
            "b64 and crit, encoded": unsent.signed(
                {**unsent.header, "b64": False, "crit": ["b64"]}
            ),
            "b64 alone": unsent.signed({**unsent.header, "b64": False}),
            "b64 true": unsent.signed({**unsent.header, "b64": True, "crit": ["b64"]}),
        },
        "TokenMalformed",
    )
    await unsent.is_taken(client, tokens)


async def test_extra_and_missing_header_members_are_malformed(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    own = next(
        key for key in jwks(builders.keyring("stranger").public()) if key["crv"] == "Ed25519"
    )
    header = unsent.header
    extra: dict[str, object] = {
        "jwk": own,
        "jku": "https://evil.example.net/keys",
        "x5u": "https://evil.example.net/chain",
        "x5c": ["MIIB"],
        "crit": ["exp"],
        "cty": "JWT",
        "zip": "DEF",
        "iat": 1,
        "": "",
    }
    await are_refused(
        client,
        tree,
        {
            **{f"with {name}": unsent.signed({**header, name: of}) for name, of in extra.items()},
            "a key of its own that signed it": signed(
                {**header, "jwk": own}, unsent.message.payload, by="stranger"
            ),
            **{
                f"without {name}": unsent.signed({k: v for k, v in header.items() if k != name})
                for name in header
            },
            "kid is null": unsent.signed({**header, "kid": None}),
            "kid is a path": unsent.signed({**header, "kid": "../../dev/null"}),
            "a list": unsent.signed([header]),
            "no JSON": unsent.signed(b"{"),
            "empty": unsent.signed(b""),
        },
        "TokenMalformed",
    )
    await unsent.is_taken(client, tokens)


async def test_the_wrong_typ_is_malformed(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    revocation = replace(unsent.message.claims, origins=(), inherit=False).encode()
    wrong = [
        "JWT",
        "",
        None,
        "stateful-revocation+jws",
        "STATEFUL-TOKEN+JWS",
        "application/stateful-token+jws",
        ["stateful-token+jws"],
    ]
    await are_refused(
        client,
        tree,
        {
            **{f"{typ}": unsent.signed({**unsent.header, "typ": typ}) for typ in wrong},
            "a revocation as a token": signed(header_of("token"), revocation),
            "a token's claims as a revocation": signed(
                header_of("revocation"), unsent.message.claims.encode()
            ),
        },
        "TokenMalformed",
    )
    await unsent.is_taken(client, tokens)


async def test_a_huge_header_is_malformed(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    plain = compact(unsent.header)
    await are_refused(
        client,
        tree,
        {
            "white space, just above the bound": unsent.signed(plain + b" " * (385 - len(plain))),
            "white space": unsent.signed(plain + b" " * 9000),
            "a member": unsent.signed({**unsent.header, "jku": "x" * 9000}),
            "a kid": unsent.signed({**unsent.header, "kid": "A" * 9000}),
            "nested": unsent.signed(b"[" * 9000),
            "many members": unsent.signed({**unsent.header, **{f"{n}": n for n in range(700)}}),
            "100 KB": unsent.signed({**unsent.header, "jku": "x" * 100_000}),
        },
        "TokenMalformed",
    )
    just_below = Unsent(parse(unsent.signed(plain + b" " * (384 - len(plain)))))
    await just_below.is_taken(client, tokens)


async def test_json_members_named_twice_are_malformed(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    header, claims = compact(unsent.header), unsent.message.claims.encode()
    jwe = jwe_of(unsent.message)

    def first(encoded: bytes, member: bytes) -> bytes:
        return b"{" + member + b"," + encoded[1:]

    def last(encoded: bytes, member: bytes) -> bytes:
        return encoded[:-1] + b"," + member + b"}"

    def inside(name: str, twice: str) -> bytes:
        text = compact(jwe).decode()
        assert f'"{name}":' in text
        return text.replace(f'"{name}":', f'{twice},"{name}":', 1).encode()

    def with_claims(encoded: bytes) -> dict[str, Any]:
        return {**jwe, "aad": encode_base64url(encoded)}

    other = encode_base64url(replace(unsent.message.claims, origins=("https://e.net",)).encode())
    headers = {
        "alg, the same": last(header, b'"alg":"Ed25519"'),
        "alg, another first": first(header, b'"alg":"none"'),
        "alg, another escaped": last(header, b'"\\u0061lg":"none"'),
        "kid": first(header, b'"kid":"' + b"A" * 43 + b'"'),
        "typ": last(header, b'"typ":"stateful-revocation+jws"'),
    }
    jwes = {
        "aad, another first": first(compact(jwe), f'"aad":"{other}"'.encode()),
        "aad, another last": last(compact(jwe), f'"aad":"{other}"'.encode()),
        "tag": last(compact(jwe), b'"tag":""'),
        "recipients": last(compact(jwe), b'"recipients":[]'),
        "a recipient's header": inside("header", '"header":{}'),
        "a recipient's alg": inside("alg", '"alg":"dir"'),
        "an epk's x": inside("x", '"x":""'),
    }
    of_claims = {
        "ver": last(claims, f'"ver":{now() + 1000}'.encode()),
        "ver, the same": last(claims, f'"ver":{unsent.message.claims.version}'.encode()),
        "ver, escaped": last(claims, b'"\\u0076er":1'),
        "origins": last(claims, b'"origins":["https://evil.example.net"]'),
        "root": first(claims, b'"root":"other"'),
    }
    await are_refused(
        client,
        tree,
        {
            **{f"header: {what}": unsent.signed(of) for what, of in headers.items()},
            **{f"JWE: {what}": signed(unsent.header, of) for what, of in jwes.items()},
            **{
                f"claims: {what}": signed(unsent.header, with_claims(of))
                for what, of in of_claims.items()
            },
        },
        "TokenMalformed",
    )
    await unsent.is_taken(client, tokens)


# --- a bit flipped -------------------------------------------------------------------------------


def with_a_bit_flipped(text: str) -> Iterator[str]:
    """A message with one bit flipped, at places all over its three segments."""
    head, body, _ = text.split(".")
    places = [
        *range(0, len(head) + 2, 9),  # the header and the dot after it
        *range(len(head) + 1, len(head) + len(body) + 2, 23),  # the payload and the dot after it
        *range(len(head) + len(body) + 2, len(text), 7),  # the signature
        len(text) - 1,
    ]
    for place, bit in zip(places, itertools.cycle(range(8))):
        yield text[:place] + chr(ord(text[place]) ^ 1 << bit) + text[place + 1 :]


async def test_a_bit_flipped_anywhere_makes_a_message_that_is_not_taken(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    held = await sealed_at(client, tree)
    flipped = list(with_a_bit_flipped(unsent.message.text))
    assert len(flipped) > 50
    root = client.get_workflow_handle(tree)

    for text in flipped:
        await root.signal("apiToken", text)

    status = await status_of(client, tree)
    # Where the issuer's key id was hit, it names one that is unknown, and is asked for.
    assert sum(status["rejections"]["counts"].values()) + status["waiting_count"] == len(flipped)
    assert status["rejections"]["counts"].keys() >= {"TokenMalformed", "TokenForged"}
    assert await sealed_at(client, tree) == held
    await unsent.is_taken(client, tokens)


# --- genuine messages, sent where they do not belong ---------------------------------------------


async def test_another_trees_token_is_refused(
    client: Client, tokens: TokenClient, queue: str, tree: str, unsent: Unsent
) -> None:
    other = f"{queue}-other"
    await tokens.start_workflow(
        Node.run, Plan(), id=other, task_queue=queue, api_token="other", api_url=URL
    )
    captured = await sealed_at(client, other)
    await are_refused(
        client,
        tree,
        {
            "captured": captured,
            "for another tree id": unsent.sealed(tree="other"),
            "for another root": unsent.sealed(root="other"),
            "for another root of this tree id": unsent.sealed(root=other, authority=other),
            "a revocation": builders.keyring().revocation(
                replace(parse(captured).claims, version=now(), origins=(), inherit=False)
            ),
        },
        "WrongTree",
    )
    await unsent.is_taken(client, tokens)


async def test_a_token_of_an_earlier_tree_with_the_same_workflow_id_is_refused(
    client: Client, tokens: TokenClient, queue: str, tree: str
) -> None:
    captured = await sealed_at(client, tree)
    await client.get_workflow_handle(tree).terminate()
    await client.get_workflow_handle(f"{tree}-a").terminate()
    await tokens.start_workflow(
        Node.run, Plan(), id=queue, task_queue=queue, api_token="new tree", api_url=URL
    )

    await are_refused(client, queue, {"captured": captured}, "WrongTree")

    assert (await status_of(client, queue))["rejections"]["counts"] == {"WrongTree": 1}
    await is_healthy(client, tokens, queue, holding="new tree")


async def test_a_token_of_an_authority_that_is_not_above_is_refused(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    await tokens.set(f"{tree}-a", "of the child", origins=[URL])
    captured = await sealed_at(client, f"{tree}-a")
    await tokens.inherit(f"{tree}-a")

    below = {"captured below": captured, "beside": unsent.sealed(authority=f"{tree}-b")}
    await are_refused(client, tree, below, "WrongAuthority")
    beside = {"at a sibling": unsent.sealed(authority=f"{tree}-b")}
    await are_refused(client, f"{tree}-a", beside, "WrongAuthority")

    await unsent.is_taken(client, tokens)


async def test_an_older_token_of_this_tree_is_stale_at_every_node(
    client: Client, tokens: TokenClient, tree: str
) -> None:
    captured: dict[str, str] = {}
    for n in range(3):
        captured[f"version {n}"] = await sealed_at(client, tree)
        assert (await tokens.rotate(tree, f"rotation {n}", timeout=20)).converged
    unsent = await unsent_for(client, tree)
    held = parse(await sealed_at(client, tree)).claims.version
    captured["one before the newest"] = unsent.sealed(version=held - 1)
    captured["the first ever"] = unsent.sealed(version=1)

    for node in (tree, f"{tree}-a"):
        await are_refused(client, node, captured, "TokenStale")

    await unsent.is_taken(client, tokens)


async def test_a_version_far_in_the_future_is_malformed(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    # A minute more than may be: the workflow's clock is that of its last task.
    versions = [now() + TOO_FAR_AHEAD + 60_000, now() + 10**10, MAX_VERSION]
    ahead = {f"version {version}": unsent.sealed(version=version) for version in versions}
    claims = replace(unsent.message.claims, origins=(), inherit=False, version=MAX_VERSION)
    ahead["a revocation"] = builders.keyring().revocation(claims)

    await are_refused(client, tree, ahead, "TokenMalformed")
    await unsent.is_taken(client, tokens)


# --- issuers that are unknown or revoked ---------------------------------------------------------


async def test_a_strangers_signal_waits_for_its_issuer_and_the_rotation_goes_on(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    stranger = await unsent_for(client, tree, by="stranger")
    ahead = builders.keyring("stranger").seal(
        replace(stranger.message.claims, version=now() + TOO_FAR_AHEAD - 60_000), "x"
    )

    for text in (stranger.message.text, ahead):
        assert await signalled(client, tree, text) == "waiting"

    waiting = (await status_of(client, tree))["waiting"]
    assert [entry["issuer"] for entry in waiting] == [builders.issuer("stranger")] * 2
    await unsent.is_taken(client, tokens)


async def test_a_strangers_update_is_forged_when_no_keyring_comes_to_know_it(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    stranger = await unsent_for(client, tree, by="stranger")

    assert await updated(client, tree, stranger.message.text) == "TokenForged"

    await unsent.is_taken(client, tokens)


async def test_of_a_flood_by_strangers_little_is_kept_and_the_rest_is_forged(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    stranger = await unsent_for(client, tree, by="stranger")
    keys = builders.keyring("stranger")
    claims = stranger.message.claims
    flood = [keys.seal(replace(claims, version=claims.version + n), "x" * 4000) for n in range(300)]
    size = sum(map(len, flood))
    assert size > 2_000_000

    await send_all(client, tree, flood)

    async def bounded() -> None:
        status = await status_of(client, tree)
        waiting = status["waiting_count"]
        assert waiting * len(flood[0]) < 1_000_000
        assert status["rejections"]["counts"] == {"TokenForged": len(flood) - waiting}

    await eventually(bounded)
    await unsent.is_taken(client, tokens)


async def test_a_revoked_issuers_messages_are_forged_once_a_node_knows(
    engine: EmbeddedEngine, queue: str
) -> None:
    thief = builders.keyring("ours")
    issuer_key, reader = sorted(jwks(thief), key=lambda key: key["crv"])
    successor = jwks(builders.keyring("successor"))
    renewed = keyring_of(marked(issuer_key, revoked=True), *successor, reader)
    client = await connect(engine, renewed)
    tokens = TokenClient(client, renewed)
    async with start_worker(client, queue):
        tree = await start_tree(TokenClient(client, thief), queue)
        # The tree was started with the old key trusted: what its thief sets is taken, also with
        # a version that no honest one would have.
        stolen = await unsent_for(client, tree)
        ahead = parse(stolen.sealed(version=now() + TOO_FAR_AHEAD - 60_000))
        await client.get_workflow_handle(tree).signal("apiToken", ahead.text)
        await is_everywhere(tokens, tree, ahead)

        # The successor's first message makes each node ask, and stands, with its version of now.
        first = await unsent_for(client, tree, by="successor")
        assert first.message.claims.version < ahead.claims.version
        await client.get_workflow_handle(tree).signal("apiToken", first.message.text)
        await is_everywhere(tokens, tree, first.message)

        newer = parse(stolen.sealed(version=now() + 60_000))
        revocation = replace(newer.claims, origins=(), inherit=False)
        for node in (tree, f"{tree}-a"):
            await are_refused(
                client,
                node,
                {
                    "captured": ahead.text,
                    "newer": newer.text,
                    "a revocation": thief.revocation(revocation),
                    "newer, in the successor's name": signed(
                        header_of(by="successor"), newer.payload, by="ours"
                    ),
                },
                "TokenForged",
            )
        await is_healthy(client, tokens, tree, holding="unsent")


# --- floods --------------------------------------------------------------------------------------

FLOODS = {"root": 9000, "middle": 3000}
"""The engine allows a run 10,000 signals."""


async def send_all(
    client: Client, workflow_id: str, messages: Iterable[str], *, at_once: int = 4
) -> None:
    """Signal all of them, so many at once."""
    handle = client.get_workflow_handle(workflow_id)
    left = iter(messages)

    async def some() -> None:
        for text in left:
            await handle.signal("apiToken", text)

    await asyncio.gather(*[some() for _ in range(at_once)])


def forgeries_of(genuine: Message, count: int, *, secret: str = "x") -> list[str]:
    """Well-formed messages of high versions, in the genuine issuer's name, by a stranger's key."""
    head = genuine.text.split(".")[0]
    stranger, high = builders.keyring("stranger"), now() + 280_000
    messages = [
        stranger.seal(replace(genuine.claims, version=high + n), secret) for n in range(count)
    ]
    forged = [".".join([head, *text.split(".")[1:]]) for text in messages]
    assert parse(forged[0]).issuer == genuine.issuer
    return forged


def flood_of(genuine: Message, count: int) -> list[str]:
    """Garbage by turns with forgeries."""
    forged = forgeries_of(genuine, count // 2)
    return [text for n, one in enumerate(forged) for text in (f"garbage {n}", one)]


async def is_counted_and_not_kept(client: Client, workflow_id: str, flood: list[str]) -> None:
    """Every message of a flood was judged; what is left of it are two counts and 20 lines."""

    async def all_judged() -> bool:
        counts = (await status_of(client, workflow_id))["rejections"]["counts"]
        return sum(counts.values()) >= len(flood)

    await eventually(all_judged, within=60)
    state = await client.get_workflow_handle(workflow_id).query("statefulState")
    ledger = state["ledger"]
    half = len(flood) // 2
    assert ledger["rejected"] == {"TokenMalformed": half, "TokenForged": half}
    assert len(ledger["rejections"]) == 20
    assert ledger["held"] == [await sealed_at(client, workflow_id)]
    assert state["waiting"] == []
    assert len(json.dumps(state)) < 10_000


@dataclass(frozen=True)
class Line:
    """A tree of three in a line: its ids from the root."""

    root: str
    middle: str
    leaf: str

    @property
    def ids(self) -> list[str]:
        return [self.root, self.middle, self.leaf]


@pytest.fixture
async def line(client: Client, tokens: TokenClient, queue: str) -> AsyncIterator[Line]:
    async with start_worker(client, queue):
        await start_tree(tokens, queue, Plan({"a": Plan({"b": Plan()})}))
        yield Line(queue, f"{queue}-a", f"{queue}-a-b")


async def has_worked_all_along(client: Client, line: Line) -> None:
    for node in line.ids:
        handle = client.get_workflow_handle(node)
        assert await failed_tasks(handle) == []
        assert await slow_tasks(handle) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("flooded", FLOODS)
async def test_rotations_converge_while_thousands_of_garbage_signals_come(
    client: Client, tokens: TokenClient, line: Line, flooded: str
) -> None:
    """At the root the genuine messages are updates amid the flood, in the middle signals."""
    target: str = getattr(line, flooded)
    genuine = parse(await sealed_at(client, line.root))
    flood = await asyncio.to_thread(flood_of, genuine, FLOODS[flooded])
    left = iter(flood)
    sending = asyncio.create_task(send_all(client, target, left))

    async def has_come(share: float) -> bool:
        return length_hint(left) <= len(flood) * (1 - share)

    done_meanwhile = 0
    for rotation in range(20):
        await eventually(partial(has_come, rotation / 20), within=60)
        tree = await tokens.rotate(line.root, f"rotation {rotation}", timeout=60)
        assert tree.converged
        done_meanwhile += not sending.done()
        for node in line.ids:
            assert (await tokens.get(node)).reveal() == f"rotation {rotation}"
    await sending

    assert done_meanwhile > 1
    await is_counted_and_not_kept(client, target, flood)
    await has_worked_all_along(client, line)
    assert (await tokens.rotate(line.root, "after the flood", timeout=20)).converged


@pytest.mark.timeout(300)
async def test_a_genuine_message_amid_garbage_that_waited_for_the_worker_is_taken(
    client: Client, tokens: TokenClient, queue: str
) -> None:
    """All of it comes in one workflow task, and is judged in several."""
    line = Line(queue, f"{queue}-a", f"{queue}-a-b")
    async with start_worker(client, queue):
        await start_tree(tokens, queue, Plan({"a": Plan({"b": Plan()})}))
        unsent = await unsent_for(client, line.root)
    flood = flood_of(unsent.message, 3000)

    await send_all(client, line.root, flood[:1500], at_once=50)
    await client.get_workflow_handle(line.root).signal("apiToken", unsent.message.text)
    await send_all(client, line.root, flood[1500:], at_once=50)

    async with start_worker(client, queue):
        await is_everywhere(tokens, line.root, unsent.message)  # before the rest is judged
        await is_counted_and_not_kept(client, line.root, flood)
        await unsent.is_taken(client, tokens)
        await has_worked_all_along(client, line)
        assert len(await events_of(client.get_workflow_handle(line.root), "TIMER_FIRED")) >= 1


async def test_a_flood_of_garbage_does_not_displace_the_genuine_message(
    client: Client, tokens: TokenClient, tree: str, unsent: Unsent
) -> None:
    flood = flood_of(unsent.message, 700)

    await send_all(client, tree, flood)

    await is_counted_and_not_kept(client, tree, flood)
    await unsent.is_taken(client, tokens)


# --- floods and a run that continues as new ------------------------------------------------------


@pytest.mark.timeout(180)
@pytest.mark.parametrize("forged", [1000, 4000])
async def test_a_genuine_message_behind_a_flood_of_forgeries_outlives_continue_as_new(
    client: Client, tokens: TokenClient, queue: str, forged: int
) -> None:
    async with start_worker(client, queue):
        await start_tree(tokens, queue, Plan())
        unsent = await unsent_for(client, queue)
    root = client.get_workflow_handle(queue)

    await send_all(client, queue, forgeries_of(unsent.message, forged, secret="x" * 800))
    await root.signal("apiToken", unsent.message.text)
    await root.signal("go_on_at_once")

    async with start_worker(client, queue):
        await continued(client, queue)
        await eventually(partial(all_is_judged, client, queue))
        assert await sealed_at(client, queue) == unsent.message.text
        counts = (await status_of(client, queue))["rejections"]["counts"]
        assert counts == {"TokenForged": forged}
        await is_healthy(client, tokens, queue, holding="unsent")


@pytest.mark.parametrize("strangers", [40, 100])
async def test_a_successors_message_behind_those_of_strangers_outlives_continue_as_new(
    client: Client, tokens: TokenClient, queue: str, strangers: int
) -> None:
    """No worker has the successor's key yet, as in a rollout that takes its time."""
    async with start_worker(client, queue):
        await start_tree(tokens, queue, Plan())
        unsent = await unsent_for(client, queue, by="successor")
        claims, stranger = unsent.message.claims, builders.keyring("stranger")
        flood = [
            stranger.seal(replace(claims, version=claims.version + n), "x" * 4000)
            for n in range(strangers)
        ]
        root = client.get_workflow_handle(queue)

        await send_all(client, queue, flood)
        await root.signal("apiToken", unsent.message.text)
        await root.signal("go_on_at_once")
        await continued(client, queue)

        # A status lists the first few of those that wait; the state has all.
        state = await client.get_workflow_handle(queue).query("statefulState")
        assert unsent.message.text in state["waiting"]


async def continued(client: Client, workflow_id: str) -> None:
    """Wait until a workflow runs on as another run."""

    async def another() -> bool:
        description = await client.get_workflow_handle(workflow_id).describe()
        first = description.raw_description.workflow_execution_info.first_run_id
        return description.run_id != first

    await eventually(another, within=60)


async def all_is_judged(client: Client, workflow_id: str) -> bool:
    return not (await status_of(client, workflow_id))["waiting"]
