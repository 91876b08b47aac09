"""What users do today: an activity resolves a reference, with AWS's SDK.

The secret manager is moto's, in a process of its own on loopback: it answers faster than one
across a network, and slower than its protocol would need.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import arrivals
from temporalio import activity

DEFAULT_REFRESH_SECONDS = 3600
"""What AWS's caching library is set to where nothing is said."""


class SecretManager:
    """A client of the secret manager, and the activities that ask it.

    Args:
        address: of the server.
        refresh_seconds: the longest that the cache keeps a value.
    """

    def __init__(self, address: str, refresh_seconds: int) -> None:
        import boto3
        from aws_secretsmanager_caching import SecretCache, SecretCacheConfig
        from botocore.config import Config

        self._client = boto3.client(
            "secretsmanager",
            endpoint_url=address,
            region_name="eu-central-1",
            aws_access_key_id="none",
            aws_secret_access_key="none",
            config=Config(max_pool_connections=50),
        )
        self._cache = SecretCache(
            SecretCacheConfig(secret_refresh_interval=refresh_seconds), self._client
        )

    def create(self, reference: str, secret: str) -> None:
        self._client.create_secret(Name=reference, SecretString=secret)

    def rotate(self, reference: str, secret: str) -> None:
        self._client.put_secret_value(SecretId=reference, SecretString=secret)

    def activities(self) -> list[Any]:
        return [self.resolve_uncached, self.resolve_cached]

    @activity.defn
    def resolve_uncached(self, reference: str) -> None:
        secret = self._client.get_secret_value(SecretId=reference)["SecretString"]
        arrivals.note(f"{secret} given")

    @activity.defn
    def resolve_cached(self, reference: str) -> None:
        arrivals.note(f"{self._cache.get_secret_string(reference)} given")


@contextmanager
def start_server() -> Iterator[str]:
    """Run moto's server; gives its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        if not ours.poll(60):
            raise TimeoutError("moto's server did not start")
        yield ours.recv()
    finally:
        ours.send(None)
        process.join(10)
        process.kill()


def _serve(connection: Connection) -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    connection.send(f"http://{host}:{port}")
    connection.recv()
    server.stop()
