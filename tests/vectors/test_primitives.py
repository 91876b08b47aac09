"""The objects that others' vectors are run through are those that the product calls."""

from __future__ import annotations

from typing import Any

import pytest
from joserfc.jwk import OKPKey

from stateful_workflow.sealed.crypto import verify_signature
from stateful_workflow.sealed.keys import verify
from stateful_workflow.sealed.message import parse
from tests.builders import CLAIMS, NAMESPACE, NOW, TOKEN, keyring

from .primitives import AGREEMENT, CONTENT, SIGNATURE, WRAPPING

Calls = list[str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The names of the primitives called from now on."""
    made: Calls = []

    def spy(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, called)

    spy(SIGNATURE, "sign")
    spy(SIGNATURE, "verify")
    spy(OKPKey, "exchange_derive_key")
    spy(OKPKey, "thumbprint")
    spy(AGREEMENT, "encrypt_agreed_upon_key")
    spy(AGREEMENT, "decrypt_agreed_upon_key")
    spy(WRAPPING, "wrap_cek")
    spy(WRAPPING, "unwrap_cek")
    spy(CONTENT, "encrypt")
    spy(CONTENT, "decrypt")
    return made


def test_sealing_calls_them(calls: Calls) -> None:
    keyring().seal(CLAIMS, TOKEN)

    assert {"sign", "exchange_derive_key", "encrypt_agreed_upon_key"} <= set(calls)
    assert {"wrap_cek", "encrypt"} <= set(calls)


def test_verifying_and_opening_call_them(calls: Calls) -> None:
    message = parse(keyring().seal(CLAIMS, TOKEN))
    verify_signature.cache_clear()  # what was verified is remembered
    calls.clear()

    verify(message, keyring().trusted())
    assert calls == ["verify"]
    keyring().open(message, now=NOW / 1000, namespace=NAMESPACE, workflow_type=None)
    assert {"exchange_derive_key", "decrypt_agreed_upon_key"} <= set(calls)
    assert {"unwrap_cek", "decrypt"} <= set(calls)


def test_a_key_id_is_what_they_compute(calls: Calls) -> None:
    keyring().add_issuer()

    assert "thumbprint" in calls
