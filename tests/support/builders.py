"""Keys and messages for the unit tests, the genuine ones and those a forger would make."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stateful_workflow.node.contract import Orphan
from stateful_workflow.node.ledger import Child, Ledger, Life, Order, Place, Starting
from stateful_workflow.record.metrics import Metrics
from stateful_workflow.record.recorder import Recorder, SinkWriter
from stateful_workflow.sealed.keyring import Keyring
from stateful_workflow.sealed.keys import Issuer
from stateful_workflow.sealed.message import (
    DEFAULT_NAME,
    SIGNATURE_ALGORITHM,
    TYP,
    Claims,
    Kind,
    Message,
    encode_base64url,
    parse,
)

Json = dict[str, Any]

NOW = 1_800_000_000_000
"""Unix milliseconds at which the tests take place."""

NAMESPACE = "default"
ROOT = "acme"
TREE = "tree-1"
TOKEN = "tok-3f9c1b-canary"
"""The secret in every sealed token of the tests; found anywhere else, it leaked."""

CLAIMS = Claims(
    DEFAULT_NAME, NAMESPACE, ROOT, TREE, ROOT, NOW, origins=("https://api.example.com",)
)

_ours: dict[str, Keyring] = {}


def keyring(owner: str = "ours") -> Keyring:
    """The keyring of this owner: one issuer and one reader, the same for the whole run."""
    if owner not in _ours:
        _ours[owner] = Keyring.generate()
    return _ours[owner]


def issuer(owner: str = "ours") -> str:
    """Key id of the issuer in an owner's keyring."""
    return next(key.kid for key in keyring(owner).keys() if key.kind == "issuer")


def trusted(*owners: str) -> dict[str, Issuer]:
    """The public keys of these owners' issuers, as a node trusts them."""
    return {kid: key for owner in owners for kid, key in keyring(owner).trusted().items()}


@cache
def _message(claims: Claims, owner: str) -> Message:
    keys = keyring(owner)
    if claims.kind == "token":
        return parse(keys.seal(claims, TOKEN))
    return parse(keys.revocation(claims))


def token(
    version: int = NOW,
    *,
    at: str = ROOT,
    by: str = "ours",
    name: str = DEFAULT_NAME,
    root: str = ROOT,
    tree: str = TREE,
) -> Message:
    """A sealed token; the same arguments give the same message."""
    claims = replace(CLAIMS, version=version, authority=at, name=name, root=root, tree=tree)
    return _message(claims, by)


def revocation(
    version: int = NOW,
    *,
    at: str = ROOT,
    by: str = "ours",
    name: str = DEFAULT_NAME,
    inherit: bool = False,
) -> Message:
    """A revocation, or with `inherit` the message that takes the ancestors' token again."""
    claims = replace(CLAIMS, version=version, authority=at, name=name, origins=(), inherit=inherit)
    return _message(claims, by)


# --- ledgers --------------------------------------------------------------------


def node(*path: str, trusts: tuple[str, ...] = ("ours",), holds: Iterable[Message] = ()) -> Ledger:
    """The ledger of a node at the end of this path."""
    ledger = Ledger(path or (ROOT,), TREE, trusted(*trusts))
    for message in holds:
        ledger.accept(message, NOW)
    return ledger


def restarted(ledger: Ledger) -> Ledger:
    """What the next run reads of it."""
    return Ledger.load(json.loads(json.dumps(ledger.dump())))


def starting(
    parent: Ledger, child_id: str, *, with_messages: bool = True, **settings: Any
) -> tuple[Ledger, Starting]:
    """A child's ledger, and its start, which is not confirmed."""
    child = Child(child_id, "Node", **settings)
    state, start = parent.start_child(child, with_messages=with_messages)
    return Ledger.load(json.loads(json.dumps(state))), start


def started(parent: Ledger, child_id: str, **settings: Any) -> Ledger:
    """A child's ledger, whose start is confirmed."""
    ledger, start = starting(parent, child_id, **settings)
    parent.child_started(start)
    return ledger


def start_of(parent: Ledger, child_id: str) -> Starting:
    """The start of a child that a parent knows."""
    return Starting(child_id, parent.children[child_id].start)


def close(parent: Ledger, child_id: str) -> None:
    """A child closes."""
    assert parent.close_child(start_of(parent, child_id))


def doubt(parent: Ledger, child_id: str, **settings: Any) -> None:
    """A start is refused, since one of this id runs already."""
    _, start = starting(parent, child_id, **settings)
    assert parent.child_failed_to_start(start, may_run=True)


def orphan(id: str, soft: dict[str, bool] | None, *, hard: tuple[str, ...] = ()) -> Orphan:
    """One that was found below a closed child."""
    return Orphan(id, "Node", list(hard), soft)


def life(parent: Ledger) -> dict[str, Life]:
    """What a parent knows of the life of each child that is not among the closed."""
    return {child.id: child.life for child in parent.children.values()}


def told(parent: Ledger) -> dict[str, list[Message]]:
    """What the next telling would carry to each child."""
    return {child.id: messages for child, messages in parent.to_tell()}


def floors(ledger: Ledger) -> dict[tuple[str, Place], Order]:
    """The floor of each issuer that is trusted, by place."""
    return {
        (kid, place): order
        for place, orders in ledger.floors.items()
        for kid, order in orders.items()
        if kid in ledger.trusted
    }


# --- what a forger has ---------------------------------------------------------


def jwks(keys: Keyring) -> list[Json]:
    """The keys of a keyring as JWKs."""
    return cast("list[Json]", json.loads(keys.to_json())["keys"])


def keyring_of(*keys: Mapping[str, Any]) -> Keyring:
    """A keyring read from these JWKs."""
    return Keyring.from_json(json.dumps({"keys": keys}))


def marked(key: Mapping[str, Any], **settings: object) -> Json:
    """A JWK with our own member ``stateful``, as ``marked(key, revoked=True)``."""
    return {**key, "stateful": settings}


def compact(value: object) -> bytes:
    """JSON without white space; bytes stay as they are."""
    if isinstance(value, bytes):
        return value
    return json.dumps(value, separators=(",", ":")).encode()


def header_of(kind: Kind = "token", by: str = "ours") -> Json:
    """The header that messages of this kind have."""
    return {"alg": SIGNATURE_ALGORITHM, "kid": issuer(by), "typ": TYP[kind]}


def signed(header: object, payload: object, by: str = "ours") -> str:
    """A compact JWS of exactly this header and payload, its signature genuine."""
    protected = f"{encode_base64url(compact(header))}.{encode_base64url(compact(payload))}"
    secret = next(key["d"] for key in jwks(keyring(by)) if key["crv"] == "Ed25519")
    private = Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(secret + "="))
    return f"{protected}.{encode_base64url(private.sign(protected.encode()))}"


def jwe_of(message: Message) -> Json:
    """The JWE in a token, as JSON data."""
    return cast("Json", json.loads(message.payload))


def claims_of(claims: Claims = CLAIMS) -> Json:
    """Claims as JSON data."""
    return cast("Json", json.loads(claims.encode()))


def with_claims(claims: object, by: str = "ours") -> str:
    """A genuine token under other claims, signed again."""
    return signed(
        header_of(by=by),
        {**jwe_of(token(by=by)), "aad": encode_base64url(compact(claims))},
        by,
    )


def unrecorded() -> Recorder:
    """A recorder that keeps nothing."""
    return Recorder(SinkWriter(None), Metrics.of(None))
