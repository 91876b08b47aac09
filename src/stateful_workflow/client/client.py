"""Set, rotate and read tokens from outside: the client of the wire contract."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final, Literal, TypedDict, cast, overload

import temporalio.common
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowInput,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.types import (
    MethodAsyncNoParam,
    MethodAsyncSingleParam,
    ParamType,
    ReturnType,
    SelfType,
)
from typing_extensions import ParamSpec, Unpack

from .. import errors
from ..errors import (
    KeyringError,
    MessageRefused,
    NotConverged,
    NotStateful,
    OperationFailed,
    OutcomeUnknown,
    StatefulError,
    TokenForged,
    TokenKnown,
    TokenNotSet,
    TokenRevoked,
    TokenStale,
    TooManyWaiting,
    WorkflowNotFound,
)
from ..node.answers import TokenAnswer, token_answer, token_status
from ..node.contract import MESSAGE, NODE_HEADER
from ..node.headers import Start
from ..node.ledger import Ledger
from ..node.status import TokenStatus, TokenTree, cure
from ..record.event import Action, AuditEvent, AuditSink, Outcome, of_message
from ..record.metrics import Metrics
from ..record.recorder import FailureRule, Recorder, SinkWriter, writer_of
from ..sealed.issuing import Place, Said, Terms, capped, kept, verified_place
from ..sealed.keyring import Keyring, KeyringSource
from ..sealed.message import DEFAULT_NAME, Message, parse
from ..sealed.origins import origin_of
from ..sealed.token import ApiToken
from ..use.asking import read_answer
from ..use.parents import confirm_above
from .walk import TreeWalk, ask, query_error

P = ParamSpec("P")

_UPDATE_ALONE_SECONDS: Final = 3.0
"""How long an update has to be answered before the same message is signalled as well."""

_HAND_DOWN_SECONDS: Final = 2.0
_CONFIRM_SECONDS: Final = 15.0
_CONFIRM_EVERY_SECONDS: Final = 0.2
_NO_ANSWER: Final = "no answer: no worker runs, or as many updates are open as the server lets be"
_QUERY_TIMEOUT: Final = timedelta(seconds=10)
_ATTEMPTS: Final = 3


class StartOptions(TypedDict, total=False):
    """The options of `temporalio.client.Client.start_workflow` that are passed on as they are."""

    execution_timeout: timedelta | None
    run_timeout: timedelta | None
    task_timeout: timedelta | None
    id_reuse_policy: temporalio.common.WorkflowIDReusePolicy
    id_conflict_policy: temporalio.common.WorkflowIDConflictPolicy
    retry_policy: temporalio.common.RetryPolicy | None
    cron_schedule: str
    memo: Mapping[str, Any] | None
    search_attributes: (
        temporalio.common.TypedSearchAttributes | temporalio.common.SearchAttributes | None
    )
    static_summary: str | None
    static_details: str | None
    start_delay: timedelta | None
    start_signal: str | None
    start_signal_args: Sequence[Any]
    rpc_metadata: Mapping[str, str | bytes]
    rpc_timeout: timedelta | None
    request_eager_start: bool
    priority: temporalio.common.Priority


class TokenOptions(TypedDict, total=False):
    """The token a tree is started with; see `TokenClient.start_workflow`."""

    api_token: str | None
    api_url: str | None
    name: str
    origins: Sequence[str] | None
    expires_in: timedelta | float | None
    types: Sequence[str] | Literal["any"] | None
    readers: Sequence[str] | Literal["any"] | None


class _AllOptions(StartOptions, TokenOptions, total=False):
    pass


class TokenClient:
    """Sets and reads the tokens of trees of workflows.

    Args:
        client: a connected Temporal client.
        keyring: seals (an issuer's private key) and opens (a reader's); None is enough
            for `status` and `tree`. One that was loaded from a file follows that file.
        audit: where what is set and read here goes on record; None takes that of the client's
            `StatefulPlugin`, where it has one.
        audit_failure: as `StatefulPlugin`'s, for `audit`; None means "block".

    Raises:
        ValueError: where `audit_failure` is none of its values, or given without `audit`.
    """

    def __init__(
        self,
        client: Client,
        keyring: Keyring | None = None,
        *,
        audit: AuditSink | None = None,
        audit_failure: FailureRule | None = None,
    ) -> None:
        if audit is None and audit_failure is not None:
            raise ValueError("audit_failure= is for audit=; the client's plugin has its own")
        self._client = client
        self._keyring = None if keyring is None else KeyringSource(keyring)
        config = client.config(active_config=True)
        self._own_writer = None if audit is None else SinkWriter(audit, audit_failure or "block")
        self._plugins = config["plugins"]
        self._metrics = Metrics.of(client)
        config["interceptors"] = [*config["interceptors"], _StartHeader()]
        config["plugins"] = []  # they have configured this already
        self._starter = Client(**config)

    @property
    def _recorder(self) -> Recorder:
        # Looked up each time: a worker of this client may bring the sink.
        return Recorder(
            self._own_writer or writer_of(self._plugins), self._metrics, self._client.identity
        )

    # --- start ---------------------------------------------------------------

    @overload
    async def start_workflow(
        self,
        workflow: MethodAsyncNoParam[SelfType, ReturnType],
        *,
        id: str,
        task_queue: str,
        **options: Unpack[_AllOptions],
    ) -> WorkflowHandle[SelfType, ReturnType]: ...

    @overload
    async def start_workflow(
        self,
        workflow: MethodAsyncSingleParam[SelfType, ParamType, ReturnType],
        arg: ParamType,
        *,
        id: str,
        task_queue: str,
        **options: Unpack[_AllOptions],
    ) -> WorkflowHandle[SelfType, ReturnType]: ...

    @overload
    async def start_workflow(
        self,
        workflow: Callable[..., Awaitable[ReturnType]],
        *,
        args: Sequence[Any],
        id: str,
        task_queue: str,
        **options: Unpack[_AllOptions],
    ) -> WorkflowHandle[Any, ReturnType]: ...

    @overload
    async def start_workflow(
        self,
        workflow: str,
        arg: Any = ...,
        *,
        args: Sequence[Any] = ...,
        id: str,
        task_queue: str,
        result_type: type | None = None,
        **options: Unpack[_AllOptions],
    ) -> WorkflowHandle[Any, Any]: ...

    async def start_workflow(
        self,
        workflow: Any,
        arg: Any = temporalio.common._arg_unset,  # pyright: ignore[reportPrivateUsage]
        *,
        args: Sequence[Any] = (),
        id: str,
        task_queue: str,
        result_type: type | None = None,
        **options: Unpack[_AllOptions],
    ) -> WorkflowHandle[Any, Any]:
        """Start a root with its first token, sealed into the start header.

        Args:
            workflow, arg, args, id, task_queue, result_type: as the SDK's `start_workflow`.
            options: the SDK's own, and `TokenOptions`: ``api_token`` (the secret),
                ``api_url`` (the workflow's API address), ``name``, ``origins`` (where the
                token may be sent; None takes the origin of ``api_url``), ``expires_in``
                (seconds or a timedelta), ``types`` and ``readers`` (as `set`).

        Raises:
            KeyringError, NoIssuerKey, IssuerLimited, NoReaderKey, OriginsMissing, ValueError,
            TokenMalformed: the token cannot be sealed.
            AuditFailed: it could not be put on record, and nothing was started.
            temporalio.exceptions.WorkflowAlreadyStartedError: as the SDK.
        """
        token = {key: options.pop(key) for key in TokenOptions.__annotations__ if key in options}
        if (
            token.get("api_token") is not None
            and options.get("id_conflict_policy")
            is temporalio.common.WorkflowIDConflictPolicy.USE_EXISTING
        ):
            raise ValueError(
                "a workflow that is running already would not get this token: start it without "
                "USE_EXISTING, or use set()"
            )
        with self._sealing("set", id, str(token.get("name", DEFAULT_NAME))):
            start, message = await asyncio.to_thread(
                self._start_state, id, cast("TokenOptions", token)
            )
        reset = _start_state.set(start)
        try:
            async with self._on_record("set", id, message):
                return await self._starter.start_workflow(
                    workflow,
                    arg,
                    args=args,
                    id=id,
                    task_queue=task_queue,
                    result_type=result_type,
                    **cast("Any", options),
                )
        finally:
            _start_state.reset(reset)

    def _start_state(self, workflow_id: str, options: TokenOptions) -> tuple[Start, Message | None]:
        api_url = options.get("api_url")
        if api_url is not None:
            origin_of(api_url)
        trusted = {} if self._keyring is None else self._keyring.current().trusted()
        ledger = Ledger((workflow_id,), uuid.uuid4().hex, trusted)
        secret = options.get("api_token")
        message: Message | None = None
        if secret is not None:
            origins = options.get("origins")
            if origins is None and api_url is not None:
                origins = [origin_of(api_url)]
            terms = Terms(
                origins, options.get("expires_in"), options.get("types"), options.get("readers")
            )
            name = options.get("name", DEFAULT_NAME)
            place = Place(name, self._client.namespace, workflow_id, ledger.tree, workflow_id)
            claims = place.token(terms, time.time())
            message = parse(self._require_keyring().seal(claims, secret))
            ledger.accept(message, message.claims.version)
        return Start(ledger.dump(), api_url=api_url), message

    # --- set -----------------------------------------------------------------

    async def set(
        self,
        workflow_id: str,
        token: str,
        *,
        name: str = DEFAULT_NAME,
        origins: Sequence[str] | None = None,
        expires_in: timedelta | float | None = None,
        types: Sequence[str] | Literal["any"] | None = None,
        readers: Sequence[str] | Literal["any"] | None = None,
    ) -> TokenStatus:
        """Set a token at a workflow; it reaches that workflow's subtree.

        Args:
            workflow_id: the authority, usually the root.
            token: the secret.
            name: credential name.
            origins: where it may be sent; None keeps those of the token that stands there. At
                the first one, and where none stands that this keyring verifies, they must be
                given.
            expires_in: seconds or a timedelta; None for no expiry, whatever the last one had.
            types: workflow types whose activities may open it; None keeps those of the token
                held there, "any" lifts the limit.
            readers: audiences of the keyring's readers it is sealed for: nobody else can open
                it. None keeps those of the token held there, "any" seals for every reader.

        Returns:
            What stands at the workflow now. Its children are told meanwhile: see `rotate`.

        Raises:
            TokenConflict: another issuer has set a newer one.
            TokenStale: other calls with this issuer's key kept coming between.
            MessageRefused: the workflow did not take it; the subclass says why.
            NoWorkerAnswers: no worker could be asked; nothing was sent.
            OutcomeUnknown: the worker went silent after the question; the message was signalled
                as well and may be applied later.
            WorkflowNotFound, NotStateful, OperationFailed: there is no such node.
            KeyringError, NoIssuerKey, IssuerLimited, NoReaderKey: it cannot be sealed here.
            OriginsMissing, ValueError, TokenMalformed: it cannot be sealed as it was asked for.
            AuditFailed: it could not be put on record, and was not sent.
        """
        terms = Terms(origins, expires_in, types, readers)
        status, _ = await self._set(workflow_id, token, name, terms)
        return status

    async def _set(
        self, workflow_id: str, token: str, name: str, terms: Terms
    ) -> tuple[TokenStatus, Message]:
        keyring = self._require_keyring()

        def seal(place: Place) -> str:
            return keyring.seal(place.token(terms, time.time()), token)

        return await self._send("set", workflow_id, name, keyring, seal)

    async def rotate(
        self,
        workflow_id: str,
        token: str,
        *,
        timeout: timedelta | float,
        name: str = DEFAULT_NAME,
        origins: Sequence[str] | None = None,
        expires_in: timedelta | float | None = None,
        types: Sequence[str] | Literal["any"] | None = None,
        readers: Sequence[str] | Literal["any"] | None = None,
    ) -> TokenTree:
        """Set a token and wait until every live entitled node has accepted it.

        When it returns, the old token may be revoked at the API. The ``signed`` of what it returns
        are the terms that were set or carried on; look at them, since whoever polls a task queue
        in a worker's place can hand back an older message of yours (explicit `origins` are immune).

        Args:
            timeout: seconds or a timedelta to wait for convergence.
            workflow_id, token, name, origins, expires_in, types, readers: as `set`.

        Raises:
            NotConverged: not within the timeout; its ``tree`` says which nodes are behind.
            As `set`.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        started = time.monotonic()
        deadline = started + seconds
        terms = Terms(origins, expires_in, types, readers)
        _, message = await self._set(workflow_id, token, name, terms)
        tree = await TreeWalk(self._client, name, deadline, message).run(workflow_id)
        tree = replace(tree, signed=TokenStatus.of_message(message))
        if not tree.converged:
            self._recorder.metrics.not_converged(name)
            behind = ", ".join(node.id for node in tree.behind[:5])
            raise NotConverged(
                f"{len(tree.behind)} of {len(tree.nodes)} nodes do not hold the newest {name} "
                f"after {seconds:g} s (such as {behind}); keep the old token alive and see "
                f"`stateful tree {workflow_id}`",
                tree,
            )
        self._recorder.metrics.converged(name, time.monotonic() - started)
        return tree

    async def revoke(self, workflow_id: str, name: str = DEFAULT_NAME) -> TokenStatus:
        """Take the token away from a workflow and all below it, except where one is set lower.

        It waits for those below for about 2 seconds; `tree` shows who is behind.
        It is sent even where it cannot be put on record.

        Raises: as `set`, but for AuditFailed.
        """
        return await self._revoke(workflow_id, name, inherit=False)

    async def inherit(self, workflow_id: str, name: str = DEFAULT_NAME) -> TokenStatus:
        """Let a workflow take its ancestors' token again, after `revoke` or a token of its own.

        It waits for those below, as `revoke` does.
        Raises: as `set`.
        """
        return await self._revoke(workflow_id, name, inherit=True)

    async def _revoke(self, workflow_id: str, name: str, *, inherit: bool) -> TokenStatus:
        keyring = self._require_keyring()

        def sign(place: Place) -> str:
            return keyring.revocation(place.revocation(time.time(), inherit=inherit))

        action = "inherit" if inherit else "revoke"
        status, message = await self._send(action, workflow_id, name, keyring, sign)
        # It stands; a workflow below that its parent cannot signal is handed it here.
        with suppress(OperationFailed):
            deadline = time.monotonic() + _HAND_DOWN_SECONDS
            await TreeWalk(self._client, name, deadline, message).run(workflow_id)
        return status

    async def reseal(
        self,
        workflow_id: str,
        name: str = DEFAULT_NAME,
        *,
        readers: Sequence[str] | Literal["any"] | None = None,
    ) -> TokenStatus:
        """Seal the token in force at a workflow anew, for the readers the keyring has now.

        The secret, its origins, types and expiry stay. It is set where it was set: at its
        authority, whose status is returned. A token that somebody sets meanwhile stands.

        Args:
            readers: as `set`.

        Raises:
            As `get` and `set`.
        """
        keyring = self._require_keyring()
        for attempt in range(1, _ATTEMPTS + 1):
            held = await self.get(workflow_id, name)
            claims = held.message.claims
            with self._sealing("reseal", claims.authority, name):
                await confirm_above(self._client, claims.authority, claims.root)
                claims = replace(
                    claims,
                    # Not the time: whatever is set meanwhile is newer.
                    version=capped(claims.version + 1, time.time()),
                    audiences=kept("readers", readers, claims.audiences),
                )
                message = await asyncio.to_thread(keyring.seal, claims, held.reveal())
            try:
                return await self._update("reseal", claims.authority, message)
            except TokenStale:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def _send(
        self,
        action: Action,
        workflow_id: str,
        name: str,
        keyring: Keyring,
        make: Callable[[Place], str],
    ) -> tuple[TokenStatus, Message]:
        """Sign for a workflow what its verified message and the server let one, and send it."""
        first: Place | None = None
        for attempt in range(1, _ATTEMPTS + 1):
            with self._sealing(action, workflow_id, name):
                place = verified_place(
                    await self._place(workflow_id, name),
                    name=name,
                    namespace=self._client.namespace,
                    authority=workflow_id,
                    trusted=keyring.trusted(),
                )
                await confirm_above(self._client, workflow_id, place.root)
                first = first or place
                if action != "revoke" and place.is_revoked and place.before != first.before:
                    raise TokenStale(
                        f"workflow {workflow_id}: its {name} was revoked meanwhile, which stands; "
                        "set it again where that is meant"
                    )
                text = await asyncio.to_thread(make, place)
            try:
                return await self._update(action, workflow_id, text), parse(text)
            except TokenStale:
                # Another call with this issuer's key came between; this one is later.
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def _place(self, workflow_id: str, name: str) -> Said:
        """What an open workflow says of its place and of what stands there."""
        answer = await ask(self._client, workflow_id)
        if answer.closed:
            raise WorkflowNotFound(f"there is no open workflow {workflow_id}: it is closed")
        node = answer.node
        for held in node.tokens:
            if held.status.name == name and held.authority == workflow_id:
                return Said(node.root, node.tree, held.message, held.last)
        return Said(node.root, node.tree)

    async def _update(self, action: Action, workflow_id: str, message: str) -> TokenStatus:
        async with self._on_record(action, workflow_id, parse(message)):
            return await self._execute_update(workflow_id, message)

    @contextmanager
    def _sealing(self, action: Action, workflow_id: str, name: str) -> Generator[None, None, None]:
        """What keeps a message from being made in the block stands on record."""
        try:
            yield
        except StatefulError as error:
            self._failed(action, workflow_id, name, None, error)
            raise

    @asynccontextmanager
    async def _on_record(
        self, action: Action, workflow_id: str, message: Message | None
    ) -> AsyncGenerator[None, None]:
        """What is sent in the block stands on record before, and what came of it after."""
        if message is None:
            yield
            return
        about = self._event(action, "unknown", workflow_id, message.claims.name, message)
        if action == "revoke":  # not done, it would leave a leaked token in force
            self._recorder.record(about)
        else:
            await self._recorder.require_async(about)
        try:
            yield
        except BaseException as error:
            # Of anything else nobody knows whether it was applied, or will be.
            outcome = "failure" if isinstance(error, _REFUSALS) else "unknown"
            self._failed(action, workflow_id, message.claims.name, message, error, outcome)
            raise
        self._recorder.record(
            self._event(action, "success", workflow_id, message.claims.name, message)
        )

    def _failed(
        self,
        action: Action,
        workflow_id: str,
        name: str,
        message: Message | None,
        error: BaseException,
        outcome: Outcome = "failure",
    ) -> None:
        self._recorder.record(
            self._event(action, outcome, workflow_id, name, message, reason=type(error).__name__)
        )

    def _event(
        self,
        action: Action,
        outcome: Outcome,
        workflow_id: str,
        name: str,
        message: Message | None,
        *,
        reason: str | None = None,
        reader: str | None = None,
    ) -> AuditEvent:
        return AuditEvent(
            time=time.time(),
            action=action,
            outcome=outcome,
            reason=reason,
            identity=self._client.identity,
            namespace=self._client.namespace,
            workflow_id=workflow_id,
            reader=reader,
            **of_message(message, name, terms=action in ("set", "reseal")),
        )

    async def _execute_update(self, workflow_id: str, message: str) -> TokenStatus:
        """Send a message as an update, and as a signal too where no update finds room in time."""
        handle = self._client.get_workflow_handle(workflow_id)
        update: asyncio.Task[object] = asyncio.create_task(
            handle.execute_update(MESSAGE, message, result_type=RawValue)
        )
        try:
            answer = await asyncio.wait_for(asyncio.shield(update), _UPDATE_ALONE_SECONDS)
        except WorkflowUpdateFailedError as error:
            refusal = _refusal(error, workflow_id)
            if isinstance(refusal, TokenKnown):
                return TokenStatus.of_message(parse(message)).at(time.time())
            if not isinstance(refusal, TooManyWaiting):
                raise refusal from None
            return await self._signal_and_confirm(workflow_id, message, None, str(refusal))
        except (asyncio.TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError):
            # The SDK repeats an update that finds no room, and does not say so.
            return await self._signal_and_confirm(workflow_id, message, update, _NO_ANSWER)
        except RPCError as error:
            if error.status in _FINAL:
                raise query_error(error, workflow_id) from None
            return await self._signal_and_confirm(workflow_id, message, None, error.message)
        return self._read_status(workflow_id, answer)

    def _read_status(self, workflow_id: str, answer: object) -> TokenStatus:
        return read_answer(self._client, workflow_id, MESSAGE, answer, token_status).at(time.time())

    async def _signal_and_confirm(
        self,
        workflow_id: str,
        message: str,
        update: asyncio.Task[object] | None,
        limit: str,
    ) -> TokenStatus:
        """Signal a message, and wait until it stands there or the update is answered after all."""
        try:
            await self._signal(workflow_id, message)
            return await asyncio.wait_for(
                self._confirmed(workflow_id, parse(message), update), _CONFIRM_SECONDS
            )
        except asyncio.TimeoutError:
            raise OutcomeUnknown(
                f"workflow {workflow_id} took no update ({limit}); the message was signalled as "
                "well and is applied when a worker runs. Ask `status` later, or repeat the call"
            ) from None
        finally:
            if update is not None:
                update.cancel()

    async def _confirmed(
        self, workflow_id: str, message: Message, update: asyncio.Task[object] | None
    ) -> TokenStatus:
        name = message.claims.name
        while True:
            if update is not None and update.done():
                try:
                    return self._read_status(workflow_id, update.result())
                except WorkflowUpdateFailedError as error:
                    refusal = _refusal(error, workflow_id)
                    if not isinstance(refusal, TooManyWaiting | TokenKnown):
                        raise refusal from None
                except (RPCError, WorkflowUpdateRPCTimeoutOrCancelledError):
                    pass  # the signal is on its way
                update = None
            # Whatever keeps it from being read now: it was signalled, and may be applied.
            with suppress(StatefulError):
                own = (await self._place(workflow_id, name)).own
                stands = None if own is None else parse(own)
                if stands is not None and stands.hash == message.hash:
                    return TokenStatus.of_message(stands).at(time.time())
            await asyncio.sleep(_CONFIRM_EVERY_SECONDS)

    async def _signal(self, workflow_id: str, message: str) -> None:
        handle = self._client.get_workflow_handle(workflow_id)
        try:
            await handle.signal(MESSAGE, message, rpc_timeout=_QUERY_TIMEOUT)
        except RPCError as error:
            raise query_error(error, workflow_id) from None

    # --- read ----------------------------------------------------------------

    async def get(self, workflow_id: str, name: str = DEFAULT_NAME) -> ApiToken:
        """Open the token a workflow holds, checked whole.

        Raises:
            TokenNotSet, TokenRevoked, TokenExpired: there is none.
            KeyringError, NoReaderKey: it cannot be opened here.
            TokenForged, TokenMalformed, WrongNamespace: it is not to be trusted.
            WorkflowNotFound, NotStateful, NoWorkerAnswers, OperationFailed: as `status`.
            AuditFailed: it could not be put on record, and is not given out.
        """
        keyring = self._require_keyring()
        message: Message | None = None
        try:
            message = await self._sealed(workflow_id, name)
            secret = await asyncio.to_thread(
                keyring.open,
                message,
                now=time.time(),
                namespace=self._client.namespace,
                workflow_type=None,
            )
        except StatefulError as error:
            action = "read" if isinstance(error, OperationFailed) else "refuse"
            self._failed(action, workflow_id, name, message, error)
            raise
        reader = keyring.reader_of(message)
        await self._recorder.require_async(
            self._event("read", "success", workflow_id, name, message, reader=reader)
        )
        return ApiToken(message, secret)

    async def _sealed(self, workflow_id: str, name: str) -> Message:
        answer = await self._query(workflow_id, name)
        if answer is None or answer.sealed is None:
            state = "none" if answer is None else answer.status.state
            if state == "revoked":
                raise TokenRevoked(f"{name} is revoked at workflow {workflow_id}")
            raise TokenNotSet(f"workflow {workflow_id} has no {name}: {cure(state)}")
        message = parse(answer.sealed)
        if message.claims.name != name:
            raise TokenForged(f"workflow {workflow_id} answered with another credential's message")
        await confirm_above(self._client, workflow_id, message.claims.authority)
        return message

    async def status(self, workflow_id: str, name: str = DEFAULT_NAME) -> TokenStatus | None:
        """What is known of a credential at a workflow, without opening it; None where nothing is.

        Raises:
            WorkflowNotFound, NotStateful, NoWorkerAnswers, OperationFailed: it cannot be asked.
        """
        answer = await self._query(workflow_id, name)
        return None if answer is None else answer.status.at(time.time())

    async def tree(self, workflow_id: str, name: str = DEFAULT_NAME) -> TokenTree:
        """Every node from a workflow down, with what it holds; asks each node once.

        Raises:
            WorkflowNotFound, NotStateful, NoWorkerAnswers: the first node cannot be asked.
        """
        return await TreeWalk(self._client, name).run(workflow_id)

    async def _query(self, workflow_id: str, name: str) -> TokenAnswer | None:
        handle = self._client.get_workflow_handle(workflow_id)
        try:
            answer: object = await handle.query(
                MESSAGE, name, result_type=RawValue, rpc_timeout=_QUERY_TIMEOUT
            )
        except (WorkflowQueryFailedError, RPCError) as error:
            raise query_error(error, workflow_id) from None
        read = partial(token_answer, name=name)
        return read_answer(self._client, workflow_id, MESSAGE, answer, read)

    def _require_keyring(self) -> Keyring:
        if self._keyring is None:
            raise KeyringError("this call needs keys: give TokenClient(client, keyring) a keyring")
        return self._keyring.current()


_FINAL: Final = (
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.PERMISSION_DENIED,
    RPCStatusCode.UNAUTHENTICATED,
)
"""What the server says of an update where a signal would not get through either."""

_REFUSALS: Final = (MessageRefused, NotStateful, WorkflowNotFound, WorkflowAlreadyStartedError)
"""Errors that say that a message was not applied and never will be."""

_start_state: ContextVar[Start | None] = ContextVar("stateful-start", default=None)


class _StartHeader(Interceptor):
    """Puts the state of a tree into the start of its root."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return _StartHeaderOutbound(next)


class _StartHeaderOutbound(OutboundInterceptor):
    async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:
        start = _start_state.get()
        if start is not None:
            input.headers = {**input.headers, NODE_HEADER: start.to_payload()}
        return await super().start_workflow(input)


def _refusal(error: WorkflowUpdateFailedError, workflow_id: str) -> errors.StatefulError:
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.type is not None:
        known = getattr(errors, cause.type, None)
        if isinstance(known, type) and issubclass(known, MessageRefused):
            return known(cause.message)
    if "not found" in str(cause):
        return errors.NotStateful(f"workflow {workflow_id} is not a StatefulWorkflow")
    return OperationFailed(f"workflow {workflow_id} did not take the message: {cause}")
