"""`stateful audit`: what it prints, and the exit statuses scripts rely on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from stateful_workflow.cli.app import app
from stateful_workflow.record.audit.chain import Checkpoint
from stateful_workflow.record.audit.file import AuditFile
from stateful_workflow.record.event import AuditEvent
from stateful_workflow.sealed.keyring import Keyring
from stateful_workflow.sealed.message import decode_base64url, encode_base64url
from tests.record.test_audit_file import USE, lines, numbered, write
from tests.support.terminal import HOSTILE, VISIBLE, unprintable


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATEFUL_KEYRING", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def audit(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["audit", *(str(argument) for argument in arguments)])


def record(path: Path, *events: AuditEvent) -> None:
    with AuditFile(path) as file:
        for event in events:
            file.record(event)


# --- verify and checkpoint ---------------------------------------------------


def test_verify_says_how_far_it_is_intact(path: Path) -> None:
    write(path, 1)
    anchor = audit("checkpoint", path)
    assert anchor.exit_code == 0
    assert Checkpoint.read(anchor.stdout.strip()).sequence == 2
    write(path, 2)
    found = audit("verify", path, "--anchor", anchor.stdout.strip())
    assert (found.exit_code, found.stderr) == (0, "")
    assert found.stdout.startswith(f"{path}: 2 events in lines 1 to 5. Intact to 3, unanchored")


def test_verify_takes_anchors_from_a_file_too(path: Path) -> None:
    anchors: list[str] = []
    for number in range(3):
        write(path, number, on_checkpoint=anchors.append)
    kept = path.with_name("anchors")
    kept.write_text("\n".join(anchors) + "\n")
    data = json.loads(audit("verify", path, "--anchor", kept, "--json").stdout)
    assert (data["intact_to"], data["events"], data["key_pinned"]) == (7, 3, False)
    assert data["says"].startswith("3 events")
    kept.write_text("")
    assert "holds no checkpoint, so nothing" in audit("verify", path, "--anchor", kept).stderr


def test_verify_takes_the_key_from_elsewhere(path: Path) -> None:
    write(path, 1)
    key = path.with_name("key.jwk")
    printed = audit("key", path)
    assert json.loads(printed.stdout).keys() == {"kty", "crv", "x"}
    key.write_text(printed.stdout)
    assert "by the key that was asked for" in audit("verify", path, "--key", key).stdout
    other = path.with_name("other.jsonl")
    write(other, 1)
    wrong = audit("verify", other, "--key", key)
    assert wrong.exit_code == 1
    assert "this is the key of another" in wrong.stderr


def test_files_that_were_deleted_are_missed_unless_that_is_allowed(path: Path) -> None:
    anchors: list[str] = []
    write(path, 1, 2, 3, 4, rotate_bytes=1, on_checkpoint=anchors.append)
    kept, removed = path.with_name("anchors"), path.with_name("removed")
    kept.write_text("\n".join(anchors))
    last = audit("checkpoint", path.with_name("audit.jsonl.000002")).stdout
    removed.write_text(last)
    for one in path.parent.glob("audit.jsonl.00000[12]"):
        one.unlink()
    missed = audit("verify", path, "--anchor", kept)
    assert (missed.exit_code, missed.stdout) == (1, "")
    assert "are missing: name their files too" in missed.stderr
    for given in (removed, last.strip()):
        found = audit("verify", path, "--anchor", kept, "--removed-to", given)
        assert (found.exit_code, found.stderr) == (0, "")
        assert "are not here, as was allowed" in found.stdout
    path.with_name("audit.jsonl.000003").unlink()
    assert audit("verify", path, "--anchor", kept, "--removed-to", removed).exit_code == 1


def test_a_broken_file_is_status_1_and_says_where(path: Path) -> None:
    write(path, 1, 2)
    path.write_bytes(path.read_bytes().replace(b"orders/1", b"orders/7"))
    for options in ([], ["--json"]):
        found = audit("verify", path, *options)
        assert (found.exit_code, found.stdout) == (1, "")
        assert found.stderr.startswith(f"error: {path} line 3 (after line 2 of the chain): ")


def test_records_are_verified_each_by_itself_and_keys_and_locks_beside_them_are_no_records(
    path: Path,
) -> None:
    other = path.with_name("other.jsonl")
    write(path, 1)
    write(other, 2)
    beside = sorted(path.parent.glob(f"{path.name}*"))
    assert len(beside) == 3
    found = audit("verify", *beside, "--anchor", audit("checkpoint", path).stdout.strip())
    assert (found.exit_code, "Intact to 3" in found.stdout) == (0, True)
    assert "files of 2 chains, which begin with" in audit("verify", path, other).stderr
    anchor = audit("checkpoint", other).stdout.strip()
    missing = audit("verify", path, "--anchor", anchor)
    assert (missing.exit_code, "the file was replaced" in missing.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "{path}", "--anchor", "what"], "is neither a checkpoint nor a file of them"),
        (["verify", "{path}", "--anchor", "{path}"], "is neither a checkpoint nor a file of them"),
        (["verify", "{path}", "--key", "{path}"], "is no public Ed25519 key"),
        (["verify", "{path}", "--key", "missing"], "the key missing cannot be read"),
        (["verify", "missing.jsonl"], "there is no audit file"),
        (["checkpoint", "missing.jsonl"], "there is no audit file"),
        (["key", "missing.jsonl"], "there is no audit file"),
        (["tail", "missing.jsonl"], "cannot be read: No such file"),
        (["review", "missing.jsonl"], "there is no audit file"),
        (["review", "{path}", "--keyring", "missing"], "the keyring missing cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_1(
    path: Path, arguments: list[str], message: str
) -> None:
    write(path, 1)
    found = audit(*(one.format(path=path) for one in arguments))
    assert found.exit_code == 1
    assert found.stderr.startswith("error: ")
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def damage_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"format"', b'"for"', 1))


def test_a_rotated_file_whose_first_line_was_changed_is_named_once(path: Path) -> None:
    write(path, 1, 2, rotate_bytes=1)
    rotated = path.with_name("audit.jsonl.000001")
    damage_header(rotated)
    for command in ("verify", "review"):
        found = audit(command, path)
        assert (found.exit_code, found.stdout) == (1, "")
        assert found.stderr.startswith(f"error: {rotated} line 1")
        assert found.stderr.count("\n") == 1


def test_the_last_checkpoint_may_be_in_an_older_segment(path: Path) -> None:
    with AuditFile(path, rotate_bytes=1) as file:
        missing = audit("checkpoint", path)
        assert (missing.exit_code, missing.stdout) == (1, "")
        assert "has no checkpoint yet" in missing.stderr
        file.record(numbered(1))
        file.record(numbered(2))
        found = audit("checkpoint", path)
        assert Checkpoint.read(found.stdout.strip()).sequence == 4
    path.unlink()
    assert audit("checkpoint", path).exit_code == 0


def test_a_last_checkpoint_that_was_not_finished_is_none(path: Path) -> None:
    write(path, 1)
    first = audit("checkpoint", path).stdout
    write(path, 2)
    path.write_bytes(path.read_bytes()[:-10])
    found = audit("checkpoint", path)
    assert (found.exit_code, found.stdout, found.stderr) == (0, first, "")


def test_where_a_line_is_none_the_checkpoint_is_not_looked_for(path: Path) -> None:
    write(path, 1)
    with path.open("ab") as stream:
        stream.write(b"x" * 1_100_000 + b"\n")
    found = audit("checkpoint", path)
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr.startswith(f"error: {path}, or the last checkpoint in it, was changed")


# --- review ------------------------------------------------------------------


def test_review_shows_what_it_found_and_is_status_1_or_0(path: Path) -> None:
    refused = replace(USE, action="refuse", outcome="failure", reason="OriginNotAllowed")
    record(path, USE)
    found = audit("review", path)
    assert (found.exit_code, found.stdout) == (0, "nothing found\n")
    assert json.loads(audit("review", path, "--json").stdout) == []
    record(path, refused)
    found = audit("review", path)
    assert found.exit_code == 1
    assert found.stdout.splitlines()[0].startswith("refused   apiToken was refused for https://")
    assert "audit.jsonl 4 2027-01-15 08:00:00.250 refuse" in found.stdout.splitlines()[1]
    (data,) = json.loads(audit("review", path, "--json").stdout)
    assert (data["kind"], data["count"]) == ("refused", 1)
    place = {"file": str(path), "sequence": 4, "timestamp": "2027-01-15T08:00:00.250000Z"}
    assert data["evidence"][0] == refused.attributes() | place


def test_review_with_a_keyring_looks_at_readers(path: Path) -> None:
    keyring = path.with_name("keyring.json")
    Keyring.generate().save(keyring)
    readers = [key for key in Keyring.load(keyring).keys() if key.kind == "reader"]
    read = replace(USE, action="read", reader="nobody", origin=None, method=None, status=None)
    record(path, replace(read, reader=readers[0].kid), read)
    assert audit("review", path).exit_code == 0
    found = audit("review", path, "--keyring", keyring)
    assert found.exit_code == 1
    assert "opened with the key nobody" in found.stdout
    assert readers[0].kid not in found.stdout
    Keyring.change_file(keyring, lambda before: before.revoke(readers[0].kid))
    assert readers[0].kid in audit("review", path, "--keyring", keyring).stdout


def test_review_merges_the_records_of_several_processes(path: Path) -> None:
    other = path.with_name("other.jsonl")
    accept = replace(USE, action="accept", version=1)
    revoked = replace(accept, kind="revocation", version=2, time=USE.time + 10)
    record(path, accept, revoked)
    record(other, replace(USE, version=1, time=USE.time + 60))
    assert audit("review", other).exit_code == 0
    assert audit("review", path, other).stdout.startswith("revoked ")


def test_review_looks_at_all_that_can_be_read_and_is_status_1(path: Path) -> None:
    refused = replace(USE, action="refuse", outcome="failure", reason="TokenExpired")
    damaged, changed = path.with_name("damaged.jsonl"), path.with_name("changed.jsonl")
    with AuditFile(damaged, rotate_bytes=1) as file:
        for _ in range(2):
            file.record(refused)
    damage_header(damaged)
    record(changed, refused, numbered(1), numbered(2))
    changed.write_bytes(changed.read_bytes().replace(b"orders/2", b"orders/7"))
    record(path, refused)
    missing = path.with_name("gone.jsonl")
    for files in ((path, missing, damaged, changed), (changed, damaged, missing, path)):
        found = audit("review", *files)
        assert found.exit_code == 1
        assert found.stdout.startswith("refused ")
        assert "× 3" in found.stdout  # beside a damaged segment, and before a changed line
        errors = sorted(found.stderr.splitlines())
        assert len(errors) == 3
        assert errors[0].startswith(f"error: {changed} line 5")
        assert errors[1].startswith(f"error: {damaged} line 1")
        assert "there is no audit file" in errors[2]
        assert missing.name not in errors[2]
        assert len(json.loads(audit("review", *files, "--json").stdout)) == 1


@pytest.mark.parametrize(
    ("since", "status"),
    [
        ("2027-01-15", 1),
        ("2027-01-15T08:00:00Z", 1),
        ("2027-01-15T09:00:00+01:00", 1),
        ("2027-01-15T08:00:01", 0),
        ("2027-01-16", 0),
        ("yesterday", 2),
    ],
)
def test_review_takes_a_time_to_begin_with(path: Path, since: str, status: int) -> None:
    record(path, replace(USE, action="refuse", outcome="failure", reason="TokenExpired"))
    assert audit("review", path, "--since", since).exit_code == status


def test_review_takes_a_number_of_versions(path: Path) -> None:
    accept = replace(USE, action="accept", version=1)
    newer = replace(accept, workflow_id="orders", version=2, time=USE.time + 10)
    record(path, accept, newer, replace(USE, version=1, time=USE.time + 60))
    assert audit("review", path).exit_code == 0
    assert audit("review", path, "--behind", "1").stdout.startswith("behind ")
    assert audit("review", path, "--behind", "0").exit_code == 2


# --- tail --------------------------------------------------------------------


def test_tail_shows_the_last_events(path: Path) -> None:
    write(path, *range(20))
    found = audit("tail", path)
    assert found.exit_code == 0
    shown = found.stdout.splitlines()
    assert len(shown) == 10
    assert shown[-1] == (
        "2027-01-15 08:00:19.250 use      apiToken 0123456789ab at orders/19 GET "
        "https://api.example.com 200"
    )
    assert len(audit("tail", path, "-n", "3").stdout.splitlines()) == 3
    assert len(audit("tail", path, "--number", "3").stdout.splitlines()) == 3
    assert audit("tail", path, "-n", "0").stdout == ""


def test_tail_says_who_sent_it_and_from_whom_it_is_kept(path: Path) -> None:
    def shown(**changes: Any) -> str:
        path.unlink(missing_ok=True)
        record(path, replace(USE, issuer="key-1", **changes))
        return audit("tail", path).stdout

    assert " at orders/1 from orders/2 " in shown(action="withhold", child_id="orders/2")
    for action in ("share", "forward"):
        assert " at orders/1 to orders/2 " in shown(action=action, child_id="orders/2")
    for action in ("set", "reseal", "revoke", "inherit", "reject"):
        assert " issuer key-1 at orders/1 " in shown(action=action)
    noted = shown(action="set", by="mia", on_behalf_of="Acme", said_reason="ticket 7")
    assert " by mia for Acme because ticket 7 issuer key-1 " in noted
    assert "key-1" not in shown(action="accept")


def test_nothing_that_a_terminal_would_act_upon_is_printed(path: Path) -> None:
    hostile = replace(
        USE,
        action="refuse",
        outcome="failure",
        **dict.fromkeys(
            ("reason", "name", "kind", "fingerprint", "issuer", "workflow_id", "workflow_type"),
            HOSTILE,
        ),
        **dict.fromkeys(("child_id", "activity_type", "method", "origin", "reader"), HOSTILE),
    )
    record(path, hostile, replace(hostile, action="set"))
    for arguments in (("tail", path), ("tail", path, "--json"), ("review", path)):
        shown = audit(*arguments)
        assert unprintable(shown.output) == set()
        assert len(shown.stdout.splitlines()) == 2, "no value begins a line"
        assert VISIBLE in shown.stdout or "--json" in arguments
    last = json.loads(audit("tail", path, "--json", "-n", "1").stdout)
    assert last["temporal.workflow.id"] == HOSTILE


def test_tail_with_json_prints_the_lines_as_they_are_and_escapes_as_json_does(path: Path) -> None:
    write(path, 1, 2)
    found = audit("tail", path, "--json", "-n", "1")
    assert json.loads(found.stdout) == lines(path)[2]
    raw = {"id": "\x7f\x9b31m\u202e\u2028\ufeff\U000e0041"}
    path.write_text(json.dumps(raw, ensure_ascii=False) + "\nwhat \x1b[31m?\n")
    shown = audit("tail", path, "--json")
    assert unprintable(shown.output) == set()
    first, second = shown.stdout.splitlines()
    assert json.loads(first) == raw
    assert second == "what \\u001b[31m?"
    assert "no event (it is not JSON): what \\x1b[31m?" in audit("tail", path).stdout


def test_nothing_that_a_terminal_would_act_upon_is_in_an_error(path: Path) -> None:
    odd = path.with_name(f"{HOSTILE}.jsonl")
    for command in ("verify", "review", "tail", "checkpoint", "key"):
        found = audit(command, odd)
        assert found.exit_code == 1
        assert unprintable(found.output) == set(), command
    write(path, 1)
    for option in ("--anchor", "--removed-to", "--key"):
        found = audit("verify", path, option, odd)
        assert found.exit_code == 1
        assert unprintable(found.output) == set(), option
    odd.write_text("no record\n")
    for command in ("verify", "review", "checkpoint", "key"):
        found = audit(command, odd)
        assert found.exit_code == 1
        assert VISIBLE in found.stderr, "it is there, and so it is named"
        assert unprintable(found.output) == set(), command
    odd.unlink()
    write(odd, 1)
    found = audit("verify", odd)
    assert (found.exit_code, found.stderr) == (0, "")
    assert f"{VISIBLE}.jsonl: 1 events" in found.stdout
    assert unprintable(found.stdout) == set()


def test_the_key_that_a_checkpoint_names_is_one_or_is_not_shown(path: Path) -> None:
    write(path, 1)
    protected, *rest = audit("checkpoint", path).stdout.strip().split(".")
    header = json.loads(decode_base64url(protected, "header")) | {"kid": "\x1b]0;evil\x07"}
    forged = ".".join([encode_base64url(json.dumps(header).encode()), *rest])
    found = audit("verify", path, "--anchor", forged)
    assert found.exit_code == 1
    assert "evil" not in found.stderr
    content = path.read_bytes().replace(protected.encode(), forged.split(".")[0].encode())
    path.write_bytes(content)
    found = audit("verify", path)
    assert found.exit_code == 1
    assert "the checkpoint is not genuine: the key id in it is none" in found.stderr
    assert "evil" not in found.stderr


@pytest.fixture
def following(path: Path) -> Iterator[subprocess.Popen[str]]:
    write(path, 1)
    started = subprocess.Popen(
        [sys.executable, "-m", "stateful_workflow.cli", "audit", "tail", path, "-f"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )
    yield started
    started.kill()
    started.communicate()


def test_tail_follows_through_a_rotation_until_it_is_stopped(
    path: Path, following: subprocess.Popen[str]
) -> None:
    assert following.stdout is not None

    def shows(number: int) -> bool:
        assert following.stdout is not None
        return f"at orders/{number} " in following.stdout.readline()

    assert shows(1)
    write(path, 2)
    assert shows(2)
    path.rename(path.with_name("audit.jsonl.1"))
    write(path, 3)
    assert shows(3)
    following.send_signal(signal.SIGINT)
    assert following.wait(10) == 0
