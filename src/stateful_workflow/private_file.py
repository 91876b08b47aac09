"""Files with private keys: written whole and for their owner alone, refused if open to others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

GROUP_READ_VARIABLE: Final = "STATEFUL_KEYRING_GROUP_READ"


def write_new(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file that does not exist, down to the disk.

    Args:
        path: where.
        text: its content.
        mode: its permission bits; while it is written only its owner has access.

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


def openness(path: Path, mode: int, allow_group_read: bool | None = None) -> str | None:
    """What is wrong with the permission bits of a file with a private key, and the cure.

    Args:
        path: the file, to be named.
        mode: its permission bits.
        allow_group_read: whether its group may read it; None takes that from
            ``$STATEFUL_KEYRING_GROUP_READ`` (``1`` allows).

    Returns:
        the rest of a sentence about the file, or None where nobody else has access, as on
        systems without such bits.
    """
    if os.name != "posix":
        return None
    if allow_group_read is None:
        allow_group_read = os.environ.get(GROUP_READ_VARIABLE) == "1"
    if not mode & (0o037 if allow_group_read else 0o077):
        return None
    return (
        f"has mode {mode:04o}, open to others: run `chmod 600 {path}`, or where its group must "
        f"read it (a Kubernetes fsGroup mount) set mode 0640 and ${GROUP_READ_VARIABLE}=1"
    )
