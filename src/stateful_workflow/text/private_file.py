"""Files with keys: written for their owner alone, refused where others may change them; locks."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Final

GROUP_READ_VARIABLE: Final = "STATEFUL_KEYRING_GROUP_READ"


def write_new(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file that does not exist, down to the disk; until then only its owner has access.

    Raises:
        FileExistsError: it exists.
        OSError: it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        if hasattr(os, "fchmod"):
            os.fchmod(stream.fileno(), mode)
        os.fsync(stream.fileno())


def lock(path: str, seconds: float) -> int:
    """Lock a file, which is made where it is missing, until the descriptor returned is closed.

    Raises:
        BlockingIOError: another one has had it for so many seconds.
        OSError: it cannot be locked.
        ImportError: the system has no such locks.
    """
    import fcntl

    give_up = time.monotonic() + seconds
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            if not isinstance(error, BlockingIOError) or time.monotonic() >= give_up:
                os.close(descriptor)
                raise
        time.sleep(0.02)


def openness(path: Path, status: os.stat_result, private: bool = True) -> str | None:
    """What is wrong with who may read or write a file with keys, and the cure.

    Args:
        path: the file, to be named.
        status: of the open file, whatever links lead to it.
        private: whether it holds a private key, which its group may read where
            ``$STATEFUL_KEYRING_GROUP_READ`` is ``1``; public keys may be read by all.

    Returns:
        the rest of a sentence about the file; None where nothing is wrong, or on Windows.
    """
    if os.name != "posix":
        return None
    mode, user = stat.S_IMODE(status.st_mode), os.geteuid()
    if status.st_uid not in (user, 0):
        cure = f"neither root nor this process's user {user}: run `chown {user} {path}`"
        return f"belongs to user {status.st_uid}, {cure}"
    if not private:
        cure = f"others may write it, and so say who is an issuer: run `chmod go-w {path}`"
        return f"has mode {mode:04o}, {cure}" if mode & 0o022 else None
    for_group = os.environ.get(GROUP_READ_VARIABLE) == "1"
    if not mode & (0o037 if for_group else 0o077):
        return None
    return (
        f"has mode {mode:04o}, open to others: run `chmod 600 {path}`, or where its group must "
        f"read it (a Kubernetes fsGroup mount) set mode 0640 and ${GROUP_READ_VARIABLE}=1"
    )
