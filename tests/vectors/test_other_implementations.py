"""docs/vectors.json opened by two other implementations of JOSE: jwcrypto, and jose on Node.js.

The first shares `cryptography` with ours and nothing above it: how a message is put together, what
is signed, what is bound to the ciphertext and how keys are derived is its own. The second shares
nothing, and is skipped where there is no `node` or no `jose`; README.md says how to have them.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import pytest

from stateful_workflow.sealed.message import (
    CONTENT_ALGORITHM,
    KEY_ALGORITHM,
    SIGNATURE_ALGORITHM,
    TYP,
    decode_base64url,
    parse,
)
from tests.support.builders import CLAIMS, NAMESPACE, NOW, TOKEN, Json, jwks, keyring

# It has no types.
jwe: Any = importlib.import_module("jwcrypto.jwe")
jwk: Any = importlib.import_module("jwcrypto.jwk")
jws: Any = importlib.import_module("jwcrypto.jws")

VECTORS = cast(
    "Json", json.loads((Path(__file__).parents[2] / "docs/vectors.json").read_text("utf-8"))
)
KEYS: dict[str, Json] = VECTORS["keys"]
TOKENS = [entry for entry in VECTORS["messages"] if entry["kind"] != "revocation"]
REVOCATIONS = [entry for entry in VECTORS["messages"] if entry["kind"] == "revocation"]
LATER = [entry for entry in VECTORS["refused"] if entry["step"] != "parse"]
"""What is refused and not by our parser: for its cryptography, or by a policy."""

MODULES = "JOSE_NODE_MODULES"
NOT_FOUND = 3


class Opening(NamedTuple):
    """A message, the key it is taken to be signed by, and the reader that is to open it."""

    message: str
    issuer: Json
    reader: Json


Open = Callable[[list[Opening]], list[Json]]
"""What an implementation makes of each: `payload` where it verifies, `claims` and `token`."""


def by_jwcrypto(openings: list[Opening]) -> list[Json]:
    return [_by_jwcrypto(opening) for opening in openings]


def _by_jwcrypto(opening: Opening) -> Json:
    result: Json = {}
    signed = jws.JWS()
    signed.allowed_algs = [SIGNATURE_ALGORITHM]
    sealed = jwe.JWE(algs=[KEY_ALGORITHM, CONTENT_ALGORITHM])
    try:
        signed.deserialize(opening.message, public(opening.issuer))
        result["payload"] = signed.payload.decode()
        if "ciphertext" in json.loads(result["payload"]):
            sealed.deserialize(result["payload"], jwk.JWK(**opening.reader))
            result["claims"] = sealed.objects["aad"].decode()
            result["token"] = sealed.payload.decode()
    except (jws.InvalidJWSSignature, jwe.InvalidJWEData):
        pass
    return result


def public(key: Json) -> Any:
    return jwk.JWK(**{name: value for name, value in key.items() if name != "d"})


def by_jose(openings: list[Opening]) -> list[Json]:
    node, folder = shutil.which("node"), os.environ.get(MODULES)
    if node is None:
        pytest.skip("no node on the PATH")
    answered = subprocess.run(
        [node, str(Path(__file__).with_name("open_with_jose.mjs"))],
        input=json.dumps([opening._asdict() for opening in openings]),
        capture_output=True,
        check=False,
        encoding="utf-8",
        env={**os.environ, **({"NODE_PATH": folder} if folder else {})},
    )
    # Who names a folder wants the test to run.
    if answered.returncode == NOT_FOUND and not folder:
        pytest.skip(f"node does not find the package jose; {MODULES} may name its node_modules")
    assert answered.returncode == 0, answered.stderr
    return cast("list[Json]", json.loads(answered.stdout))


each_implementation = pytest.mark.parametrize(
    "opened", [by_jwcrypto, by_jose], ids=["jwcrypto", "jose"]
)


@each_implementation
def test_it_opens_every_token_for_each_of_its_readers(opened: Open) -> None:
    each = [(entry, reader) for entry in TOKENS for reader in entry["readers"]]
    results = opened(
        [Opening(entry["message"], KEYS[entry["issuer"]], KEYS[reader]) for entry, reader in each]
    )
    assert len(each) >= 8
    assert [(result.get("claims"), result.get("token")) for result in results] == [
        (entry["claims"], entry["token"]) for entry, _ in each
    ]


@each_implementation
def test_it_verifies_every_revocation(opened: Open) -> None:
    results = opened(
        [Opening(entry["message"], KEYS[entry["issuer"]], KEYS["reader"]) for entry in REVOCATIONS]
    )
    assert results == [{"payload": entry["claims"]} for entry in REVOCATIONS]


def refused(*errors: str) -> list[Opening]:
    """What our keyring refuses with these errors, for each issuer it may be taken to be of."""
    return [
        Opening(entry["message"], KEYS[issuer], KEYS[_reader(entry)])
        for entry in LATER
        if entry["error"] in errors
        for issuer in _issuers(entry)
    ]


def _issuers(entry: Json) -> list[str]:
    """The key that the kid names, or every trusted one where that is not among them."""
    header = json.loads(decode_base64url(entry["message"].split(".")[0], "header"))
    (named,) = [name for name, key in KEYS.items() if key["kid"] == header["kid"]]
    trusted = entry["given"].get("trusted", [named])
    return [named] if named in trusted else trusted


def _reader(entry: Json) -> str:
    names = entry["given"].get("keyring", ["reader"])
    return next(name for name in names if KEYS[name]["crv"] == "X25519")


POLICY: Final = ["IssuerLimited", "TokenExpired", "WrongNamespace", "WrongWorkflowType"]
"""With these a genuine token is refused where and when it is met."""


@each_implementation
def test_it_opens_what_only_our_policy_refuses(opened: Open) -> None:
    results = opened(refused(*POLICY))
    assert len(results) >= 5
    tokens = {entry["token"] for entry in TOKENS}
    assert all(result["token"] in tokens for result in results)


@each_implementation
def test_it_verifies_no_forged_message(opened: Open) -> None:
    results = opened(refused("TokenForged"))
    assert len(results) >= 4
    assert results == [{}] * len(results)


@each_implementation
def test_it_verifies_but_does_not_decrypt_what_is_broken_or_sealed_for_others(opened: Open) -> None:
    results = opened(refused("TokenMalformed", "NoReaderKey"))
    # What has another content than it says decrypts, and is refused then.
    closed = [each for each in results if "content" not in json.loads(each.get("claims", "{}"))]
    assert 7 <= len(closed) < len(results)
    assert all(result.keys() == {"payload"} for result in closed)


def test_whatever_is_refused_and_is_no_matter_of_parsing_is_judged_here() -> None:
    judged = {*POLICY, "TokenForged", "TokenMalformed", "NoReaderKey"}
    assert {entry["error"] for entry in LATER} - judged == {"TokenRevoked"}


def test_the_key_ids_of_jwcrypto_are_ours() -> None:
    for key in (*KEYS.values(), *jwks(keyring())):
        assert public(key).thumbprint() == key["kid"]


def test_we_open_what_jwcrypto_seals() -> None:
    issuer, reader = jwks(keyring())
    protected = json.dumps({"enc": CONTENT_ALGORITHM}, separators=(",", ":"))
    sealing = jwe.JWE(
        TOKEN.encode(), protected, aad=CLAIMS.encode(), algs=[KEY_ALGORITHM, "A256GCM"]
    )
    for key in (reader, KEYS["reader"]):  # of one recipient it makes the flattened form
        header = json.dumps({"alg": KEY_ALGORITHM, "kid": key["kid"]})
        sealing.add_recipient(public(key), header)
    signing = jws.JWS(sealing.serialize())
    signing.allowed_algs = [SIGNATURE_ALGORITHM]
    header = {"alg": SIGNATURE_ALGORITHM, "kid": issuer["kid"], "typ": TYP["token"]}
    signing.add_signature(jwk.JWK(**issuer), protected=json.dumps(header))

    message = parse(signing.serialize(compact=True))

    assert message.claims == CLAIMS
    opened = keyring().open(message, now=NOW / 1000, namespace=NAMESPACE, workflow_type=None)
    assert opened == TOKEN
