"""Members of what workflows say of themselves: each is named once, written and read by that. Pure.

A workflow is another program, of whatever language, version and intent. What is read is held
against the types and limits of docs/wire-format.md; members that are not known are ignored, and an
absent one counts as null. No error here holds anything of what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields
from enum import Enum
from functools import cache
from typing import Any, Final, NamedTuple, TypeVar, cast

from ..errors import AnswerMalformed, TokenMalformed
from ..sealed.message import MAX_LIST, MAX_VERSION, Kind, Message, parse, valid_name
from ..sealed.origins import MAX_URL

MAX_ENTRIES: Final = 16_384
"""Of a list in a status, which as this library writes it holds no more in the server's 2 MB.

A node may know more children than the 2,000 that one run may have open: those of the runs before
it, and those of closed children.
"""

Check = Callable[[object], Any]
"""Gives what was read, or raises `AnswerMalformed`."""

T = TypeVar("T")


def member(
    check: Check | None,
    default: Any = MISSING,
    *,
    factory: Any = MISSING,
    write: Callable[[Any], Any] | None = None,
    is_part: bool = False,
    omit_null: bool = False,
) -> Any:
    """A field of a dataclass that is written and read.

    Args:
        check: reads it; None where it is written alone.
        default, factory: of the field.
        write: gives the JSON data of it, where that is not `to_json`.
        is_part: its members stand beside it, and not under its name.
        omit_null: it is not written where it is None.
    """
    metadata = {"check": check, "write": write, "is_part": is_part, "omit_null": omit_null}
    return field(default=default, default_factory=factory, metadata=metadata)


class _Member(NamedTuple):
    name: str
    check: Check | None = None
    write: Callable[[Any], Any] | None = None
    is_part: bool = False
    omit_null: bool = False


@cache
def _members(cls: type) -> tuple[_Member, ...]:
    """The members of a class, in their order."""
    return tuple(_Member(one.name, **one.metadata) for one in fields(cast("Any", cls)))


def read(cls: type[T], value: object) -> T:
    """Read an object of such a class.

    Raises:
        AnswerMalformed: a member that is read is not what it has to be.
    """
    members = OBJECT(value)
    found: dict[str, Any] = {}
    for one in _members(cls):
        if one.check is None:
            continue  # it is written alone
        try:
            found[one.name] = one.check(members if one.is_part else members.get(one.name))
        except AnswerMalformed as error:
            where = "" if one.is_part else f"{one.name}: "
            raise AnswerMalformed(f"{where}{error}") from None
    return cls(**found)


def to_json(value: object) -> Any:
    """The same as JSON data."""
    # The commonest first: a node of many children is asked often.
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [to_json(inner) for inner in cast("list[object]", value)]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        members = cast("Mapping[str, object]", value)
        return {name: to_json(inner) for name, inner in members.items()}
    written: dict[str, Any] = {}
    for one in _members(type(value)):
        inner = (one.write or to_json)(getattr(value, one.name))
        if one.is_part:
            written |= inner
        elif not (inner is None and one.omit_null):
            written[one.name] = inner
    return written


# --- what a member may be ----------------------------------------------------


def that(test: Callable[[Any], bool], expected: str) -> Check:
    """What passes a test."""

    def check(value: object) -> object:
        if not test(value):
            raise AnswerMalformed(f"it is no {expected}")
        return value

    return check


def text(least: int, most: int) -> Check:
    """A text of so many bytes in UTF-8."""

    def is_text(value: object) -> bool:
        try:
            return isinstance(value, str) and least <= len(value.encode()) <= most
        except UnicodeEncodeError:  # half of a surrogate pair, as JSON may have it
            return False

    return that(is_text, f"text of {least} to {most} bytes")


def integer(least: int) -> Check:
    """An integer from there on."""
    return that(
        lambda value: type(value) is int and least <= value <= MAX_VERSION,
        f"integer of {least} to 2^53-1",
    )


def one_of(known: tuple[str, ...]) -> Check:
    """One of these words."""
    return that(lambda value: isinstance(value, str) and value in known, "word known here")


def optional(check: Check, absent: object = None) -> Check:
    """As the check has it, or null."""
    return lambda value: absent if value is None else check(value)


def list_of(check: Check, most: int = MAX_ENTRIES) -> Check:
    """A list of at most so many, as a tuple."""
    entries = that(
        lambda value: isinstance(value, list) and len(cast("list[Any]", value)) <= most,
        f"list of at most {most}",
    )
    return lambda value: tuple(map(check, entries(value)))


def tuple_of(*checks: Check) -> Check:
    """A list of just as many, each by its own check, as a tuple."""
    entries = that(
        lambda value: isinstance(value, list) and len(cast("list[Any]", value)) == len(checks),
        f"list of {len(checks)}",
    )
    return lambda value: tuple(
        check(one) for check, one in zip(checks, entries(value), strict=True)
    )


def mapping_of(check: Check, name: Check | None = None) -> Check:
    """An object with ids as names, or with such names."""
    named = ID if name is None else name
    return lambda value: {named(name): check(inner) for name, inner in OBJECT(value).items()}


def message_of(*kinds: Kind) -> Check:
    """A message of one of these kinds."""

    def check(value: object) -> Message:
        try:
            message = parse(value)
        except TokenMalformed as error:
            raise AnswerMalformed(str(error)) from None
        if message.kind not in kinds:
            raise AnswerMalformed(f"a {message.kind} is in the place of another message")
        return message

    return check


OBJECT: Final = that(lambda value: isinstance(value, dict), "object")
TEXT: Final = that(lambda value: isinstance(value, str), "text")
FLAG: Final = that(lambda value: isinstance(value, bool), "boolean")
NAME: Final = that(lambda value: isinstance(value, str) and valid_name(value), "credential name")
ID: Final = text(1, 1_000)
ANY: Final = text(0, 2 * 1024 * 1024)
ADDRESS: Final = text(1, 4 * MAX_URL)
VERSION: Final = integer(1)
VERSIONS: Final = mapping_of(VERSION)
CLAIMS: Final = list_of(text(1, 4_000), MAX_LIST)  # of up to 1,000 characters
