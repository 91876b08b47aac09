"""References: what stands in the place of a token, and is resolved where it is used.

A worker asks its resolver once for a version, and once more where an API refuses what came of it:
a secret manager may have rotated it meanwhile.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from ..errors import ReferenceUnresolved, StatefulError
from ..node import limits
from ..sealed.message import Message
from ..sealed.secret import Secret
from ..sealed.token import ApiToken

if TYPE_CHECKING:
    from ..source.protocol import Minted

Answer: TypeAlias = "str | Minted"

_SECONDS: Final = 10.0
"""What a resolver has for an answer."""

_REMEMBERED: Final = 10_000

# Not the loop's own threads: all of them may be waiting for what is resolved here.
_THREADS: Final = ThreadPoolExecutor(8, thread_name_prefix="stateful-resolver")


@dataclass(frozen=True)
class Resolver:
    """Gives the secrets that references with one prefix name.

    Attributes:
        resolve: from the name, which is what stands after the colon, to the secret, or to what a
            source has minted. A coroutine function, or one that is called in a thread; 10 s.
        allow: the names that it is asked for; `*` stands for any text without a slash. None by
            default: an issuer is not to choose among all that this worker may read.
    """

    resolve: Callable[[str], Answer | Awaitable[Answer]]
    allow: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.allow, str):
            raise ValueError("allow= takes a list of names")

    def allows(self, name: str) -> bool:
        """Whether it may be asked for a name."""
        parts = name.split("/")
        patterns = (pattern.split("/") for pattern in self.allow)
        return any(
            len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))
            for pattern in patterns
        )


_Task: TypeAlias = "asyncio.Task[tuple[Secret, float]]"


@dataclass
class _Resolved:
    """What came of a reference, for all who use that version.

    Attributes:
        before: what came of another version at its place, which some activities may use yet.
        again, anew_at: what comes of looking again, and when that began (`time.monotonic`).
    """

    hash: str
    reference: Secret
    task: _Task
    before: _Resolved | None = None
    again: _Task | None = None
    anew_at: float = -math.inf

    @property
    def secret(self) -> Secret | None:
        """It, where it is there and has not ended."""
        if not self.task.done() or self.task.cancelled() or self.task.exception() is not None:
            return None
        secret, ends_at = self.task.result()
        return secret if time.time() < ends_at else None


class References:
    """What the activities of one worker have resolved."""

    def __init__(self, resolvers: Mapping[str, Resolver] | None = None) -> None:
        self._resolvers = dict(resolvers or {})
        self._resolved: dict[tuple[str, str, str], _Resolved] = {}

    def known(self, message: Message) -> Secret | None:
        """What a message's reference has led to already, if anything."""
        found = self._find(message)
        return None if found is None else found.secret

    async def resolve(self, message: Message, reference: Secret) -> Secret:
        """What a message's reference leads to.

        Raises:
            ReferenceUnresolved: no resolver here may be asked, or it gives none.
        """
        found = self._find(message)
        if found is None or (found.task.done() and found.secret is None):
            found = self._begin(message, reference)
        secret, _ = await asyncio.shield(found.task)
        return secret

    def has_another(self, token: ApiToken) -> bool:
        """Whether the reference that a token came of has led to another one since."""
        known = self.known(token.message)
        return known is not None and (known.token, known.values) != (token.reveal(), token.values)

    async def look_again(self, refused: ApiToken) -> None:
        """Resolve anew what an API refused, once in the time that a token is fresh."""
        found, now = self._find(refused.message), time.monotonic()
        if found is None or self.has_another(refused):
            return
        if found.secret is not None and now - found.anew_at >= limits.LIMITS.fresh_seconds:
            found.again, found.anew_at = self._task(refused.message, found.reference), now
        if found.again is not None:
            with suppress(StatefulError):
                await asyncio.shield(found.again)
                found.task = found.again

    def _find(self, message: Message) -> _Resolved | None:
        found = self._resolved.get(_place(message))
        if found is not None and found.hash != message.hash:
            found = found.before
        return found if found is not None and found.hash == message.hash else None

    def _begin(self, message: Message, reference: Secret) -> _Resolved:
        if len(self._resolved) >= _REMEMBERED:
            self._resolved.clear()
        before = self._resolved.get(_place(message))
        if before is not None and before.hash == message.hash:
            before = before.before
        if before is not None:
            before.before = None
        begun = _Resolved(message.hash, reference, self._task(message, reference), before)
        self._resolved[_place(message)] = begun
        return begun

    def _task(self, message: Message, reference: Secret) -> _Task:
        task = asyncio.create_task(resolved(self._resolvers, message, reference))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task


async def resolved(
    resolvers: Mapping[str, Resolver], message: Message, reference: Secret
) -> tuple[Secret, float]:
    """What a reference leads to now, and the Unix seconds at which that ends.

    Raises:
        ReferenceUnresolved: no resolver may be asked, or it gives none. What it has said is left
            out, since that may hold a secret.
    """
    prefix, name = reference.named
    resolver = resolvers.get(prefix)
    if resolver is None:
        known = ", ".join(sorted(resolvers)) or "none"
        problem = f"with a prefix for which this process has no resolver (it has: {known})"
    elif not resolver.allows(name):
        problem = f"which the resolver {prefix} does not allow here"
    else:
        try:
            answer = await asyncio.wait_for(_asked(resolver, name), _SECONDS)
            ends_at = None if isinstance(answer, str) else answer.expires_at
            secret = (
                Secret(answer) if isinstance(answer, str) else Secret(answer.token, answer.values)
            )
            secret.encode()  # it could have been sealed
            return secret, math.inf if ends_at is None else ends_at
        except Exception as error:  # noqa: BLE001 - it is the user's, and may raise anything
            kind = type(error).__name__
            problem = f"and the resolver {prefix} gave no token ({kind}); try again"
    # Outside the except clause, so that it does not carry what it replaces.
    claims = message.claims
    raise ReferenceUnresolved(
        f"the {claims.name} (version {claims.version}) set at workflow {claims.authority} is a "
        f"reference, {problem}",
        reference.token,
    )


def resolvers_of(plugins: Iterable[object]) -> Mapping[str, Resolver]:
    """Those of the first plugin that has some."""
    for plugin in plugins:
        found: Mapping[str, Resolver] | None = getattr(plugin, "resolvers", None)
        if found:
            return found
    return {}


async def _asked(resolver: Resolver, name: str) -> str | Minted:
    if inspect.iscoroutinefunction(resolver.resolve):
        answer = resolver.resolve(name)
    else:
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(_THREADS, resolver.resolve, name)
    return cast("str | Minted", await answer if inspect.isawaitable(answer) else answer)


def _place(message: Message) -> tuple[str, str, str]:
    claims = message.claims
    return claims.tree, claims.authority, claims.name
