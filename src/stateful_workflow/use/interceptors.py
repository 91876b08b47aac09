"""Give an activity its tokens, and keep them out of what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
)

from ..errors import TokenNotSet
from ..node.contract import ACTIVITIES, USE_HEADER
from ..node.headers import Use, is_readable
from ..record.recorder import Recorder
from ..sealed.keyring import Keyring
from .asking import activity_context, decoded_payload
from .clock import server_clock
from .given_back import LATER, Gate
from .newest import Newest
from .sealing import confirm_root
from .telling import Asking
from .tokens import ActivityTokens, running


class ActivityInbound(ActivityInboundInterceptor):
    """Gives an activity of a node its tokens, the newest where they may be old."""

    def __init__(
        self,
        next: ActivityInboundInterceptor,
        keyring: Callable[[], Keyring],
        asking: Asking,
        recorder: Callable[[], Recorder],
    ) -> None:
        super().__init__(next)
        self._keyring = keyring
        self._asking = asking
        self._recorder = recorder
        self._outbound: _ActivityOutbound | None = None

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        """See the base class."""
        self._outbound = _ActivityOutbound(outbound)
        super().init(self._outbound)

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        """Run the activity with its tokens; what holds one of them does not leave it."""
        info, has_use = activity.info(), USE_HEADER in input.headers
        # Where nothing came along, the workflow may take part since, and be asked.
        has_tokens = has_use or (info.workflow_id is not None and not info.is_local)
        if not has_tokens or info.activity_type in ACTIVITIES:
            return await super().execute_activity(input)
        tokens = await self._tokens(input.headers)
        gate = Gate(tokens, self._asking.client().data_converter)
        if self._outbound is not None:
            self._outbound.gate = gate
        await tokens.newest.begin(takes_part=has_use)
        await confirm_root(tokens, self._asking)
        try:
            with LATER.possible(gate), running(tokens):
                result = await super().execute_activity(input)
            gate.check("return", [result])
        except BaseException as error:
            scrubbed = gate.scrubbed(error)
            if scrubbed is None and isinstance(error, TokenNotSet) and error.withheld:
                raise ApplicationError(
                    str(error), type=type(error).__name__, non_retryable=True
                ) from None
            if scrubbed is None:
                raise
        else:
            return result
        finally:
            tokens.newest.end()
        # Outside the except clause, so that it does not carry what it replaces.
        raise scrubbed

    async def _tokens(self, headers: Mapping[str, Payload]) -> ActivityTokens:
        info = activity.info()
        age = server_clock()() - info.scheduled_time.timestamp()
        newest = Newest(
            await _use(headers, self._asking.client()),
            # A local activity's query would wait for the workflow task that waits for it.
            None if info.is_local else self._asking,
            time.monotonic() - max(age, 0.0),
            must_ask=info.attempt > 1,
            references=self._asking.references,
        )
        return ActivityTokens(newest, self._keyring, self._recorder())


class _ActivityOutbound(ActivityOutboundInterceptor):
    """Refuses a heartbeat that holds an opened token."""

    gate: Gate | None = None

    def heartbeat(self, *details: Any) -> None:
        if self.gate is not None:
            self.gate.check("heartbeat", details)
        super().heartbeat(*details)


async def _use(headers: Mapping[str, Payload], client: Client) -> Use | None:
    header = headers.get(USE_HEADER)
    if header is not None and not is_readable(header):
        # Under HeaderCodecBehavior.WORKFLOW_ONLY_CODEC it arrives as the workflow side encoded it.
        header = await decoded_payload(client, header, activity_context(activity.info()))
    return None if header is None else Use.from_headers({USE_HEADER: header})
