"""The second act: the tree lives on tokens that a source mints, and that die in every way.

They expire within seconds; one is revoked and nobody says so; one is retired. All that is done from
here is what a person would do once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NamedTuple

from ..client.client import TokenClient
from ..errors import OperationFailed
from ..source.oauth import OAuthSource
from ..text.output import say
from .provider import CLIENT_ID, AuthorizationServer

SOURCE: Final = "vendor"

_LONG_LIFE_SECONDS: Final = 3600.0
_LOOK_EVERY_SECONDS: Final = 0.1
_RETIRED_WITHIN_SECONDS: Final = 120.0

_tell = partial(say, err=True)


class Lived(NamedTuple):
    """What the home of the grant says in the end, and the fingerprint of the token revoked."""

    refreshes: int
    revoked: str


def source_of(server: AuthorizationServer, url: str) -> OAuthSource:
    """The source that mints at the authorization server at this address."""
    return OAuthSource(
        CLIENT_ID,
        client_secret=server.client_secret,
        token_url=f"{url}/token",
        revocation_url=f"{url}/revoke",
        introspection_url=f"{url}/introspect",
    )


async def live_on_a_source(
    tokens: TokenClient,
    root: str,
    server: AuthorizationServer,
    let_calls_flow: Callable[[], Awaitable[None]],
) -> Lived:
    """Give the root a grant, and let it do the rest.

    Raises:
        StatefulError: it did not.
    """
    await tokens.authorize(root, source=SOURCE, grant={"refresh_token": server.consent()})
    _tell(f"the tree lives on a source: its tokens live {server.lives:g} s")
    for _ in range(2):
        await let_calls_flow()
        _tell(f"  {server.exchanges} refresh tokens exchanged")
    server.lives = _LONG_LIFE_SECONDS
    _tell("from here on its tokens live an hour")
    await let_calls_flow()
    revoked = await _revoke_one(tokens, root, server)
    _tell("renewing the token, and retiring the one before once no call may carry it any more")
    begun = time.perf_counter()
    await tokens.renew(root, retire=True, timeout=_RETIRED_WITHIN_SECONDS)
    taken = time.perf_counter() - begun
    _tell(f"renewed, converged, settled 10 s; the one before is refused, after {taken:.1f} s")
    status = await tokens.source(root)
    if status is None:
        raise OperationFailed(f"workflow {root} does not know its source any more")
    return Lived(status.counts.get("minted", 0), revoked)


async def _revoke_one(tokens: TokenClient, root: str, server: AuthorizationServer) -> str:
    """Revoke the token in use at the API alone, and wait until calls are answered again."""
    api, status = server.api, await tokens.status(root)
    while status is None or (status.expires_at or 0) - time.time() < _LONG_LIFE_SECONDS / 2:
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
        status = await tokens.status(root)
    token = await tokens.get(root)
    number, before = api.issued[token.reveal()], len(api.log)
    api.revoked.add(token.reveal())
    begun = time.perf_counter()
    while not any(  # noqa: ASYNC110 - its API is asked for what it has seen
        call.status == 200 and (call.number or 0) > number for call in api.log[before:]
    ):
        await asyncio.sleep(_LOOK_EVERY_SECONDS)
    taken = time.perf_counter() - begun
    refused = sum(call == (number, 401) for call in api.log[before:])
    _tell(
        f"v{number} was revoked and nobody was told: {refused} calls were refused, "
        f"and v{number + 1} is in use {taken:.1f} s later"
    )
    return token.fingerprint
