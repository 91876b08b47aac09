"""Wire everything into a client and its workers."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, cast

from temporalio import workflow
from temporalio.client import Client
from temporalio.plugin import SimplePlugin
from temporalio.worker import (
    ActivityInboundInterceptor,
    Interceptor,
    Worker,
    WorkerConfig,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowRunner,
)
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from ..errors import KeyringError, PluginMissing, StatefulError
from ..node.home import TokenHome
from ..node.interceptors import NodeInbound
from ..node.record import RECORDER
from ..node.workflow import StatefulWorkflow
from ..record.event import AuditSink
from ..record.metrics import Metrics
from ..record.recorder import FailureRule, Recorder, SinkWriter
from ..sealed.keyring import Keyring, KeyringSource
from ..sealed.keyring_file import KEYRING_VARIABLE
from ..sealed.message import valid_name
from ..source.announcing import OnDeadGrant
from ..source.protocol import Source
from ..text.printable import printable
from ..use.given_back import LateGate
from ..use.interceptors import ActivityInbound
from ..use.references import Resolver
from ..use.telling import Asking
from .activities import OfPlugin
from .beside import HasClient, Small
from .courier import courier_beside
from .minting import OfSources
from .pace import SignalPace
from .sources import sources_beside

_log = logging.getLogger(__name__)

# What this library imports, where there is one.
_PASSED_THROUGH = (
    *("stateful_workflow", "joserfc", "cryptography", "idna"),
    *("httpx", "requests", "aiohttp"),
)


class StatefulPlugin(SimplePlugin):
    """Adds tokens to a Temporal client and to every worker made from it.

    Give it to ``Client.connect(plugins=[StatefulPlugin()])``; workers take it from there.

    Args:
        keyring: opens tokens in activities and names the trusted issuers. None loads the
            file that ``$STATEFUL_KEYRING`` names, where it is set; else there are no keys,
            which is enough for workers that neither open tokens nor meet new issuers. One that
            was loaded from a file follows that file (see `KeyringSource`).
        audit: where every event goes that happens to a token in this process (see
            `stateful_workflow.audit`); None keeps no record.
        audit_failure: what happens when that fails. "block": no activity opens a token, and no
            client sets or reads one, without its record; a revocation is sent even so.
            "continue": all goes on. Either way the next record says how many are missing, and
            nodes never wait for one.
        sources: where tokens come from, by name (docs/guide-sources.md). A process that is given
            some mints with them, for every home of their names in the namespace; its keyring has an
            issuer's private key, and the reader's of audience ``sources``.
        on_dead_grant: is told of each grant that a source's provider refuses, so that somebody
            authorizes it again; such as `Webhook`.
        max_signals_per_second: what this process's nodes signal to their children a second at
            most, so that a rotation leaves others their share of the namespace's rate limit
            (docs/scaling.md); None for no limit. A rotation takes longer by it.
        resolvers: by prefix what gives the secrets that references name (see `Resolver`).

    Raises:
        KeyringError: where ``$STATEFUL_KEYRING`` names a file that cannot be used.
        ValueError: where `audit_failure` is none of its values, `max_signals_per_second` is below
            1, or a source's name is none.
    """

    def __init__(
        self,
        keyring: Keyring | None = None,
        *,
        audit: AuditSink | None = None,
        audit_failure: FailureRule = "block",
        max_signals_per_second: float | None = None,
        sources: Mapping[str, Source] | None = None,
        on_dead_grant: OnDeadGrant | Sequence[OnDeadGrant] = (),
        resolvers: Mapping[str, Resolver] | None = None,
    ) -> None:
        if keyring is None and KEYRING_VARIABLE in os.environ:
            keyring = Keyring.load()
        self.keyring_source = None if keyring is None else KeyringSource(keyring)
        """Gives this process's keyring, as its file is now; None where there is none."""
        self.sink_writer = SinkWriter(audit, audit_failure)
        """Writes this process's events."""
        self.resolvers = dict(resolvers or {})
        """By prefix what resolves references in this process."""
        self._pace = SignalPace(max_signals_per_second)
        self._sources = dict(sources or {})
        for name in self._sources:
            if not valid_name(name):
                raise ValueError(f"{name!r} is no name of a source: letters, digits and . _ -")
        told = [on_dead_grant] if callable(on_dead_grant) else list(on_dead_grant)
        self._on_dead_grant: list[OnDeadGrant] = told
        self._interceptor = _WorkerInterceptor(self)
        super().__init__(
            "stateful-workflow",
            workflow_runner=_pass_through,
            interceptors=[LateGate(), self._interceptor],
            workflows=_with_home,
            workflow_failure_exception_types=[StatefulError],
        )

    @property
    def keyring(self) -> Keyring | None:
        """This process's keyring, as its file is now."""
        return None if self.keyring_source is None else self.keyring_source.current()

    def look_at_keyring(self) -> Keyring | None:
        """This process's keyring, its file looked at now: a node asks once a minute at most."""
        return None if self.keyring_source is None else self.keyring_source.current(look=True)

    def require_keyring(self) -> Keyring:
        """This process's keyring.

        Raises:
            KeyringError: where there is none.
        """
        keyring = self.keyring
        if keyring is None:
            raise KeyringError(
                f"no keyring in this process: set ${KEYRING_VARIABLE} or give StatefulPlugin one"
            )
        return keyring

    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        """Add what a worker with workflows needs; an activity-only one gets the interceptor alone.

        Raises:
            ValueError: the client has another `StatefulPlugin`.
        """
        bound = _ours(config)
        if bound is not None:
            if bound.plugin is not self:
                raise ValueError(
                    "client and worker have a StatefulPlugin each: give one to the client alone"
                )
            return config
        config = super().configure_worker(config)
        client = config["client"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        # One plugin may serve workers of several clients; activities ask through their worker's.
        bound = _WorkerInterceptor(self, client)
        config["interceptors"] = [
            bound if interceptor is self._interceptor else interceptor
            for interceptor in config.get("interceptors", ())
        ]
        keys = () if (keyring := self.keyring) is None else keyring.keys()
        can_open = any(key.kind == "reader" and key.private for key in keys)
        if config.get("activities") and not can_open:
            _log.warning(
                "The worker of task queue %s has activities and no reader key: they cannot open a "
                "token. Set $%s, or give StatefulPlugin a keyring",
                printable(str(config.get("task_queue"))),
                KEYRING_VARIABLE,
            )
        return config

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:
        """Run a courier beside a worker with workflows, and see which client the worker has."""
        config = worker.config(active_config=True)
        bound = _ours(config)
        workflows = cast("Sequence[type[Any]]", config.get("workflows", ()))
        if bound is None:
            await next(worker)
            return
        bound.worker = worker
        async with AsyncExitStack() as beside:
            if workflows:
                of_plugin = OfPlugin(self.look_at_keyring, bound.recorder(), self._pace)
                courier = courier_beside(worker, of_plugin, _takes_part(workflows))
                await beside.enter_async_context(courier)
            await beside.enter_async_context(self.sources_beside(worker))
            await next(worker)

    @property
    def has_sources(self) -> bool:
        """Whether it was given any."""
        return bool(self._sources)

    def sources_beside(self, owner: HasClient) -> AbstractAsyncContextManager[list[Small]]:
        """Run this plugin's sources while the block runs; see `SourceWorker`."""
        client = owner.client
        recorder = Recorder(self.sink_writer, Metrics.of(client), client.identity)
        of_sources = OfSources(self._sources, self.require_keyring, recorder, self._on_dead_grant)
        return sources_beside(owner, of_sources)


class _WorkerInterceptor(Interceptor):
    """What a plugin does in one worker, or in a replayer: one without a client."""

    def __init__(self, plugin: StatefulPlugin, client: Client | None = None) -> None:
        self.plugin = plugin
        self.worker: Worker | None = None
        self._client = client
        self._metrics = Metrics.of(client)
        self._asking = Asking(self._current_client, plugin.resolvers)

    def _current_client(self) -> Client:
        """The worker's client, which may have been replaced since the worker was made."""
        client = self._client if self.worker is None else self.worker.client
        if client is None:
            raise PluginMissing("a replayer has no client")
        return client

    def recorder(self) -> Recorder:
        """Puts on record what happens in this worker; a replayer's is no record."""
        writer = SinkWriter(None) if self._client is None else self.plugin.sink_writer
        identity = None if self._client is None else self._client.identity
        return Recorder(writer, self._metrics, identity)

    def workflow_interceptor_class(
        self, input: WorkflowInterceptorClassInput
    ) -> type[WorkflowInboundInterceptor] | None:
        input.unsafe_extern_functions[RECORDER] = self.recorder
        return NodeInbound

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        if self._client is None:
            return next
        return ActivityInbound(next, self.plugin.require_keyring, self._asking, self.recorder)


def _pass_through(runner: WorkflowRunner | None) -> WorkflowRunner:
    # Verifying a forged message in a second copy of the cryptographic library, as the plain
    # sandbox makes one, aborts the worker process.
    if runner is None:
        runner = SandboxedWorkflowRunner()
    if not isinstance(runner, SandboxedWorkflowRunner):
        return runner
    return dataclasses.replace(
        runner, restrictions=runner.restrictions.with_passthrough_modules(*_PASSED_THROUGH)
    )


def _with_home(workflows: Sequence[type[Any]] | None) -> Sequence[type[Any]]:
    """A worker's workflows, where it has any with the library's own, unless one has its name."""
    has_home = not workflows or "TokenHome" in _takes_part(workflows)
    return [*(workflows or ()), *(() if has_home else (TokenHome,))]


def _ours(config: WorkerConfig) -> _WorkerInterceptor | None:
    """Our interceptor among those of a worker."""
    ours = [one for one in config.get("interceptors", ()) if isinstance(one, _WorkerInterceptor)]
    return ours[0] if ours else None


def _takes_part(workflows: Iterable[type[Any]]) -> dict[str, bool]:
    """For each of their workflow types, whether it takes part in a tree."""
    # The SDK has no public way from a class to its workflow type.
    definition = workflow._Definition.must_from_class  # pyright: ignore[reportPrivateUsage]
    named = {definition(cls).name: issubclass(cls, StatefulWorkflow) for cls in workflows}
    return {name: takes_part for name, takes_part in named.items() if name is not None}
