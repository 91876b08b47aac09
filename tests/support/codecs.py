"""A payload codec, as a user would write it, and a data converter that has it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    ActivitySerializationContext,
    DataConverter,
    PayloadCodec,
    SerializationContext,
    WithSerializationContext,
    WorkflowSerializationContext,
)


class Encrypts(PayloadCodec, WithSerializationContext):
    """AES-GCM; where it is bound to a context, to that one's workflow id."""

    def __init__(self, key: bytes, *, binds: bool = False, bound: bytes = b"") -> None:
        self._key, self._binds, self._bound = key, binds, bound

    def with_context(self, context: SerializationContext) -> Encrypts:
        known = isinstance(context, WorkflowSerializationContext | ActivitySerializationContext)
        bound = str(context.workflow_id).encode() if known and self._binds else b""
        return Encrypts(self._key, binds=self._binds, bound=bound)

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._encrypted(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._decrypted(payload) for payload in payloads]

    def _encrypted(self, payload: Payload) -> Payload:
        nonce, cipher = os.urandom(12), AESGCM(self._key)
        data = nonce + cipher.encrypt(nonce, payload.SerializeToString(), self._bound)
        return Payload(metadata={"encoding": b"binary/encrypted"}, data=data)

    def _decrypted(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != b"binary/encrypted":
            return payload
        data, cipher = payload.data, AESGCM(self._key)
        return Payload.FromString(cipher.decrypt(data[:12], data[12:], self._bound))


def encrypting(**options: Any) -> DataConverter:
    return DataConverter(payload_codec=Encrypts(b"k" * 32, **options))


CONVERTER = encrypting()
