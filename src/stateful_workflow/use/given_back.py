"""What an activity gives back, at its end or later by a handle: no token that it opened."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, cast

import temporalio.common
from temporalio import activity
from temporalio.api.failure.v1 import Failure
from temporalio.client import (
    AsyncActivityIDReference,
    CompleteAsyncActivityInput,
    FailAsyncActivityInput,
    HeartbeatAsyncActivityInput,
    Interceptor,
    OutboundInterceptor,
    ReportCancellationAsyncActivityInput,
)
from temporalio.converter import DataConverter
from temporalio.exceptions import ApplicationError

from ..errors import TokenExposed
from .asking import activity_context
from .tokens import ActivityTokens

MAX_LATER: Final = 1_000
"""Activities to be completed by a handle whose tokens a process keeps in mind."""


# What `activity.raise_complete_async` raises; the SDK has no public name for it.
_CompletesLater: Final = activity._CompleteAsyncError  # pyright: ignore[reportPrivateUsage]


class Gate:
    """What an activity gives back passes here, before anything is encoded by a codec."""

    def __init__(self, tokens: ActivityTokens, converter: DataConverter) -> None:
        self.info = info = tokens.info
        self._secrets = tokens.secrets
        self._converter = converter.with_context(activity_context(info))
        self._where = f"activity {info.activity_type} of workflow {info.workflow_id}"

    def check(self, what: str, values: Any) -> None:
        """Let values through that hold no opened token.

        Raises:
            TokenExposed: where one does.
        """
        if self._secrets.are_none:
            return
        payloads = self._converter.payload_converter.to_payloads(values)
        name = self._secrets.found_in(payload.SerializeToString() for payload in payloads)
        if name is not None:
            raise TokenExposed(
                f"{self._where} was about to {what} its {name} in clear text, where everybody who "
                "reads the workflow's history sees it; give back something else"
            )

    def scrubbed(self, error: BaseException) -> BaseException | None:
        """A failure of the same type that holds no token, or None where there is none in it."""
        if self._secrets.are_none or not self._holds_one(error):
            return None
        for told in (asyncio.CancelledError, _CompletesLater):
            if isinstance(error, told):
                return told()
        kind = type(error).__name__
        where = traceback.extract_tb(error.__traceback__)[-1:]
        at = "".join(f" at {frame.filename}:{frame.lineno}" for frame in where)
        said = f"{self._where} raised {kind}{at}; what it says is left out, since it held a token"
        if not isinstance(error, ApplicationError):
            return ApplicationError(said, type=kind)
        is_clean = self._secrets.found_in([str(error.type).encode()]) is None
        return ApplicationError(
            said,
            type=error.type if is_clean else None,
            non_retryable=error.non_retryable,
            next_retry_delay=error.next_retry_delay,
            category=error.category,
        )

    def _holds_one(self, error: BaseException) -> bool:
        failure = Failure()
        converter = self._converter
        try:
            converter.failure_converter.to_failure(error, converter.payload_converter, failure)
        except Exception:  # noqa: BLE001 - the converter is the user's; what it says may hold one
            return True
        # The traceback, with what the failure leaves out, goes into the worker's log.
        logged = "".join(traceback.format_exception(error)).encode(errors="replace")
        return self._secrets.found_in([failure.SerializeToString(), logged]) is not None


class Later:
    """The gates of the activities of this process that may be completed by a handle."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gates: OrderedDict[bytes, Gate] = OrderedDict()

    @contextmanager
    def possible(self, gate: Gate) -> Generator[None, None, None]:
        """Keep a gate while its activity runs, and on where it is completed later."""
        with self._lock:
            self._gates[gate.info.task_token] = gate
            while len(self._gates) > MAX_LATER:
                self._gates.popitem(last=False)
        try:
            yield
        except _CompletesLater:
            raise
        except BaseException:
            self.forget(gate)
            raise
        else:
            self.forget(gate)

    def gate(self, handle: AsyncActivityIDReference | bytes) -> Gate | None:
        """That of the activity which a handle is of, where this process ran it."""
        with self._lock:
            if isinstance(handle, bytes):
                return self._gates.get(handle)
            wanted = (handle.workflow_id, handle.activity_id)
            for gate in reversed(self._gates.values()):
                info = gate.info
                is_run = handle.run_id in (None, "", info.workflow_run_id)
                if is_run and (info.workflow_id, info.activity_id) == wanted:
                    return gate
        return None

    def forget(self, gate: Gate | None) -> None:
        """An activity is completed."""
        if gate is not None:
            with self._lock:
                self._gates.pop(gate.info.task_token, None)


LATER: Final = Later()


class LateGate(Interceptor):
    """Searches what a client gives back for an activity by a handle."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        """See the base class."""
        return _LateOutbound(next)


class _LateOutbound(OutboundInterceptor):
    async def heartbeat_async_activity(self, input: HeartbeatAsyncActivityInput) -> None:
        gate = LATER.gate(input.id_or_token)
        if gate is not None:
            gate.check("heartbeat", input.details)
        await super().heartbeat_async_activity(input)

    async def complete_async_activity(self, input: CompleteAsyncActivityInput) -> None:
        gate = LATER.gate(input.id_or_token)
        nothing: Any = temporalio.common._arg_unset  # pyright: ignore[reportPrivateUsage]
        if gate is not None and input.result is not nothing:
            gate.check("return", [input.result])
        await super().complete_async_activity(input)
        LATER.forget(gate)

    async def fail_async_activity(self, input: FailAsyncActivityInput) -> None:
        gate = LATER.gate(input.id_or_token)
        if gate is not None:
            gate.check("heartbeat", input.last_heartbeat_details)
            scrubbed = gate.scrubbed(input.error)
            # A BaseException too, which `except BaseException` has handed over as it was.
            input.error = input.error if scrubbed is None else cast("Exception", scrubbed)
        await super().fail_async_activity(input)
        LATER.forget(gate)

    async def report_cancellation_async_activity(
        self, input: ReportCancellationAsyncActivityInput
    ) -> None:
        gate = LATER.gate(input.id_or_token)
        if gate is not None:
            gate.check("return", input.details)
        await super().report_cancellation_async_activity(input)
        LATER.forget(gate)
