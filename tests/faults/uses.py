"""What activities were given: one line each in a file of each worker process.

A line is one write to a file that is opened to append, so that a killed process loses none.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from temporalio import activity

FILE_VARIABLE = "TESTS_FAULTS_USES"


@dataclass(frozen=True)
class Given:
    """What an attempt of an activity was given.

    Attributes:
        workflow, run, activity, attempt: who asked.
        at: `time.monotonic_ns`, one clock for all processes of a machine.
        version: of the token, or None.
        refused: the error's name, or None.
    """

    workflow: str
    run: str
    activity: str
    attempt: int
    at: int
    version: int | None = None
    refused: str | None = None


def record(*, version: int | None = None, refused: str | None = None) -> None:
    """Note what the running activity was given."""
    info = activity.info()
    given = Given(
        workflow=str(info.workflow_id),
        run=str(info.workflow_run_id),
        activity=info.activity_id,
        attempt=info.attempt,
        at=time.monotonic_ns(),
        version=version,
        refused=refused,
    )
    file = os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{json.dumps(asdict(given))}\n".encode())
    finally:
        os.close(file)


def read(directory: Path) -> Iterator[Given]:
    """All that is noted in the files of a directory."""
    for path in directory.glob("*.uses"):
        for line in path.read_text().splitlines():
            yield Given(**json.loads(line))
