"""Sign what the server and a verified message let one sign, and send it, both on record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from temporalio.client import Client
from temporalio.exceptions import WorkflowAlreadyStartedError

from ..errors import (
    AlreadyRunning,
    AuditFailed,
    MessageRefused,
    NotStateful,
    NoWorkerAnswers,
    OperationFailed,
    StatefulError,
    TokenStale,
    WorkflowAsleep,
    WorkflowNotFound,
)
from ..node.status import TokenStatus
from ..record.event import AuditEvent, Deed, Outcome, Scene
from ..record.recorder import Recorder
from ..sealed.issuing import Place, Terms, verified_place
from ..sealed.keyring import Keyring
from ..sealed.message import Message, parse
from ..sealed.secret import Secret
from ..use.parents import confirm_above
from .calls import check_in_use, find_place, send, signal, told_status

Signed = tuple[Message, WorkflowAsleep | None]
"""A message to be sent, and how its workflow is asleep, where it is."""

Sign = Callable[[], Awaitable[Signed]]

_ATTEMPTS: Final = 3

_REFUSALS: Final = (
    AuditFailed,  # of another token of the same start
    MessageRefused,
    NotStateful,
    WorkflowNotFound,
    WorkflowAlreadyStartedError,
    AlreadyRunning,
)
"""Errors that say that a message was not applied and never will be."""


class Sender:
    """Signs, sends, and puts that on record.

    Args:
        client: asks the workflows and the server.
        keyring: gives what to sign with, or raises KeyringError.
        recorder: puts on record what is signed and sent.
    """

    def __init__(self, client: Client, keyring: Callable[[], Keyring], recorder: Recorder) -> None:
        self._client = client
        self._keyring = keyring
        self._recorder = recorder

    # --- signing -------------------------------------------------------------

    def token(self, deed: Deed, workflow_id: str, secret: Secret, name: str, terms: Terms) -> Sign:
        """What signs a token for a workflow, on what stands there when it is called."""

        def seal(keyring: Keyring, place: Place) -> str:
            return keyring.seal(place.token(terms, time.time()), secret)

        # Without either it is one more of a name, and not the first.
        in_use = terms.get("origins") is None and terms.get("api_url") is None
        return self._signing(deed, workflow_id, name, seal, in_use=in_use)

    def grant(
        self, deed: Deed, workflow_id: str, name: str, seal: Callable[[Place, Keyring], Message]
    ) -> Sign:
        """What signs a grant for a workflow."""

        def sealed(keyring: Keyring, place: Place) -> str:
            return seal(place, keyring).text

        return self._signing(deed, workflow_id, name, sealed, in_use=False)

    def revocation(self, deed: Deed, workflow_id: str, name: str, *, in_use: bool) -> Sign:
        """What signs a revocation, or that its ancestors' token counts again."""

        def sign(keyring: Keyring, place: Place) -> str:
            inherit = deed.action == "inherit"
            return keyring.revocation(place.revocation(time.time(), inherit=inherit))

        return self._signing(deed, workflow_id, name, sign, in_use=in_use)

    def _signing(
        self,
        deed: Deed,
        workflow_id: str,
        name: str,
        sign: Callable[[Keyring, Place], str],
        *,
        in_use: bool,
    ) -> Sign:
        """What signs for a workflow what its verified message and the server let one."""
        keyring = self._keyring()
        first: Place | None = None

        async def signed() -> Signed:
            nonlocal first
            async with self.on_record(deed, workflow_id, name):
                try:
                    said, asleep = await find_place(
                        self._client, workflow_id, name, keyring.trusted()
                    )
                except NoWorkerAnswers as error:
                    raise NoWorkerAnswers(f"nothing was sent: {error}") from None
                if in_use:
                    hint = ". (A first one is set with its origins)" if deed.action == "set" else ""
                    check_in_use(name, said.in_use, workflow_id, hint)
                place = verified_place(
                    said,
                    name=name,
                    namespace=self._client.namespace,
                    authority=workflow_id,
                    trusted=keyring.trusted(),
                )
                await confirm_above(self._client, workflow_id, place.root)
                if deed.action == "inherit" and place.root == workflow_id:
                    raise OperationFailed(
                        f"nothing was sent: workflow {workflow_id} is the root of its tree, and "
                        f"has no ancestors whose {name} it could take; to end a revocation there, "
                        "set a token"
                    )
                first = first or place
                if deed.action != "revoke" and place.is_revoked and place.before != first.before:
                    raise TokenStale(
                        f"workflow {workflow_id}: its {name} was revoked meanwhile, which stands; "
                        "set it again where that is meant"
                    )
                return parse(await asyncio.to_thread(sign, keyring, place)), asleep

        return signed

    # --- sending -------------------------------------------------------------

    async def send(self, deed: Deed, sign: Sign) -> tuple[TokenStatus, Message]:
        """Sign and send; anew where another call with this issuer's key was faster."""
        left = _ATTEMPTS
        while True:
            message, asleep = await sign()
            left -= 1
            try:
                return await self._send(deed, message, asleep), message
            except TokenStale:
                if not left:
                    raise

    async def _send(
        self, deed: Deed, message: Message, asleep: WorkflowAsleep | None
    ) -> TokenStatus:
        claims = message.claims
        async with self.on_record(deed, claims.authority, claims.name, message) as after:
            if asleep is None:
                return await send(self._client, claims.authority, message)
            after |= {"outcome": "unknown", "reason": type(asleep).__name__}
            await signal(self._client, claims.authority, message)
            return told_status(message, asleep)

    # --- on record -----------------------------------------------------------

    @asynccontextmanager
    async def on_record(
        self, deed: Deed, workflow_id: str, name: str, message: Message | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """What the block does with a message stands on record before, and what came of it after.

        That is success, unless the block says something else in what it is given.

        Of a block that makes the message, what keeps it from being made.
        """
        event = partial(self.event, deed, workflow_id, name, message)
        is_sent = message is not None or deed.action == "renew"
        if is_sent and deed.action == "revoke":
            self._recorder.record(event("unknown"))  # not done, a leaked token would stay in force
        elif is_sent:
            await self._recorder.require_async(event("unknown"))
        after: dict[str, Any] = {"outcome": "success"}
        try:
            yield after
        except BaseException as error:
            # Of what is sent nobody knows whether it was applied, or will be, unless refused.
            if is_sent or isinstance(error, StatefulError):
                is_known = not is_sent or isinstance(error, _REFUSALS)
                outcome = "failure" if is_known else "unknown"
                self._recorder.record(event(outcome, reason=type(error).__name__))
            raise
        if is_sent:
            self._recorder.record(event(**after))

    def event(
        self,
        deed: Deed,
        workflow_id: str,
        name: str,
        message: Message | None,
        outcome: Outcome,
        **about: Any,
    ) -> AuditEvent:
        """What this client did at a workflow; `about` are other fields of `AuditEvent`."""
        scene = Scene(self._client.identity, self._client.namespace, workflow_id)
        return scene.event(deed.action, outcome, message, name, **about, **deed.fields())
