"""Keyring files: replaced whole, by whoever saw them last, and with the mode they had."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from stateful_workflow.errors import KeyringError
from stateful_workflow.sealed import keyring_file
from stateful_workflow.sealed.keyring import Keyring

posix = pytest.mark.skipif(os.name != "posix", reason="permission bits")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.json"
    keyring_file.create(path, "before")
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def stamp(path: Path) -> keyring_file.Stamp:
    found = keyring_file.stamp(path)
    assert found is not None
    return found


def rewrite(path: Path) -> None:
    path.write_text("another's")


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


def swap(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    status = path.stat()
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.replace(path)


CHANGES: dict[str, Callable[[Path], None]] = {
    "another content": rewrite,
    "another time": touch,
    "another file, alike": swap,
}


def test_a_file_is_replaced_by_who_read_it_last(file: Path) -> None:
    before = stamp(file)
    keyring_file.replace(file, before, "after")

    assert file.read_text() == "after"
    assert stamp(file) != before
    assert names(file.parent) == [file.name]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_was_changed_meanwhile_is_not_replaced(
    file: Path, change: Callable[[Path], None]
) -> None:
    before = stamp(file)
    change(file)
    text = file.read_text()

    with pytest.raises(KeyringError, match="changed meanwhile; nothing was written"):
        keyring_file.replace(file, before, "after")

    assert file.read_text() == text
    assert names(file.parent) == [file.name]


def test_of_two_changes_of_one_keyring_the_second_is_refused_and_the_first_stands(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    mine, theirs = Keyring.load(path), Keyring.load(path)
    first = theirs.add_issuer()
    first.replace_file_of(theirs)

    with pytest.raises(KeyringError, match="changed meanwhile"):
        mine.add_reader("x").replace_file_of(mine)

    assert Keyring.load(path).keys() == first.keys()
    assert names(tmp_path) == [path.name]


def test_changes_one_after_another_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    for audience in ("a", "b", "c"):
        before = Keyring.load(path)
        before.add_reader(audience).replace_file_of(before)

    audiences = [key.audience for key in Keyring.load(path).keys() if key.kind == "reader"]
    assert audiences == ["default", "a", "b", "c"]


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
def test_whatever_processes_add_at_once_is_there_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", ADDS, path, str(number)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for number in range(9)
        ]
        for process in processes:
            stack.callback(process.kill)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        added = [line for process in processes for line in process.communicate()[0].split()]

    assert len(added) == 90
    audiences = [key.audience for key in Keyring.load(path).keys() if key.kind == "reader"]
    assert sorted(audiences, key=str) == sorted(["default", *added])


@posix
def test_whoever_changes_a_file_waits_for_the_other_and_then_says_how_to_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring_file, "LOCK_SECONDS", 0.05)
    path, link = tmp_path / "keyring.json", tmp_path / "link.json"
    Keyring.generate().save(path)
    link.symlink_to(path)

    with keyring_file.locked(path):
        for name in (path, link):
            with pytest.raises(KeyringError, match=f"another process has .*fuser {path}.lock"):
                Keyring.change_file(name, Keyring.add_issuer)
        assert len(Keyring.load(path).keys()) == 2, "a reader does not wait"

    assert len(Keyring.change_file(link, Keyring.add_issuer).keys()) == 3


def test_a_change_that_fails_leaves_the_file_unlocked_and_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    before = path.read_text()
    with pytest.raises(KeyringError, match="no key of-nobody"):
        Keyring.change_file(path, lambda keyring: keyring.retire("of-nobody"))
    assert path.read_text() == before
    Keyring.change_file(path, Keyring.add_issuer)


def test_a_reader_makes_no_lock(tmp_path: Path) -> None:
    Keyring.generate().save(tmp_path / "keyring.json")
    Keyring.load(tmp_path / "keyring.json")
    assert names(tmp_path) == ["keyring.json"]


def test_a_lock_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "keyring.json.lock").mkdir()
    Keyring.generate().save(tmp_path / "keyring.json")
    with pytest.raises(KeyringError, match=r"cannot be locked .*keyring.json.lock: Is a directory"):
        Keyring.change_file(tmp_path / "keyring.json", Keyring.add_issuer)


def test_without_locks_as_on_windows_a_file_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    path = tmp_path / "keyring.json"
    Keyring.generate().save(path)
    assert len(Keyring.change_file(path, Keyring.add_issuer).keys()) == 3
    assert names(tmp_path) == ["keyring.json"]


def test_a_keyring_from_no_file_replaces_none() -> None:
    keyring = Keyring.generate()
    with pytest.raises(KeyringError, match="from no file"):
        keyring.add_issuer().replace_file_of(keyring)


def test_whoever_has_the_old_file_open_reads_it_to_its_end(file: Path) -> None:
    with file.open() as reading:
        keyring_file.replace(file, stamp(file), "after")
        assert reading.read() == "before"


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o400], ids=oct)
def test_the_mode_is_kept(file: Path, mode: int) -> None:
    file.chmod(mode)
    keyring_file.replace(file, stamp(file), "after")
    assert stat.S_IMODE(file.stat().st_mode) == mode


@posix
def test_a_new_file_is_for_its_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "keyring.json"
    before = os.umask(0)
    try:
        keyring_file.create(path, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@posix
def test_through_a_link_the_file_behind_it_is_replaced_and_the_link_stays(file: Path) -> None:
    link = file.with_name("link.json")
    link.symlink_to(file)
    keyring_file.replace(link, stamp(link), "after")

    assert link.is_symlink()
    assert file.read_text() == "after"
    assert names(file.parent) == [file.name, link.name]


def test_a_file_that_is_gone_is_not_made_again(file: Path) -> None:
    before = stamp(file)
    file.unlink()
    with pytest.raises(KeyringError, match="cannot be written"):
        keyring_file.replace(file, before, "after")
    assert names(file.parent) == []


def test_what_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    directory = tmp_path / "keyring.json"
    directory.mkdir()
    with pytest.raises(KeyringError, match="cannot be written"):
        keyring_file.replace(directory, stamp(directory), "after")
    assert names(tmp_path) == [directory.name]


def test_a_file_that_is_not_there_has_no_stamp(tmp_path: Path) -> None:
    assert keyring_file.stamp(tmp_path / "nothing.json") is None


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_read_has_the_stamp_of_that_moment(
    file: Path, change: Callable[[Path], None]
) -> None:
    content = keyring_file.read(file)
    assert (content.text, content.stamp) == ("before", stamp(file))
    change(file)
    assert content.stamp != stamp(file)
