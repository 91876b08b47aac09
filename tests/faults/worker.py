"""A worker as a program: ``python -m tests.faults.worker ADDRESS QUEUE NAME DIRECTORY MARKER``.

Its files stand in the directory: the keyring, the gate, and of its own the uses and the record.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path

from temporalio.client import Client
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin
from stateful_workflow.audit import AuditFile
from tests.faults.gate import Gate, GateKeeper
from tests.faults.uses import FILE_VARIABLE
from tests.faults.workflows import WORKFLOWS, use

READY = "ready"


async def main(address: str, queue: str, name: str, directory: str, marker: str) -> None:
    at = Path(directory)
    os.environ[FILE_VARIABLE] = str(at / f"{name}.uses")
    plugin = StatefulPlugin(
        Keyring.load(at / "keyring.json"), audit=AuditFile(at / f"{name}.audit")
    )
    client = await Client.connect(
        address,
        identity=name,
        plugins=[plugin],
        interceptors=[GateKeeper(Gate.of(at), name)],
    )
    async with Worker(
        client,
        task_queue=queue,
        workflows=WORKFLOWS,
        activities=[use],
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    ):
        print(marker, READY, file=sys.stderr, flush=True)  # the marker is to be found in clear
        await asyncio.Event().wait()  # until it is killed


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
