"""Keyring files: read only where they are safe, and written so that no reader sees half of one."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .errors import KeyringError
from .private_file import openness, write_new

KEYRING_VARIABLE: Final = "STATEFUL_KEYRING"

Stamp = tuple[int, int, int]
"""Inode, size and time of the last change (nanoseconds): another one says another content."""


@dataclass(frozen=True)
class FileContent:
    """What a keyring file held when it was read.

    Attributes:
        path: the file.
        text: its content.
        mode: its permission bits.
        stamp: says whether it is still the same.
    """

    path: Path
    text: str = field(repr=False)
    mode: int
    stamp: Stamp

    def check_mode(self, *, holds_private: bool, allow_group_read: bool | None) -> None:
        """Refuse a file that others may read or write.

        Args:
            holds_private: whether it holds a private key; public ones may be read by all.
            allow_group_read: whether its group may read a private key; None takes it from
                ``$STATEFUL_KEYRING_GROUP_READ`` (``1`` allows).

        Raises:
            KeyringError: the message names the mode and the cure.
        """
        if os.name != "posix":
            return
        problem = openness(self.path, self.mode, allow_group_read) if holds_private else None
        if problem is not None:
            raise KeyringError(f"the keyring {self.path} holds a private key and {problem}")
        if self.mode & 0o002:
            raise KeyringError(
                f"the keyring {self.path} has mode {self.mode:04o}: anybody may write to it, and "
                f"so say who is an issuer; run `chmod o-w {self.path}`"
            )


def keyring_path(path: str | os.PathLike[str] | None) -> Path:
    """The path given, or the one that ``$STATEFUL_KEYRING`` names.

    Raises:
        KeyringError: where there is neither.
    """
    if path is None:
        path = os.environ.get(KEYRING_VARIABLE)
        if path is None:
            raise KeyringError(f"no keyring: give a path or set ${KEYRING_VARIABLE}")
    return Path(path)


def read(path: Path) -> FileContent:
    """Read a keyring file.

    Raises:
        KeyringError: where it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            content = stream.read()
    except OSError as error:
        raise KeyringError(f"the keyring {path} cannot be read: {error.strerror}") from None
    text = _text(content)
    if text is None:
        raise KeyringError(f"the keyring {path} cannot be read: not UTF-8")
    return FileContent(path, text, stat.S_IMODE(status.st_mode), _stamp(status))


def stamp(path: Path) -> Stamp | None:
    """The stamp of a file now, or None where there is none."""
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def create(path: Path, text: str) -> None:
    """Write a new file with mode 0600.

    Raises:
        KeyringError: where the file exists already or cannot be written.
    """
    try:
        write_new(path, text)
    except FileExistsError:
        raise KeyringError(f"{path} exists; a keyring is never overwritten") from None
    except OSError as error:
        raise KeyringError(f"the keyring {path} cannot be written: {error.strerror}") from None


def replace(path: Path, before: Stamp, text: str, *, owner_only: bool = False) -> None:
    """Put a new content in the place of what was read, at once and with the same mode.

    Args:
        owner_only: give it mode 0600 instead, since private keys come where there were none.

    Raises:
        KeyringError: where the file changed since it was read, or cannot be written.
    """
    path = path.resolve()
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_new(new, text, 0o600 if owner_only else stat.S_IMODE(path.stat().st_mode))
        if stamp(path) != before:
            raise KeyringError(f"the keyring {path} was changed meanwhile; nothing was written")
        new.replace(path)
    except OSError as error:
        raise KeyringError(f"the keyring {path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            new.unlink()


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _text(content: bytes) -> str | None:
    # Raised inside the except clause, an error would carry the private keys as its context.
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
