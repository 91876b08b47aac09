"""Keys, and what is done with them: seal, revoke, open; add, retire and revoke keys.

A keyring is a JWK Set (RFC 7517) of issuers (Ed25519, who may seal) and readers (X25519, who may
open), each with or without its private half. Sealing draws randomness: it belongs in clients and
activities, never in workflow code.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..errors import (
    IssuerLimited,
    KeyringError,
    NoIssuerKey,
    NoReaderKey,
    ReferenceUnresolved,
    TokenExpired,
    TokenMalformed,
    TokenRevoked,
    WrongAuthority,
    WrongNamespace,
    WrongWorkflowType,
)
from ..text.printable import printable
from ..text.private_file import openness
from . import keyring_file
from .crypto import Key, Opener, Signer, encrypt, verify_signature
from .keys import (
    CURVES,
    DEFAULT_AUDIENCE,
    Entry,
    Issuer,
    KeyInfo,
    KeyKind,
    checked,
    limits_of,
    read_set,
    verify,
    write_set,
)
from .message import MAX_MESSAGE_BYTES, TYP, Claims, Message, SealedToken, encode_base64url, parse
from .secret import Secret

_LOOK_EVERY_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class Keyring:
    """A set of issuer and reader keys; immutable, and not pickled.

    Make one with `generate`, `load` or `from_json`.
    """

    def __init__(self, keys: Iterable[Entry] = (), *, path: Path | None = None) -> None:
        self._keys = tuple(keys)
        self.path = path
        """The file it was loaded from, or None."""
        kids = [info.kid for info in self.keys()]
        if len(set(kids)) != len(kids):
            raise KeyringError("the keyring names a key id twice")

    @classmethod
    def generate(cls) -> Keyring:
        """A new keyring with one issuer and one reader, private halves included."""
        return cls().add_issuer().add_reader()

    # --- files ---------------------------------------------------------------

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Keyring:
        """Read a keyring file.

        Args:
            path: the file; None reads the one that ``$STATEFUL_KEYRING`` names.

        Raises:
            KeyringError: it is missing or malformed, belongs to another user, or others may
                write it, or read a private key in it; the message names the cure.
        """
        file = keyring_file.keyring_path(path)
        content, status = keyring_file.read(file)
        try:
            keyring = cls(read_set(content), path=file)
        except KeyringError as error:
            raise KeyringError(f"the keyring {file}: {error}") from None
        private = keyring._holds_secrets
        problem = openness(file, status, private=private)
        if problem is not None:
            holding = "holds a private key and " if private else ""
            raise KeyringError(f"the keyring {file} {holding}{problem}")
        return keyring

    def load_again(self) -> Keyring:
        """The keyring its file holds now, with the signers and openers of this one.

        Raises:
            KeyringError: as `load`, or it was loaded from no file.
        """
        if self.path is None:
            raise KeyringError("the keyring was loaded from no file")
        held = {e.info.kid: e.key for e in self._keys if e.key.is_held_elsewhere}
        return self.load(self.path)._replacing(held)

    @classmethod
    def from_json(cls, text: str) -> Keyring:
        """Read a JWK Set.

        Raises:
            KeyringError: it is malformed.
        """
        return cls(read_set(text))

    def to_json(self) -> str:
        """The JWK Set, private halves included where they are here."""
        return write_set(self._keys)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a new file with mode 0600.

        Raises:
            KeyringError: the file exists already or cannot be written.
        """
        keyring_file.create(Path(path), self.to_json())

    @classmethod
    def change_file(
        cls, path: str | os.PathLike[str] | None, change: Callable[[Keyring], Keyring]
    ) -> Keyring:
        """Load, change and replace a keyring file while nobody else does; gives what is there now.

        Raises:
            KeyringError: as `load`; it is locked by another process, or cannot be written.
        """
        file = keyring_file.keyring_path(path)
        with keyring_file.locked(file):
            before = cls.load(file)
            after = change(before)
            # The mode of public keys may be open to others; that of private ones was checked.
            first = after._holds_secrets and not before._holds_secrets
            keyring_file.replace(file, after.to_json(), owner_only=first)
        return after

    @property
    def _holds_secrets(self) -> bool:
        return any(e.info.private and not e.key.is_held_elsewhere for e in self._keys)

    # --- the keys ------------------------------------------------------------

    def keys(self) -> tuple[KeyInfo, ...]:
        """What may be shown of each key, in order."""
        return tuple(entry.info for entry in self._keys)

    def _all(self, kind: KeyKind) -> list[Entry]:
        return [entry for entry in self._keys if entry.info.kind == kind]

    def only(self, *, issuers: bool = False, readers: Sequence[str] = ()) -> Keyring:
        """The same keys with these private halves and no others: what one process is given.

        Args:
            issuers: keep the private halves of issuers: it may seal.
            readers: audiences of the readers whose private halves it keeps: it may open.

        Raises:
            KeyringError: an audience has no reader here with its private half.
        """
        if isinstance(readers, str):
            raise ValueError("readers= takes a list of audiences")
        mine = {e.info.audience for e in self._all("reader") if e.info.private}
        for audience in readers:
            if audience not in mine:
                raise KeyringError(f"no reader's private key for audience {audience} is here")

        def keeps(info: KeyInfo) -> bool:
            return issuers if info.kind == "issuer" else info.audience in readers

        return Keyring(
            entry if keeps(entry.info) else entry.with_key(entry.key.without_private())
            for entry in self._keys
        )

    def public(self) -> Keyring:
        """The same keys without their private halves: all that a workflow worker needs."""
        return self.only()

    @property
    def can_seal(self) -> bool:
        """Whether an issuer's private half can be used here."""
        return any(e.info.private and e.info.is_active for e in self._all("issuer"))

    @property
    def has_openers(self) -> bool:
        """Whether a reader's private half is held elsewhere, so that opening takes a call."""
        return any(entry.key.is_held_elsewhere for entry in self._all("reader"))

    def trusted(self) -> dict[str, Issuer]:
        """The issuers whose messages count, by key id."""
        return {e.info.kid: e.issuer for e in self._all("issuer") if not e.info.revoked}

    def revoked(self) -> tuple[str, ...]:
        """Key ids of the issuers that are marked revoked."""
        return tuple(e.info.kid for e in self._all("issuer") if e.info.revoked)

    # --- a key's life --------------------------------------------------------

    def add_issuer(
        self,
        *,
        names: Sequence[str] | None = None,
        roots: Sequence[str] | None = None,
        origins: Sequence[str] | None = None,
    ) -> Keyring:
        """This keyring and a new issuer; from now on it seals what is within its limits.

        Args:
            names: credential names it may sign for; None for any.
            roots: prefixes of workflow ids of the roots whose trees it may sign for.
            origins: where its tokens may be sent at most; a wildcard as in a token's.

        Raises:
            KeyringError: a limit is malformed.
        """
        return self._with_new("issuer", names=names, roots=roots, origins=origins)

    def add_reader(self, audience: str = DEFAULT_AUDIENCE) -> Keyring:
        """This keyring and a new reader; what is sealed from now on is sealed for it too.

        Args:
            audience: whom it stands for: a task queue, or a label of your choice.

        Raises:
            KeyringError: the audience is malformed.
        """
        return self._with_new("reader", audience=audience)

    def retire(self, kid: str) -> Keyring:
        """The same, but this key seals (or is sealed for) no more; what there is stays good.

        Raises:
            KeyringError: the key is not here.
        """
        return self._marked(self._info(kid), retired=True)

    def revoke(self, kid: str) -> Keyring:
        """The same with this key revoked, and with its successor of the same limits or audience.

        What a revoked issuer signed is refused wherever this keyring is. The first message of its
        successor makes the nodes learn of both. A revoked reader is sealed for no more, and still
        opens what was: whoever stole it does too.

        Raises:
            KeyringError: the key is not here or is revoked already.
        """
        info = self._info(kid)
        if info.revoked:
            raise KeyringError(f"key {kid} is revoked already")
        revoked = self._marked(info, revoked=True)
        return revoked._with_new(info.kind, audience=info.audience, **limits_of(info))

    def with_signer(self, signer: Signer) -> Keyring:
        """The same keyring, an issuer's private half being held by a KMS or HSM.

        Raises:
            KeyringError: the issuer's public key is not here.
        """
        return self._with_holder("issuer", signer)

    def with_opener(self, opener: Opener) -> Keyring:
        """The same keyring, a reader's private half being held by a KMS or HSM.

        Raises:
            KeyringError: the reader's public key is not here.
        """
        return self._with_holder("reader", opener)

    def _with_holder(self, kind: KeyKind, holder: Signer | Opener) -> Keyring:
        public = encode_base64url(holder.public)
        for entry in self._all(kind):
            if entry.key.public == public:
                return self._replacing({entry.info.kid: entry.key.held_by(holder)})
        raise KeyringError(f"no {kind} of this keyring has the public key of the holder given")

    def _replacing(self, held: dict[str, Key]) -> Keyring:
        """The same keyring with these keys, by key id, in the place of their public halves."""
        keys = (entry.with_key(held.get(entry.info.kid, entry.key)) for entry in self._keys)
        return Keyring(keys, path=self.path)

    def _with_new(self, kind: KeyKind, *, audience: str | None = None, **limits: Any) -> Keyring:
        for name, entries in limits.items():
            if isinstance(entries, str):
                raise ValueError(f"{name}= takes a list")
        given: dict[str, Any] = {
            name: tuple(entries) for name, entries in limits.items() if entries is not None
        }
        key = Key.generate(CURVES[kind])
        info = KeyInfo(key.kid, kind, private=True, audience=audience, **given)
        return Keyring((*self._keys, Entry(checked(info), key)))

    def _info(self, kid: str) -> KeyInfo:
        for info in self.keys():
            if info.kid == kid:
                return info
        raise KeyringError(f"no key {kid} is in this keyring")

    def _marked(self, info: KeyInfo, **marks: bool) -> Keyring:
        after = replace(info, **marks)
        return Keyring(Entry(after, e.key) if e.info is info else e for e in self._keys)

    # --- what keys do --------------------------------------------------------

    def seal(self, claims: Claims, token: str | Secret) -> SealedToken:
        """Encrypt a token for the readers it is meant for and sign it.

        Args:
            claims: bound to the ciphertext; their audiences choose the readers, None means all.
            token: the secret, or what stands in its place: then the claims say so.

        Raises:
            NoIssuerKey, IssuerLimited: no private issuer key is here that may sign it.
            NoReaderKey: there is no reader to seal for.
            TokenMalformed: the claims or the token are outside the wire format.
        """
        secret = Secret(token) if isinstance(token, str) else token
        claims = replace(claims, content=secret.content)
        issuer, readers = self._issuer(claims), self._readers(claims)
        plaintext = secret.encode()
        payload = encrypt(plaintext, claims.encode(), readers)
        # In base64url within base64url; the rest of a message has some 240 characters.
        excess = math.ceil((len(payload) * 4 / 3 + 240 - MAX_MESSAGE_BYTES) * 9 / 16)
        if excess > 0:
            raise TokenMalformed(
                f"the token is too large: it has {len(plaintext):,} bytes, and sealed with these "
                f"claims for {len(readers)} readers it may have {len(plaintext) - excess:,} at most"
            )
        return SealedToken(_sign(issuer, claims, payload))

    def revocation(self, claims: Claims) -> str:
        """Sign a revocation.

        Raises:
            NoIssuerKey, IssuerLimited: no private issuer key is here that may sign it.
            TokenMalformed: the claims are outside the wire format, or those of a token.
        """
        if claims.kind != "revocation":
            raise TokenMalformed("the claims of a token cannot make a revocation")
        return _sign(self._issuer(claims), claims, claims.encode().decode())

    def open(
        self, message: Message, *, now: float, namespace: str, workflow_type: str | None
    ) -> str:
        """As `unseal`, for the token alone.

        Raises:
            ReferenceUnresolved: it is a reference.
        """
        secret = self.unseal(message, now=now, namespace=namespace, workflow_type=workflow_type)
        if secret.is_reference:
            raise ReferenceUnresolved(
                f"{message.claims.name} is a reference, which nothing resolves here", secret.token
            )
        return secret.token

    def unseal(
        self, message: Message, *, now: float, namespace: str, workflow_type: str | None
    ) -> Secret:
        """Check a sealed token whole and decrypt it.

        Args:
            message: a parsed token.
            now: Unix seconds.
            namespace: the Temporal namespace it is about to be used in.
            workflow_type: type of the workflow whose activity opens it; None for a client.

        Raises:
            TokenForged: no issuer of this keyring signed it.
            IssuerLimited: its issuer may not sign such a token.
            TokenRevoked: it is a revocation, or its issuer was revoked here.
            TokenExpired: past its expiry.
            WrongNamespace, WrongWorkflowType: signed for other uses.
            NoReaderKey: it is sealed for other readers.
            TokenMalformed: it decrypts to nothing under its claims, or not to what they say.
        """
        claims = message.claims
        if message.kind == "grant":
            raise TokenMalformed(f"the grant of {claims.name} was given in the place of a token")
        if message.kind != "token":
            raise TokenRevoked(f"{claims.name} was revoked at workflow {claims.authority}")
        if message.issuer in self.revoked():
            raise TokenRevoked(
                f"{claims.name} (version {claims.version}) was signed by issuer "
                f"{message.issuer}, which is revoked; set the token again"
            )
        verify(message, self.trusted())
        if claims.namespace != namespace:
            raise WrongNamespace(
                f"{claims.name} was sealed for namespace {claims.namespace}, not {namespace}"
            )
        if claims.expires_at is not None and now >= claims.expires_at:
            raise TokenExpired(
                f"{claims.name} (version {claims.version}) set at workflow {claims.authority} "
                "has expired; set a new one"
            )
        types = claims.types
        if types is not None and workflow_type is not None and workflow_type not in types:
            raise WrongWorkflowType(
                f"{claims.name} is not signed for activities of workflow type {workflow_type}"
            )
        return self._decrypt(message)

    def open_grant(self, message: Message, *, namespace: str, workflow_id: str) -> str:
        """Check a grant whole, for the workflow that wants a token by it, and decrypt it.

        Raises:
            TokenForged, IssuerLimited: no issuer of this keyring signed it, or may sign it.
            TokenRevoked: its issuer was revoked here.
            WrongNamespace, WrongAuthority: it is for another namespace, or another workflow.
            NoReaderKey: this keyring has none of the keys of the workers of sources.
            TokenMalformed: it is no grant, or decrypts to nothing under its claims.
        """
        claims = message.claims
        if message.kind != "grant":
            raise TokenMalformed(f"a {message.kind} was given in the place of a grant")
        if message.issuer in self.revoked():
            raise TokenRevoked(
                f"the grant of {claims.name} was signed by issuer {message.issuer}, which is "
                "revoked; authorize the source again"
            )
        verify(message, self.trusted())
        if claims.namespace != namespace:
            raise WrongNamespace(f"the grant of {claims.name} is for namespace {claims.namespace}")
        if claims.authority != workflow_id:
            raise WrongAuthority(f"the grant of {claims.name} is for workflow {claims.authority}")
        return self._decrypt(message).token

    def _decrypt(self, message: Message) -> Secret:
        reader, name = self._reader(message), message.claims.name
        if reader is None:
            raise NoReaderKey(
                f"{name} is sealed for readers {', '.join(message.readers)}; "
                f"{self._named} has the private key of none of them"
            )
        try:
            plaintext = reader.decrypt(message)
        except ValueError:
            raise TokenMalformed(
                f"{name} (fingerprint {message.fingerprint}) does not decrypt under its claims"
            ) from None
        return Secret.decode(plaintext, message.claims.content)

    def reader_of(self, message: Message) -> str | None:
        """The id of the key that opens a message here, or None."""
        reader = self._reader(message)
        return None if reader is None else reader.kid

    def _reader(self, message: Message) -> Key | None:
        mine = {e.info.kid: e.key for e in self._all("reader") if e.info.private}
        return next((mine[kid] for kid in message.readers if kid in mine), None)

    def _issuer(self, claims: Claims) -> Key:
        """The last issuer of the set that may sign these claims."""
        refused: IssuerLimited | None = None
        for entry in reversed(self._all("issuer")):
            if entry.info.private and entry.info.is_active:
                try:
                    entry.issuer.check(claims)
                except IssuerLimited as error:
                    refused = refused or error
                else:
                    return entry.key
        if refused is not None:
            raise refused
        raise NoIssuerKey(f"{self._named} has no issuer's private key to seal or revoke with")

    def _readers(self, claims: Claims) -> list[Key]:
        active = [entry for entry in self._all("reader") if entry.info.is_active]
        known = {entry.info.audience for entry in active}
        wanted = known if claims.audiences is None else claims.audiences
        for audience in wanted:
            if audience not in known:
                raise NoReaderKey(f"{self._named} has no reader for audience {audience}")
        if not wanted:
            raise NoReaderKey(f"{self._named} has no reader to seal the token for")
        return [entry.key for entry in active if entry.info.audience in wanted]

    @property
    def _named(self) -> str:
        return "this keyring" if self.path is None else f"the keyring {self.path}"

    def __repr__(self) -> str:
        return f"Keyring({', '.join(f'{info.kind} {info.kid}' for info in self.keys())})"

    def __reduce__(self) -> str:
        raise TypeError("a Keyring is not pickled; load it from its file where it is needed")


def _sign(issuer: Key, claims: Claims, payload: str) -> str:
    text = issuer.sign(TYP[claims.kind], payload)
    try:
        verify_signature(text, issuer.public)
    except ValueError:
        raise KeyringError(f"what holds issuer {issuer.kid} did not sign as it") from None
    return parse(text).text


class KeyringSource:
    """Follows a keyring's file, where it was loaded from one.

    A changed file is taken within a second of the next use. One that cannot be read keeps the
    keyring that was there, with an error in the log of ``stateful_workflow.sealed.keyring``, once
    a change. Usable from every thread.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        # Of no file: it may have been changed since it was loaded.
        self._stamp: keyring_file.Stamp | None = (0, 0, 0)
        self._look_at = time.monotonic() + _LOOK_EVERY_SECONDS
        self._lock = threading.Lock()

    def current(self, *, look: bool = False) -> Keyring:
        """The keyring as it is now.

        Args:
            look: look at the file, however short ago that was done.
        """
        path = self._keyring.path
        if path is None:
            return self._keyring
        with self._lock:
            now = time.monotonic()
            if look or now >= self._look_at:
                self._look_at = now + _LOOK_EVERY_SECONDS
                stamp = keyring_file.stamp(path)
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._load_again()
            return self._keyring

    @staticmethod
    def of_plugins(plugins: Iterable[object]) -> KeyringSource | None:
        """That of the first plugin that has one; None where none does."""
        sources = (getattr(plugin, "keyring_source", None) for plugin in plugins)
        return next((one for one in sources if isinstance(one, KeyringSource)), None)

    def _load_again(self) -> None:
        try:
            self._keyring = self._keyring.load_again()
        except KeyringError as error:
            said = printable(str(error))
            _log.error("The keyring was changed and is not used; the one before stays: %s", said)
            return
        _log.info("The keyring %s was read", printable(str(self._keyring.path)))
