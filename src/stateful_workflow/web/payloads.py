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
from dataclasses import replace
from typing import Any, Final, NamedTuple

from temporalio.api.common.v1 import Payload

from ..errors import IssuerLimited, TokenForged, TokenMalformed
from ..node.describe import utc
from ..sealed.keyring import Keyring
from ..sealed.keys import verify
from ..sealed.message import Claims, Message, parse

_LONGEST: Final = 255
_QUOTE_OR_ESCAPE: Final = re.compile(r'"|\\.', re.DOTALL)
_COLON: Final = re.compile(r"\s*:")


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
    except UnicodeDecodeError:
        return payload
    shown = _describe_json(text, keyring)
    if shown is None:
        return payload
    described = Payload()
    described.CopyFrom(payload)
    described.data = shown.encode()
    return described


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
    claims = message.claims if problem is None else _shortened(message.claims)
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


def _shortened(claims: Claims) -> Claims:
    """Claims that nobody vouches for: in a long id somebody may have put anything."""
    short = {
        claim: f"{value[:_LONGEST]}…"
        for claim in ("namespace", "root", "tree", "authority")
        if len(value := getattr(claims, claim)) > _LONGEST
    }
    return replace(claims, **short)


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


class _Literal(NamedTuple):
    """A string of a JSON text, its quotes included."""

    text: str
    start: int
    end: int


def _describe_json(text: str, keyring: Keyring) -> str | None:
    # The text is not read and written anew: numbers, order and repeated names stay as they are.
    pieces: list[str] = []
    end = 0
    for literal in _literals(text):
        message = _message(literal.text)
        if message is not None and not _COLON.match(text, literal.end):
            pieces += (text[end : literal.start], json.dumps(describe_message(message, keyring)))
            end = literal.end
    return "".join((*pieces, text[end:])) if pieces else None


def _literals(text: str) -> Iterator[_Literal]:
    start: int | None = None
    for mark in _QUOTE_OR_ESCAPE.finditer(text):
        if mark[0] != '"':
            continue
        if start is None:
            start = mark.start()
        else:
            yield _Literal(text[start : mark.end()], start, mark.end())
            start = None


def _message(literal: str) -> Message | None:
    # A message has two dots; escaped characters are rare, and may stand for anything.
    if literal.count(".") != 2 and "\\" not in literal:
        return None
    try:
        return parse(json.loads(literal))
    except (ValueError, TokenMalformed):
        return None
