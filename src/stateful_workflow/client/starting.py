"""Start a root with a new tree, and its first token, in the header of the start."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, TypedDict

import temporalio.common
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowInput,
    WorkflowHandle,
)

from ..node.contract import NODE_HEADER
from ..node.headers import Start
from ..node.ledger import Ledger
from ..record.event import Note
from ..sealed.issuing import Place, Terms
from ..sealed.keyring import Keyring
from ..sealed.message import DEFAULT_NAME, Message, parse
from ..sealed.origins import origin_of


class TokenOptions(TypedDict, total=False):
    """The token a tree is started with; see `TokenClient.start_workflow`."""

    api_token: str | None
    api_url: str | None
    name: str
    origins: Sequence[str] | None
    expires_in: timedelta | float | None
    types: Sequence[str] | Literal["any"] | None
    readers: Sequence[str] | Literal["any"] | None
    allow_http: Sequence[str]


class StartOptions(TokenOptions, Note, total=False):
    """Those, and what `temporalio.client.Client.start_workflow` takes, which is passed on."""

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


def new_tree(
    workflow_id: str, namespace: str, options: TokenOptions, keyring: Keyring
) -> tuple[Start, Message | None]:
    """The state a root is started with, and its first token where one is given.

    Raises:
        KeyringError, OriginsMissing, ValueError, TokenMalformed: the token cannot be sealed.
    """
    api_url, origins = options.get("api_url"), options.get("origins")
    own_origin = None if api_url is None else origin_of(api_url)
    if origins is None and own_origin is not None:
        origins = [own_origin]
    ledger = Ledger((workflow_id,), uuid.uuid4().hex, keyring.trusted())
    message: Message | None = None
    secret = options.get("api_token")
    if secret is not None:
        terms = Terms(
            origins,
            options.get("expires_in"),
            options.get("types"),
            options.get("readers"),
            allow_http=options.get("allow_http", ()),
        )
        name = options.get("name", DEFAULT_NAME)
        place = Place(name, namespace, workflow_id, ledger.tree, workflow_id)
        message = parse(keyring.seal(place.token(terms, time.time()), secret))
        ledger.accept(message, message.claims.version)
    return Start(ledger.dump(), api_url=api_url), message


async def start(
    client: Client, state: Start, *args: Any, **options: Any
) -> WorkflowHandle[Any, Any]:
    """As the SDK's `start_workflow`, with this state in the header."""
    config = client.config(active_config=True)
    config["interceptors"] = [*config["interceptors"], _StartHeader(state)]
    config["plugins"] = []  # they have configured this already
    handle: WorkflowHandle[Any, Any] = await Client(**config).start_workflow(*args, **options)
    return handle


class _StartHeader(Interceptor):
    def __init__(self, state: Start) -> None:
        self._state = state

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        state = self._state

        class _Outbound(OutboundInterceptor):
            async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:
                input.headers = {**input.headers, NODE_HEADER: state.to_payload()}
                return await super().start_workflow(input)

        return _Outbound(next)
