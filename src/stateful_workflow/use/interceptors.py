"""Give an activity its tokens, and keep them out of what it gives back."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.client import Client
from temporalio.converter import ActivitySerializationContext, DataConverter
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
)

from ..errors import TokenExposed
from ..node.contract import ACTIVITIES, USE_HEADER
from ..node.headers import Use
from ..record.recorder import Recorder
from ..sealed.keyring import Keyring
from .parents import ConfirmedRoots
from .sealing import confirm_root
from .tokens import ActivityTokens, running


class ActivityInbound(ActivityInboundInterceptor):
    """Gives an activity of a node its tokens, the newest where they may be old.

    Args:
        next: what runs the activity.
        keyring: gives this process's keyring, or raises KeyringError.
        client: gives the worker's client as it is now, which asks the workflow.
        recorder: gives what is put on record with.
        roots: asks the server for the root of a workflow's tree.
    """

    def __init__(
        self,
        next: ActivityInboundInterceptor,
        keyring: Callable[[], Keyring],
        client: Callable[[], Client],
        recorder: Callable[[], Recorder],
        roots: ConfirmedRoots,
    ) -> None:
        super().__init__(next)
        self._roots = roots
        self._keyring = keyring
        self._client = client
        self._recorder = recorder
        self._outbound: _ActivityOutbound | None = None

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        """See the base class."""
        self._outbound = _ActivityOutbound(outbound)
        super().init(self._outbound)

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        """Run the activity with its tokens; what holds one of them does not leave it."""
        if USE_HEADER not in input.headers or activity.info().activity_type in ACTIVITIES:
            return await super().execute_activity(input)
        tokens = await self._tokens(input.headers)
        gate = _Gate(tokens, self._client().data_converter)
        if self._outbound is not None:
            self._outbound.gate = gate
        await tokens.renew_all()
        await confirm_root(tokens, self._roots)
        try:
            with running(tokens):
                result = await super().execute_activity(input)
            gate.check("return", [result])
        except BaseException as error:
            scrubbed = gate.scrubbed(error)
            if scrubbed is None:
                raise
        else:
            return result
        # Outside the except clause, so that it does not carry what it replaces.
        raise scrubbed

    async def _tokens(self, headers: Mapping[str, Payload]) -> ActivityTokens:
        info = activity.info()
        # A local activity's query would wait for the workflow task that waits for it.
        client = None if info.is_local else self._client
        age = (datetime.now(timezone.utc) - info.current_attempt_scheduled_time).total_seconds()
        return ActivityTokens(
            await _use(headers, self._client()),
            self._keyring,
            self._recorder(),
            client,
            time.monotonic() - max(age, 0.0),
            must_ask=info.attempt > 1,
        )


class _ActivityOutbound(ActivityOutboundInterceptor):
    """Refuses a heartbeat that holds an opened token."""

    gate: _Gate | None = None

    def heartbeat(self, *details: Any) -> None:
        if self.gate is not None:
            self.gate.check("heartbeat", details)
        super().heartbeat(*details)


class _Gate:
    """What an activity gives back passes here, before anything is encoded by a codec."""

    def __init__(self, tokens: ActivityTokens, converter: DataConverter) -> None:
        info = tokens.info
        context = ActivitySerializationContext(
            namespace=info.namespace,
            workflow_id=info.workflow_id,
            workflow_type=info.workflow_type,
            activity_type=info.activity_type,
            activity_id=info.activity_id,
            activity_task_queue=info.task_queue,
            is_local=info.is_local,
        )
        self._secrets = tokens.secrets
        self._converter = converter.with_context(context)
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
        if isinstance(error, asyncio.CancelledError):
            return asyncio.CancelledError()
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


async def _use(headers: Mapping[str, Payload], client: Client) -> Use | None:
    use = Use.from_headers(headers)
    codec = client.data_converter.payload_codec
    if use is not None or codec is None:
        return use
    # Under HeaderCodecBehavior.WORKFLOW_ONLY_CODEC it arrives as the workflow side encoded it.
    (decoded,) = await codec.decode([headers[USE_HEADER]])
    return Use.from_headers({USE_HEADER: decoded})
