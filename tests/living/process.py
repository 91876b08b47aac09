"""A process that mints, runs workflows and gives tokens to children, and kills itself when told.

``python -m tests.living.process ADDRESS QUEUE DIRECTORY``. In the directory stand the keyring, the
settings of its source and, where it is to die, the step at which it does so.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from temporalio.activity import info
from temporalio.api.enums.v1 import EventType
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    SignalWorkflowInput,
)
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin
from stateful_workflow.node import limits
from stateful_workflow.source import Grant, Minted
from stateful_workflow.source.oauth import OAuthSource
from tests.support.workflows import ACTIVITIES, WORKFLOWS

STEPS: Final = (
    "before the exchange",
    "after the answer",
    "after the seal",
    "after the result",
    "while cascading",
    "before it is retired",
    "after it is retired",
)
LOSES_THE_ANSWER: Final = ("after the answer", "after the seal")
RETIRES: Final = ("before it is retired", "after it is retired")


@dataclass(frozen=True)
class Death:
    """What a test tells such a process by a file: at which step it is to kill itself, once."""

    file: Path

    def told(self, step: str) -> None:
        """Let the process die at this step."""
        self.file.write_text(step)

    def comes(self, step: str) -> bool:
        return self.file.exists() and self.file.read_text() == step

    def strike(self, step: str) -> None:
        """In the process: SIGKILL, if it is told so."""
        if self.comes(step):
            self.file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


class Mortal:
    """An `OAuthSource` whose process may die at each step around an exchange."""

    def __init__(self, inner: OAuthSource, death: Death) -> None:
        self._inner = inner
        self._death = death
        self._watching: list[asyncio.Task[None]] = []

    async def mint(self, grant: Grant) -> Minted:
        self._death.strike("before the exchange")
        minted = await self._inner.mint(grant)
        self._death.strike("after the answer")
        if self._death.comes("after the seal"):
            # What follows is sealed in this very turn of the loop.
            asyncio.get_running_loop().call_soon(self._death.strike, "after the seal")
        if self._death.comes("after the result"):
            self._watching.append(asyncio.create_task(self._die_after_the_result()))
        return minted

    async def _die_after_the_result(self) -> None:
        about = info()
        client = await Client.connect(sys.argv[1])
        handle = client.get_workflow_handle(str(about.workflow_id), run_id=about.workflow_run_id)
        scheduled: dict[str, int] = {}
        while True:
            for event in (await handle.fetch_history()).events:
                if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                    attributes = event.activity_task_scheduled_event_attributes
                    scheduled[attributes.activity_id] = event.event_id
                if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                    done = event.activity_task_completed_event_attributes.scheduled_event_id
                    if done == scheduled.get(about.activity_id):
                        self._death.strike("after the result")

    async def retire(self, token: str, values: Mapping[str, str]) -> None:
        self._death.strike("before it is retired")
        await self._inner.retire(token, values)
        self._death.strike("after it is retired")

    async def probe(self, token: str, values: Mapping[str, str]) -> None:
        await self._inner.probe(token, values)


class DiesWhileItTells(Interceptor):
    """Kills the process at the second child that it gives a token to."""

    def __init__(self, death: Death) -> None:
        self._death = death

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        death, told = self._death, [0]

        class Outbound(OutboundInterceptor):
            async def signal_workflow(self, input: SignalWorkflowInput) -> None:
                if death.comes("while cascading") and input.signal == "apiToken":
                    told[0] += 1
                    if told[0] > 1:
                        death.strike("while cascading")
                await super().signal_workflow(input)

        return Outbound(next)


async def main(address: str, queue: str, directory: str) -> None:
    at = Path(directory)
    # So that a retirement takes two seconds.
    short = {"fresh_seconds": 1.0, "activity_question": timedelta(seconds=1)}
    limits.LIMITS = replace(limits.LIMITS, **short)
    death = Death(at / "death")
    settings: dict[str, Any] = json.loads((at / "source.json").read_text())
    source = Mortal(OAuthSource(**settings), death)
    plugin = StatefulPlugin(Keyring.load(at / "keyring.json"), sources={queue: source})
    client = await Client.connect(address, plugins=[plugin], interceptors=[DiesWhileItTells(death)])
    async with Worker(
        client,
        task_queue=queue,
        workflows=WORKFLOWS,
        activities=ACTIVITIES,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
    ):
        await asyncio.Event().wait()  # until it is killed


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
