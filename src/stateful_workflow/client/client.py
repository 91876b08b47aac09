"""Set, rotate and read tokens from outside: the client of the wire contract."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, Literal, cast, overload

import temporalio.common
from temporalio.client import Client, WorkflowHandle
from temporalio.types import (
    MethodAsyncNoParam,
    MethodAsyncSingleParam,
    ParamType,
    ReturnType,
    SelfType,
)
from typing_extensions import Unpack

from ..errors import (
    KeyringError,
    NameNotInUse,
    NotConverged,
    NotRenewed,
    OperationFailed,
    OutcomeUnknown,
    StatefulError,
    TokenForged,
    TokenNotSet,
    TokenRevoked,
)
from ..node import limits
from ..node.renewal import SourceStatus
from ..node.status import TokenStatus, TokenTree, cure
from ..record.event import AuditSink, Deed, Note
from ..record.metrics import Metrics
from ..record.recorder import FailureRule, Recorder, SinkWriter, writer_of
from ..sealed.issuing import Place, Terms, TokenTerms, capped, given_secret, kept, parted
from ..sealed.keyring import Keyring, KeyringSource
from ..sealed.keys import Issuer
from ..sealed.message import DEFAULT_NAME, Message, SealedToken, parse
from ..sealed.secret import Secret
from ..sealed.token import ApiToken
from ..source.protocol import Grant
from ..text.times import in_seconds
from ..use.parents import confirm_above
from ..use.references import Resolver, resolved, resolvers_of
from .calls import (
    ask,
    check_in_use,
    send_renewal,
    send_url,
    source_at,
    token_at,
    why_not_renewed,
)
from .sending import Sender, Sign, Signed
from .starting import (
    NewGrant,
    StartOptions,
    TokenOptions,
    confirm_started,
    first_tokens,
    new_tree,
    start,
)
from .walk import TreeWalk

_HAND_DOWN_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.2


class SetTerms(TokenTerms, Note):
    """What a token is set with, and who has it done, for whom and why."""


class TokenClient:
    """Sets and reads the tokens of trees of workflows.

    Args:
        client: a connected Temporal client.
        keyring: seals (an issuer's private key) and opens (a reader's). None takes that of the
            client's `StatefulPlugin`; where it has none either, `status` and `tree` work. One that
            was loaded from a file follows that file.
        audit: where what is set and read here goes on record; None takes that of the client's
            `StatefulPlugin`, where it has one.
        audit_failure: as `StatefulPlugin`'s, for `audit`; None means "block".
        resolvers: as `StatefulPlugin`'s, for `get`; None takes those of the client's.

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
        resolvers: Mapping[str, Resolver] | None = None,
    ) -> None:
        if audit is None and audit_failure is not None:
            raise ValueError("audit_failure= is for audit=; the client's plugin has its own")
        self._client = client
        plugins = client.config(active_config=True)["plugins"]
        is_given = keyring is not None
        self._keyring = KeyringSource(keyring) if is_given else KeyringSource.of_plugins(plugins)
        self._resolvers = resolvers_of(plugins) if resolvers is None else resolvers
        writer = writer_of(plugins)
        if audit is not None:
            writer = SinkWriter(audit, audit_failure or "block")
        self._recorder = Recorder(writer, Metrics.of(client), client.identity)
        self._sender = Sender(client, self._require_keyring, self._recorder)

    # --- start ---------------------------------------------------------------

    @overload
    async def start_workflow(
        self,
        workflow: MethodAsyncNoParam[SelfType, ReturnType],
        *,
        id: str,
        task_queue: str,
        **options: Unpack[StartOptions],
    ) -> WorkflowHandle[SelfType, ReturnType]: ...

    @overload
    async def start_workflow(
        self,
        workflow: MethodAsyncSingleParam[SelfType, ParamType, ReturnType],
        arg: ParamType,
        *,
        id: str,
        task_queue: str,
        **options: Unpack[StartOptions],
    ) -> WorkflowHandle[SelfType, ReturnType]: ...

    @overload
    async def start_workflow(
        self,
        workflow: Callable[..., Awaitable[ReturnType]],
        *,
        args: Sequence[Any],
        id: str,
        task_queue: str,
        **options: Unpack[StartOptions],
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
        **options: Unpack[StartOptions],
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
        **options: Unpack[StartOptions],
    ) -> WorkflowHandle[Any, Any]:
        """Start a root with its first token, sealed into the start header.

        Args:
            workflow, arg, args, id, task_queue, result_type: as the SDK's `start_workflow`.
            options: the SDK's own, and `TokenOptions`: ``api_token`` (the secret), ``name``,
                ``api_url``, ``origins`` (where the token may be sent; None takes the origin of
                ``api_url``), ``expires_in`` (seconds or a timedelta), ``types``, ``readers`` and
                ``reference`` (as `set`), and `Note`; ``api_tokens`` has several by their names,
                each a secret or a `NewToken` with terms of its own, or a `NewGrant`. In the place
                of a token ``source``, ``grant``, ``renew_every`` and ``retire``, as `authorize`:
                then the source mints the first one as well.

        Raises:
            KeyringError, IssuerLimited, OriginsMissing, AddressRefused, ValueError, TokenMalformed:
                a token cannot be sealed.
            AuditFailed: it could not be put on record, and nothing was started.
            temporalio.exceptions.WorkflowAlreadyStartedError: as the SDK.
            AlreadyRunning: with ``start_signal`` and a token, where the workflow was running: it
                got the signal alone.
        """
        given = {key: options.pop(key) for key in TokenOptions.__annotations__ if key in options}
        token = cast("TokenOptions", given)
        note: Any = {key: options.pop(key) for key in Note.__annotations__ if key in options}
        new = first_tokens(token)
        deeds = {
            name: Deed("authorize" if isinstance(one, NewGrant) else "set", **note)
            for name, one in new.items()
        }
        conflict = options.get("id_conflict_policy")
        if new and conflict is temporalio.common.WorkflowIDConflictPolicy.USE_EXISTING:
            raise ValueError(
                "a workflow that is running already would not get this token: start it without "
                "USE_EXISTING, or use set()"
            )
        tree, namespace = uuid.uuid4().hex, self._client.namespace
        messages: list[Message] = []
        for name, one in new.items():
            async with self._sender.on_record(deeds[name].without(*one.secrets), id, name):
                place = Place(name, namespace, id, tree, id)
                messages.append(await asyncio.to_thread(one.seal, place, self._require_keyring()))
        keyring = self._keyring_at_hand()
        trusted = {} if keyring is None else keyring.trusted()
        state = new_tree(id, tree, trusted, messages, token.get("api_url"))
        sdk = {"args": args, "id": id, "task_queue": task_queue, "result_type": result_type}
        async with AsyncExitStack() as recorded:
            for message in messages:
                name = message.claims.name
                on_record = self._sender.on_record(deeds[name], id, name, message)
                await recorded.enter_async_context(on_record)
            handle = await start(self._client, state, workflow, arg, **sdk, **options)
            if messages and options.get("start_signal") is not None:
                await confirm_started(self._client, handle, tree)
            return handle

    # --- set -----------------------------------------------------------------

    async def set(
        self,
        workflow_id: str,
        token: str | None = None,
        *,
        name: str = DEFAULT_NAME,
        **terms: Unpack[SetTerms],
    ) -> TokenStatus:
        """Set a token at a workflow; it reaches that workflow's subtree.

        Args:
            workflow_id: the authority, usually the root.
            token: the secret; None with ``reference=``.
            name: credential name.
            terms: ``origins``, ``expires_in``, ``types``, ``readers``, ``api_url``, ``allow_http``
                and ``reference``, as `Terms`; and as `Note` ``by``, ``on_behalf_of`` and
                ``reason``, a text each: who had this done, for whom and why. It goes on record as
                it is given.

        Returns:
            What stands at the workflow now. Its children are told meanwhile: see `rotate`. A
            workflow that is asleep or paused is sent the message and takes it when it goes on:
            then the state is "told".

        Raises:
            MessageRefused: the workflow did not take it. `TokenConflict`: another issuer has set a
                newer one. `TokenStale`: other calls with this issuer's key kept coming between.
            NoWorkerAnswers: no worker could be asked; nothing was sent.
            OutcomeUnknown: the worker went silent after the question; the message was signalled
                as well and may be applied later.
            WorkflowNotFound, NotStateful, OperationFailed: there is no such node.
            NameNotInUse: other names are in use there, and no origins are given for a first one.
            KeyringError, IssuerLimited, OriginsMissing, AddressRefused, ValueError, TokenMalformed:
                it cannot be sealed.
            AuditFailed: it could not be put on record, and was not sent.
        """
        status, _ = await self._set(workflow_id, token, name, terms)
        return status

    async def seal(
        self,
        workflow_id: str,
        token: str | None = None,
        *,
        name: str = DEFAULT_NAME,
        **terms: Unpack[SetTerms],
    ) -> SealedToken:
        """Seal a token for a workflow, to be sent by whoever may: as the update `apiToken`.

        It counts at this workflow alone, and until a newer one is set there.

        Args:
            workflow_id, token, name, terms: as `set`.

        Raises:
            As `set`, but for what comes of sending it.
        """
        deed, sign = self._signing(workflow_id, token, name, terms)
        message, _ = await sign()
        event = self._sender.event(deed, workflow_id, name, message, "unknown")
        await self._recorder.require_async(event)
        return SealedToken(message.text)

    async def _set(
        self, workflow_id: str, token: str | None, name: str, given: SetTerms
    ) -> tuple[TokenStatus, Message]:
        return await self._sender.send(*self._signing(workflow_id, token, name, given))

    def _signing(
        self, workflow_id: str, token: str | None, name: str, given: SetTerms
    ) -> tuple[Deed, Sign]:
        secret = given_secret(token, given.pop("reference", None))
        terms, note = parted(given, Terms, Note)
        deed = Deed("set", **note).without(token or "")
        return deed, self._sender.token(deed, workflow_id, secret, name, terms)

    async def rotate(
        self,
        workflow_id: str,
        token: str | None = None,
        *,
        timeout: timedelta | float,
        name: str = DEFAULT_NAME,
        settle: bool = False,
        **terms: Unpack[SetTerms],
    ) -> TokenTree:
        """Set a token and wait until every live entitled node has accepted it.

        When it returns, the old token may be revoked at the API once running activities have asked
        again, for which `settle` waits. The ``signed`` of what it returns
        are the terms that were set or carried on; look at them, since whoever polls a task queue
        in a worker's place can hand back an older message of yours (explicit `origins` are immune).

        Args:
            timeout: seconds or a timedelta to wait for convergence.
            settle: wait also until running activities have asked for the newest: the 5 s for which
                they use what they have, and as long as a question may take.
            workflow_id, token, name, terms: as `set`.

        Raises:
            NotConverged: not within the timeout, or somebody runs beside the tree or failed when
                told; its ``tree`` says which nodes are behind.
            As `set`.
        """
        seconds = in_seconds(timeout)
        started = time.monotonic()
        deadline = started + seconds
        _, message = await self._set(workflow_id, token, name, terms)
        tree = await self._walk(name, deadline, message).run(workflow_id)
        tree = replace(tree, signed=TokenStatus.of_message(message))
        if not tree.converged:
            self._recorder.metrics.not_converged(name)
            behind = ", ".join(node.id for node in tree.behind[:5])
            raise NotConverged(
                f"{len(tree.behind)} of {len(tree.nodes)} nodes do not hold the newest {name} "
                f"after {time.monotonic() - started:.0f} s (such as {behind}); keep the old token "
                f"alive and see `stateful tree {workflow_id}`",
                tree,
            )
        self._recorder.metrics.converged(name, time.monotonic() - started)
        if settle:
            await asyncio.sleep(limits.LIMITS.settle_seconds)
        return tree

    async def revoke(
        self,
        workflow_id: str,
        name: str = DEFAULT_NAME,
        *,
        below: bool = False,
        **note: Unpack[Note],
    ) -> TokenStatus:
        """Take the token away from a workflow and all below it, except where one is set lower.

        It waits for those below for about 2 seconds; `tree` shows who is behind, and who has a
        token *set here*. It is sent even where it cannot be put on record.

        Args:
            workflow_id, name, note: as `set`.
            below: revoke also at each workflow below, and beside the tree, at which one is set.

        Raises:
            As `set`, but for AuditFailed. OperationFailed also where it was done here, and not at
            each workflow below: it names them.
        """
        deed = Deed("revoke", **note)
        try:
            status, tree = await self._revoke(deed, workflow_id, name)
        except NameNotInUse:
            if not below:
                raise
            await self.tree(workflow_id, name)  # it may be in use below alone
            status, tree = await self._revoke(deed, workflow_id, name, in_use=False)
        if below:
            await self._revoke_below(deed, workflow_id, name, tree)
        return status

    async def _revoke_below(
        self, deed: Deed, workflow_id: str, name: str, tree: TokenTree | None
    ) -> None:
        own = [] if tree is None else [node.id for node in tree.nodes if node.has_own]
        tried = [self._revoke(deed, at, name) for at in own]
        done = await asyncio.gather(*tried, return_exceptions=True)
        left = [at for at, each in zip(own, done, strict=True) if not isinstance(each, tuple)]
        if tree is None or left:
            raise OperationFailed(
                f"{name} is revoked at workflow {workflow_id}, and may stand yet at "
                f"{', '.join(left) or 'workflows below, which could not be asked'}: repeat the call"
            )

    async def inherit(
        self, workflow_id: str, name: str = DEFAULT_NAME, **note: Unpack[Note]
    ) -> TokenStatus:
        """Let a workflow take its ancestors' token again, after `revoke` or a token of its own.

        It waits for those below, as `revoke` does.
        Raises: as `set`.
        """
        status, _ = await self._revoke(Deed("inherit", **note), workflow_id, name)
        return status

    async def _revoke(
        self, deed: Deed, workflow_id: str, name: str, *, in_use: bool = True
    ) -> tuple[TokenStatus, TokenTree | None]:
        sign = self._sender.revocation(deed, workflow_id, name, in_use=in_use)
        status, message = await self._sender.send(deed, sign)
        # It stands; a workflow below that its parent cannot signal is handed it here.
        tree: TokenTree | None = None
        with suppress(OperationFailed):
            deadline = time.monotonic() + _HAND_DOWN_SECONDS
            tree = await self._walk(name, deadline, message).run(workflow_id)
        return status, tree

    # --- sources -------------------------------------------------------------

    async def authorize(
        self,
        workflow_id: str,
        *,
        source: str,
        grant: Grant | None = None,
        name: str = DEFAULT_NAME,
        renew_every: timedelta | float | None = None,
        retire: bool = False,
        **terms: Unpack[SetTerms],
    ) -> SourceStatus:
        """Give a workflow a grant, by which a source mints its tokens from now on.

        The workflow has the first one minted at once, renews it before it expires, and tells its
        subtree. It ends *needs authorization*, and replaces a grant that stands there.

        Args:
            workflow_id: the home of the grant, usually the root.
            source: its name, as `StatefulPlugin` has it in the workers that mint with it.
            grant: what it needs for that, a JSON object; None where all is in the source itself.
                It is sealed for the readers of audience ``sources`` alone.
            name: credential name.
            renew_every: seconds or a timedelta after which a token is renewed at the latest,
                whatever its expiry.
            retire: revoke each token at the provider once its successor is in use everywhere.
            terms: as `set`, of the tokens; their expiry is the source's. Origins are needed where
                neither the source nor a token that stands there has them.

        Returns:
            What is known of the source there now; `source` tells it again later.

        Raises:
            NoReaderKey: the keyring has no reader of audience ``sources``.
            OutcomeUnknown: the worker went silent; it may have the grant.
            As `set`.
        """
        given = cast("dict[str, Any]", terms)
        [note, of_tokens] = parted(given, Note, Terms)
        if of_tokens.pop("expires_in", None) is not None:
            raise ValueError("expires_in= is not for a grant: the source says when a token expires")
        new = NewGrant(source, grant or {}, renew_every=renew_every, retire=retire, **of_tokens)
        deed = Deed("authorize", **note).without(*new.secrets)
        await self._sender.send(deed, self._sender.grant(deed, workflow_id, name, new.seal))
        status = await self.source(workflow_id, name)
        if status is None:
            raise OutcomeUnknown(f"workflow {workflow_id} took the grant, and does not show it")
        return status

    async def source(self, workflow_id: str, name: str = DEFAULT_NAME) -> SourceStatus | None:
        """What is known of the source that mints a credential at a workflow; None where none does.

        Raises:
            WorkflowNotFound, NotStateful, NoWorkerAnswers, OperationFailed: it cannot be asked.
        """
        return await source_at(self._client, workflow_id, name)

    async def renew(
        self,
        workflow_id: str,
        name: str = DEFAULT_NAME,
        *,
        retire: bool = False,
        timeout: timedelta | float = 60.0,
        **note: Unpack[Note],
    ) -> SourceStatus:
        """Have a source mint a new token now, and wait until it stands at the workflow.

        Args:
            workflow_id: the home of the grant.
            name: credential name.
            retire: wait also until every workflow that may have it holds the new one and running
                activities have asked for it, the old one is revoked at the provider, and it was
                seen to be refused there.
            timeout: seconds or a timedelta for all of that.
            note: as `set`.

        Returns:
            What is known of the source then.

        Raises:
            NotRenewable: no source mints it there, or it needs authorization.
            NotRenewed: not within the timeout; its ``status`` says why, and which workflows hold
                the retirement up. The old token was kept, and what was asked for goes on.
            OutcomeUnknown, WorkflowNotFound, NotStateful, NoWorkerAnswers, OperationFailed: it
                could not be asked.
            AuditFailed: it could not be put on record, and was not asked.
        """
        seconds = in_seconds(timeout)
        deadline = time.monotonic() + seconds
        to_retire: set[str] | None = None
        async with self._sender.on_record(Deed("renew", **note), workflow_id, name):
            status = await send_renewal(self._client, workflow_id, name, retire=retire)
            while True:
                retiring = {one.fingerprint for one in status.retiring}
                if to_retire is None and not (status.asked or status.is_minting):
                    to_retire = retiring if retire else set()
                is_bad = status.needs_authorization or (retire and status.problem is not None)
                if to_retire is not None and not (to_retire & retiring or is_bad):
                    return status
                if is_bad or time.monotonic() > deadline:
                    raise NotRenewed(why_not_renewed(workflow_id, status, seconds), status)
                await asyncio.sleep(_LOOK_SECONDS)
                status = await self.source(workflow_id, name) or status

    # --- other changes -------------------------------------------------------

    async def set_api_url(self, workflow_id: str, url: str | None) -> None:
        """Give a workflow an API address of its own, which it uses in the place of its token's.

        Rather move the token's own address, with `rotate` or `set`: the whole tree follows that.

        Args:
            workflow_id: of the one workflow that it is for.
            url: scheme, host and port within the signed origins of a token that it holds, or the
                address that was signed with one; None lets it follow its token's again.

        Raises:
            AddressRefused: the workflow did not take it.
            OutcomeUnknown: no worker answered in time; it may be applied later.
            WorkflowNotFound, NotStateful, OperationFailed: there is no such node.
        """
        await send_url(self._client, workflow_id, url)

    async def reseal(
        self,
        workflow_id: str,
        name: str = DEFAULT_NAME,
        *,
        readers: Sequence[str] | Literal["any"] | None = None,
        **note: Unpack[Note],
    ) -> TokenStatus:
        """Seal the token in force at a workflow anew, for the readers the keyring has now.

        The secret, its origins, types and expiry stay. It is set where it was set: at its
        authority, whose status is returned. A token that somebody sets meanwhile stands.

        Args:
            readers, note: as `set`.

        Raises:
            As `get` and `set`.
        """
        keyring, deed = self._require_keyring(), Deed("reseal", **note)

        async def sealed() -> Signed:
            message, secret = await self._unsealed(workflow_id, name)
            claims = message.claims
            async with self._sender.on_record(deed, claims.authority, name):
                await confirm_above(self._client, claims.authority, claims.root)
                claims = replace(
                    claims,
                    # Not the time: whatever is set meanwhile is newer.
                    version=capped(claims.version + 1, time.time()),
                    audiences=kept("readers", readers, claims.audiences),
                )
                return parse(await asyncio.to_thread(keyring.seal, claims, secret)), None

        status, _ = await self._sender.send(deed, sealed)
        return status

    # --- read ----------------------------------------------------------------

    async def get(self, workflow_id: str, name: str = DEFAULT_NAME) -> ApiToken:
        """Open the token a workflow holds, checked whole.

        Raises:
            TokenNotSet, TokenRevoked, TokenExpired: there is none.
            ReferenceUnresolved: a reference stands there, which none of the `resolvers` resolves.
            KeyringError, NoReaderKey: it cannot be opened here.
            TokenForged, TokenMalformed, WrongNamespace: it is not to be trusted.
            WorkflowNotFound, NotStateful, NoWorkerAnswers, OperationFailed: as `status`.
            AuditFailed: it could not be put on record, and is not given out.
        """
        return ApiToken(*await self._unsealed(workflow_id, name, resolve=True))

    async def _unsealed(
        self, workflow_id: str, name: str, *, resolve: bool = False
    ) -> tuple[Message, Secret]:
        """What a workflow holds, opened, and that on record."""
        keyring = self._require_keyring()
        message: Message | None = None
        try:
            message = await self._sealed(workflow_id, name)
            secret = await asyncio.to_thread(
                keyring.unseal,
                message,
                now=time.time(),
                namespace=self._client.namespace,
                workflow_type=None,
            )
            if resolve and secret.is_reference:
                secret, _ = await resolved(self._resolvers, message, secret)
        except StatefulError as error:
            deed = Deed("read" if isinstance(error, OperationFailed) else "refuse")
            reason = type(error).__name__
            self._recorder.record(
                self._sender.event(deed, workflow_id, name, message, "failure", reason=reason)
            )
            raise
        reader = keyring.reader_of(message)
        await self._recorder.require_async(
            self._sender.event(Deed("read"), workflow_id, name, message, "success", reader=reader)
        )
        return message, secret

    async def _sealed(self, workflow_id: str, name: str) -> Message:
        answer = await token_at(self._client, workflow_id, name, self._trusted())
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
            NameNotInUse: nothing is known of this name, and others are in use there.
        """
        answer = await token_at(self._client, workflow_id, name, self._trusted())
        if answer is None or answer.status.state == "none":
            names = (await ask(self._client, workflow_id)).node.names()
            check_in_use(name, names, workflow_id)
            return None
        keyring = self._keyring_at_hand()
        status = answer.status.at(time.time())
        return status if keyring is None else status.under(keyring.revoked())

    async def tree(self, workflow_id: str, name: str = DEFAULT_NAME) -> TokenTree:
        """Every node from a workflow down, with what it holds; asks each node once.

        Raises:
            WorkflowNotFound, NotStateful, NoWorkerAnswers: the first node cannot be asked.
            NameNotInUse: nobody in the tree knows this name, and others are in use.
        """
        return await self._walk(name).run(workflow_id)

    def _walk(self, name: str, *of: Any) -> TreeWalk:
        return TreeWalk(self._client, name, *of, keyring=self._keyring_at_hand())

    def _keyring_at_hand(self) -> Keyring | None:
        return None if self._keyring is None else self._keyring.current()

    def _trusted(self) -> Mapping[str, Issuer] | None:
        keyring = self._keyring_at_hand()
        return None if keyring is None else keyring.trusted()

    def _require_keyring(self) -> Keyring:
        keyring = self._keyring_at_hand()
        if keyring is None:
            raise KeyringError("this call needs keys: give TokenClient(client, keyring) a keyring")
        return keyring
