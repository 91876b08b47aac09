"""Secrets of AWS Secrets Manager; needs ``stateful-workflow[aws]``."""

from __future__ import annotations

import asyncio
import threading
from importlib import import_module
from typing import Any, Final

from ..errors import (
    AnswerUnusable,
    GrantRefused,
    ProviderUnreachable,
    RateLimited,
    SourceError,
    StatefulError,
)
from .clock import now as unix_now
from .exchange import TIMEOUT, retry_after
from .protocol import Grant, Minted
from .secret import minted, named

try:  # neither has types
    _boto3: Any = import_module("boto3.session")
    _botocore: Any = import_module("botocore.exceptions")
    _config: Any = import_module("botocore.config")
except ModuleNotFoundError:
    raise StatefulError(
        "SecretsManagerSource needs boto3: pip install 'stateful-workflow[aws]'"
    ) from None

_THROTTLED: Final = {"ThrottlingException", "Throttling", "TooManyRequestsException"}


class SecretsManagerSource:
    """Gives a stage of a secret, which the grant names: ``{"secret": "prod/acme"}``.

    The grant may name the ``stage`` too, AWSCURRENT where it does not, and the fields of a secret
    in JSON as `stateful_workflow.source.secret.minted` reads them. There is no `Retires` and no
    `Probes`: AWS keeps what another API gave out, and cannot say whether that API still takes it.

    A secret that is scheduled for deletion is a refused grant: AWS says so of the secret itself,
    and nothing but a person's restoring it brings it back. One that is not found or not allowed is
    none: AWS answers the same where a region, a policy or a key is wrong or was changed just now,
    which is mended without anybody who authorizes.

    Args:
        margin: as `EnvironmentSource`.
        client: of ``boto3``'s client besides its time-outs and retries, such as ``region_name``.
    """

    def __init__(self, *, margin: float = 0, **client: Any) -> None:
        self.margin = margin
        self._options = client
        self._client: Any = None
        self._making = threading.Lock()

    async def mint(self, grant: Grant) -> Minted:
        """Ask for the secret's value: one request, which changes nothing at AWS."""
        wanted = {
            "SecretId": named(grant, "secret"),
            "VersionStage": named(grant, "stage", "AWSCURRENT"),
        }
        try:
            answer = await asyncio.wait_for(asyncio.to_thread(self._ask, wanted), TIMEOUT)
        except (TimeoutError, asyncio.TimeoutError):
            answer: Any = ProviderUnreachable(f"AWS did not answer within {TIMEOUT:g} s")
        if isinstance(answer, SourceError):
            raise answer
        text = answer.get("SecretString")
        if not isinstance(text, str):
            raise AnswerUnusable("the secret is no text")
        return minted(text, grant, self.margin, unix_now())

    def _ask(self, wanted: dict[str, str]) -> Any:
        """The answer, or a `SourceError`; one that was raised here would carry boto3's."""
        try:
            with self._making:  # a session is one thread's, the client that it makes everybody's
                if self._client is None:
                    once = {"connect_timeout": 3, "read_timeout": 4}
                    config = _config.Config(**once, retries={"total_max_attempts": 1})
                    make = _boto3.Session().client
                    self._client = make("secretsmanager", config=config, **self._options)
            try:
                return self._client.get_secret_value(**wanted)
            except self._client.exceptions.InvalidRequestException as error:
                described = self._client.describe_secret(SecretId=wanted["SecretId"])
                if described.get("DeletedDate") is not None:
                    return GrantRefused("AWS says that the secret is scheduled for deletion")
                return _passing(error)
        except _botocore.ClientError as error:
            return _passing(error)
        except _botocore.BotoCoreError as error:
            return ProviderUnreachable(f"AWS could not be asked ({type(error).__name__})")


def _passing(error: Any) -> SourceError:
    meta: dict[str, Any] = error.response.get("ResponseMetadata", {})
    code, status = error.response.get("Error", {}).get("Code"), meta.get("HTTPStatusCode")
    if code in _THROTTLED or status == 429:
        after = retry_after(meta.get("HTTPHeaders", {}).get("retry-after"), unix_now())
        return RateLimited(f"AWS asks for patience ({code})", after)
    return ProviderUnreachable(f"AWS answered {code} ({status})")
