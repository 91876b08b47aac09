"""What is sealed in a token: read strictly, whoever sealed it, and never shown."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stateful_workflow import ApiToken, Keyring, TokenMalformed
from stateful_workflow.errors import ReferenceUnresolved
from stateful_workflow.sealed.crypto import Key, encrypt
from stateful_workflow.sealed.message import Content, Message, parse
from stateful_workflow.sealed.secret import Secret, Values
from tests.support.builders import CLAIMS, header_of, jwks, keyring, signed

CANARY = "canary-5f1d7c"
REFERENCE = "prod:tenants/acme"


def unsealed(keys: Keyring, text: str) -> Secret:
    return keys.unseal(parse(text), now=0, namespace=CLAIMS.namespace, workflow_type=None)


def test_a_token_keeps_its_values_and_its_claims_say_that_it_has_some() -> None:
    keys = keyring()
    message = parse(keys.seal(CLAIMS, Secret(CANARY, {"user": "ann", "lease.id": ""})))

    assert message.claims == replace(CLAIMS, content="values")
    opened = unsealed(keys, message.text)
    assert (opened.token, dict(opened.values)) == (CANARY, {"user": "ann", "lease.id": ""})
    assert keys.open(message, now=0, namespace=CLAIMS.namespace, workflow_type=None) == CANARY


def test_what_has_no_values_is_sealed_as_ever() -> None:
    keys = keyring()
    for token in (CANARY, Secret(CANARY), Secret(CANARY, {})):
        message = parse(keys.seal(replace(CLAIMS, content="values"), token))
        assert message.claims == CLAIMS
        assert unsealed(keys, message.text) == Secret(CANARY)


def test_a_reference_is_no_token_to_whoever_does_not_resolve_it() -> None:
    keys = keyring()
    message = parse(keys.seal(CLAIMS, Secret(REFERENCE, is_reference=True)))

    assert message.claims.content == "reference"
    assert unsealed(keys, message.text).named == ("prod", "tenants/acme")
    with pytest.raises(ReferenceUnresolved) as refusal:
        keys.open(message, now=0, namespace=CLAIMS.namespace, workflow_type=None)
    assert refusal.value.reference == REFERENCE
    assert "tenants" not in str(refusal.value)


@pytest.mark.parametrize(
    "name",
    [
        *("", "prod", "prod:", ":a", "prod:/a", "prod:a/", "prod:a//b", "prod:..", "prod:a/../b"),
        *("prod:./a", "prod:a/.", "prod:a b", "prod:a%2e", "prod:a?b", "prod:a#b", "prod:a\\b"),
        *("prod:a\n", "prod:ä", "pröd:a", "-prod:a", "prod:a*", f"prod:{'a' * 1000}", "p/q:a"),
    ],
)
def test_a_reference_that_could_lead_elsewhere_is_not_sealed(name: str) -> None:
    with pytest.raises(TokenMalformed):
        keyring().seal(CLAIMS, Secret(name, is_reference=True))


@pytest.mark.parametrize(
    "name", ["prod:a", "v.1-x:a/b/...c", "aws:arn:aws:x:1:secret:db/a-B+c=@~,"]
)
def test_a_reference_names_what_managers_have(name: str) -> None:
    keys = keyring()
    text = keys.seal(CLAIMS, Secret(name, is_reference=True))
    assert unsealed(keys, text) == Secret(name, is_reference=True)


@pytest.mark.parametrize(
    "secret",
    [
        Secret(CANARY, {"": "a"}),
        Secret(CANARY, {"a b": "a"}),
        Secret(CANARY, {"a": "\udc9b"}),
        Secret(CANARY, {"a": 1}),  # pyright: ignore[reportArgumentType]
        Secret(CANARY, {f"a{n}": "" for n in range(65)}),
        Secret(CANARY, {"a": "x" * 20_000}),
        Secret("", {"a": "b"}),
        Secret(f"{CANARY}\n", {"a": "b"}),
    ],
)
def test_values_that_no_reader_would_take_are_not_sealed(secret: Secret) -> None:
    with pytest.raises(TokenMalformed) as refusal:
        keyring().seal(CLAIMS, secret)
    assert CANARY not in "".join(traceback.format_exception(refusal.value))


def holding(content: Content, plaintext: bytes) -> Message:
    """What an issuer signed whose library is not ours."""
    claims = replace(CLAIMS, content=content)
    (reader,) = [key for key in jwks(keyring()) if key["crv"] == "X25519"]
    jwe = encrypt(plaintext, claims.encode(), [Key.from_jwk(reader)])
    return parse(signed(header_of(), jwe.encode()))


WHOLE: dict[str, Any] = {"token": CANARY, "values": {"a": "b"}}


@pytest.mark.parametrize(
    ("content", "plaintext"),
    [
        ("values", CANARY.encode()),
        ("values", b"\xff" + CANARY.encode()),
        ("values", json.dumps([WHOLE]).encode()),
        ("values", json.dumps({**WHOLE, "more": 1}).encode()),
        ("values", json.dumps({"token": CANARY}).encode()),
        ("values", json.dumps({**WHOLE, "values": {}}).encode()),
        ("values", json.dumps({**WHOLE, "values": [CANARY]}).encode()),
        ("values", json.dumps({**WHOLE, "values": {"a": None}}).encode()),
        ("values", json.dumps({**WHOLE, "token": ""}).encode()),
        ("values", json.dumps({**WHOLE, "token": 1}).encode()),
        ("values", json.dumps({**WHOLE, "token": f"{CANARY}\udc9b"}).encode()),
        ("values", json.dumps(WHOLE).encode()[:-1] + b',"token":"other"}'),
        ("reference", CANARY.encode()),
        ("reference", f"prod:../{CANARY}".encode()),
        ("reference", b""),
    ],
)
def test_what_is_not_what_its_claims_say_does_not_open(content: Content, plaintext: bytes) -> None:
    with pytest.raises(TokenMalformed) as refusal:
        unsealed(keyring(), holding(content, plaintext).text)
    assert CANARY not in "".join(traceback.format_exception(refusal.value))
    assert refusal.value.__context__ is None


def test_what_is_meant_does_open() -> None:
    opened = unsealed(keyring(), holding("values", json.dumps(WHOLE, indent=1).encode()).text)
    assert opened == Secret(CANARY, {"a": "b"})


def test_values_are_read_only_and_print_nothing_of_themselves() -> None:
    values = ApiToken(holding("values", b"x"), Secret("t", {"user": CANARY})).values

    assert (values["user"], len(values), [*values]) == (CANARY, 1, ["user"])
    assert values == {"user": CANARY}
    assert repr(values) == "Values(user=<redacted>)"
    assert CANARY not in repr(Secret(CANARY, {"a": CANARY}))
    with pytest.raises(KeyError):
        values["other"]
    assert not hasattr(values, "__setitem__")


@pytest.mark.parametrize("export", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps])
def test_values_are_not_exported(export: Callable[[object], object]) -> None:
    with pytest.raises(TypeError):
        export(Values({"a": CANARY}))
