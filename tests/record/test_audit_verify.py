"""What a record proves: nothing up to an anchor can be changed without being seen."""

from __future__ import annotations

import errno
import functools
import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stateful_workflow.errors import AuditBroken, AuditError
from stateful_workflow.record.audit import segments
from stateful_workflow.record.audit.chain import Checkpoint, Line, Tip, digest, public_key
from stateful_workflow.record.audit.file import AuditFile
from stateful_workflow.record.audit.segments import chains
from stateful_workflow.record.audit.verification import read, verify
from stateful_workflow.sealed.crypto import Key
from stateful_workflow.sealed.message import decode_base64url, encode_base64url
from stateful_workflow.text.times import rfc3339
from tests.record.test_audit_file import USE, lines, numbered, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


# --- a record that is whole --------------------------------------------------


def test_with_an_anchor_it_is_intact_up_to_there_and_no_more_is_said(path: Path) -> None:
    anchors: list[str] = []
    write(path, 1, 2, on_checkpoint=anchors.append)
    write(path, 3)
    found = verify(path, anchors=anchors)
    assert (found.events, found.first_sequence, found.last_sequence) == (3, 1, 6)
    assert (found.intact_to, found.signed_to) == (4, 5)
    assert "Intact to 4, unanchored after: the 2 lines behind it fit together" in str(found)
    assert "may have been cut off" in str(found)


def test_an_anchor_of_the_end_says_nothing_of_what_came_later_and_none_says_less(
    path: Path,
) -> None:
    anchors: list[str] = []
    write(path, 1, on_checkpoint=anchors.append)
    found = verify(path, anchors=anchors)
    assert found.intact_to == found.last_sequence
    assert "what was cut off behind it is not seen" in str(found)
    found = verify(path)
    assert found.intact_to is None
    assert "Intact" not in str(found)
    assert "lines were cut off at the end, or written anew as a whole" in str(found)


def test_a_key_from_elsewhere_is_said_to_be_one(path: Path) -> None:
    with AuditFile(path) as record:
        record.record(USE)
        key = record.public_key
    pinned, named = verify(path, key=key), verify(path)
    assert pinned.key == named.key == public_key(key).kid
    assert (pinned.key_pinned, named.key_pinned) == (True, False)
    assert "by the key that was asked for" in str(pinned)
    assert "by the key that they name" in str(named)
    assert "written anew behind what is signed" in str(pinned)


def test_a_record_that_is_being_written_is_read_as_far_as_it_goes(path: Path) -> None:
    with AuditFile(path) as record:
        record.record(USE)
        found = verify(path)
        assert (found.events, found.signed_to) == (1, None)
        assert "Nothing is signed." in str(found)


def test_segments_may_be_given_in_any_order_and_are_found_by_their_names(path: Path) -> None:
    write(path, *range(10), rotate_bytes=1_000)
    alone = verify(path)
    segments = [one for one in path.parent.iterdir() if one.suffix not in (".key", ".lock")]
    assert len(segments) > 4
    assert verify(sorted(segments)) == verify(sorted(segments, reverse=True)) == alone
    assert alone.events == 10


def retained(path: Path) -> list[str]:
    """A record without its first two segments, and the checkpoints of all."""
    anchors: list[str] = []
    write(path, *range(10), rotate_bytes=1_000, on_checkpoint=anchors.append)
    for number in (1, 2):
        path.with_name(f"audit.jsonl.{number:06d}").unlink()
    return anchors


def test_a_beginning_that_was_removed_on_purpose_is_allowed_by_its_last_checkpoint(
    path: Path,
) -> None:
    anchors = retained(path)
    at = Checkpoint.read(anchors[1]).sequence + 1
    for some in (anchors, anchors[2:], anchors[:2]):
        found = verify(path, anchors=some, removed_to=anchors[1])
        assert found.first_sequence == at + 1
        assert (found.intact_to is None) == (some == anchors[:2])
        assert f"Lines 1 to {at} are not here, as was allowed" in str(found)
    assert verify(path, anchors=anchors, removed_to=anchors[1]).intact_to == found.last_sequence
    assert "cannot be seen whether" in str(found)  # no anchor is of a line that is there


def test_no_anchor_allows_a_beginning_to_be_missing(path: Path) -> None:
    anchors = retained(path)
    at = Checkpoint.read(anchors[1]).sequence + 1
    message = rf"lines 1 to {at} are missing.*give the checkpoint in line {at} as removed_to"
    for some in ([], anchors[:1], anchors[1:2], anchors[2:], anchors):
        with pytest.raises(AuditBroken, match=message):
            verify(path, anchors=some)


@pytest.mark.parametrize("index", [0, 2, 3])
def test_no_line_more_or_less_may_be_missing_than_was_allowed(path: Path, index: int) -> None:
    anchors = retained(path)
    at = Checkpoint.read(anchors[1]).sequence + 1
    with pytest.raises(AuditBroken, match=f"removed_to is not the checkpoint in line {at}, but"):
        verify(path, anchors=anchors, removed_to=anchors[index])


def test_what_is_kept_elsewhere_is_not_taken_from_anybody(path: Path) -> None:
    anchors = retained(path)
    end = Checkpoint.read(anchors[1])
    tip = Tip(end.chain, end.sequence, end.head)
    forged = tip.sign(Key.generate("Ed25519"), USE.time).text
    with pytest.raises(AuditBroken, match=r"removed_to of line \d+ does not fit the key"):
        verify(path, removed_to=forged)
    with pytest.raises(AuditBroken, match=r"the anchor of line \d+ does not fit the key"):
        verify(path, anchors=[forged])
    key = Key.from_jwk(json.loads(path.with_name("audit.jsonl.key").read_text()))
    misused = tip.sign(key, USE.time).text  # the same line, another time: it was never written
    with pytest.raises(AuditBroken, match="removed_to is not the checkpoint in line"):
        verify(path, removed_to=misused)
    other = replace(tip, chain="0" * 32).sign(key, USE.time).text
    with pytest.raises(AuditBroken, match="is of another chain"):
        verify(path, removed_to=other)
    with pytest.raises(AuditError, match="removed_to 'what' cannot be used: it is no checkpoint"):
        verify(path, removed_to="what")
    with pytest.raises(AuditError, match="the anchor 'what' cannot be used: it is no checkpoint"):
        verify(path, anchors=["what"])


def test_where_nothing_was_removed_yet_it_is_one_more_anchor(path: Path) -> None:
    anchors: list[str] = []
    write(path, 1, 2, 3, rotate_bytes=1, on_checkpoint=anchors.append)
    found = verify(path, removed_to=anchors[0])
    assert (found.first_sequence, found.intact_to) == (1, Checkpoint.read(anchors[0]).sequence + 1)
    assert "not here" not in str(found)
    path.unlink()
    with pytest.raises(AuditBroken, match="the chain ends with line"):
        verify(path, removed_to=anchors[-1])


def test_memory_is_bounded(path: Path) -> None:
    write(path, *range(20_000))
    assert path.stat().st_size > 5_000_000
    tracemalloc.start()
    try:
        verify(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_rotation_while_the_files_are_looked_for_hides_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AuditFile(path, rotate_bytes=1) as record:
        record.record(numbered(1))
        real = segments.open_segment

        def rotated_before(one: Path) -> object:
            if one == path and len(list(path.parent.iterdir())) < 5:
                record.record(numbered(2))
            return real(one)

        monkeypatch.setattr(segments, "open_segment", rotated_before)
        assert verify(path).events == 2


def test_a_rotation_while_it_is_read_is_an_error_that_is_no_damage(path: Path) -> None:
    with AuditFile(path, rotate_bytes=1) as record:
        record.record(numbered(1))
        record.record(numbered(2))
        reading = read(path)
        next(reading)
        record.record(numbered(3))
        with pytest.raises(AuditError, match="was rotated while it was read; try again") as caught:
            list(reading)
    assert not isinstance(caught.value, AuditBroken)


# --- a record that is not ----------------------------------------------------


@functools.cache
def written() -> tuple[dict[str, bytes], list[str], dict[str, object]]:
    """A record in three segments: its files, its last checkpoint and its key."""
    anchors: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        write(path, *range(22), rotate_bytes=5_000, on_checkpoint=anchors.append)
        names = [one.name for one in path.parent.iterdir() if one.suffix not in (".key", ".lock")]
        files = {name: path.with_name(name).read_bytes() for name in sorted(names)}
    assert len(files) == 3
    return files, anchors[-1:], lines_of(files)[0]["key"]


def lines_of(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [json.loads(raw) for content in files.values() for raw in content.splitlines()]


Place = tuple[str, int]
"""A segment and the index of a line in it."""


def places() -> list[Place]:
    """Every line, in the order of the chain."""
    files, _, _ = written()
    order = sorted(files, key=lambda name: json.loads(files[name].split(b"\n")[0])["sequence"])
    return [(name, index) for name in order for index in range(files[name].count(b"\n"))]


def raised(changed: dict[str, bytes], anchors: list[str]) -> bool:
    """Whether a change of the record is found, with a message that says where."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in changed.items():
            (Path(folder) / name).write_bytes(content)
        try:
            verify(Path(folder) / "audit.jsonl", anchors=anchors)
        except AuditError as error:
            return "audit.jsonl" in str(error)
    return False


def split(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


def changed(place: Place, change: Callable[[list[bytes], int], object]) -> dict[str, bytes]:
    files = dict(written()[0])
    raw = split(files[place[0]])
    change(raw, place[1])
    files[place[0]] = b"".join(raw)
    return files


line = st.deferred(lambda: st.sampled_from(places()))


def test_as_it_was_written_nothing_is_found() -> None:
    files, anchors, _ = written()
    assert not raised(files, anchors)
    assert not raised(files, [])


@settings(deadline=None)
@given(line, st.data())
def test_a_line_that_is_changed_is_found(place: Place, data: st.DataObject) -> None:
    def change(raw: list[bytes], index: int) -> None:
        at = data.draw(st.integers(0, len(raw[index]) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda one: one != raw[index][at]))
        raw[index] = raw[index][:at] + bytes([byte]) + raw[index][at + 1 :]

    assert raised(changed(place, change), written()[1])


def taken_out(raw: list[bytes], index: int) -> None:
    del raw[index]


def twice(raw: list[bytes], index: int) -> None:
    raw.insert(index, raw[index])


def torn(raw: list[bytes], index: int) -> None:
    raw[index:] = [raw[index][:-1]]


@pytest.mark.parametrize("change", [taken_out, twice, torn])
def test_a_line_that_is_taken_out_or_comes_twice_or_is_torn_with_those_behind_it_is_found(
    change: Callable[[list[bytes], int], object],
) -> None:
    assert [place for place in places() if not raised(changed(place, change), written()[1])] == []


@settings(deadline=None)
@given(line, line)
def test_lines_that_are_swapped_are_found(one: Place, other: Place) -> None:
    files = {name: split(content) for name, content in written()[0].items()}
    first, second = files[one[0]][one[1]], files[other[0]][other[1]]
    files[one[0]][one[1]], files[other[0]][other[1]] = second, first
    if one != other:
        assert raised({name: b"".join(raw) for name, raw in files.items()}, written()[1])


@settings(deadline=None)
@given(line, st.integers(0, 600))
def test_an_end_that_is_cut_off_before_the_anchor_is_found(place: Place, more: int) -> None:
    """Cut anywhere, in or between lines: as a killed process leaves it, too."""
    order = list(dict.fromkeys(name for name, _ in places()))
    kept = order[: order.index(place[0])]
    files = {name: content for name, content in written()[0].items() if name in kept}
    raw = split(written()[0][place[0]])
    files[place[0]] = b"".join(raw[: place[1]]) + raw[place[1]][: min(more, len(raw[place[1]]) - 1)]
    assert raised(files, written()[1])


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("with_anchors", [True, False])
def test_a_segment_that_is_taken_away_is_found(number: int, with_anchors: bool) -> None:
    files, anchors, _ = written()
    order = list(dict.fromkeys(name for name, _ in places()))
    left = {name: content for name, content in files.items() if name != order[number]}
    # Without an anchor nothing says that there was more than the last segment that is left.
    assert raised(left, anchors if with_anchors else []) == (with_anchors or number < 2)


def rewritten(key: Key, count: int) -> list[bytes]:
    """What somebody writes who has this key, and knows the format."""
    tip = Tip.new()
    raw = [tip.header(key, USE.time)]
    for number in range(count):
        tip = tip.after(raw[-1])
        raw.append(tip.event(numbered(number)))
    raw.append(tip.after(raw[-1]).sign(key, USE.time).line())
    return raw


def test_a_record_that_is_written_anew_is_found_by_an_anchor_or_the_key() -> None:
    _, anchors, key = written()
    forged = {"audit.jsonl": b"".join(rewritten(Key.generate("Ed25519"), 30))}
    assert not raised(forged, [])
    assert raised(forged, anchors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        path.write_bytes(forged["audit.jsonl"])
        with pytest.raises(AuditBroken, match="written anew, or this is the key of another"):
            verify(path, key=key)
        with pytest.raises(AuditBroken, match="the file was replaced, or this is the anchor of"):
            verify(path, anchors=anchors)


def test_who_has_the_key_cannot_change_what_an_anchor_covers(path: Path) -> None:
    anchors: list[str] = []
    write(path, 1, 2, on_checkpoint=anchors.append)
    key = Key.from_jwk(json.loads(path.with_name("audit.jsonl.key").read_text()))
    raw = split(path.read_bytes())
    tip = Tip(lines(path)[0]["chain"]).after(raw[0])
    raw[1] = tip.event(replace(numbered(1), workflow_id="another"))
    raw[2] = tip.after(raw[1]).event(numbered(2))
    raw[3] = tip.after(raw[1]).after(raw[2]).sign(key, USE.time).line()
    path.write_bytes(b"".join(raw))
    verify(path)  # it fits together
    with pytest.raises(AuditBroken, match="an anchor says that line 3 was another one"):
        verify(path, anchors=anchors)


def test_who_has_not_the_key_cannot_change_what_is_signed(path: Path) -> None:
    write(path, 1)
    key = Key.generate("Ed25519")
    raw = split(path.read_bytes())
    tip = Tip(lines(path)[0]["chain"]).after(raw[0])
    raw[1] = tip.event(replace(numbered(1), workflow_id="another"))
    raw[2] = tip.after(raw[1]).sign(key, USE.time).line()
    path.write_bytes(b"".join(raw))
    with pytest.raises(AuditBroken, match="the checkpoint is not genuine: it is signed by the key"):
        verify(path)


def renamed(checkpoint: str, part: int, name: str, value: object) -> str:
    """A checkpoint with another header (0) or claim (1)."""
    parts = checkpoint.split(".")
    members = json.loads(decode_base64url(parts[part], "part")) | {name: value}
    parts[part] = encode_base64url(json.dumps(members).encode())
    return ".".join(parts)


THUMBPRINT, CHAIN = "_-09azAZ" + "x" * 35, "0123456789abcdef" * 2


@pytest.mark.parametrize("value", ["\x1b[31m", "short", "x" * 32 + "\n", "X" * 32, 1, None])
def test_ids_that_are_none_are_in_no_checkpoint_and_no_header(value: Any) -> None:
    genuine = written()[1][0]
    for part, name, good in ((0, "kid", THUMBPRINT), (1, "chain", CHAIN)):
        Checkpoint.read(renamed(genuine, part, name, good))
        with pytest.raises(ValueError, match=r"the (key id|id of the chain) in it is none"):
            Checkpoint.read(renamed(genuine, part, name, value))
    key = Key.generate("Ed25519")
    assert Line.read(Tip(CHAIN).header(key, USE.time)).header()[0] == CHAIN
    with pytest.raises(ValueError, match="the id of the chain in it is none"):
        Line.read(Tip(value).header(key, USE.time)).header()


@pytest.mark.parametrize("genuine_first", [True, False])
def test_of_two_anchors_that_contradict_each_other_one_is_not_what_was_written(
    path: Path, genuine_first: bool
) -> None:
    anchors: list[str] = []
    write(path, 1, on_checkpoint=anchors.append)
    key = Key.from_jwk(json.loads(path.with_name("audit.jsonl.key").read_text()))
    other = Tip(lines(path)[0]["chain"], 2, digest(b"else")).sign(key, USE.time)
    anchors.insert(1 if genuine_first else 0, other.text)
    with pytest.raises(AuditBroken, match="an anchor says that line 2 was another one"):
        verify(path, anchors=anchors)


def test_events_that_look_like_checkpoints_sign_nothing(path: Path) -> None:
    """Who writes everything anew behind what is signed cannot hide that by their words."""
    write(path, 1)
    key = json.loads(path.with_name("audit.jsonl.key").read_text())
    raw = split(path.read_bytes())
    tip = Tip(lines(path)[0]["chain"], len(raw), digest(raw[-1]))
    for _ in range(1_100):
        line = tip.event(USE)[:-2] + b',"more":{"a":1,"line":"checkpoint"}}\n'
        raw.append(line)
        tip = tip.after(line)
    path.write_bytes(b"".join(raw))
    with pytest.raises(AuditBroken, match="are not signed by the key that was asked for"):
        verify(path, key=key)


# --- what is said of it ------------------------------------------------------


def test_the_message_says_where_what_and_what_to_do(path: Path) -> None:
    write(path, 1, 2, 3)
    raw = split(path.read_bytes())
    raw[2] = raw[2].replace(b"orders/2", b"orders/9")
    path.write_bytes(b"".join(raw))
    with pytest.raises(AuditBroken) as caught:
        verify(path)
    assert str(caught.value) == (
        f"{path} line 4 (after line 3 of the chain): it is not the line that followed line 3: one "
        "of the two was changed; keep the files as they are, and compare them with a copy from "
        "elsewhere"
    )


DAMAGE: list[tuple[Callable[[list[bytes]], object], str]] = [
    (lambda raw: raw.pop(2), "line 3 is missing before line 4"),
    (lambda raw: raw.insert(2, raw[1]), "line 2 of the chain comes a second time"),
    (lambda raw: raw.insert(2, b"{}\n"), "it has no sequence: the line was changed"),
    (lambda raw: raw.insert(2, b"x" * 2_000_000 + b"\n"), "it is longer than 1048576 bytes"),
    (lambda raw: raw.pop(0), "its beginning was changed"),
    (lambda raw: raw.insert(0, b'{"sequence":1,"sequence":1}\n'), "it names a member twice"),
    (lambda raw: raw.insert(2, b"{\n"), "it is not JSON: the line was changed"),
    (lambda raw: raw.insert(2, b"[]\n"), "it is no JSON object: the line was changed"),
    (lambda raw: raw.insert(2, raw[0].replace(b":1,", b":3,")), "it is not the line that followed"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_each_kind_of_damage_has_its_message(
    path: Path, change: Callable[[list[bytes]], object], message: str
) -> None:
    write(path, 1, 2, 3)
    raw = split(path.read_bytes())
    change(raw)
    path.write_bytes(b"".join(raw))
    with pytest.raises(AuditBroken, match=message):
        verify(path)
    with pytest.raises(AuditBroken, match=message):
        list(read(path))


def test_one_segment_twice_is_said_to_be_so(path: Path) -> None:
    write(path, 1)
    path.with_name("audit.jsonl.1").write_bytes(path.read_bytes())
    with pytest.raises(AuditBroken, match="or the file is a copy of another one here"):
        verify(path)


def test_a_file_that_is_not_there_or_holds_nothing_is_an_error(path: Path) -> None:
    with pytest.raises(AuditError, match="there is no audit file"):
        verify(path)
    path.touch()
    with pytest.raises(AuditError, match="holds no line yet"):
        verify(path)


def test_several_chains_are_told_apart_and_what_is_in_none_hides_none(tmp_path: Path) -> None:
    one, other, third = (tmp_path / f"{name}.jsonl" for name in ("one", "other", "third"))
    for path in (one, other, third):
        write(path, 1, 2, rotate_bytes=500)
    other.write_bytes(b"#" + other.read_bytes())
    third.unlink()
    with pytest.raises(AuditError, match=r"files of 2 chains, .*third.jsonl.*: verify each"):
        verify([one, third])
    found, problems = chains([one, other, third, tmp_path / "missing.jsonl"])
    ids = [{segment.chain for segment in chain} for chain in found]
    assert [len(some) for some in ids] == [1, 1, 1]
    assert sorted(len(chain) for chain in found) == [1, 1, 2]
    assert [type(error) for error in problems] == [AuditBroken, AuditError]
    with pytest.raises(AuditBroken, match="its beginning was changed"):
        verify(other)


def test_what_stands_before_a_line_that_is_broken_is_read(path: Path) -> None:
    write(path, 1, 2, 3, rotate_bytes=1)
    path.write_bytes(path.read_bytes().replace(b"orders/3", b"orders/9"))
    reading = read(path)
    assert [next(reading).workflow_id for _ in range(3)] == ["orders/1", "orders/2", "orders/9"]
    with pytest.raises(AuditBroken, match="is not the line that followed"):
        next(reading)
    rotated = path.with_name("audit.jsonl.000001")
    rotated.write_bytes(b"#" + rotated.read_bytes())
    for use in (verify, read):
        with pytest.raises(AuditBroken, match="its beginning was changed"):
            list(cast("Iterable[object]", use(path)))


def test_no_file_at_all_and_a_directory_that_cannot_be_read_are_errors(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for use in (verify, chains, read):
        with pytest.raises(ValueError, match="paths names no file"):
            list(cast("Iterable[object]", use([])))

    def fails(_: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "not here")

    write(path, 1)
    monkeypatch.setattr(Path, "iterdir", fails)
    with pytest.raises(AuditError, match=r"the directory of .* cannot be read: not here"):
        verify(path)


def test_an_event_that_this_version_does_not_know_is_no_damage_but_cannot_be_read(
    path: Path,
) -> None:
    key = Key.generate("Ed25519")
    tip = Tip.new()
    raw = [tip.header(key, USE.time)]
    unknown = replace(USE, action="dance")  # pyright: ignore[reportArgumentType]
    raw.append(tip.after(raw[0]).event(unknown))
    path.write_bytes(b"".join(raw))
    assert verify(path).events == 1
    with pytest.raises(AuditError, match="read it with a newer one") as caught:
        list(read(path))
    assert not isinstance(caught.value, AuditBroken)


def test_times_are_written_and_read_to_the_microsecond() -> None:
    assert rfc3339(0, "microseconds") == "1970-01-01T00:00:00.000000Z"
    assert rfc3339(1_800_000_000.123456, "microseconds") == "2027-01-15T08:00:00.123456Z"
