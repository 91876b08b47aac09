"""A process's keyring as it is now: read again from its file when that has changed."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from ..errors import KeyringError
from ..text.printable import printable
from . import keyring_file
from .keyring import Keyring

_LOOK_EVERY_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class KeyringSource:
    """Follows a keyring's file, where it was loaded from one.

    A changed file is taken within a second of the next use, without a restart. One that
    cannot be read keeps the keyring that was there, with an error in the log of
    ``stateful_workflow.sealed.keyring_source``, once a change. Usable from every thread.

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
