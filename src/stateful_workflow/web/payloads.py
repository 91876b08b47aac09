"""Payloads as people may see them: in the place of each sealed message what it says.

For whoever shows Temporal's data: `stateful_workflow.web.codec_server`, and a codec server of
your own, after its codec has decoded::

    return [describe_payload(payload, keyring) for payload in await codec.decode(payloads)]

Nothing is opened here. An issuer's public key tells whether a message is genuine, so a
keyring without private halves is enough, and those of another one are not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from temporalio.api.common.v1 import Payload

from ..errors import IssuerLimited, TokenForged, TokenMalformed
from ..sealed.keyring import Keyring
from ..sealed.keys import verify
from ..sealed.message import Message, parse
from ..text.times import utc

_COLON: Final = re.compile(r"\s*:")
_JSON: Final = json.JSONDecoder()


def describe_payload(payload: Payload, keyring: Keyring) -> Payload:
    """The payload with each sealed message in its JSON replaced by what `describe_message` says.

    A message is found wherever it is a whole string, in objects and lists of any depth; as
    the name of a member, inside a longer string and behind a codec it is not. Everything
    around it stays as it was written. Nothing that is in the payload raises.

    Args:
        payload: as it stands in a history, decoded where the client has a codec.
        keyring: says who is an issuer.

    Returns:
        A new payload, or the same one where it is no JSON or holds no message.
    """
    if not payload.metadata.get("encoding", b"").startswith(b"json/"):
        return payload
    try:
        text = payload.data.decode()
        shown = _described(text, keyring)
    except ValueError:
        return payload
    return payload if shown == text else Payload(metadata=payload.metadata, data=shown.encode())


def describe_message(message: Message, keyring: Keyring) -> dict[str, Any]:
    """What a message says, as JSON data; never the secret, never the message itself.

    The members are the claims (`stateful_workflow.sealed.message.Claims`) and, beside them:
    ``kind`` (token, revocation or inherit), ``verified``, ``fingerprint``, ``issuer``; ``time``
    and ``expires`` in UTC (RFC 3339), None for a token without an expiry and for a time
    after the year 9999; ``reader_keys``, the ids of the keys a token is sealed for. Where it
    is not verified ``problem`` says why.

    Args:
        message: a parsed message.
        keyring: says who is an issuer.
    """
    problem = _problem(message, keyring)
    claims = message.claims
    description: dict[str, Any] = {
        "kind": "inherit" if claims.inherit else message.kind,
        "name": claims.name,
        "verified": problem is None,
        "fingerprint": message.fingerprint,
        "version": claims.version,
        "time": utc(claims.version / 1000, "milliseconds"),
        "authority": claims.authority,
        "root": claims.root,
        "tree": claims.tree,
        "namespace": claims.namespace,
        "issuer": message.issuer,
    }
    if problem is not None:
        description["problem"] = problem
    if message.kind == "token":
        description |= {
            "origins": claims.origins,
            "types": claims.types,
            "readers": claims.audiences,
            "reader_keys": message.readers,
            "expires": None if claims.expires_at is None else utc(claims.expires_at),
        }
    return description


def _problem(message: Message, keyring: Keyring) -> str | None:
    trusted = keyring.trusted()
    if message.issuer in keyring.revoked():
        return "issuer revoked"
    if message.issuer not in trusted:
        return "issuer unknown"
    try:
        verify(message, trusted)
    except IssuerLimited:
        return "outside the issuer's limits"
    except TokenForged:
        return "forged"
    return None


def _described(text: str, keyring: Keyring) -> str:
    # The text is not read and written anew: numbers, order and repeated names stay as they are.
    pieces: list[str] = []
    end = 0
    for message, start, after in _messages(text):
        if not _COLON.match(text, after):
            pieces += (text[end:start], json.dumps(describe_message(message, keyring)))
            end = after
    return "".join((*pieces, text[end:]))


def _messages(text: str) -> Iterator[tuple[Message, int, int]]:
    """The strings of a JSON text that are messages, each with where it begins and ends.

    Raises:
        ValueError: a string of it is not JSON.
    """
    end = 0
    while (start := text.find('"', end)) >= 0:
        string, end = _JSON.raw_decode(text, start)
        try:
            yield parse(string), start, end
        except TokenMalformed:
            continue
