"""Where requests and aiohttp would go on a redirect, the token goes only if that was signed."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stateful_workflow import StatefulError
from tests.support.api import Api, start_hosts
from tests.support.builders import TOKEN
from tests.support.clients import Asking, Kept, Maker, holding, in_activity
from tests.use.test_redirects import ALSO_SIGNED, ELSEWHERE, HERE, NOT_SIGNED, redirected

BY = pytest.mark.parametrize("by", ["requests", "aiohttp"])
HEADER = pytest.mark.parametrize("header", [None, "X-API-Key"], ids=["bearer", "key"])


@dataclass
class Proxy:
    """Connects whoever asks for any host to one Unix socket, and notes which host that was."""

    url: str
    asked: list[str] = field(default_factory=list[str])


@contextmanager
def start_proxy(to: Path) -> Generator[Proxy, None, None]:
    def carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve(client: socket.socket) -> None:
        with closing(client), socket.socket(socket.AF_UNIX) as server:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (byte := client.recv(1)):
                    return
                head += byte
            method, target, _ = head.split(b" ", 2)
            proxy.asked.append(target.decode())
            if method != b"CONNECT" or TOKEN.encode() in head:
                return
            server.connect(str(to))
            client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            back = threading.Thread(target=carry, args=(server, client), daemon=True)
            back.start()
            carry(client, server)
            back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
        threading.Thread(target=accept, daemon=True).start()
        yield proxy


@dataclass
class World:
    """Every host answers here, and two of them are signed."""

    api: Api
    proxy: Proxy
    kept: Kept
    tokens: Maker
    errors: list[str] = field(default_factory=list[str])

    async def ask(self, by: str, url: str, **options: Any) -> str:
        try:
            answer = await in_activity(self.tokens, Asking(by, url, **options))
        except (StatefulError, ValueError) as error:
            self.errors.append(str(error))
            return type(error).__name__
        return answer.text if answer.status is None else str(answer.status)

    def sent(self) -> list[tuple[str, str, str | None]]:
        return [(call.host, call.path, call.token) for call in self.api.calls]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    names = [HERE, ALSO_SIGNED, NOT_SIGNED, f"{HERE}.{NOT_SIGNED}"]
    with tempfile.TemporaryDirectory() as directory, start_hosts(Path(directory), *names) as api:
        api.valid = {TOKEN}
        certificate = str(Path(directory, "certificate.pem"))
        with start_proxy(Path(directory, "socket")) as proxy:
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
            for name, value in (
                ("HTTPS_PROXY", proxy.url),
                ("HTTP_PROXY", proxy.url),
                ("REQUESTS_CA_BUNDLE", certificate),
                ("SSL_CERT_FILE", certificate),
            ):
                monkeypatch.setenv(name, value)
            kept = Kept()
            origins = [f"https://{HERE}", "https://*.eu.example.com"]
            yield World(api, proxy, kept, holding(kept, origins))


@BY
@HEADER
async def test_redirects_to_signed_origins_take_the_token_along(
    world: World, by: str, header: str | None
) -> None:
    (there,) = redirected(f"https://{ALSO_SIGNED}/x")
    (back,) = redirected(f"https://{HERE.upper()}:443/x", by=ALSO_SIGNED)

    for url in (f"https://{HERE}/x", f"https://{HERE}:443/x", *redirected("/x"), there, back):
        assert await world.ask(by, url, header=header) == "200"

    assert {token for _, _, token in world.sent()} == {TOKEN}
    assert len(world.kept.said()) == len(world.sent()) == 8


@BY
@HEADER
async def test_no_redirect_elsewhere_takes_the_token_along(
    world: World, by: str, header: str | None
) -> None:
    answers = [await world.ask(by, url, header=header) for url in redirected(*ELSEWHERE)]

    # Most are refused, some are no address to these clients, and one is a path to them.
    assert answers.count("OriginNotAllowed") > len(ELSEWHERE) / 2
    assert answers.count("200") <= 2
    assert {(host, token) for host, _, token in world.sent()} == {(HERE, TOKEN)}
    assert set(world.proxy.asked) == {f"{HERE}:443"}
    assert not [error for error in world.errors if TOKEN in error]


@BY
async def test_a_token_is_checked_at_every_hop(world: World, by: str) -> None:
    (third,) = redirected(f"https://{NOT_SIGNED}/x", by=ALSO_SIGNED)
    (first,) = redirected(third)

    assert await world.ask(by, first) == "OriginNotAllowed"
    assert world.sent() == [(HERE, "/to", TOKEN), (ALSO_SIGNED, "/to", TOKEN)]
    assert [reason for *_, reason in world.kept.said("refuse")] == ["OriginNotAllowed"]
