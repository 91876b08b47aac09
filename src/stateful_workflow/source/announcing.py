"""Tell people that a grant is dead, so that somebody authorizes the source again."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Final, TypeAlias

import httpx

from ..errors import SourceError
from ..sealed.grants import authorizing

_SECONDS: Final = 8.0


@dataclass(frozen=True)
class DeadGrant:
    """A grant that its provider refuses; nothing of it is secret.

    Attributes:
        namespace, workflow_id, workflow_type: of the workflow that mints with it.
        name: credential name.
        source: name of the source.
        grant: fingerprint of the grant, by which an announcement that comes twice is known.
        after_lost: the provider's answer to the same grant had been lost before, so that the grant
            was spent and its successor is gone; else it was revoked, or has expired.
        detail: what the provider said.
    """

    namespace: str
    workflow_id: str
    workflow_type: str
    name: str
    source: str
    grant: str
    after_lost: bool
    detail: str | None

    @property
    def command(self) -> str:
        """What mends it."""
        return authorizing(self.workflow_id, self.source, self.name)


OnDeadGrant: TypeAlias = Callable[[DeadGrant], Awaitable[None] | None]
"""Is told of a dead grant, once for each; what it raises has it told again."""


class Webhook:
    """Posts dead grants to a URL as JSON: the members of `DeadGrant`, and ``command``.

    Args:
        url: that takes it.
        headers: to send with it.
        secret: signs the body: ``Stateful-Signature`` is the HMAC-SHA256 of it, in hex.
    """

    def __init__(
        self, url: str, *, headers: Mapping[str, str] | None = None, secret: str | None = None
    ) -> None:
        self._url = url
        self._headers = dict(headers or {})
        self._secret = secret

    async def __call__(self, dead: DeadGrant) -> None:
        """Post it.

        Raises:
            SourceError: it was not taken; the URL, which may be a secret, is not shown.
        """
        body = json.dumps({**asdict(dead), "command": dead.command}).encode()
        headers = {"Content-Type": "application/json", **self._headers}
        if self._secret is not None:
            signature = hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
            headers["Stateful-Signature"] = signature
        async with httpx.AsyncClient(timeout=_SECONDS) as http:
            problem = None
            try:
                response = await http.post(self._url, content=body, headers=headers)
                problem = None if response.is_success else str(response.status_code)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                problem = type(error).__name__
        if problem is not None:
            raise SourceError(f"the webhook did not take it ({problem})")
