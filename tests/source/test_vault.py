"""Secrets, leases and tokens of a real OpenBao."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jwcrypto import jwk, jwt

from stateful_workflow.errors import (
    AddressRefused,
    AnswerUnusable,
    GrantRefused,
    ProviderUnreachable,
    RateLimited,
    ReplyLost,
    SourceError,
    TokenRefused,
)
from stateful_workflow.source import Narrows, Probes, Retires, Source, vault
from stateful_workflow.source.clock import going_by
from stateful_workflow.source.vault import Vault, VaultLease, VaultSecret, VaultToken
from tests.support.secret_managers import ROOT, OpenBao, start_failing, start_openbao

CANARY = "kv-token-canary"
OTP: dict[str, Any] = {"path": "ssh/creds/otp", "with": {"ip": "127.0.0.1"}, "field": "key"}
"""A grant for a password that may be used once, which OpenBao makes and leases by itself."""


@dataclass(frozen=True)
class Manager(OpenBao):
    """OpenBao as an operator has set it up: with policies, engines and ways to log in."""

    key: jwk.JWK

    def approle(self, **role: Any) -> Vault:
        """A login by a role of its own, which is as told."""
        name = f"role-{time.monotonic_ns()}"
        self.ask(
            "POST",
            f"auth/approle/role/{name}",
            {"token_policies": ["tenants", "read-prod"], **role},
        )
        role_id = self.ask("GET", f"auth/approle/role/{name}/role-id")["data"]["role_id"]
        secret_id = self.ask("POST", f"auth/approle/role/{name}/secret-id")["data"]["secret_id"]
        return Vault(self.address, {"role_id": role_id, "secret_id": secret_id}, auth="approle")

    def new_jwt(self) -> str:
        """As Kubernetes writes one for a pod, for some minutes."""
        now = int(time.time())
        claims = {"sub": "pod", "aud": "bao", "nbf": now - 60, "exp": now + 600}
        token = jwt.JWT(header={"alg": "ES256"}, claims=claims)
        token.make_signed_token(self.key)
        return token.serialize()

    def is_known(self, token: str) -> bool:
        try:
            self.ask("POST", "auth/token/lookup", {"token": token})
        except AssertionError:
            return False
        return True

    def put(self, secret: str, **fields: str) -> None:
        self.ask("POST", f"secret/data/{secret}", {"data": fields})


@pytest.fixture(scope="session")
def manager(openbao: OpenBao) -> Manager:
    key = jwk.JWK.generate(kty="EC", crv="P-256")
    manager = Manager(openbao.address, key)
    create = {path: ["create", "update"] for path in ("auth/token/create", "auth/token/create/*")}
    manager.allow(
        "tenants",
        {
            "secret/data/prod/*": ["read"],
            "ssh/creds/otp": ["update"],
            "sys/leases/revoke": ["update"],
            **create,
        },
    )
    manager.allow("read-prod", {"secret/data/prod/*": ["read"]})
    manager.allow("narrowing", create)
    manager.ask("POST", "sys/mounts/ssh", {"type": "ssh"})
    otp = {"key_type": "otp", "default_user": "ada", "cidr_list": "127.0.0.0/8"}
    manager.ask("POST", "ssh/roles/otp", otp)
    manager.ask("POST", "sys/auth/kubernetes", {"type": "jwt"})
    public = key.export_to_pem().decode()
    manager.ask(
        "POST",
        "auth/kubernetes/config",
        {"jwt_validation_pubkeys": [public], "jwt_supported_algs": ["ES256"]},
    )
    role = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["bao"]}
    manager.ask("POST", "auth/kubernetes/role/pods", {**role, "token_policies": ["tenants"]})
    return manager


def all_known_at(error: BaseException) -> str:
    """What a log could show of an error and of those that it carries."""
    shown = ""
    while error.__context__ is not None or error.__cause__ is not None:
        shown += repr(error) + str(error)
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]
    return shown + repr(error) + str(error)


# --- secrets -------------------------------------------------------------------------------------


async def test_the_latest_version_of_a_secret_is_the_token(manager: Manager) -> None:
    source = VaultSecret(manager.approle(), margin=60)
    manager.put("prod/acme", token="one", user="ada", ends="2100-01-01T00:00:00Z")
    assert (await source.mint({"secret": "prod/acme"})).token == "one"
    manager.put("prod/acme", token="two", user="ada", ends="2100-01-01T00:00:00Z")
    grant = {"secret": "prod/acme", "values": ["user"], "expires": "ends"}
    minted = await source.mint(grant)
    assert (minted.token, minted.values) == ("two", {"user": "ada"})
    assert minted.expires_at == 4_102_444_800 - 60
    assert (await source.mint({"secret": "prod/acme", "field": "user"})).token == "ada"
    with pytest.raises(AnswerUnusable):
        await source.mint({"secret": "prod/acme", "field": "none"})


async def test_only_a_destroyed_secret_is_a_refused_grant(manager: Manager) -> None:
    source, grant = VaultSecret(manager.approle()), {"secret": "prod/passing"}
    with pytest.raises(ProviderUnreachable, match="404"):
        await source.mint(grant)
    manager.put("prod/passing", token=CANARY)
    manager.ask("DELETE", "secret/data/prod/passing")
    with pytest.raises(ProviderUnreachable, match="404"):
        await source.mint(grant)
    manager.ask("POST", "secret/undelete/prod/passing", {"versions": [1]})
    assert (await source.mint(grant)).token == CANARY
    manager.ask("PUT", "secret/destroy/prod/passing", {"versions": [1]})
    with pytest.raises(GrantRefused, match="destroyed"):
        await source.mint(grant)


async def test_what_policies_and_mounts_refuse_kills_no_grant(manager: Manager) -> None:
    login = manager.approle()
    manager.put("elsewhere", token=CANARY)
    for source, grant in (
        (VaultSecret(login), {"secret": "elsewhere"}),
        (VaultSecret(login, mount="none"), {"secret": "prod/acme"}),
        (VaultLease(login), {"path": "database/creds/none"}),
        (VaultToken(login), {"policies": ["root"]}),
        (VaultToken(login), {"policies": ["read-prod"], "role": "none"}),
    ):
        with pytest.raises(ProviderUnreachable) as passing:
            await source.mint(grant)
        assert not passing.value.reached
        assert all(text not in str(passing.value) for text in ("elsewhere", "none", "read-prod"))


@pytest.mark.parametrize(
    "name", ["", "../elsewhere", "prod/../../sys/mounts", "/prod/acme", "a//b", ".", 7]
)
async def test_a_grant_names_a_path_below_the_mount(manager: Manager, name: object) -> None:
    with pytest.raises(GrantRefused):
        await VaultSecret(manager.approle()).mint({"secret": name})


async def test_a_secret_may_have_any_name(manager: Manager) -> None:
    manager.put("prod/a%20b%3Fversion=1%23c", token="odd")
    minted = await VaultSecret(manager.approle()).mint({"secret": "prod/a b?version=1#c"})
    assert minted.token == "odd"


# --- leases --------------------------------------------------------------------------------------


async def test_leased_credentials_come_with_their_user_and_their_lease(manager: Manager) -> None:
    source = VaultLease(manager.approle(token_ttl="100h"), margin=60)
    before = time.time()
    one, two = await source.mint(OTP), await source.mint(OTP)
    assert one.token != two.token
    assert one.values["username"] == "ada"
    assert one.values["lease_id"].startswith("ssh/creds/otp/")
    assert one.token not in one.values.values()
    assert one.token not in repr(one)
    lease = manager.ask("POST", "sys/leases/lookup", {"lease_id": one.values["lease_id"]})
    assert one.expires_at is not None
    # The login's 100 hours end before the lease.
    assert lease["data"]["ttl"] > 360_000
    assert before + 360_000 - 61 < one.expires_at <= time.time() + 360_000 - 60


async def test_a_lease_that_ends_before_the_login_says_when(manager: Manager) -> None:
    manager.ask("POST", "sys/mounts/ssh/tune", {"default_lease_ttl": "600s"})
    try:
        minted = await VaultLease(manager.approle(token_ttl="100h")).mint(OTP)
    finally:
        manager.ask("POST", "sys/mounts/ssh/tune", {"default_lease_ttl": "768h"})
    assert minted.expires_at is not None
    assert 0 < minted.expires_at - time.time() <= 600


async def test_a_retired_lease_is_revoked(manager: Manager) -> None:
    source = VaultLease(manager.approle())
    minted = await source.mint(OTP)
    verify = {"otp": minted.token}
    other = await source.mint(OTP)
    for _ in range(2):  # one that is revoked already is no error
        await source.retire(minted.token, minted.values)
    with pytest.raises(AssertionError, match="400"):
        manager.ask("POST", "ssh/verify", verify)
    assert manager.ask("POST", "ssh/verify", {"otp": other.token})["data"]["username"] == "ada"


async def test_a_retirement_that_is_not_allowed_is_none(manager: Manager) -> None:
    manager.allow("minting", {"ssh/creds/otp": ["update"]})
    source = VaultLease(manager.approle(token_policies=["minting"]))
    minted = await source.mint(OTP)
    with pytest.raises(SourceError):
        await source.retire(minted.token, minted.values)
    assert manager.ask("POST", "sys/leases/lookup", {"lease_id": minted.values["lease_id"]})


async def test_what_has_no_lease_is_no_leased_credential(manager: Manager) -> None:
    manager.put("prod/leaseless", password=CANARY)
    with pytest.raises(AnswerUnusable):
        await VaultLease(manager.approle()).mint({"path": "secret/data/prod/leaseless"})
    for wrong in ({"path": ""}, {**OTP, "with": "ip"}, {**OTP, "path": "../sys/mounts"}):
        with pytest.raises(GrantRefused):
            await VaultLease(manager.approle()).mint(wrong)


# --- tokens of its own ---------------------------------------------------------------------------


async def test_a_token_is_made_probed_and_retired(manager: Manager) -> None:
    source = VaultToken(manager.approle(), margin=10)
    minted = await source.mint({"policies": ["read-prod"], "ttl": "60s"})
    about = manager.ask("POST", "auth/token/lookup", {"token": minted.token})["data"]
    assert set(about["policies"]) == {"default", "read-prod"}
    assert minted.expires_at is not None
    assert abs(minted.expires_at + 10 - time.time() - 60) < 50
    assert minted.values == {"accessor": about["accessor"]}
    await source.probe(minted.token, minted.values)
    for _ in range(2):
        await source.retire(minted.token, minted.values)
    with pytest.raises(TokenRefused) as refused:
        await source.probe(minted.token, minted.values)
    assert minted.token not in all_known_at(refused.value)
    assert not manager.is_known(minted.token)


async def test_a_token_of_a_role_is_periodic_and_outlives_the_login(manager: Manager) -> None:
    role = {"allowed_policies": ["read-prod"], "orphan": True, "token_period": "2h"}
    manager.ask("POST", "auth/token/roles/periodic", role)
    source = VaultToken(manager.approle(token_ttl="600s"))
    periodic = await source.mint({"policies": ["read-prod"], "role": "periodic"})
    child = await source.mint({"policies": ["read-prod"], "ttl": "2h"})
    assert periodic.expires_at is not None
    assert child.expires_at is not None
    assert periodic.expires_at - time.time() > 6_000
    assert child.expires_at - time.time() <= 600  # with the login


async def test_a_grant_without_policies_gives_nothing(manager: Manager) -> None:
    source = VaultToken(manager.approle())
    none: list[str] = []
    for grant in ({}, {"policies": none}, {"policies": "read-prod"}, {"role": "periodic"}):
        with pytest.raises(GrantRefused):
            await source.mint(grant)


async def test_a_token_that_could_not_be_retired_is_not_used(manager: Manager) -> None:
    bare = {"allowed_policies": ["read-prod"], "token_no_default_policy": True}
    batch = {
        "allowed_policies": ["read-prod", "default"],
        "token_type": "batch",
        "orphan": True,
        "renewable": False,
    }
    manager.ask("POST", "auth/token/roles/bare", bare)
    manager.ask("POST", "auth/token/roles/batch", batch)
    for role in ("bare", "batch"):
        with pytest.raises(AnswerUnusable):
            await VaultToken(manager.approle()).mint({"policies": ["read-prod"], "role": role})


async def test_a_narrowed_token_may_do_less_and_ends_with_its_parent(manager: Manager) -> None:
    source = VaultToken(manager.approle(token_policies=["tenants", "read-prod", "narrowing"]))
    parent = await source.mint({"policies": ["read-prod", "narrowing"], "ttl": "90s"})
    child = await source.narrow(parent.token, parent.values, ["read-prod"])
    about = manager.ask("POST", "auth/token/lookup", {"token": child.token})["data"]
    assert set(about["policies"]) == {"default", "read-prod"}
    assert child.expires_at is not None
    assert child.expires_at - time.time() <= 90
    await source.probe(child.token, child.values)
    with pytest.raises(SourceError):
        await source.narrow(parent.token, parent.values, [])
    with pytest.raises(SourceError):
        await source.narrow(parent.token, parent.values, ["tenants"])
    with pytest.raises(SourceError):  # it may not make tokens
        await source.narrow(child.token, child.values, ["read-prod"])
    await source.retire(parent.token, parent.values)
    with pytest.raises(TokenRefused):
        await source.probe(child.token, child.values)


# --- logins --------------------------------------------------------------------------------------


async def test_a_login_is_renewed_when_it_is_refused(manager: Manager) -> None:
    source = VaultSecret(manager.approle())
    manager.put("prod/login", token="there")
    for _ in range(2):
        assert (await source.mint({"secret": "prod/login"})).token == "there"
        manager.ask("PUT", "sys/leases/revoke-prefix/auth/approle/login", {"sync": True})


async def test_a_login_serves_for_half_of_its_life(manager: Manager) -> None:
    manager.ask("PUT", "sys/leases/revoke-prefix/auth/approle/login", {"sync": True})
    manager.put("prod/login", token="there")
    source = VaultSecret(manager.approle(token_ttl="1h"))

    async def logins_after(seconds: float) -> int:
        with going_by(lambda: time.time() + seconds):
            await source.mint({"secret": "prod/login"})
        return len(manager.ask("LIST", "sys/leases/lookup/auth/approle/login/")["data"]["keys"])

    assert [await logins_after(seconds) for seconds in (0, 1_700, 1_900)] == [1, 1, 2]


async def test_many_who_mint_at_one_moment_log_in_once(manager: Manager) -> None:
    manager.ask("PUT", "sys/leases/revoke-prefix/auth/approle/login", {"sync": True})
    manager.put("prod/login", token="there")
    source = VaultSecret(manager.approle())
    minting = [source.mint({"secret": "prod/login"}) for _ in range(20)]
    assert {minted.token for minted in await asyncio.gather(*minting)} == {"there"}
    logins = manager.ask("LIST", "sys/leases/lookup/auth/approle/login/")["data"]["keys"]
    assert len(logins) == 1

    refused = VaultSecret(Vault(manager.address, {"role_id": "no"}, auth="approle"))
    minting = [refused.mint({"secret": "prod/login"}) for _ in range(20)]
    failures = await asyncio.gather(*minting, return_exceptions=True)
    assert {type(failure) for failure in failures} == {ProviderUnreachable}


async def test_a_pod_logs_in_with_its_service_accounts_file(
    manager: Manager, tmp_path: Path
) -> None:
    manager.put("prod/pod", token="there")
    file = tmp_path / "token"
    source = VaultSecret(Vault(manager.address, {"role": "pods", "jwt": file}, auth="kubernetes"))
    with pytest.raises(ProviderUnreachable, match="no file"):
        await source.mint({"secret": "prod/pod"})
    file.write_text("no.jwt.canary", "utf-8")
    with pytest.raises(ProviderUnreachable, match="refuses the source's login") as refused:
        await source.mint({"secret": "prod/pod"})
    assert "canary" not in all_known_at(refused.value)
    file.write_text(f"{manager.new_jwt()}\n", "utf-8")
    assert (await source.mint({"secret": "prod/pod"})).token == "there"


async def test_a_token_that_an_agent_keeps_is_read_anew_when_it_is_refused(
    manager: Manager, tmp_path: Path
) -> None:
    manager.put("prod/agent", token="there")
    file, token = tmp_path / "token", ""
    source = VaultSecret(Vault(manager.address, {"token": file}))
    for _ in range(2):
        made = manager.ask("POST", "auth/token/create", {"policies": ["tenants"]})
        token = made["auth"]["client_token"]
        file.write_text(token, "utf-8")
        assert (await source.mint({"secret": "prod/agent"})).token == "there"
        manager.ask("POST", "auth/token/revoke", {"token": token})
    with pytest.raises(ProviderUnreachable, match="refuses the source's login") as refused:
        await source.mint({"secret": "prod/agent"})
    assert token not in all_known_at(refused.value)


async def test_wrong_credentials_of_the_source_kill_no_grant(manager: Manager) -> None:
    login = {"role_id": "no", "secret_id": "secret-id-canary"}
    for failing in (
        Vault(manager.address, login, auth="approle"),
        Vault(manager.address, {"token": "token-canary"}),
        Vault(manager.address, {"token": "tøken-canary"}),
        Vault(manager.address, {"token": "token\r\nX-Canary: canary"}),
    ):
        assert "canary" not in repr(failing)
        with pytest.raises(SourceError) as refused:
            await VaultSecret(failing).mint({"secret": "prod/acme"})
        assert not isinstance(refused.value, GrantRefused)
        assert "canary" not in all_known_at(refused.value)


@pytest.mark.parametrize("address", ["http://bao.internal:8200", "bao.internal", "ftp://x"])
def test_no_login_goes_over_a_network_in_clear_text(address: str) -> None:
    with pytest.raises(AddressRefused):
        Vault(address, {"token": "canary"})


# --- failures ------------------------------------------------------------------------------------


async def test_a_manager_that_asks_for_patience_is_given_it(manager: Manager) -> None:
    manager.put("prod/slowly", token="there")
    source = VaultSecret(manager.approle())
    assert (await source.mint({"secret": "prod/slowly"})).token == "there"
    manager.ask("POST", "sys/quotas/config", {"enable_rate_limit_response_headers": True})
    quota = {"rate": 1, "interval": "30s", "path": "secret/"}
    manager.ask("POST", "sys/quotas/rate-limit/slowly", quota)
    try:
        assert (await source.mint({"secret": "prod/slowly"})).token == "there"
        with pytest.raises(RateLimited) as limited:
            await source.mint({"secret": "prod/slowly"})
    finally:
        manager.ask("DELETE", "sys/quotas/rate-limit/slowly")
    assert limited.value.retry_after is not None
    assert 0 <= limited.value.retry_after <= 30


async def test_a_sealed_manager_and_one_that_is_gone_are_unreachable(tmp_path: Path) -> None:
    with start_openbao(tmp_path) as server:
        source = VaultToken(Vault(server.address, {"token": ROOT}))
        minted = await source.mint({"policies": ["default"]})
        server.ask("PUT", "sys/seal")
        with pytest.raises(ProviderUnreachable, match="503") as sealed:
            await source.mint({"policies": ["default"]})
        assert not sealed.value.reached
        with pytest.raises(SourceError) as unknown:  # it does not say that the token is refused
            await source.probe(minted.token, minted.values)
        assert not isinstance(unknown.value, TokenRefused)
    with pytest.raises(ProviderUnreachable, match="cannot be reached") as gone:
        await source.mint({"policies": ["default"]})
    assert not gone.value.reached
    assert ROOT not in all_known_at(gone.value)


def answer(status: str, body: Any = None) -> bytes:
    text = "<html>" if body is None else json.dumps(body)
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


@pytest.mark.parametrize(
    ("said", "error", "reached"),
    [
        (b"", ReplyLost, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", ReplyLost, True),
        (answer("502 Bad Gateway"), ProviderUnreachable, True),
        (answer("503 Sealed"), ProviderUnreachable, False),
        (answer("307 Elsewhere"), ProviderUnreachable, False),
        (answer("200 OK"), AnswerUnusable, True),
        (answer("200 OK", []), AnswerUnusable, True),
        (answer("200 OK", {"auth": None}), AnswerUnusable, True),
    ],
)
async def test_it_is_said_whether_the_manager_may_have_done_it(
    manager: Manager, said: bytes, error: type[SourceError], reached: bool
) -> None:
    source = VaultToken(login := manager.approle())
    parent = await source.mint({"policies": ["tenants"]})
    await source.probe(parent.token, parent.values)
    async with start_failing(said) as address:
        login._base = f"{address}/v1/"  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(error) as failed:
            await source.mint({"policies": ["read-prod"]})
        with pytest.raises(SourceError) as unread:
            await VaultSecret(login).mint({"secret": "prod/acme"})
        with pytest.raises(SourceError) as unproven:
            await source.probe(parent.token, parent.values)
    assert failed.value.reached is reached
    assert not isinstance(unread.value, (ReplyLost, GrantRefused))  # nothing was to be lost
    assert not isinstance(unproven.value, TokenRefused)
    assert parent.token not in all_known_at(unproven.value)


async def test_a_manager_that_says_nothing_is_given_up(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = manager.approle()
    manager.put("prod/silent", token="there")
    await VaultSecret(login).mint({"secret": "prod/silent"})
    monkeypatch.setattr(vault, "TIMEOUT", 0.5)
    async with start_failing(None) as address:
        with pytest.raises(ProviderUnreachable, match="no answer"):  # to the login
            await VaultToken(Vault(address, {"token": "canary"})).mint({"policies": ["read-prod"]})
        login._base = f"{address}/v1/"  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(ReplyLost):
            await VaultToken(login).mint({"policies": ["read-prod"]})
        with pytest.raises(ProviderUnreachable, match="no answer"):
            await VaultSecret(login).mint({"secret": "prod/acme"})


def test_each_says_what_the_manager_can_do(manager: Manager) -> None:
    login = manager.approle()
    secret, lease, token = VaultSecret(login), VaultLease(login), VaultToken(login)
    assert all(isinstance(source, Source) for source in (secret, lease, token))
    assert not isinstance(secret, (Retires, Probes, Narrows))
    assert isinstance(lease, Retires)
    assert not isinstance(lease, (Probes, Narrows))
    assert isinstance(token, Retires)
    assert isinstance(token, Probes)
    assert isinstance(token, Narrows)
