"""The audit file: every event a line, linked to the one before, whatever happens meanwhile."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stateful_workflow.audit import AuditSink
from stateful_workflow.errors import AuditError, AuditFailed
from stateful_workflow.record.audit import file
from stateful_workflow.record.audit.chain import NOTHING, Checkpoint, digest, public_key
from stateful_workflow.record.audit.file import AuditFile
from stateful_workflow.record.audit.verification import read, verify
from stateful_workflow.record.event import ATTRIBUTES, AuditEvent
from stateful_workflow.record.metrics import Metrics
from stateful_workflow.record.recorder import Recorder, SinkWriter
from stateful_workflow.record.sinks import LOGGER
from stateful_workflow.sealed.crypto import Key

posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits")

USE = AuditEvent(
    time=1_800_000_000.25,
    action="use",
    outcome="success",
    namespace="default",
    workflow_id="orders/1",
    name="apiToken",
    kind="token",
    version=1_800_000_000_000,
    fingerprint="0123456789ab",
    authority="orders",
    origin="https://api.example.com",
    method="GET",
    status=200,
)


def numbered(number: int) -> AuditEvent:
    return replace(USE, workflow_id=f"orders/{number}", time=USE.time + number)


def write(path: Path, *numbers: int, **options: Any) -> None:
    with AuditFile(path, **options) as record:
        for number in numbers:
            record.record(numbered(number))


def workflows(path: Path) -> list[str | None]:
    """The workflow ids in a record that is whole."""
    verify(path)
    return [event.workflow_id for event in read(path)]


def names(directory: Path) -> list[str]:
    return sorted(one.name for one in directory.iterdir() if one.suffix not in (".key", ".lock"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def python(program: str, *arguments: str | Path, wait: bool = True) -> subprocess.Popen[str]:
    """Start a program that has what it needs to write a record."""
    head = (
        "import os, sys, time\n"
        "from stateful_workflow.record.event import AuditEvent\n"
        "from stateful_workflow.record.audit.file import AuditFile\n"
        "event = AuditEvent(time=1.8e9, action='use', outcome='success', workflow_id='other')\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", head + program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if wait:
        output = started.communicate(timeout=30)[0]
        assert started.returncode == 0, output
    return started


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


# --- what is written ---------------------------------------------------------


def test_each_line_names_its_place_and_the_hash_of_the_line_before(path: Path) -> None:
    write(path, 1, 2, 3)
    raw = path.read_bytes().splitlines(keepends=True)
    found = lines(path)
    assert [line["sequence"] for line in found] == [1, 2, 3, 4, 5]
    assert [line["previous"] for line in found] == [NOTHING, *(digest(one) for one in raw[:-1])]


def test_an_event_is_its_attributes_and_its_time_and_nothing_else(path: Path) -> None:
    write(path, 0)
    event = lines(path)[1]
    assert event.pop("timestamp") == "2027-01-15T08:00:00.250000Z"
    assert {"sequence", "previous"} == event.keys() - ATTRIBUTES.values()
    del event["sequence"], event["previous"]
    assert event == USE.attributes() | {"temporal.workflow.id": "orders/0"}


def test_it_is_a_local_sink_that_names_its_key_and_no_private_half(path: Path) -> None:
    with AuditFile(path) as record:
        assert isinstance(record, AuditSink)
        assert record.is_local is True
        key = record.public_key
    header = lines(path)[0]
    assert (header["line"], header["format"]) == ("header", 1)
    private = json.loads(path.with_name("audit.jsonl.key").read_text())
    assert header["key"] == key == {name: private[name] for name in ("kty", "crv", "x")}


def test_what_was_written_is_read_back(path: Path) -> None:
    write(path, 1, 2)
    found = list(read(path))
    assert [AuditEvent(**{f: getattr(e, f) for f in vars(USE)}) for e in found] == [
        numbered(1),
        numbered(2),
    ]
    assert [(Path(event.file), event.sequence) for event in found] == [(path, 2), (path, 3)]


def test_text_of_every_kind_stays_on_one_line(path: Path) -> None:
    odd = 'a\nb"\r\u2028\x00,"line":"header"\ud800'
    with AuditFile(path) as record:
        record.record(replace(USE, workflow_id=odd))
    assert len(path.read_bytes().splitlines()) == 3
    assert workflows(path) == [odd]


def test_an_event_that_is_too_large_is_not_written_and_the_next_one_is(path: Path) -> None:
    with AuditFile(path) as record:
        with pytest.raises(ValueError, match="more than 1048576"):
            record.record(replace(USE, workflow_id="x" * 1_100_000))
        record.record(numbered(1))
    assert workflows(path) == ["orders/1"]


def test_threads_write_one_chain(path: Path) -> None:
    with AuditFile(path) as record:
        threads = [
            threading.Thread(target=lambda: [record.record(numbered(n)) for n in range(200)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(workflows(path)) == 800


@posix
def test_files_are_for_their_owner_only(path: Path) -> None:
    write(path, 1)
    for one in path.parent.iterdir():
        assert stat.S_IMODE(one.stat().st_mode) == 0o600, one


# --- going on ----------------------------------------------------------------


def test_the_next_process_goes_on_with_the_chain(path: Path) -> None:
    write(path, 1, 2)
    write(path, 3)
    write(path)
    assert workflows(path) == ["orders/1", "orders/2", "orders/3"]
    assert [line.get("line") for line in lines(path)] == [
        "header",
        None,
        None,
        "checkpoint",
        None,
        "checkpoint",
    ]


def test_a_file_without_its_key_is_not_gone_on_with(path: Path) -> None:
    write(path, 1)
    path.with_name("audit.jsonl.key").unlink()
    with pytest.raises(AuditError, match=r"the checkpoint key .* cannot be read or made: No such"):
        AuditFile(path)
    with pytest.raises(AuditError, match="bring back the first, or move the audit file"):
        AuditFile(path, key=_key_file(path.with_name("other.key")))


def _key_file(path: Path) -> Path:
    path.write_text(json.dumps(Key.generate("Ed25519").to_jwk(private=True)))
    path.chmod(0o600)
    return path


def test_a_key_of_ones_own_signs_also_where_its_group_may_read_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = _key_file(path.with_name("mine.jwk"))
    key.chmod(0o640)
    monkeypatch.setenv("STATEFUL_KEYRING_GROUP_READ", "1")
    write(path, 1, key=key)
    assert names(path.parent) == ["audit.jsonl", "mine.jwk"]
    assert verify(path, key=json.loads(key.read_text())).key_pinned


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        ("{}", 0o600, "is no private Ed25519 key"),
        ("secret", 0o600, "is no private Ed25519 key"),
        (json.dumps(Key.generate("X25519").to_jwk(private=True)), 0o600, "is no private Ed25519"),
        (json.dumps(Key.generate("Ed25519").to_jwk(private=False)), 0o600, "is no private Ed25519"),
        ("secret", 0o640, "has mode 0640, open to others: run `chmod 600"),
        ("secret", 0o604, "has mode 0604, open to others"),
    ],
    ids=["no key", "no JSON", "X25519", "public", "group", "others"],
)
def test_a_key_that_will_not_do_is_an_error_that_does_not_show_it(
    path: Path, content: str, mode: int, message: str
) -> None:
    key = path.with_name("bad.key")
    key.write_text(content)
    key.chmod(mode)
    with pytest.raises(AuditError, match=message) as caught:
        AuditFile(path, key=key)
    assert caught.value.__context__ is None
    assert content == "{}" or content not in str(caught.value)
    assert not path.exists()


def test_where_there_are_no_locks_the_error_says_what_is_needed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with pytest.raises(AuditError, match="needs a POSIX system"):
        AuditFile(path)
    assert list(path.parent.iterdir()) == []
    program = "import sys; sys.modules['fcntl'] = None; import stateful_workflow.record.audit.file"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


@pytest.mark.parametrize("content", ["no audit file\n", "no audit file", '{"keys":[]}\n'])
def test_what_is_no_audit_file_is_an_error_and_left_as_it_is(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(AuditError, match="is no audit file"):
        AuditFile(path)
    assert path.read_text() == content
    with pytest.raises(AuditError, match="No such file or directory"):
        AuditFile(path.parent / "missing" / "audit.jsonl")
    with pytest.raises(ValueError, match="above 0"):
        AuditFile(path, rotate_bytes=0)


def test_a_closed_file_takes_nothing(path: Path) -> None:
    record = AuditFile(path)
    record.close()
    record.close()
    with pytest.raises(AuditError, match="is closed"):
        record.record(USE)


# --- what a process leaves when it dies --------------------------------------


@posix
def test_a_killed_process_loses_nothing_and_the_next_one_goes_on(path: Path) -> None:
    writer = python(
        "record = AuditFile(sys.argv[1])\n"
        "for _ in range(50): record.record(event)\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n",
        path,
        wait=False,
    )
    assert writer.stdout is not None
    with writer:
        assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
    assert lines(path)[-1].get("line") is None  # no checkpoint
    write(path, 1)
    assert workflows(path) == ["other"] * 50 + ["orders/1"]
    assert verify(path).signed_to == 52


def test_the_end_of_a_process_is_signed(path: Path) -> None:
    python("AuditFile(sys.argv[1]).record(event)", path)
    assert verify(path).signed_to == 2


@pytest.mark.parametrize("rest", [b'{"sequence":', b"\0" * 5000, b"x" * 200_000])
def test_a_part_of_a_line_stays_behind_and_the_chain_goes_on_in_a_new_segment(
    path: Path, rest: bytes
) -> None:
    write(path, 1, 2)
    with path.open("ab") as stream:
        stream.write(rest)
    write(path, 3)
    assert names(path.parent) == ["audit.jsonl", "audit.jsonl.000001"]
    assert path.with_name("audit.jsonl.000001").read_bytes().endswith(rest)
    assert workflows(path) == ["orders/1", "orders/2", "orders/3"]
    found = verify(path)
    assert found.torn == (str(path.with_name("audit.jsonl.000001")),)
    assert "ends with a part of a line" in str(found)


def test_a_first_line_that_was_not_finished_is_begun_again_and_a_last_one_that_is_none_is_not(
    path: Path,
) -> None:
    write(path, 1)
    path.write_bytes(path.read_bytes()[:30])
    write(path, 2)
    assert workflows(path) == ["orders/2"]
    with path.open("ab") as stream:
        stream.write(b"what?\n")
    with pytest.raises(AuditError, match="move it away to begin a new one"):
        AuditFile(path)


# --- one writer --------------------------------------------------------------


@posix
def test_a_second_writer_is_turned_away_and_told_what_to_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "LOCK_SECONDS", 0.05)
    with AuditFile(path) as record:
        with pytest.raises(AuditError, match="give each its own"):
            AuditFile(path)
        record.record(numbered(1))
    write(path, 2)
    assert workflows(path) == ["orders/1", "orders/2"]


def test_a_second_writer_waits_for_one_that_is_soon_done(path: Path) -> None:
    first = AuditFile(path)
    first.record(numbered(1))
    timer = threading.Timer(0.1, first.close)
    timer.start()
    write(path, 2)
    timer.join()
    assert workflows(path) == ["orders/1", "orders/2"]


@posix
def test_a_forked_process_leaves_the_file_alone_and_is_told_what_to_do(path: Path) -> None:
    program = python(
        "record = AuditFile(sys.argv[1])\n"
        "record.record(event)\n"
        "if not (child := os.fork()):\n"
        "    try: record.record(event)\n"
        "    except Exception as error: print(error, flush=True)\n"
        "    sys.exit()\n"  # and closes what is open
        "assert os.waitpid(child, 0)[1] == 0\n"
        "record.record(event)\n",
        path,
        wait=False,
    )
    assert "make an AuditFile with a path of its own in this" in program.communicate(timeout=30)[0]
    assert program.returncode == 0
    assert workflows(path) == ["other", "other"]
    assert names(path.parent) == ["audit.jsonl"]


# --- segments ----------------------------------------------------------------


def test_a_full_segment_is_set_aside_and_the_chain_goes_on(path: Path) -> None:
    write(path, *range(20), rotate_bytes=2_000)
    assert names(path.parent) == ["audit.jsonl", *(f"audit.jsonl.{n:06d}" for n in range(1, 5))]
    assert workflows(path) == [f"orders/{n}" for n in range(20)]
    for one in names(path.parent):
        assert lines(path.with_name(one))[-1]["line"] == "checkpoint"


def test_a_segment_that_cannot_be_renamed_is_gone_on_with(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EACCES, "no")

    with AuditFile(path, rotate_bytes=1_500) as record:
        with monkeypatch.context() as broken:
            broken.setattr(Path, "rename", fails)
            for number in range(6):
                record.record(numbered(number))
        assert names(path.parent) == ["audit.jsonl"]
        assert "cannot be rotated: [Errno 13] no" in caplog.text
        assert [line.get("line") for line in lines(path)].count("checkpoint") == 1
        for number in range(6, 9):
            record.record(numbered(number))
    assert "audit.jsonl.000001" in names(path.parent)
    assert workflows(path) == [f"orders/{number}" for number in range(9)]


def test_whoever_records_does_not_wait_for_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    synced: list[str] = []

    def slow(descriptor: int) -> None:
        released.wait(10)
        os.fstat(descriptor)  # it is open
        synced.append(threading.current_thread().name)

    with AuditFile(path, rotate_bytes=1) as record:
        monkeypatch.setattr(file.os, "fsync", slow)
        for number in range(20):
            record.record(numbered(number))
        assert synced == []
        released.set()
    assert synced == ["stateful-audit-checkpoints"] * 21
    assert workflows(path) == [f"orders/{number}" for number in range(20)]


def _renamed(path: Path) -> None:
    path.rename(path.with_name("audit.jsonl-20270115"))


def _renamed_and_made(path: Path) -> None:
    path.rename(path.with_name("audit.jsonl.1"))
    path.touch()


@pytest.mark.parametrize("rotate", [_renamed, _renamed_and_made])
def test_a_rotation_by_another_program_is_noticed_and_the_chain_goes_on(
    path: Path, rotate: Callable[[Path], None]
) -> None:
    with AuditFile(path) as record:
        record.record(numbered(1))
        rotate(path)
        record.record(numbered(2))
    assert len(lines(path)) == 3
    path.rename(path.with_name("audit.jsonl.2"))  # while nobody writes
    write(path, 3)
    assert workflows(path) == ["orders/1", "orders/2", "orders/3"]


def test_what_others_write_into_the_file_is_set_aside_and_what_they_cut_off_is_missed(
    path: Path,
) -> None:
    with AuditFile(path) as record:
        record.record(numbered(1))
        with path.open("ab") as stream:
            stream.write(b"not ours")
        record.record(numbered(2))
        assert workflows(path) == ["orders/1", "orders/2"]
        os.truncate(path, 0)
        record.record(numbered(3))
    with pytest.raises(AuditError, match="lines 3 to 4 are missing"):
        verify(path)


# --- disks that are full -----------------------------------------------------


@posix
def test_on_a_full_disk_an_event_is_refused_and_the_chain_stays_whole(path: Path) -> None:
    python(
        "import resource\n"
        "record = AuditFile(sys.argv[1])\n"
        "record.record(event)\n"
        "size = os.stat(sys.argv[1]).st_size\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))\n"
        "for _ in range(3):\n"
        "    try: record.record(event)\n"
        "    except OSError: pass\n"
        "    else: sys.exit('written?')\n"
        "assert os.stat(sys.argv[1]).st_size == size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))\n"
        "record.record(event)\n",
        path,
    )
    assert workflows(path) == ["other", "other"]
    assert names(path.parent) == ["audit.jsonl"]


def _half(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def write_half(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(file.os, "write", write_half)


def test_half_a_line_that_cannot_be_taken_back_ends_the_segment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "no")

    with AuditFile(path) as record:
        record.record(numbered(1))
        with monkeypatch.context() as broken:
            _half(broken)
            broken.setattr(file.os, "ftruncate", fails)
            for _ in range(3):
                with pytest.raises(OSError, match="No space left"):
                    record.record(numbered(2))
        record.record(numbered(3))
    assert workflows(path) == ["orders/1", "orders/3"]
    # What is left of a header makes no segment.
    assert verify(path).torn == (str(path.with_name("audit.jsonl.000001")),)


def test_a_write_that_is_interrupted_leaves_the_chain_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def interrupted(descriptor: int, data: bytes) -> int:
        real(descriptor, data)
        raise KeyboardInterrupt

    with AuditFile(path) as record:
        with monkeypatch.context() as patched:
            patched.setattr(file.os, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                record.record(numbered(1))
        record.record(numbered(2))
    assert workflows(path) == ["orders/2"]


def test_what_is_lost_is_counted_by_the_recorder_and_blocks_until_there_is_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AuditFile(path) as record:
        recorder = Recorder(SinkWriter(record), Metrics.of(None))
        with monkeypatch.context() as full:
            _half(full)
            with pytest.raises(AuditFailed, match="No space left"):
                recorder.require(numbered(1))
            recorder.record(numbered(2))
        recorder.require(numbered(3))
    verify(path)
    assert [(e.action, e.count) for e in read(path)] == [("lost", 2), ("use", None)]


def test_a_checkpoint_that_cannot_be_written_loses_no_event(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file, "CHECKPOINT_EVENTS", 2)
    real = os.write

    def no_checkpoints(descriptor: int, data: bytes) -> int:
        if b'"line":"checkpoint"' in data:
            raise OSError(errno.ENOSPC, "full")
        return real(descriptor, data)

    with AuditFile(path) as record:
        with monkeypatch.context() as full:
            full.setattr(file.os, "write", no_checkpoints)
            for number in range(4):
                record.record(numbered(number))
        assert "takes no checkpoint: [Errno 28] full" in caplog.text
        assert caplog.text.count("takes no checkpoint") == 1
    assert len(workflows(path)) == 4
    assert verify(path).signed_to == 5


# --- checkpoints -------------------------------------------------------------


class Kept:
    """Takes checkpoints."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.some = threading.Event()

    def __call__(self, text: str) -> None:
        self.texts.append(text)
        self.some.set()


def test_a_checkpoint_is_written_after_1000_lines(path: Path) -> None:
    assert file.CHECKPOINT_EVENTS == 1_000
    kept = Kept()
    with AuditFile(path, on_checkpoint=kept) as record:
        for number in range(2_500):
            record.record(numbered(number))
    at = [line["sequence"] for line in lines(path) if line.get("line") == "checkpoint"]
    assert at == [1001, 2002, 2504]
    assert [Checkpoint.read(text).sequence for text in kept.texts] == [1000, 2001, 2503]


def test_a_checkpoint_is_written_after_60_seconds_of_what_a_killed_process_left_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file.CHECKPOINT_SECONDS == 60
    monkeypatch.setattr(file, "CHECKPOINT_SECONDS", 0.02)
    write(path, 1)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    kept = Kept()
    with AuditFile(path, on_checkpoint=kept):
        assert kept.some.wait(10)
        found = verify(path, anchors=kept.texts)
        assert found.intact_to == found.last_sequence == 3


def test_checkpoints_are_signed_by_the_key_and_name_the_chain(path: Path) -> None:
    kept = Kept()
    with AuditFile(path, on_checkpoint=kept) as record:
        key = public_key(record.public_key)
        record.record(numbered(1))
    write(path, 2, on_checkpoint=kept)
    first, second = (Checkpoint.read(text) for text in kept.texts)
    for one in (first, second):
        one.verify(key)
    assert (first.chain, first.sequence, second.sequence) == (second.chain, 2, 4)


@pytest.mark.parametrize("options", [{}, {"rotate_bytes": 1}])
def test_a_checkpoint_is_handed_out_when_what_it_covers_is_on_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    synced: dict[int, int] = {}
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size

    def hand_out(text: str) -> None:
        anchors.append(text)
        segments = [one for one in path.parent.iterdir() if one.suffix not in (".key", ".lock")]
        content = {one: one.read_bytes()[: synced.get(one.stat().st_ino, 0)] for one in segments}
        line = Checkpoint.read(text).line()
        were_on_disk.append(any(line in on_disk for on_disk in content.values()))

    anchors: list[str] = []
    were_on_disk: list[bool] = []
    monkeypatch.setattr(file.os, "fsync", fsync)
    write(path, 1, 2, on_checkpoint=hand_out, **options)
    assert all(were_on_disk)
    assert verify(path, anchors=anchors).intact_to == verify(path).last_sequence


def test_a_checkpoint_is_not_handed_out_when_what_it_covers_is_not_on_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, "no")

    kept = Kept()
    write(path)
    with monkeypatch.context() as broken:
        broken.setattr(file.os, "fsync", fails)
        write(path, 1, on_checkpoint=kept)
    assert kept.texts == []
    assert "may not be on the disk" in caplog.text
    write(path, 2, on_checkpoint=kept)
    assert [Checkpoint.read(text).sequence for text in kept.texts] == [5]


def test_a_checkpoint_is_handed_out_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "CHECKPOINT_EVENTS", 2)
    kept = Kept()
    with AuditFile(path, on_checkpoint=kept) as record:
        record.record(numbered(1))
        assert kept.some.wait(10)


def test_a_callback_that_raises_breaks_nothing_and_is_not_logged_among_the_events(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: str) -> None:
        raise RuntimeError("the network is down")

    write(path, 1, on_checkpoint=fails)
    assert workflows(path) == ["orders/1"]
    assert "the network is down" in caplog.text
    assert not any(f"{record.name}.".startswith(f"{LOGGER}.") for record in caplog.records)


def test_a_callback_that_hangs_keeps_nobody_from_recording(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file, "CHECKPOINT_EVENTS", 2)
    monkeypatch.setattr(file, "HAND_SECONDS", 0.01)
    released = threading.Event()
    with AuditFile(path, on_checkpoint=lambda _: released.wait(10)) as record:
        for number in range(1_000):
            record.record(numbered(number))
    released.set()
    assert len(workflows(path)) == 1_000
    assert "was not taken in time" in caplog.text


def test_a_callback_may_record_and_close(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "CHECKPOINT_SECONDS", 0.01)
    done = threading.Event()

    def call(_: str) -> None:
        if not done.is_set():
            record.record(numbered(2))
            record.close()
            done.set()

    record = AuditFile(path, on_checkpoint=call)
    record.record(numbered(1))
    assert done.wait(10)
    assert workflows(path) == ["orders/1", "orders/2"]
