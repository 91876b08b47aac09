"""The command `stateful`, of the extra ``cli``."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from traceback import format_exception
from typing import Any

from ..errors import StatefulError
from ..text.printable import printable
from .extras import needing

__all__ = ["main"]


def main() -> None:
    """Run the command on ``sys.argv`` and exit.

    Exit status: 0 done; 1 an error, told on stderr; 2 wrong usage; 3 a tree that has not
    converged; 128 + n ended by signal n.
    """
    sys.excepthook = _unexpected  # before typer is imported, whose own goes on to it
    try:
        with needing("the command", "cli"):
            from .app import app
    except StatefulError as error:
        sys.exit(f"error: {error}")
    try:
        app()
    except SystemExit as end:
        # The SDK's threads may still be letting go of Python objects, and an interpreter that
        # finalizes meanwhile aborts with status 134 (7 of 40 runs): so it is not finalized.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


def _unexpected(*error: Any) -> None:
    sys.stderr.write(printable("".join(format_exception(*error)), keep="\n"))
