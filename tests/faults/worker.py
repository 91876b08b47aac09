"""A worker as a program: ``python -m tests.faults.worker ADDRESS QUEUE NAME DIRECTORY``.

Its files stand in the directory: the keyring, the gate, and of its own the uses and the record.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio.client import Client
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin

from .gate import Gate, GateKeeper
from .uses import FILE_VARIABLE
from .workflows import WORKFLOWS, use

READY = "ready"


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("queue")
    parser.add_argument("name")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--audit", action="store_true", help="keep a record")
    parser.add_argument("--marker", default="", help="printed, in clear")
    options = parser.parse_args()
    at: Path = options.directory
    os.environ[FILE_VARIABLE] = str(at / f"{options.name}.uses")
    plugin = StatefulPlugin(Keyring.load(at / "keyring.json"), **_record(options))
    client = await Client.connect(
        options.address,
        identity=options.name,
        plugins=[plugin],
        interceptors=[GateKeeper(Gate.of(at), options.name)],
    )
    async with Worker(
        client,
        task_queue=options.queue,
        workflows=WORKFLOWS,
        activities=[use],
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    ):
        print(options.marker, READY, file=sys.stderr, flush=True)
        await asyncio.Event().wait()  # until it is killed


def _record(options: argparse.Namespace) -> dict[str, Any]:
    if not options.audit:
        return {}
    from stateful_workflow.audit import AuditFile  # the older version has none

    return {"audit": AuditFile(options.directory / f"{options.name}.audit")}


if __name__ == "__main__":
    asyncio.run(main())
