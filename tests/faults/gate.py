"""Hold a telling exactly in the middle: after so many children are told, and before the rest.

The worker's client passes deliveries through a gate, which a file sets up from outside.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from temporalio import activity
from temporalio.client import (
    Interceptor,
    OutboundInterceptor,
    SignalWorkflowInput,
)

_LOOK_AGAIN_SECONDS = 0.02


@dataclass(frozen=True)
class Gate:
    """The files by which a test and the workers talk about one held telling.

    Attributes:
        closed: says whose telling is held and after how many deliveries; taken away, it is
            let through.
        reached: written by the worker that holds it: the worker's name.
    """

    closed: Path
    reached: Path

    @classmethod
    def of(cls, directory: Path) -> Gate:
        return cls(directory / "gate.closed", directory / "gate.reached")

    def close(self, workflow_id: str, told: int) -> None:
        self.reached.unlink(missing_ok=True)
        # One closed again in the same way is another one.
        _write(self.closed, json.dumps([workflow_id, told, uuid.uuid4().hex]))

    def open(self) -> None:
        self.closed.unlink(missing_ok=True)

    def holder(self) -> str | None:
        """The worker that holds the telling, or None while none does."""
        return self.reached.read_text() if self.reached.exists() else None


def _write(path: Path, text: str) -> None:
    written = path.with_suffix(f".{os.getpid()}")
    written.write_text(text)
    written.replace(path)


class GateKeeper(Interceptor):
    """Holds back what `Gate` says, in one worker.

    Args:
        gate: set up by the test.
        name: the worker's.
    """

    def __init__(self, gate: Gate, name: str) -> None:
        self._gate = gate
        self._name = name
        self._closed = ""
        self._begun = 0
        self._ended = 0

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return _Outbound(next, self)

    async def through(self, deliver: Callable[[], Awaitable[None]]) -> None:
        """Make a delivery, unless it is to be held first."""
        told = self._told()
        if told is None:
            return await deliver()
        self._begun += 1
        if self._begun <= told:
            try:
                return await deliver()
            finally:
                self._ended += 1
        while self._gate.closed.exists():
            if self._ended >= told and self._gate.holder() is None:
                _write(self._gate.reached, self._name)
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        return await deliver()

    def _told(self) -> int | None:
        try:
            closed = self._gate.closed.read_text()
        except FileNotFoundError:
            return None
        if closed != self._closed:
            self._closed, self._begun, self._ended = closed, 0, 0
        workflow_id, told, _ = json.loads(closed)
        is_ours = activity.in_activity() and activity.info().workflow_id == workflow_id
        return int(told) if is_ours else None


class _Outbound(OutboundInterceptor):
    def __init__(self, next: OutboundInterceptor, keeper: GateKeeper) -> None:
        super().__init__(next)
        self._keeper = keeper

    async def signal_workflow(self, input: SignalWorkflowInput) -> None:
        if input.signal != "apiToken":
            return await super().signal_workflow(input)
        return await self._keeper.through(lambda: super(_Outbound, self).signal_workflow(input))
