"""What workflows say of themselves, read strictly: one decoder for their queries and updates. Pure.

A workflow is another program, of whatever language, version and intent. What is read of its answer
is held against the types and limits of docs/wire-format.md; members that are not known are ignored,
and an absent one counts as null. No error here holds anything of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, Final, cast, get_args

from ..errors import AnswerMalformed
from ..sealed.message import MAX_LIST, MAX_MESSAGE_BYTES, MAX_VERSION, Kind, valid_name
from .ledger import ALL, Life
from .status import TokenState, TokenStatus

MAX_ENTRIES: Final = 16_384
"""Of a list in a status, which as this library writes it holds no more in the server's 2 MB.

A node may know more children than the 2,000 that one run may have open: those of the runs before
it, and those of closed children.
"""

_UNDELIVERED: Final = 2 * MAX_ENTRIES  # shorter ones, of several messages for each child

_Check = Callable[[object], Any]


def _check(test: Callable[[Any], bool], expected: str) -> _Check:
    def read(value: object) -> object:
        if not test(value):
            raise AnswerMalformed(f"it is no {expected}")
        return value

    return read


def _text(least: int, most: int) -> _Check:
    def is_text(value: object) -> bool:
        try:
            return isinstance(value, str) and least <= len(value.encode()) <= most
        except UnicodeEncodeError:  # half of a surrogate pair, as JSON may have it
            return False

    return _check(is_text, f"text of {least} to {most} bytes")


def _integer(least: int) -> _Check:
    return _check(
        lambda value: type(value) is int and least <= value <= MAX_VERSION,
        f"integer of {least} to 2^53-1",
    )


def _one_of(known: tuple[str, ...]) -> _Check:
    return _check(lambda value: isinstance(value, str) and value in known, "word known here")


def _or(absent: object, check: _Check) -> _Check:
    return lambda value: absent if value is None else check(value)


def _list(check: _Check, most: int = MAX_ENTRIES) -> _Check:
    entries = _check(
        lambda value: isinstance(value, list) and len(cast("list[Any]", value)) <= most,
        f"list of at most {most}",
    )
    return lambda value: tuple(map(check, entries(value)))


def _read(value: object, checks: Mapping[str, _Check]) -> dict[str, Any]:
    """The members of an object that there are checks for."""
    members = _OBJECT(value)
    read: dict[str, Any] = {}
    for name, check in checks.items():
        try:
            read[name] = check(members.get(name))
        except AnswerMalformed as error:
            raise AnswerMalformed(f"{name}: {error}") from None
    return read


def _names(value: object) -> tuple[str, ...]:
    # Workflow code may withhold what no credential can be called.
    return tuple(name for name in _TEXTS(value) if name == ALL or valid_name(name))


def _life(value: object) -> Life:
    return Life(_LIFE(value))


def _versions(value: object) -> dict[str, int]:
    return {_ID(issuer): _VERSION(version) for issuer, version in _OBJECT(value).items()}


def _member(check: _Check, default: Any = MISSING) -> Any:
    return field(default=default, metadata={"check": check})


@cache
def _checks(cls: type) -> dict[str, _Check]:
    return {one.name: one.metadata["check"] for one in fields(cls) if one.metadata}


_OBJECT: Final = _check(lambda value: isinstance(value, dict), "object")
_FLAG: Final = _check(lambda value: isinstance(value, bool), "boolean")
_NAME: Final = _check(lambda value: isinstance(value, str) and valid_name(value), "credential name")
_ID: Final = _text(1, 1_000)
_ANY: Final = _text(0, 2 * 1024 * 1024)
_TEXTS: Final = _list(_ANY)
_VERSION: Final = _integer(1)
_LIFE: Final = _one_of(tuple(life.value for life in Life))
_KIND: Final = _one_of(get_args(Kind))
_LISTED: Final = _or((), _list(lambda value: value))
_CLAIMS: Final = _list(_text(1, 4_000), MAX_LIST)  # of up to 1,000 characters

_TOKEN: Final[Mapping[str, _Check]] = {
    "name": _NAME,
    "state": _one_of(get_args(TokenState)),
    **dict.fromkeys(("version", "expires_at"), _or(None, _VERSION)),
    **dict.fromkeys(("fingerprint", "authority", "issuer"), _or(None, _ID)),
    "origins": _CLAIMS,
    **dict.fromkeys(("types", "readers"), _or(None, _CLAIMS)),
    "overtaken": _or({}, _versions),
}
_MESSAGE: Final = _text(1, MAX_MESSAGE_BYTES)
_SEALED: Final = {"sealed": _or(None, _MESSAGE)}


@dataclass(frozen=True)
class TokenAnswer:
    """An answer to the query `apiToken`: what is known, and the sealed token where one is held."""

    status: TokenStatus
    sealed: str | None


@dataclass(frozen=True)
class HeldToken:
    """A message that a workflow holds, a revocation too; `inherit` as its claims have it.

    Of one that was set at the workflow itself also the text, and of a revocation the token before
    it: what an issuer verifies before the next one is signed.
    """

    status: TokenStatus
    authority: str = _member(_ID)
    version: int = _member(_VERSION)
    kind: Kind = _member(_KIND)  # noqa: RUF009 - it is a dataclass field
    inherit: bool | None = _member(_or(None, _FLAG))
    in_force: bool = _member(_FLAG)
    message: str | None = _member(_or(None, _MESSAGE))
    last: str | None = _member(_or(None, _MESSAGE))


@dataclass(frozen=True)
class ChildStatus:
    """A child as its parent says: `ledger.Child`, and the names that it is kept from now.

    The reason is why the parent could not tell it, or not find out about it.
    """

    id: str = _member(_ID)
    type: str = _member(_or("", _text(0, 1_000)))
    life: Life = _member(_or(Life.RUNNING, _life))  # noqa: RUF009 - it is a dataclass field
    reason: str | None = _member(_or(None, _ANY))
    withheld: tuple[str, ...] = _member(_or((), _names))
    shared: tuple[str, ...] = _member(_or((), _names))
    hard: tuple[str, ...] = _member(_or((), _names))


def _held(value: object) -> HeldToken:
    return HeldToken(token_status(value), **_read(value, _checks(HeldToken)))


def _child(value: object) -> ChildStatus:
    return ChildStatus(**_read(value, _checks(ChildStatus)))


@dataclass(frozen=True)
class NodeStatus:
    """An answer to `apiTokenStatus`; an empty root where the run closed before it ran.

    Of `undelivered` the child's id and the credential name, of `waiting` the name; `signals` are
    those that its run has taken, `replaced` children that closed and run again, while whom
    they left is looked for; `courier` is the task queue of its workers' couriers.
    """

    root: str = _member(_ID)
    tree: str = _member(_ID)
    type: str = _member(_ID)
    # As long as a node took it: who signals one is not to make its status unreadable.
    api_url: str | None = _member(_or(None, _ANY))
    tokens: tuple[HeldToken, ...] = _member(_list(_held))
    children: tuple[ChildStatus, ...] = _member(_list(_child))
    withheld: tuple[str, ...] = _member(_names)
    undelivered: tuple[tuple[str, str], ...] = _member(
        _list(lambda value: tuple(_read(value, {"id": _ID, "name": _NAME}).values()), _UNDELIVERED)
    )
    waiting: tuple[str, ...] = _member(_list(lambda value: _read(value, {"name": _NAME})["name"]))
    needs_set: bool = _member(_FLAG)
    recovering: bool = _member(_FLAG)
    replaced: tuple[str, ...] = _member(_or((), _list(_ID)), ())
    signals: int = _member(_or(0, _integer(0)), 0)
    courier: str | None = _member(_or(None, _ID), None)


def node_status(answer: object) -> NodeStatus:
    """Read an answer to `apiTokenStatus`.

    Raises:
        AnswerMalformed: a member that is read is not what it has to be.
    """
    status = NodeStatus(**_read(answer, _checks(NodeStatus)))
    if len({child.id for child in status.children}) != len(status.children):
        raise AnswerMalformed("it names a child twice")
    return status


def token_status(answer: object) -> TokenStatus:
    """Read an answer to the update `apiToken`; raises as `node_status`."""
    return TokenStatus(**_read(answer, _TOKEN))


def token_answer(answer: object, name: str) -> TokenAnswer | None:
    """Read an answer to the query `apiToken` for a name; raises as `node_status`."""
    if answer is None:
        return None
    status = token_status(answer)
    if status.name != name:
        raise AnswerMalformed("it is about another credential than was asked for")
    return TokenAnswer(status, **_read(answer, _SEALED))


def kept_children(answer: object) -> Mapping[str, ChildStatus]:
    """The children in an `apiTokenStatus` answer that can be read, by id.

    Raises:
        AnswerMalformed: there are too many of them, or it is no object.
    """
    entries = _LISTED(_OBJECT(answer).get("children"))
    read: dict[str, ChildStatus] = {}
    for entry in entries:
        try:
            child = _child(entry)
        except AnswerMalformed:
            continue
        read[child.id] = child
    return read
