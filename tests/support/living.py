"""A source of tests' own whose provider rotates single-use grants, and trees that live by it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from stateful_workflow import (
    GrantRefused,
    Keyring,
    SourceError,
    SourceStatus,
    StatefulPlugin,
    TokenClient,
    TokenRefused,
)
from stateful_workflow.source import Grant, Minted, Source, now
from tests.support.asking import eventually
from tests.support.trees import Tree
from tests.support.workflows import Plan

URL = "https://api.example.com"


def living_keyring() -> Keyring:
    """All keys: of an issuer, of the readers of activities, and of the workers of sources."""
    return Keyring.generate().add_reader("sources")


class Provider:
    """A provider, and the source that asks it: each grant is good for one exchange.

    Attributes:
        lives: seconds that its tokens live; None for ever.
        grant: the one that is good now.
        exchanges: how many it has made.
        reused: how often a spent grant was sent.
        valid: tokens that it takes.
        failures: raised one after the other in the place of exchanges.
        retires: whether it revokes a token that it is told to.
        before_reply: called after an exchange and before its answer is given, as where it is lost.
    """

    def __init__(self, lives: float | None = 3600) -> None:
        self.lives = lives
        self._counted = itertools.count(1)
        self.grant = "refresh-canary-0"
        self.exchanges = 0
        self.reused = 0
        self.valid: set[str] = set()
        self.failures: list[Exception] = []
        self.before_reply: Callable[[], Any] | None = None
        self.probes = 0
        self.retires = True
        self.at_work = 0
        self.most_at_work = 0

    @property
    def first(self) -> dict[str, str]:
        """What somebody authorizes with."""
        return {"refresh": self.grant}

    async def mint(self, grant: Grant) -> Minted:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            await asyncio.sleep(0)
            if self.failures:
                raise self.failures.pop(0)
            if grant["refresh"] != self.grant:
                self.reused += 1
                raise GrantRefused("the provider answered invalid_grant")
            self.exchanges += 1
            number = next(self._counted)
            self.grant = f"refresh-canary-{number}"
            token = f"tok-{number}"
            self.valid.add(token)
            if self.before_reply is not None:
                await asyncio.ensure_future(self.before_reply())
            expires = None if self.lives is None else now() + self.lives
            return Minted(token, expires_at=expires, grant={"refresh": self.grant})
        finally:
            self.at_work -= 1

    async def retire(self, token: str, values: Mapping[str, str]) -> None:
        if self.retires:
            self.valid.discard(token)

    async def probe(self, token: str, values: Mapping[str, str]) -> None:
        self.probes += 1
        if token not in self.valid:
            raise TokenRefused("it is not active")


def plugin(keyring: Keyring, provider: Source, **options: Any) -> StatefulPlugin:
    return StatefulPlugin(keyring, sources={"own": provider}, **options)


async def start_home(
    home: Tree, provider: Provider, plan: Plan | None = None, **options: Any
) -> None:
    """Start a tree with the provider's first grant in the place of a token."""
    terms: dict[str, Any] = {"origins": [URL], "api_url": None, **options}
    grant = provider.first
    await home.start(plan, api_token=None, source="own", grant=grant, **terms)


async def source_is(
    tokens: TokenClient, home: str, so: Callable[[SourceStatus], bool], name: str = "apiToken"
) -> SourceStatus:
    """Wait until this is known of the source at a home."""

    async def known() -> SourceStatus:
        status = await tokens.source(home, name)
        assert status is not None
        assert so(status), status
        return status

    return await eventually(known)


__all__ = ["URL", "Provider", "SourceError", "living_keyring", "plugin", "source_is", "start_home"]
