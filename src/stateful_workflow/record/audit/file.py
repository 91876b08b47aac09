"""A sink that writes events to a file whose every change can be seen: see `AuditFile`.

`chain` beside this module describes the format, `segments` the names of the segments of a file,
and `verification` checks what is written.
"""

from __future__ import annotations

import atexit
import errno
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

from ...errors import AuditError
from ...sealed.crypto import Key
from ...text.printable import printable
from ...text.private_file import lock, openness, write_new
from ...text.strict_json import json_object
from ..event import AuditEvent
from .chain import Checkpoint, Tip
from .segments import end_of, newest, next_name, open_segment, rotated

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


class AuditFile:
    """Writes events to a file: JSON lines, each with the hash of the one before.

    A chain has one writer: give each process a file of its own, and open it after a fork, not
    before. The file is locked (``PATH.lock``) for as long as it is open, and what is in it is
    gone on with. Each event is one write of one whole line, so that a process that is killed
    loses none. There is no fsync for each, so that a machine that loses power may lose the last
    seconds.

    After every 1,000 lines, after 60 s and when it is closed, also at the end of the process,
    a checkpoint is written, signed with the key of this file. Whoever keeps a checkpoint
    elsewhere can show with it that nothing up to there was changed, cut or taken away.

    A segment that is renamed, as logrotate does, is noticed at the next event; the new one
    goes on with the chain. A program that compresses must leave the newest rotated one for a
    while (``delaycompress``), and one that copies and truncates (``copytruncate``) loses lines.

    It needs a POSIX system, whose locks and renaming of open files Windows has not.

    Args:
        path: the file. Its directory must exist; the file has mode 0600.
        key: a file with the private Ed25519 key that signs checkpoints, as a JWK (RFC 8037),
            used for nothing else; None takes ``PATH.key``. Where it is missing it is made, with
            mode 0600, but only for a new chain. Nobody but its owner may have access to it; with
            ``$STATEFUL_KEYRING_GROUP_READ=1`` its group may read it, as it may a keyring.
        rotate_bytes: begin a new segment when this one has so many bytes; None never does. The
            old one becomes ``PATH.000001``, ``PATH.000002`` and so on.
        on_checkpoint: is given each checkpoint, a compact JWS, to be kept off this host. A
            thread of its own calls it, when what the checkpoint covers is on the disk. Where that
            cannot be brought there, this is logged, and the next checkpoint covers the same lines;
            what the callable raises is logged too. While it takes its time, the newest 100 wait.

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
        self._rotate_bytes = rotate_bytes
        self._on_checkpoint = on_checkpoint
        self._process = os.getpid()
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        self._descriptor: int | None = None
        self._identity = (0, 0)
        self._size = 0
        self._unsigned: int = 0
        self._due = 0.0
        self._is_failing = False
        self._outbox: deque[str] = deque(maxlen=_MAX_WAITING)  # a later one covers the dropped
        self._unsynced: deque[int] = deque()  # to be on the disk before any of them is handed out
        self._has_left = False
        self._is_lost = False
        self._thread: threading.Thread | None = None
        self._lock = _locked(self.path)
        try:
            self._resume(Path(f"{self.path}.key") if key is None else Path(key))
        except OSError as error:
            self._release()
            raise AuditError(
                f"the audit file {self.path} cannot be opened: {error.strerror}"
            ) from None
        except BaseException:
            self._release()
            raise
        atexit.register(self.close)
        with self._changed:
            self._start_thread()

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
                f"the audit file {self.path} belongs to the process that opened it, and this one "
                "was forked from that: make an AuditFile with a path of its own after the fork"
            )
        with self._changed:
            if self._closed:
                raise AuditError(f"the audit file {self.path} is closed")
            self._keep_segment()
            self._append(self._tip.event(event))
            if self._unsigned >= CHECKPOINT_EVENTS:
                self._try_checkpoint()
            self._start_thread()

    def close(self) -> None:
        """Write a last checkpoint and let go of the file; the second time nothing happens."""
        if os.getpid() != self._process:
            return
        with self._changed:
            if self._closed:
                return
            self._closed = True
            if self._unsigned:
                self._try_checkpoint()
            self._start_thread()
            thread = self._thread
            self._changed.notify_all()
        if thread is None:
            self._work()
        elif thread is not threading.current_thread():
            thread.join(HAND_SECONDS)
            if thread.is_alive():
                _log.error("The last checkpoint of %s was not taken in time", self._name)
        atexit.unregister(self.close)
        self._release()

    def __enter__(self) -> AuditFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- segments ------------------------------------------------------------

    def _resume(self, key: Path) -> None:
        """Go on with what is there, or begin."""
        if self.path.exists() and not self.path.is_file():
            raise AuditError(f"{self.path} is no file")
        try:
            last = open_segment(self.path)
        except FileNotFoundError:
            last = None
        except ValueError as error:
            raise AuditError(
                f"{self.path} is no audit file ({error}); it was left as it is"
            ) from None
        is_own = last is not None
        if last is None:
            last = newest(rotated(self.path))
        self._key = _load_key(key, may_make=last is None)
        if last is None:
            self._tip = Tip.new()
            self._begin()
            return
        if last.header.key.kid != self._key.kid:
            raise AuditError(
                f"{last.path} was begun with the checkpoint key {last.header.key.kid}, and "
                f"{key} holds {self._key.kid}: bring back the first, or move the audit file and "
                "its segments away to begin a new one"
            )
        end = end_of(last)
        self._tip = end.tip
        self._count(end.unsigned)
        if is_own and not end.torn:
            self._take(os.open(self.path, _FLAGS))
        else:
            self._begin()

    def _keep_segment(self) -> None:
        """Go on with the segment, or begin the next one where that is due."""
        self._begin_if_gone()
        if self._rotate_bytes is not None and self._size >= self._rotate_bytes:
            self._try_checkpoint()
            try:
                self._set_aside()
            except OSError as error:
                self._fails("cannot be rotated", error)
            else:
                self._begin()

    def _begin_if_gone(self) -> None:
        """Begin the next segment where this one was renamed, changed by others, or given up."""
        if self._descriptor is None or not self._is_ours():
            self._begin()

    def _is_ours(self) -> bool:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino, status.st_size) == (*self._identity, self._size)

    def _begin(self) -> None:
        """Begin a segment; whatever has its name is kept under another."""
        self._leave()
        with suppress(FileNotFoundError):
            if self.path.stat().st_size:
                self._set_aside()
        self._take(os.open(self.path, _FLAGS | os.O_CREAT, 0o600))
        try:
            self._append(self._tip.header(self._key, time.time()))
        except BaseException:
            _close(self._descriptor)
            self._descriptor = None
            raise

    def _set_aside(self) -> None:
        self.path.rename(next_name(self.path))

    def _take(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._descriptor = descriptor
        self._identity, self._size = (status.st_dev, status.st_ino), status.st_size

    def _leave(self) -> None:
        """Let go of the segment; it is on the disk before a later checkpoint is handed out."""
        if self._descriptor is not None and self._on_checkpoint is not None:
            self._owe(self._descriptor)
            self._has_left = True
        else:
            _close(self._descriptor)
        self._descriptor = None

    # --- lines ---------------------------------------------------------------

    def _append(self, raw: bytes, checkpoint: Checkpoint | None = None) -> None:
        before = self._tip, self._size, self._unsigned
        descriptor = cast("int", self._descriptor)
        try:
            written = os.write(descriptor, raw)
            if written != len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._tip, self._size = self._tip.after(raw, checkpoint), self._size + len(raw)
            self._count(self._unsigned + 1 if checkpoint is None else 0)
        except BaseException:
            self._tip, self._size, self._unsigned = before
            try:
                os.ftruncate(descriptor, self._size)
            except OSError:
                self._leave()  # the part of a line that is left ends the segment
            raise

    def _count(self, unsigned: int) -> None:
        """So many lines are behind the last checkpoint now."""
        if unsigned and not self._unsigned:
            self._due = time.monotonic() + CHECKPOINT_SECONDS
        self._unsigned = unsigned

    def _try_checkpoint(self) -> None:
        """Write a checkpoint; where that fails the next attempt is a while later."""
        self._due = time.monotonic() + CHECKPOINT_SECONDS
        try:
            self._begin_if_gone()
            checkpoint = self._tip.sign(self._key, time.time())
            self._append(checkpoint.line(), checkpoint)
        except OSError as error:
            self._fails("takes no checkpoint", error)
            return
        self._is_failing = False
        if self._on_checkpoint is not None:
            try:
                self._owe(os.dup(cast("int", self._descriptor)))
            except OSError as error:
                self._stays(error)
            else:
                self._outbox.append(checkpoint.text)

    def _owe(self, descriptor: int) -> None:
        """Have a file on the disk before a checkpoint is handed out; the descriptor is taken."""
        if any(os.path.sameopenfile(descriptor, other) for other in self._unsynced):
            _close(descriptor)  # the older one tells also of what went wrong before
            return
        self._unsynced.append(descriptor)
        if len(self._unsynced) > _MAX_WAITING:  # the thread is held up, and descriptors run out
            oldest = self._unsynced.popleft()
            try:
                _sync(oldest)
            except OSError as error:
                self._is_lost = True
                _log.error(
                    "What was written to %s may not be on the disk, so no checkpoint is handed "
                    "out any more, until it is opened again: %s",
                    self._name,
                    error.strerror,
                )
            finally:
                _close(oldest)

    def _fails(self, what: str, error: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            _log.error("The audit file %s %s: %s", self._name, what, error.strerror)

    # --- the thread ----------------------------------------------------------

    def _start_thread(self) -> None:
        """Have a thread sign what is unsigned when it is due, and hand out checkpoints."""
        has_some = bool(self._outbox) or self._has_left
        if self._thread is not None:
            if has_some:
                self._changed.notify_all()
        elif has_some or (self._unsigned and not self._closed):
            thread = threading.Thread(
                target=self._work, name="stateful-audit-checkpoints", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no thread can be started any more: the process ends
                return
            self._thread = thread

    def _work(self) -> None:
        while (due := self._next()) is not None:
            self._hand_out(*due)

    def _next(self) -> tuple[deque[int], str | None] | None:
        """Wait for something to do; None ends the thread, where nothing is left to do.

        Returns:
            what is to be on the disk, and the checkpoint to hand out then, if one is.
        """
        with self._changed:
            while not self._outbox and not self._has_left:
                if self._closed:
                    _close_all(self._unsynced)
                if self._closed or not self._unsigned:
                    self._thread = None
                    return None
                left = self._due - time.monotonic()
                if left <= 0:
                    self._try_checkpoint()
                else:
                    self._changed.wait(left)
            unsynced, self._unsynced, self._has_left = self._unsynced, deque(), False
            return unsynced, self._outbox.popleft() if self._outbox else None

    def _hand_out(self, unsynced: deque[int], text: str | None) -> None:
        """Hand out a checkpoint, if there is one, once all that was written is on the disk."""
        try:
            while unsynced:
                _sync(unsynced[0])
                _close(unsynced.popleft())
        except OSError as error:
            self._stays(error)
            with self._changed:
                later, self._unsynced = self._unsynced, unsynced
                for descriptor in later:
                    self._owe(descriptor)
            return
        if text is None or self._on_checkpoint is None or self._is_lost:
            return
        try:
            self._on_checkpoint(text)
        except Exception:  # noqa: BLE001 - the callback is the user's
            _log.exception("A checkpoint of %s was not taken", self._name)

    def _stays(self, error: OSError) -> None:
        _log.error(
            "What was written to %s may not be on the disk, so no checkpoint of it is handed out; "
            "the next one covers it: %s",
            self._name,
            error.strerror,
        )

    def _release(self) -> None:
        for descriptor in (self._descriptor, self._lock):
            _close(descriptor)
        self._descriptor = None


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        with suppress(OSError):
            os.close(descriptor)


def _close_all(descriptors: deque[int]) -> None:
    while descriptors:
        _close(descriptors.popleft())


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        # So a file system says that it cannot sync. What is written there is as safe as it will
        # ever be, and no later attempt would succeed: no checkpoint would ever be handed out.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


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
    if may_make:
        made = Key.generate("Ed25519")
        try:
            write_new(path, json.dumps(made.to_jwk(private=True)) + "\n")
        except FileExistsError:
            pass
        except OSError as error:
            raise AuditError(
                f"the checkpoint key {path} cannot be made: {error.strerror}"
            ) from None
        else:
            return made
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            content = stream.read()
    except OSError as error:
        raise AuditError(f"the checkpoint key {path} cannot be read: {error.strerror}") from None
    problem = openness(path, status)
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
