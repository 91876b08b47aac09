"""Keys, and what is done with them: seal, revoke, open; add, retire and revoke keys.

A keyring is a JWK Set (RFC 7517) holding any subset of: issuers (Ed25519, who may
seal) and readers (X25519, who may open), each with or without its private half.
A worker that runs only workflows needs the public halves of issuers alone.

Sealing draws randomness: it belongs in clients and activities, never in workflow code.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ..errors import (
    IssuerLimited,
    KeyringError,
    NoIssuerKey,
    NoReaderKey,
    TokenExpired,
    TokenForged,
    TokenMalformed,
    TokenRevoked,
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
    read_set,
    verify,
    write_set,
)
from .message import TYP, Claims, Message, SealedToken, parse

_LOOK_EVERY_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class Keyring:
    """A set of issuer and reader keys; immutable.

    Make one with `generate`, `load` or `from_json`. The repr names key ids only;
    pickling is refused, so that no private key leaves by accident.
    """

    def __init__(
        self,
        keys: Iterable[Entry] = (),
        *,
        path: Path | None = None,
        stamp: keyring_file.Stamp | None = None,
        allow_group_read: bool | None = None,
    ) -> None:
        self._keys = tuple(keys)
        self.path = path
        """The file it was loaded from, or None."""
        self.stamp = stamp
        """What that file was like then, see `keyring_file.stamp`."""
        self.allow_group_read = allow_group_read
        """How `load` was asked to read that file."""
        kids = [entry.info.kid for entry in self._keys]
        if len(set(kids)) != len(kids):
            raise KeyringError("the keyring names a key id twice")

    @classmethod
    def generate(cls) -> Keyring:
        """A new keyring with one issuer and one reader, private halves included."""
        return cls().add_issuer().add_reader()

    # --- files ---------------------------------------------------------------

    @classmethod
    def load(
        cls, path: str | os.PathLike[str] | None = None, *, allow_group_read: bool | None = None
    ) -> Keyring:
        """Read a keyring file.

        Args:
            path: the file; None reads the one that ``$STATEFUL_KEYRING`` names.
            allow_group_read: accept a private key that the file's group may read, as a
                Kubernetes ``fsGroup`` mount makes it. None takes it from
                ``$STATEFUL_KEYRING_GROUP_READ`` (``1`` allows).

        Raises:
            KeyringError: where it is missing or malformed, belongs to another user, or others
                may write it, or read a private key in it; the message names the cure.
        """
        content = keyring_file.read(keyring_file.keyring_path(path))
        try:
            keyring = cls(
                read_set(content.text),
                path=content.path,
                stamp=content.stamp,
                allow_group_read=allow_group_read,
            )
        except KeyringError as error:
            raise KeyringError(f"the keyring {content.path}: {error}") from None
        private = any(entry.info.private for entry in keyring._keys)
        problem = openness(content.path, content.status, allow_group_read, private=private)
        if problem is not None:
            holding = "holds a private key and " if private else ""
            raise KeyringError(f"the keyring {content.path} {holding}{problem}")
        return keyring

    def load_again(self) -> Keyring:
        """The keyring its file holds now, with the signers and openers of this one.

        Raises:
            KeyringError: as `load`, or where it was loaded from no file.
        """
        if self.path is None:
            raise KeyringError("the keyring was loaded from no file")
        keyring = self.load(self.path, allow_group_read=self.allow_group_read)
        return keyring._with_holders_of(self)

    @classmethod
    def from_json(cls, text: str) -> Keyring:
        """Read a JWK Set.

        Raises:
            KeyringError: where it is malformed.
        """
        return cls(read_set(text))

    def to_json(self) -> str:
        """The JWK Set, private halves included where they are here."""
        return write_set(self._keys)

    def save(self, path: str | os.PathLike[str], *, replace: bool = False) -> None:
        """Write a file with mode 0600.

        Args:
            replace: put it in the place of a keyring file that is there, at once and with
                that file's mode; False writes a new file only.

        Raises:
            KeyringError: where the file exists already (and is not to be replaced), changes
                meanwhile, or cannot be written.
        """
        file = Path(path)
        if replace and file.exists():
            self.change_file(file, lambda _: self)
        else:
            keyring_file.create(file, self.to_json())

    @classmethod
    def change_file(
        cls, path: str | os.PathLike[str] | None, change: Callable[[Keyring], Keyring]
    ) -> Keyring:
        """Load, change and replace a keyring file while nobody else does; gives what is there now.

        As in ``Keyring.change_file(path, Keyring.add_issuer)``.

        Raises:
            KeyringError: as `load`, `replace_file_of` and `keyring_file.locked`.
        """
        file = keyring_file.keyring_path(path)
        with keyring_file.locked(file):
            before = cls.load(file)
            after = change(before)
            after.replace_file_of(before)
        return after

    def replace_file_of(self, before: Keyring) -> None:
        """Write this keyring into the file that another one was loaded from, at once.

        Two processes that do so in one moment may lose a change: see `change_file`.

        Raises:
            KeyringError: where that file was changed since, or cannot be written.
        """
        if before.path is None or before.stamp is None:
            raise KeyringError("the keyring was loaded from no file")
        # The mode of public keys may be open to others; that of private ones was checked.
        first = self._holds_secrets and not before._holds_secrets
        keyring_file.replace(before.path, before.stamp, self.to_json(), owner_only=first)

    @property
    def _holds_secrets(self) -> bool:
        return any(e.info.private and not e.key.is_held_elsewhere for e in self._keys)

    # --- the keys ------------------------------------------------------------

    def keys(self) -> tuple[KeyInfo, ...]:
        """What may be shown of each key, in order."""
        return tuple(entry.info for entry in self._keys)

    def only(self, *, issuers: bool = False, readers: Sequence[str] = ()) -> Keyring:
        """The same keys with these private halves and no others: what one process is given.

        Args:
            issuers: keep the private halves of issuers: it may seal.
            readers: keep those of the readers with these audiences: it may open what is
                sealed for them.

        Raises:
            KeyringError: where an audience has no reader here with its private half.
        """
        if isinstance(readers, str):
            raise ValueError("readers= takes a list of audiences")
        mine = {e.info.audience for e in self._keys if e.info.kind == "reader" and e.info.private}
        for audience in readers:
            if audience not in mine:
                raise KeyringError(f"no reader's private key for audience {audience} is here")

        def keeps(info: KeyInfo) -> bool:
            return issuers if info.kind == "issuer" else info.audience in readers

        return Keyring(
            entry
            if keeps(entry.info)
            else Entry(replace(entry.info, private=False), entry.key.without_private())
            for entry in self._keys
        )

    def public(self) -> Keyring:
        """The same keys without their private halves: all that a workflow worker needs."""
        return self.only()

    @property
    def can_seal(self) -> bool:
        """Whether an issuer's private half can be used here."""
        return any(k.kind == "issuer" and k.private and k.is_active for k in self.keys())

    def trusted(self) -> dict[str, Issuer]:
        """The issuers whose messages count, by key id."""
        return {
            entry.info.kid: entry.issuer()
            for entry in self._keys
            if entry.info.kind == "issuer" and not entry.info.revoked
        }

    def revoked(self) -> tuple[str, ...]:
        """Key ids of the issuers that are marked revoked."""
        return tuple(info.kid for info in self.keys() if info.kind == "issuer" and info.revoked)

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
            KeyringError: for a limit that is malformed.
        """
        return self._with("issuer", names=names, roots=roots, origins=origins)

    def add_reader(self, audience: str = DEFAULT_AUDIENCE) -> Keyring:
        """This keyring and a new reader; what is sealed from now on is sealed for it too.

        Args:
            audience: whom it stands for, such as the task queue of the workers that are to
                have its private half.

        Raises:
            KeyringError: for an audience that is malformed.
        """
        return self._with("reader", audience=audience)

    def retire(self, kid: str) -> Keyring:
        """The same, but this key seals (or is sealed for) no more; what there is stays good.

        Raises:
            KeyringError: where the key is not here.
        """
        return self._marked(kid, retired=True)

    def revoke(self, kid: str) -> Keyring:
        """The same with this key revoked, and with its successor of the same limits or audience.

        What a revoked issuer signed is refused wherever this keyring is. The successor is part
        of it: its first message makes the nodes learn of both, and stands whatever version
        the revoked key has set. For a revoked reader nothing is sealed any more, while it still
        opens what was: whoever stole it does too.

        Raises:
            KeyringError: where the key is not here or is revoked already.
        """
        info = self._get(kid)
        if info.revoked:
            raise KeyringError(f"key {kid} is revoked already")
        return self._marked(kid, revoked=True)._with(
            info.kind,
            names=info.names,
            roots=info.roots,
            origins=info.origins,
            audience=info.audience,
        )

    def with_signer(self, signer: Signer) -> Keyring:
        """The same keyring, an issuer's private half being held by a KMS or HSM.

        Raises:
            KeyringError: where the issuer's public key is not here.
        """
        return self._held("issuer", signer)

    def with_opener(self, opener: Opener) -> Keyring:
        """The same keyring, a reader's private half being held by a KMS or HSM.

        Raises:
            KeyringError: where the reader's public key is not here.
        """
        return self._held("reader", opener)

    @property
    def has_openers(self) -> bool:
        """Whether a reader's private half is held elsewhere, so that opening takes a call."""
        return any(e.info.kind == "reader" and e.key.is_held_elsewhere for e in self._keys)

    def _with_holders_of(self, other: Keyring) -> Keyring:
        held = {e.info.kid: e for e in other._keys if e.key.is_held_elsewhere}
        return self._holding(
            Entry(replace(entry.info, private=True), held[entry.info.kid].key)
            if entry.info.kid in held
            else entry
            for entry in self._keys
        )

    def _holding(self, keys: Iterable[Entry]) -> Keyring:
        """The keyring of the same file with these keys."""
        return Keyring(
            keys, path=self.path, stamp=self.stamp, allow_group_read=self.allow_group_read
        )

    def _with(
        self,
        kind: KeyKind,
        *,
        names: Sequence[str] | None = None,
        roots: Sequence[str] | None = None,
        origins: Sequence[str] | None = None,
        audience: str | None = None,
    ) -> Keyring:
        key = Key.generate(CURVES[kind])
        info = KeyInfo(
            key.kid,
            kind,
            private=True,
            names=_listed("names", names),
            roots=_listed("roots", roots),
            origins=_listed("origins", origins),
            audience=audience,
        )
        return Keyring((*self._keys, Entry(checked(info), key)))

    def _marked(self, kid: str, **marks: bool) -> Keyring:
        self._get(kid)
        return Keyring(
            replace(entry, info=replace(entry.info, **marks)) if entry.info.kid == kid else entry
            for entry in self._keys
        )

    def _held(self, kind: KeyKind, holder: Signer | Opener) -> Keyring:
        keys = list(self._keys)
        for index, entry in enumerate(keys):
            if entry.info.kind == kind and entry.key.is_of(holder):
                keys[index] = Entry(replace(entry.info, private=True), entry.key.held_by(holder))
                return self._holding(keys)
        raise KeyringError(f"no {kind} of this keyring has the public key of the holder given")

    def _get(self, kid: str) -> KeyInfo:
        for info in self.keys():
            if info.kid == kid:
                return info
        raise KeyringError(f"no key {kid} is in this keyring")

    # --- what keys do --------------------------------------------------------

    def seal(self, claims: Claims, token: str) -> SealedToken:
        """Encrypt a token for the readers it is meant for and sign it.

        Args:
            claims: of a token; bound to the ciphertext as its ``aad``. Its ``audiences``
                choose the readers; None means all that are neither retired nor revoked.
            token: the secret.

        Raises:
            NoIssuerKey: where no private issuer key is here.
            IssuerLimited: where there is, and none may sign these claims.
            NoReaderKey: where there is no reader to seal for.
            TokenMalformed: where the claims or the size are outside the wire format.
        """
        issuer = self._issuer(claims)
        readers = self._readers(claims)
        if not token:
            raise TokenMalformed("an empty token is not sealed")
        if token != token.strip():
            raise TokenMalformed("the token begins or ends with white space; strip it first")
        # The error of `encode` would hold the token.
        plaintext = token.encode(errors="replace")
        if plaintext.decode() != token:
            raise TokenMalformed("the token is not valid Unicode")
        payload = encrypt(plaintext, claims.encode(), readers)
        return SealedToken(_sign(issuer, claims, payload))

    def revocation(self, claims: Claims) -> str:
        """Sign a revocation.

        Raises:
            NoIssuerKey, IssuerLimited: where no private issuer key is here that may sign it.
            TokenMalformed: where the claims are those of a token.
        """
        if claims.kind != "revocation":
            raise TokenMalformed("the claims of a token cannot make a revocation")
        return _sign(self._issuer(claims), claims, claims.encode().decode())

    def open(
        self, message: Message, *, now: float, namespace: str, workflow_type: str | None
    ) -> str:
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
            TokenMalformed: it decrypts to nothing under its claims.
        """
        claims = message.claims
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
        if (
            workflow_type is not None
            and claims.types is not None
            and workflow_type not in claims.types
        ):
            raise WrongWorkflowType(
                f"{claims.name} is not signed for activities of workflow type {workflow_type}"
            )
        return self._decrypt(message)

    def _decrypt(self, message: Message) -> str:
        reader = self._reader(message)
        if reader is None:
            raise NoReaderKey(
                f"{message.claims.name} is sealed for readers {', '.join(message.readers)}; "
                "this process has the private key of none of them"
            )
        try:
            plaintext = reader.decrypt(message)
        except ValueError:
            raise TokenMalformed(
                f"{message.claims.name} (fingerprint {message.fingerprint}) does not decrypt "
                "under its claims"
            ) from None
        token = _text(plaintext)
        if not token:
            raise TokenMalformed("the sealed token is empty or no text")
        return token

    def reader_of(self, message: Message) -> str | None:
        """The id of the key that opens a message here, or None."""
        reader = self._reader(message)
        return None if reader is None else reader.kid

    def _reader(self, message: Message) -> Key | None:
        mine = {e.info.kid: e.key for e in self._keys if e.info.kind == "reader" and e.info.private}
        return next((mine[kid] for kid in message.readers if kid in mine), None)

    def _issuer(self, claims: Claims) -> Entry:
        """The last issuer of the set that may sign these claims."""
        refused: IssuerLimited | None = None
        for entry in reversed(self._keys):
            if entry.info.kind == "issuer" and entry.info.private and entry.info.is_active:
                try:
                    entry.issuer().check(claims)
                except IssuerLimited as error:
                    refused = refused or error
                else:
                    return entry
        if refused is not None:
            raise refused
        raise NoIssuerKey("this keyring has no issuer's private key, so it cannot seal or revoke")

    def _readers(self, claims: Claims) -> list[Key]:
        active = [e for e in self._keys if e.info.kind == "reader" and e.info.is_active]
        if not active:
            raise NoReaderKey("the keyring has no reader to seal a token for")
        if claims.audiences is None:
            return [entry.key for entry in active]
        for audience in claims.audiences:
            if audience not in {entry.info.audience for entry in active}:
                raise NoReaderKey(f"the keyring has no reader for audience {audience}")
        chosen = [entry.key for entry in active if entry.info.audience in claims.audiences]
        if not chosen:
            raise NoReaderKey("readers=[] is nobody; name an audience, or seal for all")
        return chosen

    def __repr__(self) -> str:
        return f"Keyring({', '.join(f'{info.kind} {info.kid}' for info in self.keys())})"

    def __reduce__(self) -> str:
        raise TypeError("a Keyring is not pickled; load it from its file where it is needed")


def _sign(issuer: Entry, claims: Claims, payload: str) -> str:
    text = issuer.key.sign(TYP[claims.kind], payload)
    parse(text)
    try:
        verify_signature(text, issuer.key.public)
    except ValueError:
        raise KeyringError(f"what holds issuer {issuer.info.kid} did not sign as it") from None
    return text


def self_check() -> None:
    """Verify one good and one forged message, so that a broken runtime fails early.

    Raises:
        KeyringError: where either is judged wrongly.
    """
    keyring = Keyring.generate()
    claims = Claims("check", "check", "check", "check", "check", 1)
    message = parse(keyring.seal(claims, secrets.token_urlsafe(8)))
    verify(message, keyring.trusted())
    stranger = {message.issuer: next(iter(Keyring.generate().trusted().values()))}
    try:
        verify(message, stranger)
    except TokenForged:
        return
    raise KeyringError("the cryptographic library accepts a forged signature")


def _listed(option: str, entries: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(entries, str):
        raise ValueError(f"{option}= takes a list")
    return None if entries is None else tuple(entries)


def _text(content: bytes) -> str | None:
    # Raised inside the except clause, an error would carry the secret as its context.
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


class KeyringSource:
    """Follows a keyring's file, where it was loaded from one.

    A changed file is taken within a second of the next use, without a restart. One that
    cannot be read keeps the keyring that was there, with an error in the log of
    ``stateful_workflow.sealed.keyring``, once a change. Usable from every thread.

    Args:
        keyring: where it has no path it stays as it is.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._stamp = keyring.stamp
        self._looked_at = time.monotonic()
        self._lock = threading.Lock()
        self.problem: str | None = None
        """Why the file as it stands now is not used, or None."""

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
            if not look and now - self._looked_at < _LOOK_EVERY_SECONDS:
                return self._keyring
            self._looked_at = now
            stamp = keyring_file.stamp(path)
            if stamp != self._stamp:
                self._stamp = stamp
                self._read_again()
            return self._keyring

    def _read_again(self) -> None:
        try:
            keyring = self._keyring.load_again()
        except KeyringError as error:
            self.problem = said = printable(str(error))
            _log.error("The keyring was changed and is not used; the one before stays: %s", said)
            return
        self.problem = None
        self._keyring = keyring
        _log.info("The keyring %s was read again", printable(str(keyring.path)))
