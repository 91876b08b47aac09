"""The base class of workflows that take part in a tree."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

from temporalio import workflow
from temporalio.common import RawValue
from typing_extensions import Self

from ..errors import AddressRefused, PluginMissing
from ..sealed.message import DEFAULT_NAME, SealedToken, parse, valid_name
from ..sealed.origins import checked_address
from .children import Narrowed
from .contract import JOIN, MESSAGE, RENEW, REPORT, STATE_QUERY, STATUS_QUERY, URL
from .ledger import ALL
from .node import Node, Settings
from .record import RECORDER
from .status import TokenStatus
from .waiting import all_told, token_held

_withheld_here: ContextVar[frozenset[str]] = ContextVar(
    "stateful-withholding", default=frozenset[str]()
)
_narrowed_here: ContextVar[Mapping[str, Narrowed]] = ContextVar("stateful-narrowed")


F = TypeVar("F", bound=Callable[..., Any])


def _given() -> Callable[[Any, RawValue], Any]:
    """A handler that takes an argument, and that the interceptor answers for."""

    def handler(self: Any, given: RawValue) -> Any:
        raise NotImplementedError

    return _as_method(handler)


def _asked() -> Callable[[Any], Any]:
    """A handler without an argument, that the interceptor answers for."""

    def handler(self: Any) -> Any:
        raise NotImplementedError

    return _as_method(handler)


def _as_method(handler: F) -> F:
    """The same; the SDK takes a first parameter for the instance only if it has no annotation, and
    would else decode what is to stay raw until its size was looked at."""
    del handler.__annotations__["self"]
    return handler


class StatefulWorkflow:
    """Base class of a workflow that holds tokens and passes them to its children.

    Subclass it and decorate as usual; ``super().__init__()`` need not be called::

        @workflow.defn
        class Tenant(StatefulWorkflow, withhold=("Cleanup",)):
            @workflow.run
            async def run(self, name: str) -> None: ...

    Class keywords (they act when a child or a run is started, and are part of the state
    from then on):

    - ``withhold``: workflow types the tokens are never passed to;
    - ``share``: the only workflow types they are passed to (``()`` for none);
    - ``open_to``: workflow types that may `join` below; without it nobody may;
    - ``api_url``: the workflow's own API address;
    - ``source``: the name of the source that mints this workflow's token, or such names by the
      names of credentials. Until somebody gives it a grant it *needs authorization*.
    """

    _stateful_settings: ClassVar[Settings] = Settings()
    stateful_node: Node
    """What takes part in the tree; not for workflow code."""

    def __init_subclass__(
        cls,
        *,
        share: Sequence[str] | None = None,
        withhold: Sequence[str] | None = None,
        api_url: str | None = None,
        open_to: Sequence[str] | None = None,
        source: str | Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        for keyword, value in (("share", share), ("withhold", withhold), ("open_to", open_to)):
            if isinstance(value, str):
                raise TypeError(f"{cls.__name__}: {keyword}= takes a tuple of workflow types")
        if "api_url" in cls.__dict__:
            raise TypeError(
                f"{cls.__name__}: api_url is the property of StatefulWorkflow that has the API's "
                'address; give it as a class keyword, class Name(StatefulWorkflow, api_url="…"), '
                "or call an attribute of your own by another name"
            )
        if share is not None and withhold is not None:
            raise TypeError(f"{cls.__name__}: give share= or withhold=, not both")
        settings = cls._stateful_settings
        if share is not None:
            settings = replace(settings, share=tuple(share), withhold=())
        if withhold is not None:
            settings = replace(settings, share=None, withhold=tuple(withhold))
        if api_url is not None:
            checked_address(api_url)
            settings = replace(settings, api_url=api_url)
        if open_to is not None:
            settings = replace(settings, open_to=tuple(open_to))
        if source is not None:
            named = {DEFAULT_NAME: source} if isinstance(source, str) else dict(source)
            for name in (*named, *named.values()):
                if not valid_name(name):
                    raise TypeError(f"{cls.__name__}: source={name!r} is no name of a source")
            settings = replace(settings, sources=named)
        cls._stateful_settings = settings

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make the node before any `__init__`, so that a subclass need not call it.

        Raises:
            PluginMissing: on a worker without `StatefulPlugin`.
        """
        instance = super().__new__(cls)
        if workflow.in_workflow():
            if RECORDER not in workflow.extern_functions():
                raise PluginMissing(
                    f"{cls.__name__} is a StatefulWorkflow, but this worker has no StatefulPlugin; "
                    "give it to Client.connect(plugins=[StatefulPlugin()])"
                )
            instance.stateful_node = Node(cls._stateful_settings, workflow.info().headers)
        return instance

    # --- in workflow code ----------------------------------------------------

    @property
    def api_url(self) -> str | None:
        """The API's address: this workflow's own, or else the one it follows, the token's.

        It has one of its own by the class keyword, by setting this, or by `apiUrl` from outside;
        None here lets it follow its token again. An own one that the token in force is not signed
        for is not used: activities get the token's. Without a token's, a child has its parent's.

        Raises:
            AddressRefused: when it is set to what is no URL that a token may go to.
        """
        return self.stateful_node.view().shown_url

    @api_url.setter
    def api_url(self, url: str | None) -> None:
        if url is not None and not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise AddressRefused(
                f"self.api_url was set to a {type(url).__name__}: it is the property of "
                "StatefulWorkflow that has the API's address; call an attribute of your own "
                "by another name"
            )
        if url is not None:
            checked_address(url)
        self.stateful_node.own_url = url

    @property
    def api_token_status(self) -> TokenStatus | None:
        """What is known of the default credential without opening it; None where nothing is."""
        return self.token_status(DEFAULT_NAME)

    def token_status(self, name: str) -> TokenStatus | None:
        """What is known of a credential without opening it; None where nothing is."""
        status = self.stateful_node.view().status(name)
        return None if status.state == "none" else status

    async def token_held(
        self, timeout: timedelta | float | None = None, *, name: str = DEFAULT_NAME
    ) -> TokenStatus:
        """Wait until there is a token to use: held, not expired, of a key that is not revoked.

        An activity that is started then has it at its first attempt.

        Args:
            timeout: seconds or a timedelta by the workflow's clock; None waits without an end.
            name: credential name.

        Raises:
            TokenNotSet, TokenRevoked, TokenExpired: there was none by then; each is a
                `TokenUnavailable`.
        """
        return await token_held(self.stateful_node, name, _seconds(timeout))

    async def set_api_token(
        self,
        sealed: SealedToken,
        *,
        converged: bool = False,
        timeout: timedelta | float = 60.0,
    ) -> TokenStatus:
        """Set what an issuer's activity sealed with `seal_token`, for this tree from here down.

        Args:
            sealed: the token.
            converged: wait until each child that may have it was given it, too. What is further
                down hears of it from them.
            timeout: seconds or a timedelta that this may take, by the workflow's clock.

        Raises:
            MessageRefused: where it is not taken; the subclass says why.
            NotConverged: it stands, and some children were not given it in time: those behind in
                its ``tree``.
        """
        message = parse(sealed)
        status = await self.stateful_node.take(message)
        if converged:
            await all_told(self.stateful_node, message, _seconds(timeout))
        return status

    async def join(self, workflow_id: str, *, timeout: timedelta | float = 60.0) -> None:
        """Take a place below another workflow, in a tree that this one was not started in.

        For workflows that a schedule, a person, an activity or a Nexus operation starts. Once it
        returns, the workflow holds what a child of that workflow would start with, and what is set
        from then on reaches it. In a later run of the same workflow it returns at once, or after
        asking for what was set meanwhile.

        Args:
            workflow_id: an open workflow whose class admits this type (``open_to=``).
            timeout: seconds or a timedelta, for which it is waited until that workflow is there
                and holds a token.

        Raises:
            JoinFailed: it is not there, closed, holds no token or admits other types only; or this
                workflow has a place already, as it has where it was started with a token or by a
                `StatefulWorkflow`.
        """
        within = timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)
        await self.stateful_node.joining.join(workflow_id, within)

    def withhold(self, child_id: str, *, name: str | None = None) -> None:
        """Pass a token (None: every one) to this child no more, from now on.

        May be called before the child's start. What the child holds already stays with it:
        to cut it off, withhold and then rotate, or revoke at the child.
        """
        self.stateful_node.withhold(child_id, name)

    def share(self, child_id: str, *, name: str | None = None) -> None:
        """Undo `withhold`: the newest token is delivered at once.

        A child started withheld (class keyword or `withholding`) stays so; only an issuer
        can set a token at it.
        """
        self.stateful_node.share(child_id, name)

    @contextmanager
    def withholding(self, *, name: str | None = None) -> Generator[None, None, None]:
        """Start children inside this block without a token (None: any), for good.

        The start has to *begin* inside the block: a coroutine of `start_child_workflow` that is
        made there and awaited after it starts its child with the token.

        Such a child refuses the name by itself, from whomever it comes, except what an
        issuer sets at that child.
        """
        narrowed = {one: how for one, how in narrowed_here().items() if name not in (None, one)}
        with _starting(frozenset({ALL if name is None else name}), narrowed):
            yield

    @contextmanager
    def narrowed(
        self, *, scopes: Sequence[str], name: str = DEFAULT_NAME, source: str | None = None
    ) -> Generator[None, None, None]:
        """Start children inside this block with a token that may do less than this workflow's.

        The token in force here is kept from them as by `withholding`. In its place the source that
        minted it derives one for each child (`stateful_workflow.source.Narrows`), set at the child:
        again whenever the one here changes, and revoked with it. While it is not there the child
        has none: its activities wait for one, or fail, as `current_token` says.

        Args:
            scopes: what the child's may do, in the words of the source.
            name: credential name.
            source: name of the source, where the token in force does not say it: somebody set it.

        Raises:
            ValueError: there are no scopes, or a name is none.
        """
        if isinstance(scopes, str) or not scopes or not all(scopes):
            raise ValueError("narrowed() takes a list of scopes, at least one")
        if not valid_name(name) or not (source is None or valid_name(source)):
            raise ValueError("narrowed() takes names of letters, digits and . _ - only")
        how = Narrowed(tuple(scopes), source)
        with _starting(frozenset({name}), {**narrowed_here(), name: how}):
            yield

    # --- from outside; the interceptor answers these before they are reached --

    _on_api_token = workflow.signal(name=MESSAGE)(_given())
    _update_api_token = workflow.update(name=MESSAGE)(_given())
    _update_api_token.validator(_given())
    _query_api_token = workflow.query(name=MESSAGE)(_given())
    _query_api_token_status = workflow.query(name=STATUS_QUERY)(_asked())
    _query_state = workflow.query(name=STATE_QUERY)(_asked())
    _query_api_token_join = workflow.query(name=JOIN)(_given())
    _on_api_token_join = workflow.signal(name=JOIN)(_given())
    _on_api_token_report = workflow.signal(name=REPORT)(_given())
    _update_api_token_report = workflow.update(name=REPORT)(_given())
    _update_api_token_report.validator(_given())
    _update_api_token_renew = workflow.update(name=RENEW)(_given())
    _update_api_token_renew.validator(_given())
    _on_api_url = workflow.signal(name=URL)(_given())
    _update_api_url = workflow.update(name=URL)(_given())
    _update_api_url.validator(_given())
    _query_api_url = workflow.query(name=URL)(_asked())


def _seconds(time: timedelta | float | None) -> timedelta | None:
    return timedelta(seconds=time) if isinstance(time, int | float) else time


@contextmanager
def _starting(
    withheld: frozenset[str], narrowed: Mapping[str, Narrowed]
) -> Generator[None, None, None]:
    resets = _withheld_here.set(_withheld_here.get() | withheld), _narrowed_here.set(narrowed)
    try:
        yield
    finally:
        _withheld_here.reset(resets[0])
        _narrowed_here.reset(resets[1])


def withheld_here() -> frozenset[str]:
    """The names that children started in the current context are started without."""
    return _withheld_here.get()


def narrowed_here() -> Mapping[str, Narrowed]:
    """The tokens, by name, that children started in the current context are given narrowed."""
    return _narrowed_here.get({})


def node_of(instance: object) -> Node | None:
    """The node of a workflow instance, or None where it takes no part in a tree."""
    return instance.stateful_node if isinstance(instance, StatefulWorkflow) else None
