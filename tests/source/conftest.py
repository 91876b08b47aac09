"""Providers of the session; authorization_servers and secret_managers in tests.support say more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.authorization_servers import (
    AuthorizationServer,
    start_authgent,
    start_oauth_toolkit,
    start_oidc_provider,
)
from tests.support.secret_managers import OpenBao, start_aws, start_openbao


@pytest.fixture(scope="session")
def oauth_toolkit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthorizationServer]:
    """Refresh tokens rotate; for a minute the one before gives the same answer again."""
    with start_oauth_toolkit(tmp_path_factory.mktemp("oauth_toolkit")) as server:
        yield server


@pytest.fixture(scope="session")
def strict_oauth_toolkit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthorizationServer]:
    """As `oauth_toolkit`, and a refresh token that is used again ends its grant."""
    with start_oauth_toolkit(tmp_path_factory.mktemp("oauth_toolkit"), grace=0) as server:
        yield server


@pytest.fixture(scope="session")
def oidc_provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthorizationServer]:
    """On Node.js; a refresh token that is used again ends its grant."""
    with start_oidc_provider(tmp_path_factory.mktemp("oidc_provider")) as server:
        yield server


@pytest.fixture(scope="session")
def authgent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthorizationServer]:
    """It has token exchange (RFC 8693)."""
    with start_authgent(tmp_path_factory.mktemp("authgent")) as server:
        yield server


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with start_openbao(tmp_path_factory.mktemp("openbao")) as server:
        yield server


@pytest.fixture(scope="session")
def aws() -> Iterator[dict[str, Any]]:
    """What a client of boto3 needs to ask moto."""
    with start_aws() as client:
        yield client
