"""A callable that gives the newest token to SDKs which ask for a credential as they need it."""

from __future__ import annotations

from ..errors import PluginMissing
from ..sealed.message import DEFAULT_NAME
from ..sealed.token import ApiToken
from .newest import at_once
from .tokens import ActivityTokens, activity_tokens


class TokenProvider:
    """Gives the running activity's token, again and again, to a client that connects to one URL.

    Make it in the activity, and give it to an SDK that takes a callable: itself to one that
    calls, `call_async` to one that awaits. Each call gives the newest token, and is on record as
    a use. It works in threads that the SDK starts, as long as the activity runs::

        OpenAI(base_url=url, api_key=TokenProvider(url))
        AsyncOpenAI(base_url=url, api_key=TokenProvider(url).call_async)

    Args:
        url: where the client connects to, as `ApiToken.for_url` takes it.
        name: credential name.

    Raises:
        PluginMissing: outside an activity that has tokens.

    Raises, when it is called:
        OriginNotAllowed: the token's issuer did not sign it for the URL's origin.
        PluginMissing: the activity has ended.
        StatefulError: as `stateful_workflow.current_token`.
    """

    def __init__(self, url: str, name: str = DEFAULT_NAME) -> None:
        self._tokens = activity_tokens()
        self._url = url
        self._name = name
        self._last: ApiToken | None = None

    def __call__(self) -> str:
        """The token, in a thread."""
        return self._given(at_once(self._running().current(self._name, blocks=True)))

    async def call_async(self) -> str:
        """The token, in an async activity."""
        return self._given(await self._running().current(self._name, blocks=False))

    def report_refused(self) -> bool:
        """`stateful_workflow.report_refused` for the token that was given last, in a thread."""
        return at_once(self._refused(blocks=True))

    async def report_refused_async(self) -> bool:
        """As `report_refused`, in an async activity."""
        return await self._refused(blocks=False)

    async def _refused(self, *, blocks: bool) -> bool:
        last = self._last
        return last is not None and await self._running().report_refused(last, blocks=blocks)

    def _given(self, token: ApiToken) -> str:
        self._last = token
        return token.for_url(self._url)

    def _running(self) -> ActivityTokens:
        if self._tokens.has_ended:
            raise PluginMissing(
                f"the activity of workflow {self._tokens.workflow_id} that made this TokenProvider "
                "has ended: make the client that uses it in each activity anew"
            )
        return self._tokens
