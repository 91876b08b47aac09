"""Tokens in environment variables and files."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from stateful_workflow.errors import (
    AnswerUnusable,
    GrantRefused,
    ProviderUnreachable,
    SourceError,
)
from stateful_workflow.source import Probes, Retires, Source
from stateful_workflow.source.environment import EnvironmentSource
from stateful_workflow.source.file import FileSource, read_text
from tests.source.test_expiry import jwt


async def test_a_variable_is_read_at_each_mint(monkeypatch: pytest.MonkeyPatch) -> None:
    source = EnvironmentSource("SOURCE_TOKEN")
    monkeypatch.setenv("SOURCE_TOKEN", "first\n")
    assert (await source.mint({})).token == "first"
    monkeypatch.setenv("SOURCE_TOKEN", "second")
    assert (await source.mint({})).token == "second"
    for _ in range(2):
        monkeypatch.delenv("SOURCE_TOKEN", raising=False)
        with pytest.raises(ProviderUnreachable, match="SOURCE_TOKEN is not set"):
            await source.mint({})
        monkeypatch.setenv("SOURCE_TOKEN", "third")
        assert (await source.mint({})).token == "third"


async def test_a_jwt_in_a_variable_says_when_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    end = int(time.time()) + 3600
    monkeypatch.setenv("SOURCE_TOKEN", jwt({"exp": end}))
    assert (await EnvironmentSource("SOURCE_TOKEN").mint({})).expires_at == end
    assert (await EnvironmentSource("SOURCE_TOKEN", margin=30).mint({})).expires_at == end - 30


async def test_no_grant_chooses_among_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_TOKEN", '{"other": "canary"}')
    monkeypatch.setenv("OTHER", "canary")
    minted = await EnvironmentSource("SOURCE_TOKEN").mint({"variable": "OTHER", "field": "other"})
    assert minted.token == '{"other": "canary"}'


class Mount:
    """A secret as Kubernetes mounts one: links to a link to a directory that is swapped whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.swaps = path, 0
        path.mkdir()

    def write(self, **files: str) -> None:
        self.swaps += 1
        data = self.path / f"..2026_{self.swaps}"
        data.mkdir()
        for name, text in files.items():
            (data / name).write_text(text, "utf-8")
        (self.path / "..data_tmp").symlink_to(data.name)
        (self.path / "..data_tmp").rename(self.path / "..data")
        for name in files:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")
        before = self.path / f"..2026_{self.swaps - 1}"
        if before.exists():
            for file in before.iterdir():
                file.unlink()
            before.rmdir()


async def test_a_mounted_secret_is_followed_as_it_changes(tmp_path: Path) -> None:
    mount = Mount(tmp_path / "mount")
    mount.write(acme="first\n", globex="other")
    one, of_many = FileSource(mount.path / "acme"), FileSource(mount.path)
    assert (await one.mint({})).token == "first"
    assert (await of_many.mint({"path": "globex"})).token == "other"
    mount.write(acme="second\r\n", globex="other2")
    assert (await one.mint({})).token == "second"
    assert (await of_many.mint({"path": "globex"})).token == "other2"


async def test_a_read_in_the_middle_of_a_swap_gives_one_of_the_two(tmp_path: Path) -> None:
    mount = Mount(tmp_path / "mount")
    mount.write(acme="token-0")
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            mount.write(acme=f"token-{mount.swaps}")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        seen = 0
        while mount.swaps < 50 or seen < 100:
            try:
                token = (await FileSource(mount.path).mint({"path": "acme"})).token
            except ProviderUnreachable:  # five swaps in the time of one read
                continue
            assert token.startswith("token-")
            seen += 1
    finally:
        over.set()
        swapping.join()


async def test_a_grant_names_a_field_of_a_file_in_json(tmp_path: Path) -> None:
    document = {"token": "t", "ends": "2100-01-01T00:00:00Z", "user": "ada", "port": 5432}
    file = tmp_path / "acme.json"
    file.write_text(json.dumps(document), "utf-8")
    grant = {"field": "token", "expires": "ends", "values": ["user"]}
    minted = await FileSource(file, margin=60).mint(grant)
    assert (minted.token, minted.values, minted.grant) == ("t", {"user": "ada"}, None)
    assert minted.expires_at == 4_102_444_800 - 60
    assert "'t'" not in repr(minted)
    assert "ada" not in repr(minted)
    for unusable in ({"field": "none"}, {**grant, "expires": "no"}, {**grant, "values": ["port"]}):
        with pytest.raises(AnswerUnusable):
            await FileSource(file).mint(unusable)
    for refused in ({"field": ""}, {"field": 7}, {**grant, "values": "user"}):
        with pytest.raises(GrantRefused):
            await FileSource(file).mint(refused)
    file.write_text("plain-canary", "utf-8")
    with pytest.raises(AnswerUnusable) as unread:
        await FileSource(file).mint(grant)
    assert unread.value.__context__ is None


@pytest.mark.parametrize(
    "path",
    ["../outside", "/etc/passwd", "link", "inner/link", "up/outside", "../none", "x\0y", "", 7],
)
async def test_no_grant_leads_out_of_the_directory(tmp_path: Path, path: object) -> None:
    (tmp_path / "outside").write_text("canary", "utf-8")
    inside = tmp_path / "inside"
    (inside / "inner").mkdir(parents=True)
    (inside / "link").symlink_to(tmp_path / "outside")
    (inside / "inner" / "link").symlink_to("../../outside")
    (inside / "up").symlink_to("..")
    with pytest.raises(SourceError) as refused:
        await FileSource(inside).mint({"path": path})
    assert isinstance(refused.value, ProviderUnreachable if path == "x\0y" else GrantRefused)
    assert str(path) not in str(refused.value) or not path


async def test_a_directory_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "acme").write_text("token", "utf-8")
    (tmp_path / "by_link").symlink_to("real")
    assert (await FileSource(tmp_path / "by_link").mint({"path": "acme"})).token == "token"


async def test_a_file_that_is_missing_kills_no_grant(tmp_path: Path) -> None:
    source = FileSource(tmp_path / "mount")
    with pytest.raises(ProviderUnreachable, match="no file"):
        await source.mint({"path": "acme"})
    (tmp_path / "mount").mkdir()
    with pytest.raises(ProviderUnreachable, match="no file"):
        await source.mint({"path": "acme"})
    (tmp_path / "mount" / "acme").write_text("token", "utf-8")
    assert (await source.mint({"path": "acme"})).token == "token"


def test_a_file_that_may_not_be_read_kills_no_grant(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("token", "utf-8")
    file.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65_534)
    try:
        with pytest.raises(ProviderUnreachable, match="cannot be read"):
            read_text(file)
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"x" * 65_537])
async def test_what_is_no_text_is_no_token(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(AnswerUnusable):
        await FileSource(tmp_path / "token").mint({})


async def test_what_is_no_file_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(AnswerUnusable):
        await FileSource(tmp_path / "pipe").mint({})
    for unread in (tmp_path / "circle", tmp_path):
        with pytest.raises(ProviderUnreachable, match="cannot be read"):
            await FileSource(unread).mint({})


def test_they_say_nothing_that_their_providers_cannot() -> None:
    for source in (EnvironmentSource("X"), FileSource("x")):
        assert isinstance(source, Source)
        assert not isinstance(source, (Retires, Probes))
