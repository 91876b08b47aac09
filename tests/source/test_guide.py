"""What docs/guide-sources.md shows of sources, against real providers."""

from __future__ import annotations

import json
import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from stateful_workflow.errors import (
    GrantRefused,
    ProviderUnreachable,
    RateLimited,
    ReplyLost,
    SourceError,
)
from stateful_workflow.source import Grant, Minted, Source, exchanged, expiry, now
from stateful_workflow.source.aws import SecretsManagerSource
from stateful_workflow.source.environment import EnvironmentSource
from stateful_workflow.source.file import FileSource
from stateful_workflow.source.oauth import OAuthSource
from stateful_workflow.source.vault import Vault, VaultLease, VaultSecret, VaultToken
from tests.docs.reader import BLOCKS
from tests.support.authorization_servers import AuthorizationServer
from tests.support.secret_managers import OpenBao, start_failing

IMPORTED: Final = {
    each.__name__: each
    for each in (
        *(Minted, GrantRefused, ProviderUnreachable, exchanged, expiry, now),
        *(EnvironmentSource, FileSource, OAuthSource, SecretsManagerSource),
        *(Vault, VaultLease, VaultSecret, VaultToken),
        *(Path, httpx, os, time),
    )
}


def section(heading: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the Python of a section defines, and its grants."""
    blocks = [b for b in BLOCKS if (b.document, b.heading) == ("docs/guide-sources.md", heading)]
    (python,) = [block for block in blocks if block.kind == "python"]
    names: dict[str, Any] = {**IMPORTED, "Grant": Grant}
    exec(compile(python.text, python.place, "exec", dont_inherit=True), names)
    return names, [json.loads(block.text) for block in blocks if block.kind == "json"]


async def test_a_source_of_ones_own_takes_fifteen_lines() -> None:
    names, _ = section("One of your own")
    (block,) = [
        b
        for b in BLOCKS
        if b.document == "docs/guide-sources.md" and b.heading == "One of your own"
    ]
    assert len([line for line in block.text.splitlines() if line]) <= 15
    said = json.dumps({"token": "own", "expires_in": 60})
    ok = f"HTTP/1.1 200 OK\r\nContent-Length: {len(said)}\r\n\r\n{said}"
    async with start_failing(ok.encode()) as url:
        source: Source = names["TenantTokens"](url)
        minted = await source.mint({"tenant": "acme"})
    assert minted.token == "own"
    assert minted.expires_at is not None
    assert minted.expires_at <= time.time() + 60


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n", GrantRefused),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", ProviderUnreachable),
        (b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n", ProviderUnreachable),
        (b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: 0\r\n\r\n", RateLimited),
        (b"", ReplyLost),
    ],
)
async def test_a_source_of_ones_own_fails_in_the_right_kind(
    answer: bytes, error: type[SourceError]
) -> None:
    names, _ = section("One of your own")
    async with start_failing(answer) as url:
        with pytest.raises(error) as failed:
            await names["TenantTokens"](url).mint({"tenant": "acme"})
    assert type(failed.value) is error


async def test_a_variable_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "variable")
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))
    (tmp_path / "acme").write_text("file\n", "utf-8")
    names, (grant,) = section("A variable and a file")
    assert (await names["variable"].mint({})).token == "variable"
    assert (await names["mounted"].mint(grant)).token == "file"


async def test_oauth(oauth_toolkit: AuthorizationServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENT_ID", oauth_toolkit.client_id)
    monkeypatch.setenv("CLIENT_SECRET", oauth_toolkit.client_secret)
    monkeypatch.setenv("ISSUER", oauth_toolkit.issuer)
    names, (shown,) = section("OAuth 2.0")
    grant = oauth_toolkit.new_grant()
    assert grant.keys() == shown.keys()
    for minted in (await names["tenants"].mint(grant), await names["tenants"].mint({})):
        assert oauth_toolkit.is_active(minted.token)
        await names["tenants"].probe(minted.token, minted.values)


async def test_aws_secrets_manager(aws: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"token": "aws", "expires_on": "2100-01-01T00:00:00Z", "username": "ada"}
    manager: Any = import_module("boto3").client("secretsmanager", **aws)
    manager.create_secret(Name="prod/acme", SecretString=json.dumps(document))
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", aws["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", aws["aws_secret_access_key"])
    names, (grant,) = section("AWS Secrets Manager")
    minted = await names["secrets_manager"].mint(grant)
    assert (minted.token, minted.values) == ("aws", {"username": "ada"})
    assert minted.expires_at == 4_102_444_800 - 60


async def test_openbao(openbao: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openbao.ask("POST", "secret/data/prod/acme", {"data": {"token": "kept"}})
    create = ["create", "update"]
    openbao.allow("guide", {"secret/data/prod/acme": ["read"], "auth/token/create": create})
    openbao.allow("read-acme", {"secret/data/prod/acme": ["read"]})
    openbao.ask("POST", "auth/approle/role/guide", {"token_policies": ["guide", "read-acme"]})
    role_id = openbao.ask("GET", "auth/approle/role/guide/role-id")["data"]["role_id"]
    secret_id = openbao.ask("POST", "auth/approle/role/guide/secret-id")["data"]["secret_id"]
    (tmp_path / "secret-id").write_text(secret_id, "utf-8")
    monkeypatch.setenv("BAO_ADDR", openbao.address)
    monkeypatch.setenv("ROLE_ID", role_id)
    monkeypatch.setenv("SECRET_ID_FILE", str(tmp_path / "secret-id"))
    names, (secret, policies) = section("OpenBao and Vault")
    assert (await names["key_values"].mint(secret)).token == "kept"
    minted = await names["own_tokens"].mint(policies)
    await names["own_tokens"].probe(minted.token, minted.values)
    await names["own_tokens"].retire(minted.token, minted.values)
    assert isinstance(names["leased"], VaultLease)
