"""Keyring files: written so that no reader sees half of one, and one change at a time."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from ..errors import KeyringError
from ..text.private_file import lock, write_new

KEYRING_VARIABLE: Final = "STATEFUL_KEYRING"
LOCK_SECONDS: float = 10.0
"""How long a change waits for another one of the same keyring file."""

Stamp = tuple[int, int, int]
"""Inode, size and time of the last change (nanoseconds): another one says another content."""


def keyring_path(path: str | os.PathLike[str] | None) -> Path:
    """The path given, or the one that ``$STATEFUL_KEYRING`` names.

    Raises:
        KeyringError: there is neither.
    """
    if path is None:
        path = os.environ.get(KEYRING_VARIABLE)
        if path is None:
            raise KeyringError(f"no keyring: give a path or set ${KEYRING_VARIABLE}")
    return Path(path)


def read(path: Path) -> tuple[bytes, os.stat_result]:
    """The content of a file, and its status, whatever links lead to it.

    Raises:
        KeyringError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(), os.fstat(stream.fileno())
    except OSError as error:
        raise KeyringError(f"the keyring {path} cannot be read: {error.strerror}") from None


def stamp(path: Path) -> Stamp | None:
    """The stamp of a file now, or None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def locked(path: Path) -> Generator[None, None, None]:
    """Let no other change of a keyring file happen meanwhile; whoever only reads does not wait.

    Others wait for a lock on ``FILE.lock`` beside it, which stays there. Windows has none.

    Raises:
        KeyringError: another has had it for `LOCK_SECONDS`, or it cannot be made.
    """
    name = f"{path.resolve()}.lock"
    with ExitStack() as stack:
        try:
            stack.callback(os.close, lock(name, LOCK_SECONDS))
        except ImportError:  # Windows
            pass
        except OSError as error:
            why = error.strerror
            if isinstance(error, BlockingIOError):
                why = f"another process has had it for {LOCK_SECONDS:g} s, see `fuser {name}`"
            raise KeyringError(f"the keyring {path} cannot be locked ({name}: {why})") from None
        yield


def create(path: Path, text: str) -> None:
    """Write a new file with mode 0600.

    Raises:
        KeyringError: the file exists already or cannot be written.
    """
    try:
        write_new(path, text)
    except FileExistsError:
        raise KeyringError(f"{path} exists; a keyring is never overwritten") from None
    except OSError as error:
        raise KeyringError(f"the keyring {path} cannot be written: {error.strerror}") from None


def replace(path: Path, text: str, *, owner_only: bool = False) -> None:
    """Put a new content in the place of a file's, at once and with the same mode.

    Args:
        owner_only: give it mode 0600 instead, since private keys come where there were none.

    Raises:
        KeyringError: it cannot be written.
    """
    path = path.resolve()
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_new(new, text, 0o600 if owner_only else stat.S_IMODE(path.stat().st_mode))
        new.replace(path)
    except OSError as error:
        raise KeyringError(f"the keyring {path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            new.unlink()
