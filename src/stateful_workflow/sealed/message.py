"""The wire format: claims and signed messages, parsed strictly. Pure.

A message is a compact JWS (RFC 7515). Its payload is, for a *token* and a *grant*, a General JWE
(RFC 7516) whose ``aad`` is the claims, and for a *revocation* the claims alone. Parsing takes
exactly one form of everything, so that no two readers can disagree about what a message says:
docs/wire-format.md has the rules and test vectors. Nothing here verifies or opens anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, NewType, cast, get_args

from ..errors import TokenMalformed
from ..text.strict_json import json_object
from .origins import MAX_URL

SealedToken = NewType("SealedToken", str)
"""A token encrypted for readers and signed by an issuer: the only form that enters Temporal."""

Kind = Literal["token", "revocation", "grant"]
Content = Literal["values", "reference"]
"""What a sealed token's plaintext is where it is not the token itself: the token with values of its
own, as JSON, or what the reader's worker resolves to the token."""

DEFAULT_NAME: Final = "apiToken"
MAX_MESSAGE_BYTES: Final = 16_384
MAX_HEADER_BYTES: Final = 512
MAX_VERSION: Final = 2**53 - 1
MAX_RECIPIENTS: Final = 32
MAX_LIST: Final = 64
CLOCK_TOLERANCE_MS: Final = 5 * 60 * 1000
"""How far ahead of the clock a version may be."""

FORMAT: Final = 1
SIGNATURE_ALGORITHM: Final = "Ed25519"
KEY_ALGORITHM: Final = "ECDH-ES+A256KW"
CONTENT_ALGORITHM: Final = "A256GCM"
TYP: Final[dict[Kind, str]] = {
    "token": "stateful-token+jws",
    "revocation": "stateful-revocation+jws",
    "grant": "stateful-grant+jws",
}
_KIND: Final[dict[str, Kind]] = {typ: kind for kind, typ in TYP.items()}

_COMMON: Final = {"v", "name", "ns", "root", "tree", "auth", "ver"}
_MEMBERS: Final[dict[Kind, tuple[set[str], set[str]]]] = {
    "token": (_COMMON | {"origins"}, {"exp", "types", "aud", "api_url", "source", "content"}),
    "revocation": (_COMMON | {"inherit"}, set()),
    "grant": (_COMMON | {"source", "aud", "retire"}, {"every"}),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Renewal:
    """What a grant says of the tokens that are minted with it.

    Attributes:
        every: seconds after which a token is renewed, whatever its expiry; None for that alone.
        retire: revoke each token at the provider once its successor is everywhere in use.
    """

    every: int | None = None
    retire: bool = False


@dataclass(frozen=True)
class Claims:
    """What an issuer signs beside the secret.

    Attributes:
        name: credential name; a tree may hold several.
        namespace: Temporal namespace the message is for.
        root: workflow id of the tree's root.
        tree: random id of this tree; an earlier tree of the same root has another.
        authority: workflow id at which the message is set; its subtree is the reach.
        version: orders messages; Unix milliseconds at issue, or above the last one.
        expires_at: Unix seconds from which the token is refused, or None.
        origins: canonical origins the token may be sent to; none means nowhere.
        types: workflow types whose activities may open it; None means any.
        audiences: of the readers it is sealed for; None means all that the keyring had.
        api_url: the API's address, which belongs to the token; counts within its origins only.
        inherit: None for a token. Of a revocation: False ends the search for a token at this
            authority, True lets it go on to the authorities above.
        source: name of the source that minted a token, or mints with a grant; None for a token that
            somebody set.
        content: see `Content`; None where the plaintext is the token itself.
        renewal: of a grant; None for other messages.
    """

    name: str
    namespace: str
    root: str
    tree: str
    authority: str
    version: int
    expires_at: int | None = None
    origins: tuple[str, ...] = ()
    types: tuple[str, ...] | None = None
    audiences: tuple[str, ...] | None = None
    api_url: str | None = None
    inherit: bool | None = None
    source: str | None = None
    content: Content | None = None
    renewal: Renewal | None = None

    @property
    def kind(self) -> Kind:
        """Whose claims these are."""
        if self.renewal is not None:
            return "grant"
        return "token" if self.inherit is None else "revocation"

    def encode(self) -> bytes:
        """The claims as JSON, UTF-8.

        Raises:
            TokenMalformed: a claim is outside what `decode` takes.
        """
        data: dict[str, Any] = {
            "v": FORMAT,
            "name": self.name,
            "ns": self.namespace,
            "root": self.root,
            "tree": self.tree,
            "auth": self.authority,
            "ver": self.version,
        }
        if self.renewal is not None:
            data["retire"], data["every"] = self.renewal.retire, self.renewal.every
        elif self.inherit is not None:
            data["inherit"] = self.inherit
        else:
            data["origins"] = self.origins
        data |= {
            "exp": self.expires_at,
            "types": self.types,
            "aud": self.audiences,
            "api_url": self.api_url,
            "source": self.source,
            "content": self.content,
        }
        known = set[str]().union(*_MEMBERS[self.kind])
        data = {claim: data[claim] for claim in data if claim in known and data[claim] is not None}
        try:
            encoded = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise TokenMalformed("a claim is not valid Unicode") from None
        self.decode(encoded, self.kind)
        return encoded

    @staticmethod
    def decode(encoded: bytes, kind: Kind) -> Claims:
        """Read claims.

        Raises:
            TokenMalformed: they have not exactly the members and types of their kind.
        """
        data = _json_object(encoded, "claims")
        required, optional = _MEMBERS[kind]
        if not required <= data.keys() <= required | optional:
            raise TokenMalformed("the claims have missing or unknown members")
        if type(data["v"]) is not int or data["v"] != FORMAT:
            raise TokenMalformed("the claims are of an unknown format version")
        name = _text(data, "name", 64)
        if not valid_name(name):
            raise TokenMalformed("the credential name has characters that are not allowed")
        for flag in {"inherit", "retire"} & data.keys():
            if type(data[flag]) is not bool:
                raise TokenMalformed(f"the claim {flag!r} is not a boolean")
        source = _text(data, "source", 64) if "source" in data else None
        if source is not None and not valid_name(source):
            raise TokenMalformed("the name of the source has characters that are not allowed")
        content: object = data.get("content")
        if "content" in data and content not in get_args(Content):
            raise TokenMalformed("the claim 'content' is unknown")
        every = _number(data, "every") if "every" in data else None
        return Claims(
            name=name,
            namespace=_text(data, "ns", 1000),
            root=_text(data, "root", 1000),
            tree=_text(data, "tree", 100),
            authority=_text(data, "auth", 1000),
            version=_number(data, "ver"),
            expires_at=_number(data, "exp") if "exp" in data else None,
            origins=_texts(data, "origins") if kind == "token" else (),
            types=_texts(data, "types") if "types" in data else None,
            audiences=_texts(data, "aud") if "aud" in data else None,
            api_url=_text(data, "api_url", MAX_URL) if "api_url" in data else None,
            inherit=data["inherit"] if kind == "revocation" else None,
            source=source,
            content=cast("Content | None", content),
            renewal=Renewal(every, data["retire"]) if kind == "grant" else None,
        )


@dataclass(frozen=True)
class Message:
    """A parsed message. Parsed is not verified: see `stateful_workflow.sealed.keys.verify`.

    Attributes:
        text: the message as it travels.
        kind: token, revocation or grant.
        issuer: key id (RFC 7638 thumbprint) of the issuer it names.
        claims: what it says.
        readers: key ids it is sealed for; empty for a revocation.
        hash: SHA-256 of the text, hex.
    """

    text: str = field(repr=False)
    kind: Kind
    issuer: str
    claims: Claims
    readers: tuple[str, ...]
    hash: str

    @property
    def order(self) -> tuple[int, str]:
        """Newer messages compare greater: version, then hash."""
        return (self.claims.version, self.hash)

    @property
    def place(self) -> tuple[str, str]:
        """Where it stands in a tree: credential name and authority."""
        return (self.claims.name, self.claims.authority)

    @property
    def fingerprint(self) -> str:
        """First 8 bytes of the hash, hex: names a version, says nothing of the secret."""
        return self.hash[:16]

    @property
    def payload(self) -> bytes:
        """The JWS payload: the JWE of a token or a grant, the claims of a revocation."""
        return decode_base64url(self.text.split(".")[1], "payload")


def parse(text: object) -> Message:
    """Read a message, strictly.

    Raises:
        TokenMalformed: it differs in any way from the wire format.
    """
    if not isinstance(text, str):
        raise TokenMalformed("the message is not a string")
    return _parse(text)


# Each of a worker's nodes is sent the same one.
@lru_cache(maxsize=256)
def _parse(text: str) -> Message:
    if len(text) > MAX_MESSAGE_BYTES:
        raise TokenMalformed(f"the message is larger than {MAX_MESSAGE_BYTES} bytes")
    if not text.isascii():
        raise TokenMalformed("the message is not ASCII")
    segments = text.split(".")
    if len(segments) != 3:
        raise TokenMalformed("the message is not a compact JWS")
    if len(segments[0]) > MAX_HEADER_BYTES:
        raise TokenMalformed(f"the header is larger than {MAX_HEADER_BYTES} bytes")
    header = _json_object(decode_base64url(segments[0], "header"), "header")
    _members(header, {"alg", "kid", "typ"}, "header")
    if header["alg"] != SIGNATURE_ALGORITHM:
        raise TokenMalformed(f"the header's alg must be {SIGNATURE_ALGORITHM}")
    issuer = _sized(header["kid"], "kid", 32)
    typ = header["typ"]
    kind = _KIND.get(typ) if isinstance(typ, str) else None
    if kind is None:
        raise TokenMalformed("the header's typ is unknown")
    _sized(segments[2], "signature", 64)
    payload = decode_base64url(segments[1], "payload")
    readers: tuple[str, ...] = ()
    if kind != "revocation":
        readers, payload = _parse_jwe(payload)
    claims = Claims.decode(payload, kind)
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()
    return Message(text, kind, issuer, claims, readers, digest)


def named_issuer(text: str) -> str:
    """The key id that a message names, by its header alone; empty where it names none.

    For sorting what is not read yet: nothing is checked.
    """
    kid = _unchecked_header(text).get("kid")
    return kid if isinstance(kid, str) else ""


def has_message_form(text: object) -> bool:
    """Whether a text begins as a message does; what does not may be a token in clear text."""
    typ = _unchecked_header(text).get("typ") if isinstance(text, str) else None
    return isinstance(typ, str) and typ in _KIND


def _unchecked_header(text: str) -> dict[str, object]:
    segment = text[: MAX_HEADER_BYTES + 1].partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, object]", header) if isinstance(header, dict) else {}


def valid_name(name: str) -> bool:
    """Whether a text may be a credential name."""
    return _NAME.fullmatch(name) is not None


def decode_base64url(text: object, what: str) -> bytes:
    """Decode unpadded base64url (RFC 7515 section 2) in its one canonical form.

    Raises:
        TokenMalformed: it has another alphabet, padding, or unused bits that are not zero.
    """
    if not isinstance(text, str):
        raise TokenMalformed(f"the {what} is not base64url")
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise TokenMalformed(f"the {what} is not base64url") from None
    # The decoder leaves out what it does not know.
    if encode_base64url(decoded) != text:
        raise TokenMalformed(f"the {what} is not canonical base64url")
    return decoded


def encode_base64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


PROTECTED: Final = encode_base64url(b'{"enc":"A256GCM"}')


def _parse_jwe(payload: bytes) -> tuple[tuple[str, ...], bytes]:
    """The readers and the claims."""
    jwe = _json_object(payload, "payload")
    _members(jwe, {"protected", "recipients", "aad", "iv", "ciphertext", "tag"}, "JWE")
    if jwe["protected"] != PROTECTED:
        raise TokenMalformed("the JWE's protected header is not the one this format has")
    _sized(jwe["iv"], "iv", 12)
    _sized(jwe["tag"], "tag", 16)
    decode_base64url(jwe["ciphertext"], "ciphertext")
    recipients = _list(jwe["recipients"], "recipients")
    if not 1 <= len(recipients) <= MAX_RECIPIENTS:
        raise TokenMalformed(f"the JWE must have 1 to {MAX_RECIPIENTS} recipients")
    readers = tuple(_parse_recipient(recipient) for recipient in recipients)
    if len(set(readers)) != len(readers):
        raise TokenMalformed("the JWE names a recipient twice")
    return readers, decode_base64url(jwe["aad"], "aad")


def _parse_recipient(recipient: object) -> str:
    """Its key id."""
    members = _members(recipient, {"header", "encrypted_key"}, "recipient")
    header = _members(members["header"], {"alg", "kid", "epk"}, "recipient's header")
    if header["alg"] != KEY_ALGORITHM:
        raise TokenMalformed(f"a recipient's alg must be {KEY_ALGORITHM}")
    epk = _members(header["epk"], {"kty", "crv", "x"}, "recipient's epk")
    if (epk["kty"], epk["crv"]) != ("OKP", "X25519"):
        raise TokenMalformed("a recipient's epk is not an X25519 key")
    _sized(epk["x"], "epk's x", 32)
    _sized(members["encrypted_key"], "encrypted_key", 40)
    return _sized(header["kid"], "kid", 32)


def _members(value: object, names: set[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or cast("dict[str, Any]", value).keys() != names:
        raise TokenMalformed(f"a {what} must have exactly {', '.join(sorted(names))}")
    return cast("dict[str, Any]", value)


def _sized(value: object, what: str, size: int) -> str:
    """The same, where it is base64url of so many bytes."""
    if len(decode_base64url(value, what)) != size:
        raise TokenMalformed(f"the {what} is not {size} bytes")
    return cast("str", value)


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise TokenMalformed(f"the member {what!r} is not a list")
    return cast("list[object]", value)


def _text(data: dict[str, Any], member: str, limit: int) -> str:
    value: object = data[member]
    if not isinstance(value, str) or not 0 < len(value) <= limit:
        raise TokenMalformed(f"the claim {member!r} is not a string of 1 to {limit} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TokenMalformed(f"the claim {member!r} is not valid Unicode") from None
    return value


def _texts(data: dict[str, Any], member: str) -> tuple[str, ...]:
    values = _list(data[member], member)
    if len(values) > MAX_LIST:
        raise TokenMalformed(f"the claim {member!r} has more than {MAX_LIST} entries")
    return tuple(_text({member: value}, member, 1000) for value in values)


def _number(data: dict[str, Any], member: str) -> int:
    value: object = data[member]
    if type(value) is not int or not 0 < value <= MAX_VERSION:
        raise TokenMalformed(f"the claim {member!r} is not an integer of 1 to 2^53-1")
    return value


def _json_object(encoded: bytes, what: str) -> dict[str, Any]:
    try:
        return json_object(encoded)
    except ValueError as error:
        raise TokenMalformed(f"the {what}: {error}") from None
