"""A sink that writes events to a file whose every change can be seen: see `AuditFile`.

`chain` beside this module describes the format, `segments` the names of the segments of a file,
and `verification` checks what is written.
"""

from __future__ import annotations

import atexit
import errno
import json
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...errors import AuditError
from ...sealed.crypto import Key
from ...text.printable import printable
from ...text.private_file import lock, openness, write_new
from ...text.strict_json import json_object
from ..event import AuditEvent
from .chain import Tip
from .segments import end_of, newest, next_name, open_segment

CHECKPOINT_EVENTS: Final = 1_000
"""Lines after which a checkpoint is written."""

CHECKPOINT_SECONDS: float = 60.0
"""Seconds after which it is, where there are fewer."""

LOCK_SECONDS: float = 5.0
"""How long to wait for another process that has the file."""

HAND_SECONDS: float = 5.0
"""How long `AuditFile.close` waits for `on_checkpoint`."""

_MAX_WAITING: Final = 100
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)  # Windows lacks the last

# Not __name__: what goes to a logger below "stateful_workflow.audit" reaches the handlers of
# `LoggingSink` too, and would stand among the events.
_log = logging.getLogger("stateful_workflow.audit_file")


@dataclass(frozen=True)
class _End:
    """What was written: the tip of the chain, and the bytes of its segment.

    One value, so that an error that comes from anywhere leaves both as they were.
    """

    tip: Tip
    size: int = 0


class AuditFile:
    """Writes events to a file: JSON lines, each with the hash of the one before.

    Give each process a file of its own. It is locked (``PATH.lock``) for as long as it is open,
    and what is in it is gone on with. Each event is one write of one whole line, so that a
    process that is killed loses none; a machine that loses power may lose the last seconds.
    A segment that is renamed, as logrotate does, is noticed at the next event.

    After every 1,000 lines, after 60 s and when it is closed, also at the end of the process,
    a checkpoint is written, signed with the key of this file. Whoever keeps a checkpoint
    elsewhere can show with it that nothing up to there was changed, cut or taken away.

    Args:
        path: the file. Its directory must exist; the file has mode 0600.
        key: a file with the private Ed25519 key that signs checkpoints, as a JWK (RFC 8037),
            used for nothing else; None takes ``PATH.key``. It is made for a new chain, with
            mode 0600. Nobody but its owner may have access to it; with
            ``$STATEFUL_KEYRING_GROUP_READ=1`` its group may read it, as it may a keyring.
        rotate_bytes: begin a new segment when this one has so many bytes; None never does. The
            old one becomes ``PATH.000001``, ``PATH.000002`` and so on.
        on_checkpoint: is given each checkpoint, a compact JWS, to be kept off this host. A
            thread of its own calls it, when what the checkpoint covers is on the disk; what it
            raises is logged. While it takes its time, the newest 100 wait.

    Raises:
        AuditError: the file, its directory or the key cannot be used, the key of a chain that
            was begun is missing or another one, another process has the file, or this is no POSIX
            system.
        ValueError: `rotate_bytes` is not positive.
    """

    is_local = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key: str | os.PathLike[str] | None = None,
        rotate_bytes: int | None = None,
        on_checkpoint: Callable[[str], object] | None = None,
    ) -> None:
        if rotate_bytes is not None and rotate_bytes < 1:
            raise ValueError("rotate_bytes is a number of bytes above 0")
        self.path = Path(path).resolve()
        """The newest segment."""
        self._name = printable(str(self.path))
        self._rotate_bytes = math.inf if rotate_bytes is None else rotate_bytes
        self._on_checkpoint = on_checkpoint
        self._process = os.getpid()
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        self._is_failing = False
        self._descriptor: int | None = None
        self._left: list[int] = []  # segments for the thread to bring to the disk and close
        self._outbox: deque[str] = deque(maxlen=_MAX_WAITING)  # a later one covers the dropped
        self._lock = _locked(self.path)
        try:
            with self._changed:
                self._resume(Path(f"{self.path}.key") if key is None else Path(key))
        except BaseException as error:
            for descriptor in (*self._left, self._descriptor, self._lock):
                _close(descriptor)
            if not isinstance(error, OSError):
                raise
            why = error.strerror
            raise AuditError(f"the audit file {self.path} cannot be opened: {why}") from None
        self._thread = threading.Thread(
            target=self._work, name="stateful-audit-checkpoints", daemon=True
        )
        self._thread.start()
        atexit.register(self.close)

    @property
    def public_key(self) -> dict[str, object]:
        """The public JWK that the checkpoints are verified with: pin it, away from this host."""
        return self._key.to_jwk(private=False)

    def record(self, event: AuditEvent) -> None:
        """Write an event.

        Raises:
            AuditError: the file is closed, or this process was forked from the one that opened it.
            OSError, ValueError: it could not be written; the file is as it was before.
        """
        if os.getpid() != self._process:
            raise AuditError(
                f"the audit file {self.path} was opened by the process that this one was forked "
                "from: make an AuditFile with a path of its own in this process"
            )
        with self._changed:
            if self._closed:
                raise AuditError(f"the audit file {self.path} is closed")
            self._begin_if_gone()
            if self._end.size >= self._rotate_at:
                self._rotate()
            self._append(self._end.tip.event(event))
            if self._end.tip.unsigned >= CHECKPOINT_EVENTS:
                self._try_checkpoint()

    def close(self) -> None:
        """Write a last checkpoint and let go of the file; the second time nothing happens.

        Nor does anything in a process that was forked from the one that opened it.
        """
        if os.getpid() != self._process:
            return
        with self._changed:
            if self._closed:
                return
            self._closed = True
            if self._end.tip.unsigned:
                self._try_checkpoint()
            self._leave()
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(HAND_SECONDS)
            if self._thread.is_alive():
                _log.error("The last checkpoint of %s was not taken in time", self._name)
        atexit.unregister(self.close)
        _close(self._lock)

    def __enter__(self) -> AuditFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- segments ------------------------------------------------------------

    def _resume(self, key: Path) -> None:
        """Go on with what is there, or begin."""
        try:
            own = open_segment(self.path)
        except FileNotFoundError:
            own = None
        last = newest(self.path) if own is None else own
        self._key = _load_key(key, may_make=last is None)
        if last is None:
            self._end = _End(Tip.new())
            self._begin()
            return
        if last.key.kid != self._key.kid:
            raise AuditError(
                f"{last.path} was begun with the checkpoint key {last.key.kid}, and {key} holds "
                f"{self._key.kid}: bring back the first, or move the audit file and its segments "
                "away to begin a new one"
            )
        tip, torn = end_of(last)
        self._end = _End(tip)
        if own is None or torn:
            self._begin()
        else:
            self._take(os.open(self.path, _FLAGS))

    def _begin_if_gone(self) -> None:
        """Begin the next segment where this one was renamed, changed by others, or given up."""
        with suppress(FileNotFoundError):
            now = self.path.stat()
            if (
                self._descriptor is not None
                and os.path.samestat(now, os.fstat(self._descriptor))
                and now.st_size == self._end.size
            ):
                return
        self._begin()

    def _rotate(self) -> None:
        """Begin the next segment; where this one cannot be renamed, go on in it for a while."""
        self._try_checkpoint()
        try:
            self._set_aside()
        except (OSError, AuditError) as error:
            self._rotate_at = self._end.size + self._rotate_bytes
            self._fails("cannot be rotated", error)
        else:
            self._begin()

    def _begin(self) -> None:
        """Begin a segment; whatever has its name is kept under another."""
        self._set_aside()
        self._leave()
        self._take(os.open(self.path, _FLAGS | os.O_CREAT, 0o600))
        try:
            self._append(self._end.tip.header(self._key, time.time()))
        except BaseException:
            self._leave()
            raise

    def _set_aside(self) -> None:
        with suppress(FileNotFoundError):
            if self.path.stat().st_size:
                self.path.rename(next_name(self.path))

    def _take(self, descriptor: int) -> None:
        self._descriptor, self._rotate_at = descriptor, self._rotate_bytes
        self._end = _End(self._end.tip, os.fstat(descriptor).st_size)

    def _leave(self) -> None:
        """Let go of the segment: a slow disk is for the thread to wait for."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if len(self._left) < _MAX_WAITING:
            self._left.append(descriptor)
            self._changed.notify_all()
            return
        # The thread is held up, and descriptors would run out.
        if not self._is_on_disk(descriptor):
            self._outbox.clear()
        _close(descriptor)

    # --- lines ---------------------------------------------------------------

    def _append(self, raw: bytes, *, is_checkpoint: bool = False) -> None:
        descriptor, end = self._descriptor, self._end
        if descriptor is None:
            raise AssertionError("no segment was begun")
        try:
            if os.write(descriptor, raw) != len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._end = _End(end.tip.after(raw, is_checkpoint=is_checkpoint), end.size + len(raw))
        except BaseException:
            try:
                os.ftruncate(descriptor, self._end.size)
            except OSError:
                self._leave()  # the part of a line that is left ends the segment
            raise

    def _try_checkpoint(self) -> None:
        """Write a checkpoint; where that fails, the next one covers the same lines."""
        try:
            self._begin_if_gone()
            checkpoint = self._end.tip.sign(self._key, time.time())
            self._append(checkpoint.line(), is_checkpoint=True)
        except (OSError, AuditError) as error:
            self._fails("takes no checkpoint", error)
            return
        self._is_failing = False
        if self._on_checkpoint is not None:
            self._outbox.append(checkpoint.text)
            self._changed.notify_all()

    def _fails(self, what: str, error: Exception) -> None:
        if not self._is_failing:
            self._is_failing = True
            _log.error("The audit file %s %s: %s", self._name, what, printable(str(error)))

    # --- the thread ----------------------------------------------------------

    def _work(self) -> None:
        """Sign in time what is unsigned, and hand out checkpoints, until the file is closed."""
        is_closed = False
        while not is_closed:
            with self._changed:
                is_woken = self._changed.wait_for(self._has_work, CHECKPOINT_SECONDS)
                if self._end.tip.unsigned and not is_woken:
                    self._try_checkpoint()
                is_closed, texts, left = self._closed, list(self._outbox), list(self._left)
                self._outbox.clear()
                self._left.clear()
                # It stays open until this thread is here again, also where it is left meanwhile.
                current = [self._descriptor] if texts and self._descriptor is not None else []
            are_on_disk = [self._is_on_disk(descriptor) for descriptor in (*left, *current)]
            for descriptor in left:
                _close(descriptor)
            if all(are_on_disk):
                self._hand_out(texts)

    def _has_work(self) -> bool:
        return self._closed or bool(self._outbox or self._left)

    def _is_on_disk(self, descriptor: int) -> bool:
        """Bring a segment to the disk."""
        try:
            os.fsync(descriptor)
        except OSError as error:
            self._fails("may not be on the disk, so a checkpoint is not handed out", error)
            return False
        return True

    def _hand_out(self, texts: list[str]) -> None:
        for text in texts:
            try:
                if self._on_checkpoint is not None:
                    self._on_checkpoint(text)
            except Exception:  # noqa: BLE001 - the callback is the user's
                _log.exception("A checkpoint of %s was not taken", self._name)


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        with suppress(OSError):
            os.close(descriptor)


def _locked(path: Path) -> int:
    """Lock a file for this process, waiting a little.

    Raises:
        AuditError: another one has it, or there are no locks.
    """
    name = f"{path}.lock"
    try:
        return lock(name, LOCK_SECONDS)
    except ImportError:
        raise AuditError(
            f"the audit file {path} needs a POSIX system, on which a file can be locked, and "
            "renamed while it is open: use another sink here, such as LoggingSink"
        ) from None
    except BlockingIOError:
        why = "another process, or another AuditFile of this one, has it: give each its own"
    except OSError as error:
        why = f"{name}: {error.strerror}"
    raise AuditError(f"the audit file {path} cannot be locked ({why})")


def _load_key(path: Path, *, may_make: bool) -> Key:
    """Read the key that signs checkpoints, or make it.

    Raises:
        AuditError: it is missing and must not be made, another's or open to others, or no such key.
    """
    try:
        if may_make and not path.exists():
            made = Key.generate("Ed25519")
            write_new(path, json.dumps(made.to_jwk(private=True)) + "\n")
            return made
        with path.open("rb") as stream:
            problem = openness(path, os.fstat(stream.fileno()))
            content = stream.read()
    except OSError as error:
        raise AuditError(
            f"the checkpoint key {path} cannot be read or made: {error.strerror}"
        ) from None
    if problem is not None:
        raise AuditError(f"the checkpoint key {path} {problem}")
    key = _private_key(content)
    if key is None:
        raise AuditError(f"the checkpoint key {path} is no private Ed25519 key as a JWK (RFC 8037)")
    return key


def _private_key(content: bytes) -> Key | None:
    # Raised inside the except clause, an error would carry the private key as its context.
    try:
        key = Key.from_jwk(json_object(content))
    except ValueError:
        return None
    return key if key.has_private and key.curve == "Ed25519" else None
