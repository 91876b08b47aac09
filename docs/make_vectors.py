"""Make docs/vectors.json, the test vectors of docs/wire-format.md.

Run it from anywhere: ``python docs/make_vectors.py [--check]``.

The keys come from fixed words and Ed25519 signs deterministically. Sealing draws randomness: sealed
tokens that stand in the file already, for the same claims, token and keys, are kept. ``--check``
writes nothing and exits with 1 where the file would change.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from stateful_workflow import Keyring, KeyringError, StatefulError
from stateful_workflow.node.describe import View
from stateful_workflow.node.ledger import Child, Ledger
from stateful_workflow.node.status import state_without
from stateful_workflow.sealed.crypto import Key, encrypt
from stateful_workflow.sealed.grants import Granted
from stateful_workflow.sealed.message import (
    MAX_MESSAGE_BYTES,
    TYP,
    Claims,
    decode_base64url,
    encode_base64url,
    parse,
)
from stateful_workflow.sealed.secret import Secret

Json = dict[str, Any]

FILE = Path(__file__).parent / "vectors.json"

NOW = 1_800_000_000_000
"""Unix milliseconds at which the vectors take place."""


# --- keys -----------------------------------------------------------------------


encode = encode_base64url


def decode(text: str) -> bytes:
    """The bytes of unpadded base64url."""
    return decode_base64url(text, "text")


def compact(value: object) -> bytes:
    """JSON without white space."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def make_key(word: str, curve: str) -> Json:
    """A JWK whose private half is the SHA-256 of a fixed word, so that nobody chose it."""
    secret = hashlib.sha256(f"stateful-workflow test vector: {word}".encode()).digest()
    kind = Ed25519PrivateKey if curve == "Ed25519" else X25519PrivateKey
    x = encode(kind.from_private_bytes(secret).public_key().public_bytes_raw())
    thumbprint = compact({"crv": curve, "kty": "OKP", "x": x})  # RFC 7638, RFC 8037 section 2
    return {
        "kty": "OKP",
        "crv": curve,
        "x": x,
        "d": encode(secret),
        "kid": encode(hashlib.sha256(thumbprint).digest()),
        "use": "sig" if curve == "Ed25519" else "enc",
    }


KEYS: dict[str, Json] = {
    "issuer": make_key("issuer", "Ed25519"),
    "other issuer": make_key("other issuer", "Ed25519"),
    "stranger": make_key("stranger", "Ed25519"),
    "reader": make_key("reader", "X25519"),
    "other reader": make_key("other reader", "X25519"),
    "reader of sources": make_key("reader of sources", "X25519"),
}
OF_SOURCES = {"reader of sources": {"audience": "sources"}}


def keyring(*names: str, limits: dict[str, Json] | None = None) -> Keyring:
    """A keyring of these keys, some of them limited."""
    keys = [{**KEYS[name], "stateful": (limits or {}).get(name, {})} for name in names]
    return Keyring.from_json(json.dumps({"keys": keys}))


# --- genuine messages -------------------------------------------------------------

ACME: Json = {
    "v": 1,
    "name": "apiToken",
    "ns": "default",
    "root": "tenant-acme",
    "tree": "5f2a7c0d9b3e4f1c8a6d2e7b9c0f1a34",
    "auth": "tenant-acme",
    "ver": NOW,
}
ORIGINS = ["https://api.example.com", "https://*.eu.example.com:8443"]
CHILD = "tenant-acme-eu"


def messages(old: Json) -> list[Json]:
    """The genuine messages."""
    kept = {entry["name"]: entry for entry in old.get("messages", [])}
    later = {**ACME, "ver": NOW + 1000}
    at_child = {**ACME, "auth": CHILD, "ver": NOW + 500}
    return [
        token(kept, "token", "the smallest token", {**ACME, "origins": ORIGINS[:1]}),
        token(
            kept,
            "token with every claim",
            "exp, types, aud, a wildcard origin, a second credential name, text beyond ASCII, "
            "two readers",
            {
                **ACME,
                "name": "github",
                "ns": "production",
                "auth": "tenant-acmé",
                "root": "tenant-acmé",
                "origins": ORIGINS,
                "exp": NOW // 1000 + 3600,
                "types": ["Sync", "Import"],
                "aud": ["default"],
            },
            readers=("reader", "other reader"),
            secret="gh-pässword-🔑",
        ),
        token(
            kept,
            "newer token",
            "one second later, at the same authority",
            {**later, "origins": ORIGINS[:1]},
            secret="tok-2-example",
        ),
        token(
            kept,
            "token of the other issuer",
            "newer by one millisecond than the first, by another issuer",
            {**ACME, "ver": NOW + 1, "origins": []},
            issuer="other issuer",
            secret="tok-3-example",
        ),
        token(
            kept,
            "token at the child",
            "its authority is the node and not the root",
            {**at_child, "origins": ORIGINS[:1]},
            secret="tok-4-example",
        ),
        token(
            kept,
            "token of an earlier tree",
            "the same workflow ids, another tree",
            {**later, "tree": "0d1e2f3a4b5c6d7e8f90a1b2c3d4e5f6", "origins": ORIGINS[:1]},
        ),
        token(
            kept,
            "token for nothing",
            "empty lists: sent nowhere, opened by no activity, only by a client",
            {**ACME, "ver": NOW + 100, "origins": [], "types": []},
            secret="tok-5-example",
        ),
        token(
            kept,
            "token with an address",
            "the API's address, within the token's origins",
            {**ACME, "ver": NOW + 200, "origins": ORIGINS[:1], "api_url": f"{ORIGINS[0]}/v2"},
            secret="tok-6-example",
        ),
        token(
            kept,
            "token with an address elsewhere",
            "the address is not within the token's origins, and counts as absent",
            {
                **ACME,
                "ver": NOW + 300,
                "origins": ORIGINS[:1],
                "api_url": "https://api.example.net",
            },
            secret="tok-7-example",
        ),
        token(
            kept,
            "token with values of its own",
            "what comes out is the token with its values, as JSON",
            {**ACME, "ver": NOW + 400, "origins": ORIGINS[:1], "content": "values"},
            secret=Secret("tok-8-example", {"user": "réader", "lease.id": ""}),
        ),
        token(
            kept,
            "reference to a token",
            "what comes out is resolved where it is used",
            {**ACME, "ver": NOW + 450, "origins": ORIGINS[:1], "content": "reference"},
            secret=Secret("prod:tenants/acme", is_reference=True),
        ),
        token(
            kept,
            "token of a source",
            "who minted it",
            {**ACME, "ver": NOW + 470, "origins": ORIGINS[:1], "source": "tenants"},
            secret="tok-9-example",
        ),
        grant(kept, "grant", "of the root; tokens are renewed before their expiry alone", ACME),
        grant(
            kept,
            "grant at the child",
            "its tokens are renewed daily, and each is retired",
            {**at_child, "retire": True, "every": 86400},
        ),
        grant(
            kept,
            "newer grant at the child",
            "what an exchange made of it",
            {**at_child, "ver": NOW + 600, "retire": True, "every": 86400},
            secret=granted({"refresh_token": "refresh-3-example"}, KEYS["issuer"]["kid"]),
        ),
        revocation(
            "revocation", "no token at the child or below it", {**at_child, "ver": NOW + 2000}
        ),
        revocation(
            "revocation at a sibling",
            "its authority is not above the child",
            {**at_child, "auth": "tenant-acme-us"},
        ),
        revocation(
            "inherit",
            "the child takes its ancestors' token again",
            {**at_child, "ver": NOW + 3000},
            inherit=True,
        ),
    ]


def granted(grant: Json, by: str | None = None) -> str:
    """What a grant is sealed over."""
    return Granted(grant, {"origins": ORIGINS[:1]}, by).to_text()


def grant(kept: dict[str, Json], name: str, about: str, claims: Json, secret: str = "") -> Json:
    """A sealed grant and what it says."""
    return token(
        kept,
        name,
        about,
        {**claims, "retire": claims.get("retire", False), "aud": ["sources"], "source": "tenants"},
        kind="grant",
        readers=("reader of sources",),
        secret=secret or granted({"refresh_token": "refresh-1-example", "realm": "akmé"}),
    )


def token(
    kept: dict[str, Json],
    name: str,
    about: str,
    claims: Json,
    *,
    issuer: str = "issuer",
    readers: tuple[str, ...] = ("reader",),
    secret: str | Secret = "tok-1-example",
    kind: Literal["token", "grant"] = "token",
) -> Json:
    """A sealed token, or a grant, and what it says."""
    text = compact(claims).decode()
    sealed = Secret(secret) if isinstance(secret, str) else secret
    entry = {
        "name": name,
        "about": about,
        "kind": kind,
        "issuer": issuer,
        "readers": list(readers),
        "claims": text,
        "token": sealed.encode().decode(),
    }
    old = kept.get(name, {})
    if {**old, **entry} == {**old, "about": about}:  # the same but for the words about it
        return named(entry, old["message"])
    claims_of = Claims.decode(text.encode(), kind)
    return named(entry, keyring(issuer, *readers, limits=OF_SOURCES).seal(claims_of, sealed))


def revocation(name: str, about: str, claims: Json, *, inherit: bool = False) -> Json:
    """A revocation and what it says."""
    text = compact({**claims, "inherit": inherit}).decode()
    message = keyring("issuer").revocation(Claims.decode(text.encode(), "revocation"))
    entry: Json = {
        "name": name,
        "about": about,
        "kind": "revocation",
        "issuer": "issuer",
        "readers": [],
        "claims": text,
    }
    return named(entry, message)


def named(entry: Json, message: str) -> Json:
    """The entry with the message and its names."""
    digest = hashlib.sha256(message.encode()).hexdigest()
    return {**entry, "message": message, "hash": digest, "fingerprint": digest[:16]}


# --- altered messages ---------------------------------------------------------------


class Altered:
    """Makes messages that are refused, out of genuine ones."""

    def __init__(self, genuine: list[Json], old: Json) -> None:
        self._kept = {entry["name"]: entry["message"] for entry in old.get("refused", [])}
        self._genuine = {entry["name"]: entry["message"] for entry in genuine}
        self.entries: list[Json] = []

    def add(self, name: str, message: str, step: str, error: str, **given: Any) -> None:
        """Note one message, the step that refuses it, and the error."""
        entry: Json = {"name": name, "step": step, "error": error, "message": message}
        self.entries.append({**entry, "given": given} if given else entry)

    def parts(self, of: str) -> tuple[Json, bytes, bytes]:
        """Header, payload and signature of a genuine message."""
        header, payload, signature = self._genuine[of].split(".")
        return json.loads(decode(header)), decode(payload), decode(signature)

    def sign(self, header: object, payload: object, by: str = "issuer") -> str:
        """A message of exactly this header and payload, its signature genuine."""
        first, second = (
            encode(part if isinstance(part, bytes) else compact(part)) for part in (header, payload)
        )
        key = Ed25519PrivateKey.from_private_bytes(decode(KEYS[by]["d"]))
        return f"{first}.{second}.{encode(key.sign(f'{first}.{second}'.encode()))}"

    def all(self) -> list[Json]:
        """Every altered message."""
        self._headers()
        self._encodings()
        self._payloads()
        self._claims()
        self._signatures()
        self._at_opening()
        return self.entries

    def _malformed(self, name: str, message: str) -> None:
        self.add(name, message, "parse", "TokenMalformed")

    def _headers(self) -> None:
        header, payload, _ = self.parts("token")
        for name, altered in {
            "the deprecated name of the algorithm": {**header, "alg": "EdDSA"},
            "alg none": {**header, "alg": "none"},
            "alg HS256": {**header, "alg": "HS256"},
            "a header member too many": {**header, "b64": False, "crit": ["b64"]},
            "a header without kid": {key: header[key] for key in ("alg", "typ")},
            "a kid that is no thumbprint": {**header, "kid": "issuer-1"},
            "an unknown typ": {**header, "typ": "JWT"},
            "the typ of a revocation on a token": {**header, "typ": TYP["revocation"]},
        }.items():
            self._malformed(name, self.sign(altered, payload))
        twice = compact(header)[:-1] + b',"alg":"Ed25519"}'
        self._malformed("a header member twice", self.sign(twice, payload))
        escaped = compact(header)[:-1] + b',"\\u0061lg":"none"}'
        self._malformed("a header member twice, once escaped", self.sign(escaped, payload))

    def _encodings(self) -> None:
        message = self._genuine["token"]
        header, payload, signature = message.split(".")
        self._malformed("padded base64url", f"{header}.{payload}.{signature}==")
        # 64 bytes leave four unused bits in the last character; they must be zero.
        last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        bits = last[last.index(signature[-1]) | 1]
        self._malformed(
            "unused bits that are not zero", f"{header}.{payload}.{signature[:-1]}{bits}"
        )
        self._malformed("another alphabet", f"{header}.{payload}.+{signature[1:]}")
        self._malformed("two segments", f"{header}.{payload}")
        self._malformed("four segments", f"{message}.{signature}")
        self._malformed("a line end after the message", f"{message}\n")
        self._malformed(
            "a signature of 63 bytes", f"{header}.{payload}.{encode(decode(signature)[:63])}"
        )

    def _payloads(self) -> None:
        header, payload, _ = self.parts("token")
        jwe = json.loads(payload)
        spaced = encode(b'{"enc": "A256GCM"}')
        recipient = jwe["recipients"][0]
        zipped = encode(b'{"enc":"A256GCM","zip":"DEF"}')
        bare = {**recipient, "header": {**recipient["header"], "alg": "ECDH-ES"}}
        party = {**recipient, "header": {**recipient["header"], "apu": "QQ"}}
        secret = {**recipient["header"]["epk"], "d": encode(bytes(32))}
        private = {**recipient, "header": {**recipient["header"], "epk": secret}}
        short = {**recipient, "encrypted_key": encode(bytes(24))}
        cases: dict[str, Json] = {
            "white space in the JWE's protected header": {**jwe, "protected": spaced},
            "a JWE member too many": {**jwe, "unprotected": {}},
            "a JWE without aad": {key: value for key, value in jwe.items() if key != "aad"},
            "a JWE without recipients": {**jwe, "recipients": []},
            "a recipient twice": {**jwe, "recipients": [recipient, recipient]},
            "another key agreement": {**jwe, "recipients": [bare]},
            "party info": {**jwe, "recipients": [party]},
            "an epk with its private half": {**jwe, "recipients": [private]},
            "an encrypted_key of 24 bytes": {**jwe, "recipients": [short]},
            "compression": {**jwe, "protected": zipped},
            "the flattened form beside the general one": {**jwe, **recipient},
            "a tag of 12 bytes": {**jwe, "tag": encode(bytes(12))},
            "an iv of 16 bytes": {**jwe, "iv": encode(bytes(16))},
        }
        for name, altered in cases.items():
            self._malformed(name, self.sign(header, altered))

    def _claims(self) -> None:
        header, payload, _ = self.parts("token")
        jwe = json.loads(payload)
        claims = {**ACME, "origins": ORIGINS[:1]}
        for name, altered in {
            "an unknown claim": {**claims, "scope": "all"},
            "a token without origins": dict(ACME),
            "a claim of a revocation on a token": {**claims, "inherit": False},
            "another format version": {**claims, "v": 2},
            "a version of 2^53": {**claims, "ver": 2**53},
            "a version that is a string": {**claims, "ver": str(NOW)},
            "a version with a fraction": {**claims, "ver": float(NOW)},
            "a version that is true": {**claims, "ver": True},
            "an expiry of zero": {**claims, "exp": 0},
            "origins that are a string": {**claims, "origins": ORIGINS[0]},
            "a credential name with a space": {**claims, "name": "api token"},
            "an empty authority": {**claims, "auth": ""},
            "an empty address": {**claims, "api_url": ""},
            "an address that is too long": {**claims, "api_url": ORIGINS[0] + "/" + "a" * 2025},
        }.items():
            self._malformed(name, self.sign(header, {**jwe, "aad": encode(compact(altered))}))
        long = compact(header)[:-1] + b" " * 400 + b"}"
        self._malformed("a header segment of more than 512 characters", self.sign(long, jwe))
        twice = compact(claims)[:-1] + b',"auth":"tenant-acme"}'
        self._malformed("a claim twice", self.sign(header, {**jwe, "aad": encode(twice)}))
        lone = compact(claims).replace(b'"root":"tenant-acme"', b'"root":"\\ud800"')
        self._malformed("a lone surrogate", self.sign(header, {**jwe, "aad": encode(lone)}))
        revoking, _, _ = self.parts("revocation")
        marked = b"\xef\xbb\xbf" + compact({**ACME, "inherit": False})
        self._malformed("a byte order mark", self.sign(revoking, marked))
        bad = {**ACME, "inherit": False, "exp": NOW // 1000}
        self._malformed("a revocation with an expiry", self.sign(revoking, bad))
        addressed = {**ACME, "inherit": False, "api_url": ORIGINS[0]}
        self._malformed("a revocation with an address", self.sign(revoking, addressed))
        self._malformed("inherit that is no boolean", self.sign(revoking, {**ACME, "inherit": 0}))
        granting, sealed, _ = self.parts("grant at the child")
        jwe = json.loads(sealed)
        claims = json.loads(decode(jwe["aad"]))
        for name, altered in {
            "a grant without its source": {k: v for k, v in claims.items() if k != "source"},
            "a grant without its audience": {k: v for k, v in claims.items() if k != "aud"},
            "a grant with origins": {**claims, "origins": ORIGINS[:1]},
            "a grant with an expiry": {**claims, "exp": NOW // 1000},
            "retire that is no boolean": {**claims, "retire": 1},
            "every of zero": {**claims, "every": 0},
            "the name of a source with a slash": {**claims, "source": "a/b"},
        }.items():
            self._malformed(name, self.sign(granting, {**jwe, "aad": encode(compact(altered))}))
        named = {**ACME, "origins": ORIGINS[:1], "every": 86400}
        aad = encode(compact(named))
        self._malformed("a claim of a grant on a token", self.sign(header, {**jwe, "aad": aad}))

    def _signatures(self) -> None:
        header, payload, signature = self.parts("token")
        first, second = encode(compact(header)), encode(payload)
        trusted = ["issuer", "other issuer"]
        for name, message in {
            "a bit of the signature flipped": f"{first}.{second}.{flipped(encode(signature))}",
            "another issuer's signature under this kid": self.sign(header, payload, "other issuer"),
            "the claims altered after signing": self._reclaimed(signature),
            "a signature whose scalar is above the group order": f"{first}.{second}."
            f"{encode(signature[:32] + added(signature[32:], GROUP_ORDER))}",
            "a signature whose scalar is the group order": f"{first}.{second}."
            f"{encode(signature[:32] + GROUP_ORDER.to_bytes(32, 'little'))}",
            "an issuer that is not trusted": self.sign(
                {**header, "kid": KEYS["stranger"]["kid"]}, payload, "stranger"
            ),
        }.items():
            self.add(name, message, "verify", "TokenForged", trusted=trusted)
        for limit, values in (
            ("names", ["github"]),
            ("roots", ["tenant-b", "x"]),
            ("origins", ["https://*.example.com:8443"]),
        ):
            self.add(
                f"an issuer limited to other {limit}",
                self._genuine["token"],
                "verify",
                "IssuerLimited",
                trusted=["issuer"],
                limits={"issuer": {limit: values}},
            )

    def _reclaimed(self, signature: bytes) -> str:
        header, payload, _ = self.parts("token")
        claims = {**ACME, "origins": ["https://evil.example"]}
        altered = {**json.loads(payload), "aad": encode(compact(claims))}
        return f"{encode(compact(header))}.{encode(compact(altered))}.{encode(signature)}"

    def _sealed(self, name: str, header: Json, claims: bytes, plaintext: str) -> str:
        """A token of any plaintext; the one that stands in the file already is kept."""
        old = self._kept.get(name)
        if old is not None and json.loads(decode(old.split(".")[1]))["aad"] == encode(claims):
            return old
        reader = Key.from_jwk({key: KEYS["reader"][key] for key in ("kty", "crv", "x")})
        return self.sign(header, encrypt(plaintext.encode(), claims, [reader]).encode())

    def _at_opening(self) -> None:
        header, payload, _ = self.parts("token")
        jwe = json.loads(payload)
        here: Json = {"keyring": ["issuer", "other issuer", "reader"], "now": NOW / 1000}
        here |= {"namespace": "default", "workflow_type": "Sync"}
        lifted = {**jwe, "aad": encode(compact({**ACME, "origins": ["https://evil.example"]}))}
        self.add(
            "a ciphertext lifted under other claims",
            self.sign({**header, "kid": KEYS["other issuer"]["kid"]}, lifted, "other issuer"),
            "open",
            "TokenMalformed",
            **here,
        )
        recipient = jwe["recipients"][0]
        low = {**recipient["header"]["epk"], "x": encode(bytes(32))}
        low_order = {**recipient, "header": {**recipient["header"], "epk": low}}
        wrapped = {**recipient, "encrypted_key": flipped(recipient["encrypted_key"])}
        reordered = dict(reversed(json.loads(decode(jwe["aad"])).items()))
        for name, altered in {
            "the claims in another order": {**jwe, "aad": encode(compact(reordered))},
            "a bit of the ciphertext flipped": {**jwe, "ciphertext": flipped(jwe["ciphertext"])},
            "a bit of the tag flipped": {**jwe, "tag": flipped(jwe["tag"])},
            "a bit of the encrypted_key flipped": {**jwe, "recipients": [wrapped]},
            "an epk of low order": {**jwe, "recipients": [low_order]},
        }.items():
            self.add(name, self.sign(header, altered), "open", "TokenMalformed", **here)
        for name, content, text in (
            ("values without a token", "values", '{"values":{"user":"ann"}}'),
            ("values that are none", "values", '{"token":"tok-8-example","values":{}}'),
            ("a value that is no text", "values", '{"token":"tok-8-example","values":{"a":1}}'),
            ("more than values", "values", '{"token":"a","values":{"b":"c"},"d":1}'),
            ("a reference that climbs", "reference", "prod:tenants/../admin"),
            ("a reference without a prefix", "reference", "tenants/acme"),
        ):
            claims = compact({**ACME, "ver": NOW + 400, "origins": [], "content": content})
            sealed = self._sealed(name, header, claims, text)
            self.add(name, sealed, "open", "TokenMalformed", **here)
        rich = self._genuine["token with every claim"]
        there = {**here, "namespace": "production"}
        plain = self._genuine["token"]
        for name, message, error, given in (
            ("another namespace", plain, "WrongNamespace", there),
            ("expired", rich, "TokenExpired", {**there, "now": NOW // 1000 + 3600}),
            (
                "another workflow type",
                rich,
                "WrongWorkflowType",
                {**there, "workflow_type": "Other"},
            ),
            (
                "other readers only",
                plain,
                "NoReaderKey",
                {**here, "keyring": ["issuer", "other reader"]},
            ),
            ("no workflow type", self._genuine["token for nothing"], "WrongWorkflowType", here),
            ("a revoked issuer", plain, "TokenRevoked", {**here, "revoked": ["issuer"]}),
            ("a revocation", self._genuine["revocation"], "TokenRevoked", here),
            ("a grant", self._genuine["grant"], "TokenMalformed", here),
        ):
            self.add(name, message, "open", error, **given)


GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the curve of Ed25519 (RFC 8032, section 5.1)."""


def added(scalar: bytes, number: int) -> bytes:
    """A little-endian scalar and a number, together."""
    return (int.from_bytes(scalar, "little") + number).to_bytes(32, "little")


def flipped(text: str) -> str:
    """Base64url of the same bytes but for one bit."""
    data = decode(text)
    return encode(bytes([data[0] ^ 1]) + data[1:])


# --- a node ----------------------------------------------------------------------


def judged(genuine: list[Json]) -> list[Json]:
    """What two children of the root say to the messages, one after the other."""
    early = {"message": "newer token", "now": NOW - 300_000}
    return [
        Judging(genuine, "a child", withheld=[]).run(
            early,
            "token",
            "token",
            "token of the other issuer",
            "newer token",
            "token",
            "token of an earlier tree",
            "revocation at a sibling",
            "token at the child",
            "revocation",
            "token at the child",
            "inherit",
            {"trust": ["other issuer"]},
            "token of the other issuer",
            {"revoked": ["issuer"]},
            "token of the other issuer",
            "newer token",
        ),
        Judging(genuine, "a child whose issuer is revoked", withheld=[]).run(
            "newer token",
            {"revoked": ["issuer"]},
            # What is held stays in force: whoever opens it says TokenRevoked.
            "newer token",
            "token at the child",
            {"trust": ["other issuer"]},
            # The floor of the revoked one has fallen away.
            "token of the other issuer",
        ),
        Judging(
            genuine,
            "a child whose issuers are limited",
            withheld=[],
            limits={"issuer": {"roots": ["tenant-b"]}},
        ).run(
            "token",
            # Of the limits the keyring's last answer counts.
            {"trust": ["issuer"], "limits": {"issuer": {"origins": ["https://*.example.com"]}}},
            "token",
            {"trust": ["issuer"], "limits": {"issuer": {"names": []}}},
            "newer token",
            "token",
            "revocation",
        ),
        Judging(genuine, "a child started without the token", withheld=["apiToken"]).run(
            "newer token", "token at the child", "grant at the child"
        ),
        Judging(genuine, "a child that is the home of a grant", withheld=[]).run(
            "token",
            "grant",
            "grant at the child",
            "grant at the child",
            "newer grant at the child",
            "grant at the child",
            # What is in force is another matter.
            "token at the child",
            {"revoked": ["issuer"]},
            "grant at the child",
        ),
        Judging(genuine, "a child started without any", withheld=["*"]).run(
            "newer token", "token at the child"
        ),
    ]


class Judging:
    """A node that is sent messages, and what it says to each."""

    def __init__(
        self,
        genuine: list[Json],
        about: str,
        withheld: list[str],
        limits: dict[str, Json] | None = None,
    ) -> None:
        self._texts = {entry["name"]: entry["message"] for entry in genuine}
        self._node: Json = {
            "about": about,
            "path": ["tenant-acme", CHILD],
            "tree": ACME["tree"],
            "withheld": withheld,
            "trusted": ["issuer"],
        } | ({} if limits is None else {"limits": limits})
        self._ledger = Ledger(
            (ACME["root"], CHILD),
            ACME["tree"],
            keyring("issuer", limits=limits).trusted(),
            dict.fromkeys(withheld, 1),
        )

    def run(self, *steps: str | Json) -> Json:
        """The node with its steps: a message's name, or what a keyring's answer changes."""
        return {**self._node, "steps": [self._step(step) for step in steps]}

    def _step(self, step: str | Json) -> Json:
        step = {"message": step} if isinstance(step, str) else step
        if "message" not in step:
            known = keyring(*step.get("trust", ()), limits=step.get("limits")).trusted()
            self._ledger.trust(known, [KEYS[name]["kid"] for name in step.get("revoked", ())])
            return step
        now = step.get("now", NOW + 5000)
        try:
            verdict = self._ledger.accept(parse(self._texts[step["message"]]), now).value
        except StatefulError as error:
            verdict = type(error).__name__
        force = self._ledger.in_force("apiToken")
        return {
            "message": step["message"],
            "now": now,
            "verdict": verdict,
            "in_force": None if force is None else force.fingerprint,
        }


def started(genuine: list[Json]) -> list[Json]:
    """The state that a node gives a child at its start."""
    texts = {entry["name"]: entry["message"] for entry in genuine}
    named = {entry["message"]: entry["name"] for entry in genuine}
    cases: list[Json] = []
    for about, boundary, accepted, withheld in (
        ("a child that is given all", {}, ["newer token", "token at the child"], []),
        ("a child started without the token", {}, ["newer token"], ["apiToken"]),
        ("a child started without any", {}, ["newer token"], ["*"]),
        (
            "a child below one that was started without it",
            {"apiToken": 1},
            ["token at the child"],
            [],
        ),
        ("a child kept from it anew", {"apiToken": 1, "*": 0}, ["token at the child"], ["*"]),
        ("a child of a node whose token is revoked", {}, ["newer token", "revocation"], []),
    ):
        path = [ACME["root"], CHILD]
        node = Ledger(tuple(path), ACME["tree"], keyring("issuer").trusted(), dict(boundary))
        for name in accepted:
            node.accept(parse(texts[name]), NOW + 5000)
        child = Child(f"{CHILD}-1", "Shop", withheld=frozenset(withheld))
        state, _ = node.start_child(child)
        cases.append(
            {
                "about": about,
                "node": {"path": path, "boundary": boundary, "accepted": accepted},
                "child": {"id": child.id, "withheld": withheld},
                "ledger": {
                    "path": state["path"],
                    "boundary": state["boundary"],
                    "held": [named[text] for text in state["held"]],
                    "floors": state["floors"],
                },
            }
        )
    return cases


def joined(genuine: list[Json]) -> list[Json]:
    """What a node answers to one that asks it for a place."""
    texts = {entry["name"]: entry["message"] for entry in genuine}
    named = {entry["message"]: entry["name"] for entry in genuine}
    cases: list[Json] = []
    path = [ACME["root"], CHILD]
    newer = ["newer token"]
    asked: list[tuple[str, list[str], dict[str, list[str]], str, bool, bool]] = [
        ("one whose type is open", newer, {}, "nightly", True, False),
        ("one whose type is not", newer, {}, "nightly", False, False),
        ("a node that holds nothing", [], {}, "nightly", True, False),
        ("a child that it started itself", newer, {"shop": []}, "shop", False, True),
        ("another that has that child's id", newer, {"shop": []}, "shop", False, False),
        ("a child that it withheld it from", newer, {"shop": ["*"]}, "shop", True, True),
        ("one that stands above the node", newer, {}, ACME["root"], True, False),
    ]
    for about, accepted, started, asks, is_open, as_child in asked:
        node = Ledger(tuple(path), ACME["tree"], keyring("issuer").trusted())
        for child_id, withheld in started.items():
            node.start_child(Child(child_id, "Shop", withheld=frozenset(withheld)))
        for name in accepted:
            node.accept(parse(texts[name]), NOW + 5000)
        answer = View(node, NOW + 5000).place(
            Child(asks, "Nightly"), is_open=is_open, as_child=as_child
        )
        state = answer.ledger
        cases.append(
            {
                "about": about,
                "node": {"path": path, "accepted": accepted, "started": started},
                "asks": {"id": asks, "type": "Nightly", "as_child": as_child},
                "is_open": is_open,
                "refused": answer.refused,
                "registered": answer.registered,
                "ledger": None
                if state is None
                else {
                    "path": state["path"],
                    "boundary": state["boundary"],
                    "held": [named[text] for text in state["held"]],
                    "floors": state["floors"],
                },
            }
        )
    return cases


def addressed(genuine: list[Json]) -> list[Json]:
    """Which API address a node's activities use."""
    texts = {entry["name"]: entry["message"] for entry in genuine}
    mine, above, away = f"{ORIGINS[0]}/mine", f"{ORIGINS[0]}/above", "https://api.example.net"
    cases: list[Json] = []
    for about, accepted, own, parent in (
        ("the token's", ["token with an address"], None, above),
        ("the workflow's own before that", ["token with an address"], mine, above),
        ("its own is not within the origins", ["token with an address"], away, above),
        (
            "a nearer token without one",
            ["token with an address", "token at the child"],
            None,
            above,
        ),
        ("the token has none", ["newer token"], None, above),
        ("the token has none, and neither is there another", ["newer token"], away, away),
        ("the token's is not within its origins", ["token with an address elsewhere"], None, None),
        ("no token", [], away, above),
        ("no token, and none of its own", [], None, away),
        ("a revocation", ["token with an address", "revocation"], away, None),
    ):
        ledger = Ledger((ACME["root"], CHILD), ACME["tree"], keyring("issuer").trusted())
        for name in accepted:
            ledger.accept(parse(texts[name]), NOW + 5000)
        view = View(ledger, NOW + 5000, own_url=own, begun_url=parent)
        node = {"path": [*ledger.path], "accepted": accepted, "own": own, "parent": parent}
        cases.append({"about": about, "node": node, "used": view.api_url("apiToken")})
    return cases


def without() -> list[Json]:
    """The state that is said where no message is in force, of all that holds."""
    cases = itertools.product([True, False], repeat=3)
    return [
        {
            "waiting": waiting,
            "needs_set": needs_set,
            "withheld": withheld,
            "state": state_without(waiting=waiting, needs_set=needs_set, withheld=withheld),
        }
        for waiting, needs_set, withheld in cases
    ]


def keyrings() -> list[Json]:
    """Keyrings that are usable, and such as are not."""
    issuer, reader = KEYS["issuer"], KEYS["reader"]
    public = {key: value for key, value in issuer.items() if key != "d"}
    other = KEYS["other issuer"]
    cases: dict[str, list[Json]] = {
        "an issuer and a reader": [issuer, reader],
        "a public half alone": [public],
        "a key without kid": [{k: v for k, v in issuer.items() if k != "kid"}],
        "a member that others know": [{**public, "alg": "EdDSA", "key_ops": ["verify"]}],
        "limits": [{**issuer, "stateful": {"names": [], "roots": ["a"], "origins": []}}],
        "a retired reader with its audience": [
            {**reader, "stateful": {"retired": True, "audience": "eu"}}
        ],
        "no keys": [],
        "a kid of another key": [{**public, "kid": other["kid"]}],
        "a key twice": [public, issuer],
        "a private half of another key": [{**issuer, "d": other["d"]}],
        "another curve": [{**public, "crv": "Ed448"}],
        "another kind of key": [{**public, "kty": "EC"}],
        "an x of 31 bytes": [{**public, "x": encode(bytes(31))}],
        "a reader's x of small order": [{"kty": "OKP", "crv": "X25519", "x": encode(bytes(32))}],
        "an issuer's x of small order": [{"kty": "OKP", "crv": "Ed25519", "x": encode(ONE)}],
        "an issuer's x in its other encoding": [
            {"kty": "OKP", "crv": "Ed25519", "x": encode((2**255 - 18).to_bytes(32, "little"))}
        ],
        "an issuer's x that is no point": [
            {"kty": "OKP", "crv": "Ed25519", "x": encode((2).to_bytes(32, "little"))}
        ],
        "a member of ours that is not known": [{**public, "stateful": {"until": 1}}],
        "a limit that is no list": [{**public, "stateful": {"names": "apiToken"}}],
        "a mark that is no boolean": [{**public, "stateful": {"revoked": 1}}],
        "a limit of a reader": [{**reader, "stateful": {"names": ["apiToken"]}}],
        "an audience of an issuer": [{**issuer, "stateful": {"audience": "eu"}}],
    }
    return [
        {"about": about, "keys": keys, "kids": kids_of(json.dumps({"keys": keys}))}
        for about, keys in cases.items()
    ]


ONE = (1).to_bytes(32, "little")
"""The neutral element, a point of order 1."""


def kids_of(text: str) -> list[str] | None:
    """The key ids of a keyring, or None where it is unusable."""
    try:
        return [key.kid for key in Keyring.from_json(text).keys()]
    except KeyringError:
        return None


# --- the file ---------------------------------------------------------------------


def make(old: Json) -> Json:
    """The content of the file."""
    genuine = messages(old)
    orders: dict[str, tuple[int, str]] = {
        entry["name"]: (json.loads(entry["claims"])["ver"], entry["hash"]) for entry in genuine
    }
    return {
        "about": "Test vectors of docs/wire-format.md, made by docs/make_vectors.py. "
        "The keys are public: never use them.",
        "format": 1,
        "max_message_bytes": MAX_MESSAGE_BYTES,
        "keys": KEYS,
        "messages": genuine,
        "order": sorted(orders, key=orders.__getitem__),
        "refused": Altered(genuine, old).all(),
        "judged": judged(genuine),
        "started": started(genuine),
        "joined": joined(genuine),
        "addressed": addressed(genuine),
        "without": without(),
        "keyrings": keyrings(),
    }


def main() -> int:
    """Write the file, or say whether it is as this script would write it."""
    parser = argparse.ArgumentParser(description="Make docs/vectors.json.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it would change")
    arguments = parser.parse_args()
    before = FILE.read_text(encoding="utf-8") if FILE.exists() else "{}"
    after = json.dumps(make(json.loads(before)), indent=1, ensure_ascii=False) + "\n"
    if arguments.check:
        return int(after != before)
    FILE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
