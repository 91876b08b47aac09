"""docs/vectors.json as a second implementation meets it: what must open, and what must not.

A refusal of ours is one of three: its fault is cryptographic, so that any implementation
refuses it; or it is a policy about a message that is genuine (its namespace, its expiry),
so that another implementation opens it; or our parser is stricter than RFC 7515 and RFC
7516 ask for. Of the last only those are named here that are cryptographic faults as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple, cast

from stateful_workflow.sealed.message import decode_base64url
from tests.builders import Json

VECTORS = cast(
    "Json", json.loads((Path(__file__).parents[2] / "docs/vectors.json").read_text("utf-8"))
)
KEYS: dict[str, Json] = VECTORS["keys"]
MESSAGES: list[Json] = VECTORS["messages"]
TOKENS = [entry for entry in MESSAGES if entry["kind"] == "token"]
REVOCATIONS = [entry for entry in MESSAGES if entry["kind"] == "revocation"]
REFUSED: dict[str, Json] = {entry["name"]: entry for entry in VECTORS["refused"]}


class Opening(NamedTuple):
    """A message, whom to take it to be by, and who is to open it."""

    name: str
    message: str
    issuers: list[str]
    reader: str


GOOD: Final = [
    (Opening(entry["name"], entry["message"], [entry["issuer"]], reader), entry)
    for entry in TOKENS
    for reader in entry["readers"]
]
"""Each token for each of its readers, with what is to come out."""


def _issuers(entry: Json) -> list[str]:
    """The key that the kid names, or every trusted one where that is not among them."""
    header = json.loads(decode_base64url(entry["message"].split(".")[0], "header"))
    (named,) = [name for name, key in KEYS.items() if key["kid"] == header["kid"]]
    trusted = entry["given"].get("trusted", [named])
    return [named] if named in trusted else trusted


def _reader(entry: Json) -> str:
    """The reader that the keyring has."""
    names = entry["given"].get("keyring", ["reader"])
    return next(name for name in names if KEYS[name]["crv"] == "X25519")


def _refusals(*errors: str) -> list[Opening]:
    return [
        Opening(name, entry["message"], _issuers(entry), _reader(entry))
        for name, entry in REFUSED.items()
        if entry["step"] != "parse" and entry["error"] in errors
    ]


FORGED: Final = _refusals("TokenForged")
"""No trusted issuer signed these."""

SHUT: Final = _refusals("TokenMalformed", "NoReaderKey")
"""These are signed as they should be, and the reader cannot decrypt them."""

POLICY: Final = [
    opening
    for opening in _refusals(
        *{entry["error"] for entry in REFUSED.values()}
        - {"TokenForged", "TokenMalformed", "NoReaderKey"}
    )
    if opening.message not in {entry["message"] for entry in REVOCATIONS}
]
"""Genuine tokens that are refused where and when they are met."""

UNSIGNED: Final = [
    Opening(name, REFUSED[name]["message"], ["issuer"], "reader")
    for name in (
        "alg none",
        "alg HS256",
        "a signature of 63 bytes",
    )
]
"""Our parser refuses these; without it they do not verify by Ed25519."""

BROKEN: Final = [
    Opening(name, REFUSED[name]["message"], ["issuer"], "reader")
    for name in (
        "white space in the JWE's protected header",
        "a JWE without aad",
        "another key agreement",
        "party info",
        "an encrypted_key of 24 bytes",
        "compression",
        "a tag of 12 bytes",
        "an iv of 16 bytes",
        "an unknown claim",
        "a token without origins",
        "a claim of a revocation on a token",
        "another format version",
        "a version of 2^53",
        "a version that is a string",
        "a version with a fraction",
        "a version that is true",
        "an expiry of zero",
        "origins that are a string",
        "a credential name with a space",
        "an empty authority",
        "a claim twice",
        "a lone surrogate",
    )
]
"""Our parser refuses these; without it they verify, and still do not decrypt."""
