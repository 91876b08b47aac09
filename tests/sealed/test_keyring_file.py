"""Keyring files: read where they are safe, replaced whole, and followed by who has loaded one."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from stateful_workflow.errors import KeyringError, TokenRevoked
from stateful_workflow.sealed import keyring_file
from stateful_workflow.sealed.keyring import Keyring, KeyringSource
from stateful_workflow.sealed.keyring_file import KEYRING_VARIABLE
from stateful_workflow.text.private_file import GROUP_READ_VARIABLE, openness
from tests.support.builders import NAMESPACE, NOW, TOKEN, jwks, keyring, marked, token

posix = pytest.mark.skipif(os.name != "posix", reason="permission bits")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYRING_VARIABLE, raising=False)
    monkeypatch.delenv(GROUP_READ_VARIABLE, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.json"
    keyring().save(path)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- saved and loaded ------------------------------------------------------------


@posix
def test_a_keyring_is_saved_for_its_owner_only_and_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    previous = os.umask(0)
    try:
        keyring().save(path)
    finally:
        os.umask(previous)

    assert mode_of(path) == 0o600
    loaded = Keyring.load(path)
    assert loaded.path == path
    assert loaded.keys() == keyring().keys()
    assert loaded.to_json() == keyring().to_json()
    assert names(tmp_path) == ["keyring.json"], "who only reads makes no lock"


def test_a_file_is_never_overwritten(file: Path) -> None:
    before = file.read_bytes()
    link = file.with_name("link.json")
    link.symlink_to(file.with_name("elsewhere.json"))

    for taken in (file, link):
        with pytest.raises(KeyringError, match="never overwritten"):
            Keyring.generate().save(taken)
    assert file.read_bytes() == before
    assert not file.with_name("elsewhere.json").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "keyring.json"
    with pytest.raises(KeyringError, match=str(path)):
        keyring().save(path)


@pytest.mark.parametrize("content", [None, b"", b"not JSON", b"\xff", b'{"keys": 1}', "directory"])
def test_a_file_that_is_missing_or_malformed_is_named(
    tmp_path: Path, content: bytes | str | None
) -> None:
    path = tmp_path / "keyring.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.mkdir()
    with pytest.raises(KeyringError, match=str(path)):
        Keyring.load(path)


def test_without_a_path_the_environment_names_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyringError, match=KEYRING_VARIABLE):
        Keyring.load()
    keyring("new").save(file.with_name("given.json"))
    monkeypatch.setenv(KEYRING_VARIABLE, str(file))

    assert Keyring.load().keys() == keyring().keys()
    assert Keyring.load(file.with_name("given.json")).keys() == keyring("new").keys()


# --- who may read and write it ---------------------------------------------------

EITHER_HALF = [
    keyring,
    lambda: keyring().only(issuers=True),
    lambda: keyring().only(readers=["default"]),
]


@posix
@pytest.mark.parametrize("part", EITHER_HALF, ids=["both", "an issuer", "a reader"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601, 0o602, 0o777], ids=oct)
def test_a_private_key_that_others_may_touch_is_refused_with_mode_and_cure(
    tmp_path: Path, part: Callable[[], Keyring], mode: int
) -> None:
    path = tmp_path / "keyring.json"
    part().save(path)
    path.chmod(mode)

    with pytest.raises(KeyringError) as caught:
        Keyring.load(path)

    assert f"{mode:04o}" in str(caught.value)
    assert f"chmod 600 {path}" in str(caught.value)


@posix
@pytest.mark.parametrize("setting", ["", "1"], ids=["", "group may read"])
@pytest.mark.parametrize("mode", [0o646, 0o664, 0o602, 0o620, 0o666], ids=oct)
def test_public_keys_may_be_read_but_not_written_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, mode: int
) -> None:
    path = tmp_path / "public.json"
    keyring().public().save(path)
    path.chmod(0o644)
    assert Keyring.load(path).trusted() == keyring().trusted()

    path.chmod(mode)
    monkeypatch.setenv(GROUP_READ_VARIABLE, setting)
    with pytest.raises(KeyringError) as caught:
        Keyring.load(path)
    assert f"{mode:04o}" in str(caught.value)
    assert f"chmod go-w {path}" in str(caught.value)


@posix
def test_group_read_is_allowed_by_a_setting_and_nothing_more(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("", "0", "true", "yes", " 1"):
        monkeypatch.setenv(GROUP_READ_VARIABLE, value)
        file.chmod(0o640)
        with pytest.raises(KeyringError, match="0640"):
            Keyring.load(file)

    monkeypatch.setenv(GROUP_READ_VARIABLE, "1")
    for mode in (0o640, 0o440, 0o600, 0o400):
        file.chmod(mode)
        assert Keyring.load(file).keys() == keyring().keys()
    for mode in (0o604, 0o644, 0o660, 0o620, 0o650, 0o641, 0o642):
        file.chmod(mode)
        with pytest.raises(KeyringError, match=f"{mode:04o}"):
            Keyring.load(file)


@posix
@pytest.mark.parametrize("mode", [0o440, 0o640], ids=oct)
def test_a_volume_as_kubernetes_mounts_it_loads_and_the_file_behind_the_links_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    data = tmp_path / "..2027_01_15_08_00_00.1234567890"
    data.mkdir()
    (tmp_path / "..data").symlink_to(data.name)
    (tmp_path / "worker.json").symlink_to("..data/worker.json")
    keyring().save(data / "worker.json")
    (data / "worker.json").chmod(mode)
    monkeypatch.setenv(GROUP_READ_VARIABLE, "1")

    assert Keyring.load(tmp_path / "worker.json").keys() == keyring().keys()
    (data / "worker.json").chmod(0o666)
    with pytest.raises(KeyringError, match="0666"):
        Keyring.load(tmp_path / "worker.json")


def owned(user: int, mode: int) -> os.stat_result:
    """What `os.fstat` says of a file of this user."""
    return os.stat_result((stat.S_IFREG | mode, 1, 1, 1, user, 0, 0, 0, 0, 0))


@posix
@pytest.mark.parametrize("private", [True, False])
def test_a_file_of_root_or_of_the_processs_own_user_will_do_and_of_no_other(
    monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    path = Path("keyring.json")

    for user in (0, 1000):
        assert openness(path, owned(user, 0o600), private=private) is None
    problem = openness(path, owned(4711, 0o600), private=private)

    assert problem is not None
    assert "belongs to user 4711" in problem
    assert "chown 1000 keyring.json" in problem


# --- changed ---------------------------------------------------------------------

ADDS = """
import sys
from stateful_workflow.sealed.keyring import Keyring
print("ready", flush=True)
sys.stdin.readline()
for number in range(10):
    audience = f"{sys.argv[2]}-{number}"
    Keyring.change_file(sys.argv[1], lambda keyring: keyring.add_reader(audience))
    print(audience, flush=True)
"""


@posix
def test_whatever_processes_add_at_once_is_there_at_the_end(file: Path) -> None:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", ADDS, file, str(number)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for number in range(4)
        ]
        for process in processes:
            stack.callback(process.kill)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        added = [line for process in processes for line in process.communicate("go\n")[0].split()]

    assert len(added) == 40
    audiences = [key.audience for key in Keyring.load(file).keys() if key.kind == "reader"]
    assert sorted(audiences, key=str) == sorted(["default", *added])


@posix
def test_whoever_changes_a_file_waits_for_the_other_and_then_says_how_to_find_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring_file, "LOCK_SECONDS", 0.05)
    link = file.with_name("link.json")
    link.symlink_to(file)

    with keyring_file.locked(file):
        for name in (file, link):
            with pytest.raises(KeyringError, match=f"another process has .*fuser {file}.lock"):
                Keyring.change_file(name, Keyring.add_issuer)
        assert len(Keyring.load(file).keys()) == 2, "a reader does not wait"

    assert len(Keyring.change_file(link, Keyring.add_issuer).keys()) == 3


def test_a_change_that_fails_leaves_the_file_unlocked_and_as_it_was(file: Path) -> None:
    before = file.read_text()
    with pytest.raises(KeyringError, match="no key of-nobody"):
        Keyring.change_file(file, lambda keyring: keyring.retire("of-nobody"))
    assert file.read_text() == before
    Keyring.change_file(file, Keyring.add_issuer)


def test_a_lock_that_cannot_be_made_says_why(file: Path) -> None:
    file.with_name("keyring.json.lock").mkdir()
    with pytest.raises(KeyringError, match=r"cannot be locked .*keyring.json.lock: Is a directory"):
        Keyring.change_file(file, Keyring.add_issuer)


def test_without_locks_as_on_windows_a_file_is_changed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert len(Keyring.change_file(file, Keyring.add_issuer).keys()) == 3
    assert names(file.parent) == ["keyring.json"]


def test_whoever_has_the_old_file_open_reads_it_to_its_end(file: Path) -> None:
    before = file.read_text()
    with file.open() as reading:
        keyring_file.replace(file, "after")
        assert reading.read() == before


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o400], ids=oct)
def test_through_a_link_the_file_behind_it_is_replaced_and_keeps_its_mode(
    file: Path, mode: int
) -> None:
    link = file.with_name("link.json")
    link.symlink_to(file)
    file.chmod(mode)

    keyring_file.replace(link, "after")

    assert link.is_symlink()
    assert (file.read_text(), mode_of(file)) == ("after", mode)
    assert names(file.parent) == [file.name, link.name]


@posix
@pytest.mark.parametrize("mode", [0o644, 0o440], ids=oct)
def test_a_file_of_public_keys_that_is_given_a_private_one_is_its_owners_alone(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "public.json"
    keyring().public().save(path)
    path.chmod(mode)
    Keyring.change_file(path, Keyring.add_issuer)
    assert mode_of(path) == 0o600


def test_what_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    with pytest.raises(KeyringError, match="cannot be written"):
        keyring_file.replace(path, "after")
    assert names(tmp_path) == []
    path.mkdir()
    with pytest.raises(KeyringError, match="cannot be written"):
        keyring_file.replace(path, "after")
    assert names(tmp_path) == [path.name]


# --- followed --------------------------------------------------------------------


@pytest.fixture
def looking_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the file at each use rather than once a second."""
    monkeypatch.setattr("stateful_workflow.sealed.keyring._LOOK_EVERY_SECONDS", 0)


def test_a_process_takes_a_changed_file_by_itself(file: Path) -> None:
    source = KeyringSource(Keyring.load(file))
    assert len(source.current().keys()) == 2
    after = Keyring.change_file(file, Keyring.add_issuer)

    give_up = time.monotonic() + 20
    while source.current().keys() != after.keys():
        assert time.monotonic() < give_up, "the change was never taken"
        time.sleep(0.02)


@pytest.mark.usefixtures("looking_always")
def test_a_file_is_not_read_again_while_it_is_the_same(file: Path) -> None:
    source = KeyringSource(Keyring.load(file))
    assert source.current() is source.current()


def replaced(_: Path, file: Path) -> None:
    Keyring.change_file(file, Keyring.add_issuer)


def rewritten(_: Path, file: Path) -> None:
    file.write_text(Keyring.load(file).add_issuer().to_json())


def swapped(link: Path, file: Path) -> None:
    """As Kubernetes changes what a volume holds."""
    other, new = file.with_name("other.json"), file.with_name("new.json")
    Keyring.load(file).add_issuer().save(other)
    new.symlink_to(other)
    new.replace(link)


@pytest.mark.usefixtures("looking_always")
@pytest.mark.parametrize("change", [replaced, rewritten, swapped])
@pytest.mark.parametrize("used", [True, False], ids=["in use", "not used yet"])
def test_however_the_file_is_changed_it_is_taken(
    file: Path, change: Callable[[Path, Path], None], used: bool
) -> None:
    link = file.with_name("link.json")
    link.symlink_to(file)
    source = KeyringSource(Keyring.load(link))
    if used:
        source.current()

    change(link, file)

    assert source.current().keys() == Keyring.load(link).keys()
    assert len(source.current().keys()) == 3


BROKEN: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda path: path.write_text("{"),
    "an unknown setting": lambda path: path.write_text(
        json.dumps({"keys": [marked(jwks(keyring())[0], hosts=[])]})
    ),
    "gone": lambda path: path.unlink(),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "open to others": lambda path: (path.write_text(path.read_text() + "\n"), path.chmod(0o644)),
}


@posix
@pytest.mark.usefixtures("looking_always")
@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_used_leaves_the_old_keyring_with_one_alarm_a_change(
    file: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    text = file.read_text()
    source = KeyringSource(Keyring.load(file))
    before = source.current()

    damage(file)
    for _ in range(5):
        assert source.current() is before
    (alarm,) = caplog.records
    assert (alarm.name, alarm.levelno) == ("stateful_workflow.sealed.keyring", logging.ERROR)
    assert "the one before stays" in alarm.getMessage()
    assert str(file) in alarm.getMessage()
    assert not any(key["d"] in caplog.text for key in json.loads(text)["keys"])

    if file.is_dir():
        file.rmdir()
    file.unlink(missing_ok=True)
    mended = before.add_issuer()
    mended.save(file)
    assert source.current().keys() == mended.keys()
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("looking_always")
def test_a_revocation_in_the_file_is_in_force_with_the_next_use(file: Path) -> None:
    source = KeyringSource(Keyring.load(file))

    def opened() -> str:
        return source.current().open(
            token(), now=NOW / 1000, namespace=NAMESPACE, workflow_type=None
        )

    assert opened() == TOKEN
    Keyring.change_file(file, lambda keyring: keyring.revoke(token().issuer))
    with pytest.raises(TokenRevoked):
        opened()


@pytest.mark.usefixtures("looking_always")
def test_a_keyring_from_no_file_stays_as_it_is() -> None:
    keyring = Keyring.generate()
    source = KeyringSource(keyring)
    assert source.current() is source.current() is keyring
    with pytest.raises(KeyringError, match="from no file"):
        keyring.load_again()
