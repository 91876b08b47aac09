"""Secrets, leased credentials and tokens of OpenBao or HashiCorp Vault, over its HTTP API.

It needs no extra: a few paths are asked with httpx, which the library has. ``hvac``, the usual
client, blocks, keeps ``Retry-After`` to itself, and has had one release in two years (2.4, 2025).

A path that is not found (404) or not allowed (403) is no refused grant: the manager answers the
same where a mount, a policy or a namespace is wrong or was changed just now, which is mended
without anybody who authorizes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from typing import Final, cast
from urllib.parse import quote

import httpx

from ..errors import AnswerUnusable, GrantRefused, ProviderUnreachable, SourceError, TokenRefused
from ..sealed.origins import checked_address
from ..text.strict_json import json_object
from .clock import now as unix_now
from .exchange import TIMEOUT, exchanged
from .expiry import expiry
from .file import read_text
from .protocol import Grant, Minted
from .secret import minted, named

_WHO: Final = "the secrets manager"


@dataclass(frozen=True)
class _Session:
    token: str = field(repr=False)
    ends: float | None
    until: float | None


class Vault:
    """A manager's address, and the login with which its sources ask it; one may serve several.

    It logs in anew where half of the login's life is over, since what was leased with it ends with
    it, and where the manager does not take it any more.

    Args:
        address: such as ``https://bao.internal:8200``; plain http to loopback addresses only.
        login: what is sent to log in; a path stands for what its file holds then. AppRole takes
            ``role_id`` and ``secret_id``, JWT and Kubernetes ``role`` and ``jwt``, such as
            ``Path("/var/run/secrets/kubernetes.io/serviceaccount/token")``. Without `auth` it is a
            ``token`` that others keep alive and that may look itself up.
        auth: where the method is mounted, such as ``approle`` or ``kubernetes``.
        namespace: of the manager, where it has several.
        verify: the certificates that are trusted; None for those of httpx.

    Raises:
        AddressRefused: the address is no such URL.
    """

    def __init__(
        self,
        address: str,
        login: Mapping[str, str | Path],
        *,
        auth: str | None = None,
        namespace: str | None = None,
        verify: SSLContext | None = None,
    ) -> None:
        checked_address(address, ())
        self._base, self._auth, self._login = f"{address.rstrip('/')}/v1/", auth, dict(login)
        self._headers = {"X-Vault-Request": "true"}
        if namespace is not None:
            self._headers["X-Vault-Namespace"] = namespace
        self._verify = httpx.create_ssl_context() if verify is None else verify
        self._session: _Session | None = None
        self._login_task: asyncio.Future[_Session] | None = None

    async def ask(
        self, method: str, path: str, body: Grant | None = None, *, changes: bool = True
    ) -> tuple[httpx.Response, float | None]:
        """The answer to a request with the login, and the Unix seconds at which the login ends.

        Raises: as `exchanged`, and `ProviderUnreachable` where the login is refused.
        """
        deadline, session = time.monotonic() + TIMEOUT, self._session
        new = session is None or (session.until is not None and unix_now() >= session.until)
        while True:
            if session is None or new:
                session = await self._logged_in(session)
            response = await self.send(session.token, method, path, body, changes, deadline)
            if response.status_code != 403 or new:
                return response, session.ends
            new = True

    async def send(
        self,
        token: str | None,
        method: str,
        path: str,
        body: Grant | None = None,
        changes: bool = True,
        deadline: float | None = None,
    ) -> httpx.Response:
        """The answer to a request with another token; raises as `exchanged`."""
        headers = dict(self._headers)
        if token is not None:
            if not token.isascii():
                raise AnswerUnusable(f"what is to be a token of {_WHO} is none")
            headers["X-Vault-Token"] = token
        left = TIMEOUT if deadline is None else max(deadline - time.monotonic(), 0.0)
        # What is not encrypted is for this machine, and for no proxy that the environment names.
        trusts = self._base.startswith("https:")
        async with httpx.AsyncClient(
            verify=self._verify, timeout=TIMEOUT, trust_env=trusts
        ) as http:
            sending = http.request(method, self._base + path, headers=headers, json=body)
            return await exchanged(sending, left, _WHO, changes=changes)

    async def _logged_in(self, before: _Session | None) -> _Session:
        if self._session is not None and self._session is not before:
            return self._session
        if self._login_task is None or self._login_task.done():  # one for all who wait
            self._login_task = asyncio.ensure_future(self._log_in())
        return await asyncio.shield(self._login_task)

    async def _log_in(self) -> _Session:
        deadline = time.monotonic() + TIMEOUT / 2  # so that what follows has some time too
        now, method = unix_now(), "GET" if self._auth is None else "POST"
        login = {name: await asyncio.to_thread(_kept, it) for name, it in self._login.items()}
        if self._auth is None:
            token, path, body = _text(login, "token"), "auth/token/lookup-self", None
        else:
            token, path, body = None, f"auth/{self._auth}/login", login
        response = await self.send(token, method, path, body, False, deadline)
        if response.status_code != 200:
            raise ProviderUnreachable(f"{_WHO} refuses the source's login ({response.status_code})")
        said = _member(_taken(response), "data" if self._auth is None else "auth")
        ends = expiry("", now, lasts=said.get("ttl", said.get("lease_duration")) or None)
        until = None if ends is None else (now + ends) / 2
        self._session = _Session(token or _text(said, "client_token"), ends, until)
        return self._session


@dataclass(frozen=True)
class _OfVault:
    vault: Vault
    margin: float = 0


@dataclass(frozen=True)
class VaultSecret(_OfVault):
    """Gives what a key/value engine (KV 2) keeps: ``{"secret": "prod/acme", "field": "token"}``.

    The latest version counts, of which the grant may name fields that
    `stateful_workflow.source.secret.minted` reads. There is no `Retires` and no `Probes`, since
    the manager did not make the token.

    A version that was *destroyed* is a refused grant, for that cannot be undone. One that was
    deleted is none: it can be undeleted, and ``delete_version_after`` deletes by itself.

    Args:
        vault: where it is.
        margin: as `EnvironmentSource`.
        mount: the engine's.
    """

    mount: str = "secret"

    async def mint(self, grant: Grant) -> Minted:
        """Read the secret, which changes nothing at the manager."""
        path = f"{self.mount}/data/{_path(named(grant, 'secret'))}"
        response, _ = await self.vault.ask("GET", path, changes=False)
        if response.status_code == 404:
            answer = _taken(response, 404)
            if "data" in answer and _member(_member(answer, "data"), "metadata").get("destroyed"):
                raise GrantRefused(f"{_WHO} says that the secret's latest version was destroyed")
        fields = _member(_member(_taken(response), "data"), "data")
        return minted(fields, {"field": "token", **grant}, self.margin, unix_now())


@dataclass(frozen=True)
class VaultLease(_OfVault):
    """Gives credentials that the manager makes and leases: ``{"path": "database/creds/acme"}``.

    The token is the ``field`` that the grant names, or ``password``; the other texts, such as
    ``username``, are its values, and so is ``lease_id``. What the engine is to be told stands in
    the grant as ``with``, an object. The lease ends, and with it the credentials, no later than
    the login. `retire` revokes it, for which the login's policies have ``update`` on
    ``sys/leases/revoke``. There is no `Probes`: a lease that lives proves nothing of a user whom
    somebody has dropped in the database.

    Credentials whose answer was lost live until their lease ends.

    Args:
        vault: where it is.
        margin: as `EnvironmentSource`.
    """

    async def mint(self, grant: Grant) -> Minted:
        """Have credentials made."""
        now, told = unix_now(), grant.get("with")
        if told is not None and not isinstance(told, Mapping):
            raise GrantRefused("the grant's 'with' is no object: authorize with one that is")
        body = None if told is None else dict(cast("Grant", told))
        method, name = "GET" if body is None else "POST", named(grant, "field", "password")
        response, ends = await self.vault.ask(method, _path(named(grant, "path")), body)
        answer = _taken(response)
        fields, lasts = _member(answer, "data"), answer.get("lease_duration") or None
        token = _text(fields, name)
        values = {key: it for key, it in fields.items() if key != name and isinstance(it, str)}
        values["lease_id"] = _text(answer, "lease_id")
        return Minted(token, expiry(token, now, self.margin, lasts=lasts, at=ends), values=values)

    async def retire(self, token: str, values: Mapping[str, str]) -> None:
        """Revoke the lease, and wait until its engine has done so."""
        body = {"lease_id": _text(values, "lease_id"), "sync": True}
        _taken((await self.vault.ask("POST", "sys/leases/revoke", body))[0])


@dataclass(frozen=True)
class VaultToken(_OfVault):
    """Gives tokens of the manager itself, children of the login's: ``{"policies": ["read-acme"]}``.

    The grant may name a token ``role``, a ``ttl``, an ``explicit_max_ttl`` and a ``period``, as
    ``auth/token/create`` takes them; without policies a token could do what the login can, so such
    a grant is refused. A token that is no orphan ends with the login. `probe` and `retire` let it
    look itself up and revoke itself, which the policy ``default`` allows; none is given without.

    Args:
        vault: where it is.
        margin: as `EnvironmentSource`.
    """

    async def mint(self, grant: Grant) -> Minted:
        """Create a token."""
        policies = grant.get("policies")
        if not isinstance(policies, Sequence) or isinstance(policies, str) or not policies:
            raise GrantRefused("the grant names no list of 'policies': authorize with one")
        now, members = unix_now(), ("policies", "ttl", "explicit_max_ttl", "period")
        path = f"/{_path(named(grant, 'role'))}" if "role" in grant else ""
        body = {name: grant[name] for name in members if name in grant}
        response, ends = await self.vault.ask("POST", f"auth/token/create{path}", body)
        return self._created(response, now, ends)

    async def retire(self, token: str, values: Mapping[str, str]) -> None:
        """Let the token revoke itself, and with it those that were narrowed from it."""
        path = "auth/token/revoke-self"
        _taken(await self.vault.send(token, "POST", path), 403)  # is it none any more? See `probe`

    async def probe(self, token: str, values: Mapping[str, str]) -> None:
        """Let the token look itself up."""
        await self._looked_up(token)

    async def narrow(self, token: str, values: Mapping[str, str], scopes: Sequence[str]) -> Minted:
        """Create a child of the token with some of its policies, which the scopes name.

        The token's policies have to have ``update`` on ``auth/token/create``. The child ends with
        the token.
        """
        if not scopes:
            raise SourceError("a narrower token needs the policies that it is to have")
        now, deadline = unix_now(), time.monotonic() + TIMEOUT
        about = await self._looked_up(token, deadline - TIMEOUT / 2)
        sent = ("POST", "auth/token/create", {"policies": list(scopes)}, True, deadline)
        response = await self.vault.send(token, *sent)
        return self._created(response, now, expiry("", now, lasts=about.get("ttl") or None))

    async def _looked_up(self, token: str, until: float | None = None) -> Mapping[str, object]:
        path = "auth/token/lookup-self"
        response = await self.vault.send(token, "GET", path, None, False, until)
        if response.status_code == 403:
            raise TokenRefused(f"{_WHO} does not take the token")
        return _member(_taken(response), "data")

    def _created(self, response: httpx.Response, now: float, parent: float | None) -> Minted:
        auth = _member(_taken(response), "auth")
        token, lasts = _text(auth, "client_token"), auth.get("lease_duration") or None
        if "default" not in cast("Sequence[object]", auth.get("policies") or ()):
            raise AnswerUnusable(f"{_WHO} gave a token without the policy 'default'")
        at = None if auth.get("orphan") is True else parent
        values = {"accessor": _text(auth, "accessor")}
        return Minted(token, expiry(token, now, self.margin, lasts=lasts, at=at), values=values)


def _taken(response: httpx.Response, *also: int) -> Mapping[str, object]:
    if response.status_code not in (200, 204, *also):  # its texts may hold what a grant names
        raise ProviderUnreachable(f"{_WHO} answered {response.status_code} to what was asked")
    try:
        return json_object(response.content or b"{}")
    except ValueError:
        pass
    raise AnswerUnusable(f"{_WHO} answered no JSON object")


def _member(of: Mapping[str, object], name: str) -> Mapping[str, object]:
    if not isinstance(value := of.get(name), Mapping):
        raise AnswerUnusable(f"{_WHO}'s answer has no object {name!r}")
    return cast("Mapping[str, object]", value)


def _text(of: Mapping[str, object], name: str) -> str:
    if not isinstance(value := of.get(name), str) or not value:
        raise AnswerUnusable(f"{_WHO}'s answer has no text {name!r}")
    return value


def _path(text: str) -> str:
    if any(part in {"", ".", ".."} for part in text.split("/")):
        raise GrantRefused("what the grant names is no path: authorize with one")
    return quote(text)


def _kept(secret: str | Path) -> str:
    return secret if isinstance(secret, str) else read_text(secret).rstrip("\r\n")
