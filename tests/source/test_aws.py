"""Secrets of AWS Secrets Manager, on moto's server."""

from __future__ import annotations

import json
import logging
from importlib import import_module
from typing import Any

import pytest

from stateful_workflow.errors import (
    AnswerUnusable,
    GrantRefused,
    ProviderUnreachable,
    RateLimited,
    SourceError,
)
from stateful_workflow.source import Probes, Retires, Source
from stateful_workflow.source.aws import SecretsManagerSource
from tests.support.secret_managers import aws_client_of, start_failing

CANARY = "aws-token-canary"


@pytest.fixture
def manager(aws: dict[str, Any]) -> Any:
    """boto3's own client, for what a person does at AWS."""
    return import_module("boto3").client("secretsmanager", **aws)


async def test_a_rotation_at_aws_goes_through_its_stages(aws: dict[str, Any], manager: Any) -> None:
    manager.create_secret(Name="rotated", SecretString="one\n")
    source = SecretsManagerSource(**aws)
    assert (await source.mint({"secret": "rotated"})).token == "one"

    next_one = "a" * 32
    manager.put_secret_value(
        SecretId="rotated",
        SecretString="two",
        ClientRequestToken=next_one,
        VersionStages=["AWSPENDING"],
    )
    assert (await source.mint({"secret": "rotated"})).token == "one"
    assert (await source.mint({"secret": "rotated", "stage": "AWSPENDING"})).token == "two"

    manager.put_secret_value(SecretId="rotated", SecretString="three")
    assert (await source.mint({"secret": "rotated"})).token == "three"
    assert (await source.mint({"secret": "rotated", "stage": "AWSPREVIOUS"})).token == "one"


async def test_a_grant_names_the_fields_of_a_secret_in_json(
    aws: dict[str, Any], manager: Any
) -> None:
    document = {"token": CANARY, "expires_on": "4102444800", "username": "ada"}
    arn = manager.create_secret(Name="json", SecretString=json.dumps(document))["ARN"]
    grant = {"secret": arn, "field": "token", "expires": "expires_on", "values": ["username"]}
    minted = await SecretsManagerSource(margin=60, **aws).mint(grant)
    assert (minted.token, minted.expires_at) == (CANARY, 4_102_444_800 - 60)
    assert minted.values == {"username": "ada"}


async def test_a_secret_that_is_to_be_deleted_is_a_refused_grant_until_it_is_restored(
    aws: dict[str, Any], manager: Any
) -> None:
    manager.create_secret(Name="deleted", SecretString=CANARY)
    manager.delete_secret(SecretId="deleted", RecoveryWindowInDays=7)
    source = SecretsManagerSource(**aws)
    with pytest.raises(GrantRefused, match="scheduled for deletion"):
        await source.mint({"secret": "deleted"})
    manager.restore_secret(SecretId="deleted")
    assert (await source.mint({"secret": "deleted"})).token == CANARY


async def test_a_secret_or_a_stage_that_is_not_found_kills_no_grant(
    aws: dict[str, Any], manager: Any
) -> None:
    source = SecretsManagerSource(**aws)
    with pytest.raises(ProviderUnreachable, match="ResourceNotFoundException") as unfound:
        await source.mint({"secret": "later"})
    assert "later" not in str(unfound.value)
    manager.create_secret(Name="later", SecretString="there")
    with pytest.raises(ProviderUnreachable, match="ResourceNotFoundException"):
        await source.mint({"secret": "later", "stage": "AWSPENDING"})
    assert (await source.mint({"secret": "later"})).token == "there"


async def test_a_secret_that_is_no_text_and_a_grant_without_one(
    aws: dict[str, Any], manager: Any
) -> None:
    manager.create_secret(Name="binary", SecretBinary=b"\x00")
    with pytest.raises(AnswerUnusable):
        await SecretsManagerSource(**aws).mint({"secret": "binary"})
    for grant in ({}, {"secret": ""}, {"secret": ["binary"]}, {"secret": "binary", "stage": 1}):
        with pytest.raises(GrantRefused):
            await SecretsManagerSource(**aws).mint(grant)


def refusal(status: str, code: str, *headers: str) -> bytes:
    body = json.dumps({"__type": code, "message": "no"})
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", body]).encode()


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (refusal("400 Bad", "AccessDeniedException"), ProviderUnreachable, "AccessDenied"),
        (refusal("400 Bad", "ExpiredTokenException"), ProviderUnreachable, "ExpiredToken"),
        (refusal("400 Bad", "DecryptionFailure"), ProviderUnreachable, "DecryptionFailure"),
        (refusal("400 Bad", "InvalidRequestException"), ProviderUnreachable, "InvalidRequest"),
        (refusal("500 Bad", "InternalServiceError"), ProviderUnreachable, "500"),
        (refusal("400 Bad", "ThrottlingException"), RateLimited, "patience"),
        (refusal("429 Slow", "Other", "Retry-After: 7"), RateLimited, "patience"),
        (b"", ProviderUnreachable, "could not be asked"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", AnswerUnusable, "no text"),
    ],
)
async def test_what_aws_says_of_the_caller_or_of_itself_kills_no_grant(
    answer: bytes, error: type[SourceError], says: str
) -> None:
    async with start_failing(answer) as endpoint:
        source = SecretsManagerSource(**aws_client_of(endpoint))
        with pytest.raises(error, match=says) as failed:
            await source.mint({"secret": "acme"})
    assert type(failed.value) is error
    assert failed.value.__context__ is None
    if b"Retry-After" in answer:
        assert isinstance(failed.value, RateLimited)
        assert failed.value.retry_after == 7


async def test_it_asks_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "botocore.endpoint")
    async with start_failing(refusal("500 Bad", "InternalServiceError")) as endpoint:
        with pytest.raises(ProviderUnreachable):
            await SecretsManagerSource(**aws_client_of(endpoint)).mint({"secret": "acme"})
    sent = [each for each in caplog.messages if each.startswith("Sending http request")]
    assert len(sent) == 1


async def test_aws_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stateful_workflow.source.aws.TIMEOUT", 0.5)
    async with start_failing(None) as endpoint:
        with pytest.raises(ProviderUnreachable, match="did not answer"):
            await SecretsManagerSource(**aws_client_of(endpoint)).mint({"secret": "acme"})


def test_it_says_nothing_that_aws_cannot(aws: dict[str, Any]) -> None:
    source = SecretsManagerSource(**aws)
    assert isinstance(source, Source)
    assert not isinstance(source, (Retires, Probes))
    assert "canary" not in repr(source)
