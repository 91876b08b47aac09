"""Find an opened secret in data, in every spelling it is likely to have, and take it out.

A secret is looked for as it is, as JSON, ``repr`` and URLs spell it, in hexadecimal, and
inside base64. One of fewer than 8 characters is not looked for: it would be found in
anything, and keeps nothing secret.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Final, cast
from urllib.parse import quote, quote_plus

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as Proto
from temporalio.api.common.v1 import Payload

SHORTEST: Final = 8
"""Characters a secret has at least that is looked for."""


class OpenedSecrets:
    """The secrets an activity has opened, and where they turn up."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}

    def add(self, name: str, secret: str) -> None:
        """Note a secret under its credential name."""
        if len(secret) >= SHORTEST:
            for form in _forms(secret):
                self._names[form] = name

    @property
    def are_none(self) -> bool:
        """Whether there is nothing to look for."""
        return not self._names

    def found_in(self, data: Iterable[bytes]) -> str | None:
        """The credential name of a secret that is in the data, or None."""
        for part in data:
            # A copy: a thread may open another token meanwhile.
            for form, name in list(self._names.items()):
                if form in part:
                    return name
        return None

    def redact(self, message: Proto) -> None:
        """Take every secret out of a protobuf message, in place."""
        if isinstance(message, Payload):
            self._redact_payload(message)
            return
        for field, value in message.ListFields():
            of_field = cast("object", value)
            if field.type == FieldDescriptor.TYPE_STRING and isinstance(of_field, str):
                setattr(message, field.name, self._redacted(of_field.encode()).decode())
            elif isinstance(of_field, Proto):
                self.redact(of_field)
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                for entry in cast("Iterable[object]", of_field):
                    if isinstance(entry, Proto):
                        self.redact(entry)

    def _redact_payload(self, payload: Payload) -> None:
        if self.found_in([payload.SerializeToString()]) is None:
            return
        if payload.metadata.get("encoding", b"").startswith(b"json/"):
            payload.data = self._redacted(payload.data)
        else:
            payload.metadata.clear()
            payload.metadata["encoding"] = b"json/plain"
            payload.data = json.dumps(_mark("a payload that held a token")).encode()

    def _redacted(self, data: bytes) -> bytes:
        for form, name in sorted(self._names.items(), key=lambda entry: -len(entry[0])):
            data = data.replace(form, _mark(name).encode())
        return data


def _mark(what: str) -> str:
    return f"<redacted: {what}>"


def _forms(secret: str) -> set[bytes]:
    plain = secret.encode()
    spelled = {
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        repr(plain)[2:-1],
        ascii(secret)[1:-1],
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        plain.hex(),
    }
    # JSON within JSON: a failure's text as a detail, a document in a string.
    spelled |= {json.dumps(form)[1:-1] for form in spelled}
    return {form.encode() for form in spelled} | set(base64_forms(plain))


def base64_forms(needle: bytes) -> tuple[bytes, ...]:
    """How bytes look inside base64 and base64url text (RFC 4648 sections 4 and 5).

    What base64 makes of them depends on how many bytes stand before, modulo three, and at
    the edges on their neighbours: for each of the three alignments, the characters that follow
    from the needle alone.
    """
    found: set[bytes] = set()
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + needle)
        first = (before * 8 + 5) // 6
        inner = encoded[first : (before + len(needle)) * 8 // 6]
        found.update((inner, inner.translate(bytes.maketrans(b"+/", b"-_"))))
    return tuple(sorted(found))
