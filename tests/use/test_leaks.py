"""No secret is found in the engine, in histories, in logs, or in what objects print.

Each search is shown to be able to fail: a marker that goes the same ways as the tokens
would, or one planted on purpose, is found.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import gc
import inspect
import json
import logging
import pickle
import pprint
import secrets
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from temporalio.client import Client, WorkflowFailureError
from temporalio.testing import ActivityEnvironment
from temporalio.worker import Worker

import stateful_workflow
from stateful_workflow import (
    ApiToken,
    AsyncOriginTransport,
    Keyring,
    NewGrant,
    NewToken,
    NotConverged,
    NotRenewed,
    OriginTransport,
    Resolver,
    SourceStatus,
    StatefulError,
    StatefulPlugin,
    StatefulWorkflow,
    TokenAuth,
    TokenClient,
    TokenProvider,
    TokenStatus,
    TokenTree,
    TreeNode,
    WorkflowAsleep,
)
from stateful_workflow.demo.api import TokenApi
from stateful_workflow.engine import start_engine
from stateful_workflow.node.headers import Use
from stateful_workflow.sealed.message import Claims, parse
from stateful_workflow.sealed.secret import Secret
from stateful_workflow.use.newest import Newest
from stateful_workflow.use.tokens import ActivityTokens, running
from tests.support.api import Api, start_api
from tests.support.asking import eventually, next_run, run_id, sealed_at, status_of
from tests.support.builders import jwks, keyring_of, unrecorded
from tests.support.use_workflows import ASYNC_ACTIVITIES, USE_WORKFLOWS, Caller, Clumsy, Job

# --- the search ----------------------------------------------------------------------------------


def spellings(secret: bytes) -> dict[str, bytes]:
    """The forms in which a secret may stand somewhere."""
    forms = {
        "raw": secret,
        "hex": secret.hex().encode(),
        "HEX": secret.hex().upper().encode(),
        "url": b"".join(b"%%%02X" % byte for byte in secret),
        "url, where needed": httpx.QueryParams({"": secret.decode("latin-1")})
        .__str__()
        .encode()[1:],
    }
    for before in range(3):
        text = base64.b64encode(bytes(before) + secret)
        # Its first and last characters depend on what stands before and after.
        text = text[-(-before * 8 // 6) : (before + len(secret)) * 8 // 6]
        forms[f"base64, {before} bytes in"] = text
        forms[f"base64url, {before} bytes in"] = text.translate(bytes.maketrans(b"+/", b"-_"))
    return forms


def found(secret: str | bytes, where: bytes) -> list[str]:
    """The names of the forms in which a secret stands there."""
    data = secret.encode() if isinstance(secret, str) else secret
    return [name for name, form in spellings(data).items() if form in where]


def new_secret(name: str) -> str:
    """Characters that every encoding changes, and enough chance to be found nowhere else."""
    return f"{name}+{secrets.token_hex(8)}/~{secrets.token_hex(8)}="


@pytest.mark.parametrize("before", range(6))
def test_the_search_finds_a_secret_in_each_of_its_forms_and_within_encoded_data(
    before: int,
) -> None:
    secret = new_secret("planted")
    for form, planted in spellings(secret.encode()).items():
        assert form in found(secret, b"x" * before + planted + b'"}')
        assert found(secret, planted[1:]) == []
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert found(secret, encode(b"x" * before + secret.encode() + b"and more"))


# --- the tree ------------------------------------------------------------------------------------


@pytest.fixture
def api() -> Iterator[Api]:
    with start_api() as api:
        yield api


async def is_started(tokens: TokenClient, workflow_id: str) -> None:
    async def answers() -> bool:
        try:
            return await tokens.status(workflow_id) is not None
        except StatefulError:
            return False

    await eventually(answers)


async def live(
    client: Client, keyring: Keyring, api: Api, queue: str, marker: str, secret: dict[str, str]
) -> tuple[list[object], dict[str, bytes]]:
    """Let a tree do everything; what was shown meanwhile, and its histories by kind of export."""
    tokens = TokenClient(client, keyring)
    shown: list[object] = []
    root = await tokens.start_workflow(
        Clumsy.run,
        args=[marker, True],
        id=queue,
        task_queue=queue,
        api_token=secret["first"],
        api_url=api.origin,
        memo={"note": marker},
        static_summary=marker,
    )
    await is_started(tokens, f"{queue}-child")
    child = client.get_workflow_handle_for(Caller.run, f"{queue}-child")
    await tokens.rotate(queue, secret["second"], timeout=20)
    await tokens.rotate(queue, secret["other"], name="other", origins=[api.origin], timeout=20)

    # Used, refused, kept from another origin, in both kinds of headers.
    api.valid = {secret["second"]}
    for key in (False, True):
        for name in ("apiToken", "other"):
            job = Job([api.url("x"), "http://127.0.0.1:1/x"], key=key, name=name)
            shown.append(await child.execute_update(Caller.do, job))
    assert {call.status for call in api.calls} == {200, 401}

    # A failed activity.
    shown.append(await root.execute_update(Clumsy.fail_activities, marker))

    # Queries.
    for node in (queue, f"{queue}-child"):
        handle = client.get_workflow_handle(node)
        shown.append(await handle.query("apiToken"))
        shown.append(await handle.query("__stack_trace"))
        shown.append(await status_of(client, node))
        shown.append(await tokens.get(node))
    shown.append(await tokens.tree(queue))

    # A token that an activity of an issuer sealed.
    assert await root.execute_update(Clumsy.take_from_vault) == "held"

    # Continue-as-new, and a message that is not taken.
    first_run = await run_id(client, queue)
    await root.signal(Clumsy.go_on)
    await next_run(client, queue, first_run)
    second_run = await run_id(client, queue)
    latest = client.get_workflow_handle(queue)
    await latest.signal("apiToken", f"{await sealed_at(client, queue)}x")
    await tokens.rotate(queue, secret["third"], timeout=20)

    # A failed workflow.
    await latest.signal("break_down", marker)
    with pytest.raises(WorkflowFailureError):
        await latest.result()
    shown.append(await tokens.status(queue))

    histories = {"bytes": b"", "JSON": b"", "description": b""}
    for node, run in ((queue, first_run), (queue, second_run), (f"{queue}-child", None)):
        handle = client.get_workflow_handle(node, run_id=run)
        history = await handle.fetch_history()
        histories["bytes"] += b"".join(e.SerializeToString() for e in history.events)
        histories["JSON"] += history.to_json().encode()
        described = await handle.describe()
        histories["description"] += described.raw_description.SerializeToString()
    return shown, histories


def files_of(db: Path) -> bytes:
    """The database as it stands on disk, and its values, which may be spread over pages."""
    files = [path.read_bytes() for path in sorted(db.parent.glob(f"{db.name}*"))]
    with (
        closing(sqlite3.connect(f"{db.as_uri()}?mode=ro", uri=True, timeout=20)) as engine,
        closing(sqlite3.connect(":memory:")) as values,
    ):
        engine.backup(values)
        values.text_factory = bytes
        tables = values.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        rows = [
            value
            for (table,) in tables
            for row in values.execute(f'SELECT * FROM "{table.decode()}"')
            for value in row
            if isinstance(value, bytes)
        ]
    return b"\n".join([*files, *rows])


async def test_a_tree_that_rotates_fails_and_goes_on_leaves_its_secrets_nowhere(
    tmp_path: Path,
    api: Api,
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    marker = new_secret("marker")
    secret = {name: new_secret(name) for name in ("first", "second", "third", "vault", "other")}
    monkeypatch.setenv("TEST_VAULT", secret["vault"])
    keyring = Keyring.generate()
    async with start_engine(db=tmp_path / "temporal.db", ui=False) as engine:
        client = await Client.connect(engine.address, plugins=[StatefulPlugin(keyring)])
        async with Worker(
            client,
            task_queue=queue,
            workflows=USE_WORKFLOWS,
            activities=ASYNC_ACTIVITIES,
            max_cached_workflows=0,  # so that histories are read again and again
            max_concurrent_workflow_tasks=1,
        ):
            shown, histories = await live(client, keyring, api, queue, marker, secret)
        stored = files_of(tmp_path / "temporal.db")

    logging.getLogger("tests.leaks").debug("Planted: %s", marker)
    print(marker)
    places = {
        "engine": stored,
        # With all that a structured logger would print of a record.
        "logs": (caplog.text + repr([vars(record) for record in caplog.records])).encode(),
        "printed": "".join(capfd.readouterr()).encode(),
        "shown": repr([marker, *shown]).encode(),
        **histories,
    }
    unseen = [place for place, data in places.items() if not found(marker, data)]
    assert unseen == [], "nothing would be found there"
    leaks = {
        (place, name, form)
        for place, data in places.items()
        for name, value in {**secret, **private_keys(keyring)}.items()
        for form in found(value, data)
    }
    assert leaks == set()
    # The run had what the search is for.
    assert b"fail_holding" in places["JSON"]
    assert b"is not JSON serializable" in places["bytes"]
    assert b"An activity failed" in places["logs"]
    assert b"OriginNotAllowed" in places["shown"]


def private_keys(keyring: Keyring) -> dict[str, bytes]:
    keys = json.loads(keyring.to_json())["keys"]
    return {f"key {key['crv']}": base64.urlsafe_b64decode(key["d"] + "==") for key in keys}


# --- objects -------------------------------------------------------------------------------------

SECRET = new_secret("held")
CLAIMS = Claims("apiToken", "default", "acme", "tree", "acme", 1, origins=("https://a.example",))


def dump(thing: object) -> bytes:
    """All that ordinary code prints of an object."""
    texts = [repr(thing), str(thing), f"{thing}", pprint.pformat(thing), repr([thing])]
    if hasattr(thing, "__dict__"):
        texts.append(repr(vars(thing)))
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        texts += [repr(dataclasses.asdict(thing)), repr(dataclasses.astuple(thing))]
    if isinstance(thing, BaseException):
        texts += [*traceback.format_exception(thing), repr(thing.args)]
    texts.append(json.dumps([thing], default=repr))
    return "\n".join(texts).encode()


def objects(keyring: Keyring, client: Client) -> dict[str, object]:
    """One of every public kind, each as close to a secret as it gets."""
    message = parse(keyring.seal(CLAIMS, SECRET))
    token = ApiToken(message, Secret(SECRET, {"user": SECRET}))
    status = TokenStatus("apiToken", "held", version=1, fingerprint=message.fingerprint)
    node = TreeNode("acme", "Tenant", None, "held")
    tree = TokenTree("apiToken", (node,))
    source = SourceStatus("apiToken", "variable", "fresh")

    def provider() -> TokenProvider:
        holds = {"apiToken": {"state": "held", "sealed": message.text}}
        use = Use("acme", "tree", None, holds, own={}, last={})
        with running(
            ActivityTokens(Newest(use, None, time.monotonic()), lambda: keyring, unrecorded())
        ):
            made = TokenProvider("https://a.example")
            assert made() == SECRET
        return made

    plain: dict[str, object] = {
        "ApiToken": token,
        "AsyncOriginTransport": AsyncOriginTransport(httpx.AsyncHTTPTransport()),
        "KeyInfo": keyring.keys()[0],
        "Keyring": keyring,
        "OriginTransport": OriginTransport(httpx.HTTPTransport()),
        "Resolver": Resolver(lambda _: SECRET, ["tenants/*"]),
        "SealedToken": message.text,
        "SourceStatus": source,
        "StatefulPlugin": StatefulPlugin(keyring),
        "StatefulWorkflow": StatefulWorkflow(),
        "TokenAuth": TokenAuth(),
        "TokenClient": TokenClient(client, keyring),
        "TokenProvider": ActivityEnvironment().run(provider),
        "TokenStatus": status,
        "TokenTree": tree,
        "TreeNode": node,
    }
    arguments: dict[type, tuple[Any, ...]] = {
        NotConverged: ("behind", tree),
        NotRenewed: ("stale", source),
        WorkflowAsleep: ("asleep", 0.0),
    }
    errors = {
        name: kind(*arguments.get(kind, ("why",)))
        for name, kind in vars(stateful_workflow).items()
        if isinstance(kind, type) and issubclass(kind, StatefulError)
    }
    return {**plain, **errors}


def test_no_public_object_prints_a_secret(client: Client) -> None:
    keyring = Keyring.generate()
    printed = {name: dump(thing) for name, thing in objects(keyring, client).items()}

    # What is public and printed nowhere here has nothing to print.
    functions = {
        "current_api_url",
        "current_token",
        "current_token_async",
        "report_refused",
        "report_refused_async",
        "seal_token",
    }
    # What a caller gives in clear text; its members are what was given.
    assert found(SECRET, repr(NewToken(SECRET)).encode()) == []
    assert found(SECRET, repr(NewGrant("source", {"refresh_token": SECRET})).encode()) == []
    functions |= {"NewGrant", "NewToken"}
    assert set(stateful_workflow.__all__) - printed.keys() == functions | {
        "Opener",
        "Signer",
        "SourceState",
        "SourceWorker",
        "TokenHome",
        "TokenState",
    }
    for name, text in printed.items():
        assert found(SECRET, text) == [], name
        for key in private_keys(keyring).values():
            assert found(key, text) == [], name
    assert found(SECRET, dump(SimpleNamespace(token=SECRET)))


def test_what_opening_a_token_raises_holds_no_secret() -> None:
    keyring = Keyring.generate()
    message = parse(keyring.seal(dataclasses.replace(CLAIMS, types=("Other",)), SECRET))
    expired = parse(keyring.seal(dataclasses.replace(CLAIMS, expires_at=1), SECRET))
    signed, _, signature = message.text.rpartition(".")
    forged = parse(f"{signed}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}")
    issuer, _ = jwks(keyring)
    _, another_reader = jwks(Keyring.generate())
    sealed_for_others = keyring_of(issuer, another_reader)
    uses = [
        ("TokenExpired", keyring, expired, "default", None),
        ("TokenForged", keyring, forged, "default", None),
        ("WrongNamespace", keyring, message, "another", None),
        ("WrongWorkflowType", keyring, message, "default", "Tenant"),
        ("NoReaderKey", sealed_for_others, message, "default", None),
    ]

    for name, opener, sealed, namespace, workflow_type in uses:
        with pytest.raises(StatefulError) as caught:
            opener.open(sealed, now=2.0, namespace=namespace, workflow_type=workflow_type)
        assert type(caught.value).__name__ == name
        assert found(SECRET, dump(caught.value)) == []


@dataclass
class _Holder:
    token: ApiToken


@pytest.mark.parametrize(
    "record",
    [
        lambda: TokenApi(issued={SECRET: 1}, revoked={SECRET}),
    ],
    ids=["the demo's API"],
)
def test_a_record_that_holds_a_secret_does_not_print_it(record: Callable[[], object]) -> None:
    assert found(SECRET, repr([record()]).encode()) == []


def in_a_dict(held: ApiToken) -> object:
    return dataclasses.asdict(_Holder(held))


def token() -> ApiToken:
    return ApiToken(parse(Keyring.generate().seal(CLAIMS, SECRET)), Secret(SECRET))


@pytest.mark.parametrize("export", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps])
def test_a_token_and_a_keyring_are_not_exported(export: Callable[[object], object]) -> None:
    keyring = Keyring.generate()
    for thing in (token(), keyring):
        with pytest.raises(TypeError):
            export(thing)
        if export is not copy.copy:  # a copy of the container holds the thing itself
            with pytest.raises(TypeError):
                export([thing])


@pytest.mark.parametrize(
    "take_apart",
    [
        *(partial(pickle.dumps, protocol=number) for number in range(pickle.HIGHEST_PROTOCOL + 1)),
        *(methodcaller("__reduce_ex__", number) for number in range(pickle.HIGHEST_PROTOCOL + 1)),
        methodcaller("__getstate__"),
        object.__reduce__,
        vars,
        in_a_dict,
    ],
)
def test_a_token_is_not_taken_apart(take_apart: Callable[[Any], object]) -> None:
    with pytest.raises((TypeError, AttributeError)) as caught:
        take_apart(token())
    assert found(SECRET, dump(caught.value)) == []


def test_what_lists_the_members_of_a_token_gets_no_string() -> None:
    held = token()
    members = [repr(inspect.getmembers(held)), *map(repr, gc.get_referents(held))]
    members.append(repr(_Holder(held)))
    if sys.version_info >= (3, 11):
        members.append(repr(object.__getstate__(held)))
    assert found(SECRET, "\n".join(members).encode()) == []
    assert held.reveal() == SECRET
