"""Programs as subprocesses: their output in files, killed with SIGKILL, none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# On Linux a program ends with us even where we are killed (PR_SET_PDEATHSIG).
_LAUNCH = """
import os, sys
os.setsid()
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Process:
    """A running program.

    Args:
        command: program and arguments.
        output: the file that stdout and stderr are appended to.
        cwd: where it runs.
        environment: variables beside our own.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        output: Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.output = output
        with output.open("ab") as file:
            self._popen = subprocess.Popen(
                [sys.executable, "-ISc", _LAUNCH, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **(environment or {})},
            )

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._popen.send_signal(signal.SIGKILL)
        self._popen.wait(timeout=10)
