"""Real authorization servers on loopback, each a program that nobody here wrote.

As fixtures of the session, in `tests/source/conftest.py`: ``oauth_toolkit`` (django-oauth-toolkit
with a grace of 60 s), ``strict_oauth_toolkit`` (the same without a grace), ``oidc_provider`` and
``authgent``. One with other settings is started by hand::

    with start_oauth_toolkit(tmp_path, grace=30, token_seconds=3) as server:
        source = OAuthSource(
            server.client_id, issuer=server.issuer, client_secret=server.client_secret
        )
        minted = await source.mint(server.new_grant())
        assert server.is_active(minted.token)
        assert server.exchanges() == 1

Each rotates refresh tokens, and ends the whole grant where one is used again, outside the grace
where it has one. They differ in what becomes of the access token before: at django-oauth-toolkit an
exchange ends it at once, at the others it lives on until it expires.

The functions are synchronous, and take milliseconds. What is missing skips the test, and fails it
with ``$STATEFUL_REQUIRE_TOOLS=1``.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn, cast
from urllib.parse import quote_plus

import httpx
import pytest
from joserfc.jwk import RSAKey

from tests.engine.test_engine import free_port
from tests.faults.processes import Process

ROOT: Final = Path(__file__).parents[2]
OIDC_PROVIDER: Final = "oidc-provider@9.13.3"
STARTS_WITHIN: Final = 50.0
"""Seconds: on a busy machine, and within those that a test is given."""

CLIENT: Final = "stateful"
SECRET: Final = "CANARY client secret +/%:="
PUBLIC: Final = "stateful-public"
SIGNING: Final = "stateful-signing"
"""At oidc-provider, a client that authenticates with `client_key` (``private_key_jwt``)."""

CLIENTS: Final = [
    {"client_id": CLIENT, "client_secret": SECRET},
    {"client_id": PUBLIC, "token_endpoint_auth_method": "none"},
]


@cache
def client_key() -> RSAKey:
    """The key of `SIGNING`."""
    return cast("Any", RSAKey).generate_key(2048, {"use": "sig", "alg": "RS256"})


@dataclass(frozen=True)
class AuthorizationServer:
    """One that runs.

    Attributes:
        issuer: where its metadata is found (RFC 8414).
        client_id: a confidential client; both grants are for it.
        public_client_id: one without a secret, where there is such a one.
        process: the program, to kill or to look at its output.
        grace: seconds in which a refresh token that was exchanged gives the same answer again.
        keeps_tokens: the access token before is good beyond an exchange.
    """

    issuer: str
    token_url: str
    revocation_url: str
    introspection_url: str
    process: Process
    client_id: str = CLIENT
    client_secret: str = SECRET
    public_client_id: str = PUBLIC
    grace: int = 0
    keeps_tokens: bool = True

    def new_grant(self, client_id: str | None = None) -> dict[str, str]:
        """A grant with a refresh token, as somebody who has consented in a browser leaves it."""
        return {"refresh_token": self._behind("grant", client_id=client_id or self.client_id)}

    def exchanges(self) -> int:
        """How many refresh tokens were exchanged with success since the start.

        An exchange that is repeated within a grace counts again.
        """
        return int(self._behind("exchanges"))

    def revoke(self, token: str) -> None:
        """End this access token and nothing else, without telling anybody."""
        self._behind("expire", token=token)

    def end(self, grant: Mapping[str, str]) -> None:
        """End a grant: its refresh token, those after it, and their access tokens."""
        self._behind("end", token=grant["refresh_token"])

    def is_active(self, token: str) -> bool:
        """Whether an access token is good."""
        return bool(self.introspected(token)["active"])

    def introspected(self, token: str) -> dict[str, Any]:
        """What the server says of an access token (RFC 7662)."""
        return self._post(self.introspection_url, {"token": token}).json()

    @property
    def basic(self) -> tuple[str, str]:
        """The client's credentials as HTTP Basic has them (RFC 6749 section 2.3.1)."""
        return quote_plus(self.client_id), quote_plus(self.client_secret)

    def _behind(self, what: str, **asked: str) -> Any:
        origin = httpx.URL(self.token_url).join("/").copy_with(path=f"/-/{what}")
        answer = httpx.get(origin, params=asked, timeout=30)
        assert answer.status_code == 200, f"{what}: {answer.status_code}"
        return answer.json()

    def _post(self, url: str, form: dict[str, str]) -> httpx.Response:
        answer = httpx.post(url, data=form, auth=self.basic, timeout=30)
        assert answer.status_code == 200, f"{url}: {answer.status_code}"
        return answer


@contextmanager
def start_oauth_toolkit(
    folder: Path, *, grace: int = 60, token_seconds: int = 3600
) -> Generator[AuthorizationServer, None, None]:
    """django-oauth-toolkit, with its database in a folder.

    Args:
        folder: an empty one, or none yet.
        grace: as `AuthorizationServer`.
        token_seconds: how long an access token lives.
    """
    _needs_module("oauth2_provider", "django-oauth-toolkit")
    port = free_port()
    command = [sys.executable, "-m", "tests.support.oauth_toolkit", folder / "db.sqlite3"]
    command += [port, grace, token_seconds, json.dumps(CLIENTS)]
    with _running(folder, command, port, "/-/exchanges") as (origin, process):
        yield AuthorizationServer(
            issuer=origin,
            token_url=f"{origin}/token/",
            revocation_url=f"{origin}/revoke_token/",
            introspection_url=f"{origin}/introspect/",
            process=process,
            grace=grace,
            keeps_tokens=False,
        )


@contextmanager
def start_oidc_provider(
    folder: Path, *, token_seconds: int = 3600
) -> Generator[AuthorizationServer, None, None]:
    """oidc-provider on Node.js; it has no grace, and forgets everything when it ends."""
    packages = _installed_oidc_provider()
    port = free_port()
    usual = {
        "grant_types": ["authorization_code", "client_credentials", "refresh_token"],
        "redirect_uris": ["https://client.example/"],
        "response_types": ["code"],
    }
    signing = {
        "client_id": SIGNING,
        "token_endpoint_auth_method": "private_key_jwt",
        "jwks": {"keys": [client_key().as_dict(private=False)]},
    }
    clients = json.dumps([{**usual, **client} for client in (*CLIENTS, signing)])
    script = ROOT / "tests/support/oidc_provider.mjs"
    command = [shutil.which("node"), script, packages, port, token_seconds, clients]
    with _running(folder, command, port, "/-/exchanges") as (origin, process):
        yield AuthorizationServer(
            issuer=origin,
            token_url=f"{origin}/token",
            revocation_url=f"{origin}/token/revocation",
            introspection_url=f"{origin}/token/introspection",
            process=process,
        )


@contextmanager
def start_authgent(
    folder: Path, *, token_seconds: int = 3600
) -> Generator[AuthorizationServer, None, None]:
    """authgent-server, which has token exchange (RFC 8693) and no grace.

    What it derives needs an ``audience``. Its tokens are JWTs, valid beyond their revocation for
    whoever does not ask it.
    """
    if sys.version_info < (3, 11):
        pytest.skip("authgent-server needs Python 3.11")
    _needs_module("authgent_server", "authgent-server")
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    environment = {
        "AUTHGENT_ACCESS_TOKEN_TTL": str(token_seconds),
        "AUTHGENT_DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'authgent.db'}",
        "AUTHGENT_SECRET_KEY": secrets.token_hex(32),
        "AUTHGENT_SERVER_URL": origin,
        "AUTHGENT_TOKEN_RATE_LIMIT": "1000000",
    }
    program = "from authgent_server.cli import app; app()"
    command = [sys.executable, "-c", program, "run", "--host", "127.0.0.1", "--port", port]
    with _running(folder, command, port, "/health", environment) as (_, process):
        registration = {
            "client_name": CLIENT,
            "grant_types": [
                "authorization_code",
                "client_credentials",
                "refresh_token",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ],
            "redirect_uris": ["http://127.0.0.1/"],
            "scope": "read write",
        }
        client = httpx.post(f"{origin}/register", json=registration, timeout=30).json()
        yield _Authgent(
            issuer=origin,
            token_url=f"{origin}/token",
            revocation_url=f"{origin}/revoke",
            introspection_url=f"{origin}/introspect",
            process=process,
            client_id=client["client_id"],
            client_secret=client["client_secret"],
            public_client_id="",
            database=folder / "authgent.db",
        )


@dataclass(frozen=True)
class _Authgent(AuthorizationServer):
    database: Path = Path()

    def new_grant(self, client_id: str | None = None) -> dict[str, str]:
        verifier = secrets.token_urlsafe(48)
        digest = hashlib.sha256(verifier.encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": client_id or self.client_id,
            "redirect_uri": "http://127.0.0.1/",
            "scope": "read write",
            "code_challenge": urlsafe_b64encode(digest).rstrip(b"=").decode(),
        }
        consent = httpx.get(f"{self.issuer}/authorize", params=asked, timeout=30)
        form = {
            "grant_type": "authorization_code",
            "code": httpx.URL(consent.headers["location"]).params["code"],
            "code_verifier": verifier,
            "redirect_uri": "http://127.0.0.1/",
        }
        return {"refresh_token": self._post(self.token_url, form).json()["refresh_token"]}

    def exchanges(self) -> int:
        # Each inserts the refresh token after it, into the family of a grant.
        with closing(sqlite3.connect(self.database, timeout=30)) as database:
            (count,) = database.execute(
                "SELECT count(*) - count(DISTINCT family_id) FROM refresh_tokens"
            ).fetchone()
        return int(count)

    def revoke(self, token: str) -> None:
        self._post(self.revocation_url, {"token": token})

    def end(self, grant: Mapping[str, str]) -> None:
        # Its revocation endpoint knows no refresh tokens.
        with closing(sqlite3.connect(self.database, timeout=30)) as database, database:
            database.execute(
                "UPDATE refresh_tokens SET used = 1 WHERE family_id ="
                " (SELECT family_id FROM refresh_tokens WHERE jti = ?)",
                [grant["refresh_token"]],
            )


@contextmanager
def _running(
    folder: Path,
    command: list[Any],
    port: int,
    path: str,
    environment: Mapping[str, str] | None = None,
) -> Generator[tuple[str, Process], None, None]:
    folder.mkdir(parents=True, exist_ok=True)
    origin = f"http://127.0.0.1:{port}"
    ours = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **(environment or {})}
    process = Process(command, folder / "output", cwd=folder, environment=ours)
    try:
        deadline = time.monotonic() + STARTS_WITHIN
        while not _answers(f"{origin}{path}"):
            said = process.output.read_text("utf-8", "replace")[-2000:]
            assert process.is_running, f"it has ended:\n{said}"
            assert time.monotonic() < deadline, f"it does not answer:\n{said}"
            time.sleep(0.1)
        yield origin, process
    finally:
        process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _needs_module(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        _missing(f"{package} is not installed")


def _missing(reason: str) -> NoReturn:
    if os.environ.get("STATEFUL_REQUIRE_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def _installed_oidc_provider() -> Path:
    """The folder that holds it, beside Python's packages; installed where it is not there yet."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        _missing("node or npm is missing (Debian: apt-get install nodejs npm)")
    folder = ROOT / ".venv" / "node" / OIDC_PROVIDER
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of the tests
        if not (folder / "done").exists():
            npm = ["npm", "install", "--prefix", folder, "--no-package-lock", "--ignore-scripts"]
            npm += ["--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-retry-maxtimeout=2000"]
            try:
                subprocess.run(
                    [*npm, OIDC_PROVIDER], capture_output=True, text=True, check=True, timeout=40
                )
            except subprocess.SubprocessError as error:
                pytest.skip(f"{OIDC_PROVIDER} cannot be installed here: {error}")
            (folder / "done").touch()
    return folder
