"""Every request on its way out: what a redirect takes along, and whose 401 means anything."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    QueryWorkflowInput,
    SignalWorkflowInput,
)
from temporalio.worker import Worker

from stateful_workflow import Keyring, StatefulPlugin, TokenClient
from stateful_workflow.engine import EmbeddedEngine
from tests.support.api import Api, start_api, start_hosts
from tests.support.asking import is_reported, lower, status_of
from tests.support.use_places import (
    KINDS,
    NEVER_OLD,
    Place,
    Root,
    place_of,
    start,
)
from tests.support.use_workflows import ASYNC_ACTIVITIES, USE_WORKFLOWS, Caller

pytestmark = pytest.mark.usefixtures("workflows")


@dataclass
class Asked(Interceptor):
    """What an activity worker's client asks of workflows or tells them, in order."""

    calls: list[str] = field(default_factory=list[str])

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        calls = self.calls

        class Outbound(OutboundInterceptor):
            async def query_workflow(self, input: QueryWorkflowInput) -> Any:
                calls.append(f"query {input.query}")
                return await super().query_workflow(input)

            async def signal_workflow(self, input: SignalWorkflowInput) -> None:
                calls.append(f"signal {input.signal}")
                await super().signal_workflow(input)

        return Outbound(next)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    # What came with the activity is not asked for again because of its age.
    lower(monkeypatch, fresh_seconds=NEVER_OLD)
    return Asked()


@pytest.fixture
async def user(engine: EmbeddedEngine, keyring: Keyring, asked: Asked) -> Client:
    return await Client.connect(
        engine.address,
        namespace=engine.namespace,
        plugins=[StatefulPlugin(keyring)],
        interceptors=[asked],
    )


@pytest.fixture
async def workflows(client: Client, queue: str) -> AsyncIterator[Worker]:
    async with Worker(
        client, task_queue=queue, workflows=USE_WORKFLOWS, activities=ASYNC_ACTIVITIES
    ) as worker:
        yield worker


@pytest.fixture(params=["async", "thread"])
async def place(request: pytest.FixtureRequest, user: Client, queue: str) -> AsyncIterator[Place]:
    async with place_of(request.param, user, queue) as place:
        yield place


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        api.valid = {"first"}
        yield api


async def test_a_key_that_one_origin_gets_is_not_copied_into_a_redirect_to_another(
    tokens: TokenClient, queue: str, api: Api, place: Place, asked: Asked
) -> None:
    root = await start(tokens, queue, api)
    with start_api() as other:
        job = place.job(
            f"{api.url('to')}?url={other.url('x')}", key=True, follow=True, only_for=api.origin
        )
        assert await root.execute_update(Caller.do, job) == ["401"]

        assert (api.tokens(), other.tokens()) == (["first"], [None])
    assert asked.calls == []


# --- between hosts, by name ----------------------------------------------------------------------

HERE = "api.example.com"
ALSO_SIGNED = "a.eu.example.com"
NOT_SIGNED = "evil.example"


@dataclass
class Hosts:
    """An activity's world: whatever the host of an address, this server answers for it."""

    api: Api
    root: Root
    place: Place
    uds: str

    async def ask(self, *urls: str, **options: Any) -> list[str]:
        """What an activity says that asks each address, redirects followed."""
        job = self.place.job(*urls, uds=self.uds, follow=True, **options)
        return await self.root.execute_update(Caller.do, job)

    def sent(self) -> list[tuple[str, str, str | None]]:
        """Host, path and token of each request that reached the server."""
        return [(call.host, call.path, call.token) for call in self.api.calls]


@pytest.fixture
async def hosts(
    tokens: TokenClient, queue: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Hosts]:
    names = [HERE, ALSO_SIGNED, NOT_SIGNED, "xn--bcher-kva.example", "2001:db8::1", "127.0.0.1"]
    # Paths of sockets are short, so no tmp_path.
    with (
        tempfile.TemporaryDirectory() as directory,
        start_hosts(Path(directory), *names, f"{HERE}.{NOT_SIGNED}") as api,
    ):
        monkeypatch.setenv("SSL_CERT_FILE", str(Path(directory, "certificate.pem")))
        api.valid = {"first"}
        origins = [
            f"https://{HERE}",
            "https://*.eu.example.com",
            "https://bücher.example",
            "https://[2001:db8::1]",
        ]
        root = await start(tokens, queue, api, origins=origins)
        yield Hosts(api, root, place, str(Path(directory, "socket")))


def redirected(*locations: str, by: str = HERE) -> list[str]:
    """Addresses of a host that redirects to each of these."""
    return [f"https://{by}/to?url={quote(location)}" for location in locations]


@KINDS
async def test_a_signed_host_gets_the_token_in_whatever_form_it_is_written(
    hosts: Hosts, key: bool
) -> None:
    asked_for = {
        "https://api.example.com/x": HERE,
        "HTTPS://API.Example.COM/x": HERE,
        "https://API.example.com:443/x": HERE,
        "https://api。example．com/x": HERE,
        "https://a.EU.example.com/x": ALSO_SIGNED,
        "https://BÜCHER.example/x": "xn--bcher-kva.example",
        "https://[2001:db8::1]/x": "[2001:db8::1]",
        "https://[2001:DB8:0:0::1]/x": "[2001:DB8:0:0::1]",
    }
    assert await hosts.ask(*asked_for, key=key) == ["200"] * len(asked_for)
    assert hosts.sent() == [(host, "/x", "first") for host in asked_for.values()]


SAME_ORIGIN = [
    "/x",
    "x",
    f"//{HERE}/x",
    f"https://{HERE}/x",
    f"https://{HERE}:443/x",
    f"https://{HERE}:/x",
    f"HTTPS://{HERE.upper()}/x",
    "https://api。example．com/x",
    # Without a host httpx takes that of the address before.
    "https:/x",
    "https:///x",
    "https:/evil.example/x",
]


@KINDS
async def test_a_redirect_within_the_origin_takes_the_token_along(hosts: Hosts, key: bool) -> None:
    answers = await hosts.ask(*redirected(*SAME_ORIGIN), key=key)

    assert answers == ["200"] * len(SAME_ORIGIN)
    assert len(hosts.sent()) == 2 * len(SAME_ORIGIN)
    assert {token for _, _, token in hosts.sent()} == {"first"}
    assert {host.removesuffix(":443") for host, _, _ in hosts.sent()} == {HERE}


ELSEWHERE = {
    # Another host.
    f"https://{NOT_SIGNED}/x": f"https://{NOT_SIGNED}",
    f"//{NOT_SIGNED}/x": f"https://{NOT_SIGNED}",
    f":https://{NOT_SIGNED}/x": f"https://{NOT_SIGNED}",
    f"https://{HERE}.{NOT_SIGNED}/x": f"https://{HERE}.{NOT_SIGNED}",
    "https://example.com/x": "https://example.com",
    "https://b.a.eu.example.com/x": "https://b.a.eu.example.com",
    "https://eu.example.com/x": "https://eu.example.com",
    # Another scheme or port.
    f"http://{HERE}/x": f"http://{HERE}",
    f"http://{HERE}:443/x": f"http://{HERE}:443",
    "http:/x": f"http://{HERE}",
    f"ftp://{HERE}/x": f"ftp://{HERE}",
    f"https://{HERE}:8443/x": f"https://{HERE}:8443",
    f"https://{HERE}:80/x": f"https://{HERE}:80",
    f"https://{HERE}:0/x": f"https://{HERE}:0",
    f"https://{HERE}:65536/x": f"https://{HERE}:65536",
    # User information that looks like a host.
    f"https://{HERE}@{NOT_SIGNED}/x": f"https://{NOT_SIGNED}",
    f"https://{HERE}:443@{NOT_SIGNED}/x": f"https://{NOT_SIGNED}",
    f"//{HERE}%40@{NOT_SIGNED}/x": f"https://{NOT_SIGNED}",
    # Written otherwise.
    f"https://{HERE}./x": f"https://{HERE}.",
    f"https://{HERE}。/x": f"https://{HERE}.",
    "https://api%2eexample.com/x": "https://api%2eexample.com",
    f"https://{HERE}%00.{NOT_SIGNED}/x": f"https://{HERE}%00.{NOT_SIGNED}",
    f"https://{HERE}\\.{NOT_SIGNED}/x": f"https://{HERE}\\.{NOT_SIGNED}",
    # Addresses.
    "https://127.0.0.1/x": "https://127.0.0.1",
    "https://2130706433/x": "https://2130706433",
    "https://0x7f000001/x": "https://0x7f000001",
    "https://[::1]/x": "https://[::1]",
    "https://[::ffff:127.0.0.1]/x": "https://[::ffff:127.0.0.1]",
    "https://[2001:db8::1%25eth0]/x": "https://[2001:db8::1%25eth0]",
    "https://[2001:db8::2]/x": "https://[2001:db8::2]",
}


async def test_a_key_is_refused_to_every_redirect_elsewhere(hosts: Hosts, asked: Asked) -> None:
    answers = await hosts.ask(*redirected(*ELSEWHERE), key=True)

    for answer, origin in zip(answers, ELSEWHERE.values(), strict=True):
        assert answer.startswith(f"OriginNotAllowed: apiToken may not be sent to {origin};")
        assert "first" not in answer
    # Nothing went there, with the key or without.
    assert hosts.sent() == [(HERE, "/to", "first")] * len(ELSEWHERE)
    assert asked.calls == []


async def test_authorization_is_taken_along_to_no_redirect_elsewhere(
    hosts: Hosts, asked: Asked
) -> None:
    answers = await hosts.ask(*redirected(*ELSEWHERE))

    # Most of these hosts answer here, and the others to nobody.
    assert set(answers) <= {
        "401",
        "ConnectError",
        "ReadError",
        "RemoteProtocolError",
        "UnsupportedProtocol",
    }
    assert answers.count("401") > 5
    got = {(path, token) for _, path, token in hosts.sent()}
    assert got == {("/to", "first"), ("/x", None)}
    assert asked.calls == []


@pytest.mark.parametrize(
    "location", [f"https://u:secret@{HERE}/x", f"https://{NOT_SIGNED}\\@{HERE}/x"]
)
async def test_a_redirect_with_user_information_takes_a_key_nowhere_and_a_bearer_no_further(
    hosts: Hosts, location: str
) -> None:
    (answer,) = await hosts.ask(*redirected(location), key=True)
    assert answer == (
        f"OriginNotAllowed: apiToken may not be sent to https://{HERE} with user information in "
        "its URL"
    )
    assert hosts.sent() == [(HERE, "/to", "first")]

    # httpx sees the same origin and goes there.
    assert await hosts.ask(*redirected(location)) == ["200"]
    assert hosts.sent()[1:] == [(HERE, "/to", "first"), (HERE, "/x", "first")]


async def test_a_key_is_checked_at_every_hop(hosts: Hosts) -> None:
    third = redirected(f"https://{NOT_SIGNED}/x", by=ALSO_SIGNED)
    second = redirected(*third)
    (answer,) = await hosts.ask(*redirected(*second), key=True)

    assert answer.startswith(f"OriginNotAllowed: apiToken may not be sent to https://{NOT_SIGNED};")
    assert hosts.sent() == [
        (HERE, "/to", "first"),
        (HERE, "/to", "first"),
        (ALSO_SIGNED, "/to", "first"),
    ]


@KINDS
@pytest.mark.parametrize(
    "beside",
    [
        {"headers": {"Host": NOT_SIGNED}},
        {"extensions": {"target": f"https://{NOT_SIGNED}/x"}},
        {"extensions": {"sni_hostname": NOT_SIGNED}},
    ],
    ids=["Host", "target", "sni_hostname"],
)
async def test_a_request_that_names_another_host_beside_its_url_does_not_leave(
    hosts: Hosts, key: bool, beside: dict[str, Any]
) -> None:
    (answer,) = await hosts.ask(f"https://{HERE}/x", key=key, **beside)

    assert answer.startswith(f"OriginNotAllowed: apiToken may not be sent to https://{HERE} with ")
    assert hosts.sent() == []


# --- whose 401 -----------------------------------------------------------------------------------


@KINDS
async def test_a_401_of_the_origin_that_was_asked_is_asked_about_and_reported(
    hosts: Hosts, asked: Asked, client: Client, queue: str, key: bool
) -> None:
    hosts.api.valid = set()

    assert await hosts.ask(f"https://{HERE}/x", key=key) == ["401"]

    assert asked.calls == ["query apiToken"]
    assert hosts.sent() == [(HERE, "/x", "first")]
    await is_reported(client, queue)


@pytest.mark.parametrize("elsewhere", [NOT_SIGNED, ALSO_SIGNED])
async def test_a_401_of_another_origin_than_the_one_asked_triggers_nothing(
    hosts: Hosts, asked: Asked, client: Client, queue: str, elsewhere: str
) -> None:
    assert await hosts.ask(*redirected(f"https://{elsewhere}/x")) == ["401"]

    assert asked.calls == []
    assert hosts.sent() == [(HERE, "/to", "first"), (elsewhere, "/x", None)]
    assert (await status_of(client, queue))["reports"] == {}


async def test_a_401_after_redirects_elsewhere_and_back_triggers_nothing(
    hosts: Hosts, asked: Asked, client: Client, queue: str
) -> None:
    # It comes from the origin that was asked, to a request without the token.
    back = redirected(f"https://{HERE}/x", by=NOT_SIGNED)
    assert await hosts.ask(*redirected(*back)) == ["401"]

    assert asked.calls == []
    assert hosts.sent() == [(HERE, "/to", "first"), (NOT_SIGNED, "/to", None), (HERE, "/x", None)]
    assert (await status_of(client, queue))["reports"] == {}


async def test_a_key_that_a_second_signed_origin_refuses_was_asked_there(
    hosts: Hosts, asked: Asked, client: Client, queue: str
) -> None:
    # The transport asks each hop by itself: this one got the key, and refused it.
    hosts.api.valid = set()

    assert await hosts.ask(*redirected(f"https://{ALSO_SIGNED}/x"), key=True) == ["401"]

    assert asked.calls == ["query apiToken"]
    assert hosts.sent() == [(HERE, "/to", "first"), (ALSO_SIGNED, "/x", "first")]
    await is_reported(client, queue)


@KINDS
async def test_no_other_status_than_401_triggers_anything(
    hosts: Hosts, asked: Asked, key: bool
) -> None:
    assert await hosts.ask(f"https://{HERE}/x", *redirected("/x"), key=key) == ["200", "200"]
    assert asked.calls == []
