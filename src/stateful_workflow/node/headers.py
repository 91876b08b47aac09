"""What travels in Temporal headers: written and read here, in JSON.

Headers hold sealed tokens and public keys only. They are always converted by the
SDK's default payload converter, whatever converter the user has.
"""

# ruff: noqa: RUF009 - what `member` gives is a field

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadConverter

from ..errors import AnswerMalformed
from .carried import check_format
from .children import MOST
from .contract import NODE_HEADER, USE_HEADER
from .members import (
    FLAG,
    NAME,
    OBJECT,
    TEXT,
    integer,
    list_of,
    mapping_of,
    member,
    optional,
    read,
    to_json,
)
from .renewal import Renewing


def _ledger(value: object) -> Mapping[str, Any]:
    check_format(OBJECT(value))
    return cast("dict[str, Any]", value)


class HeaderUnreadable(Exception):
    """A header of this library is there, and came encoded.

    It fails the workflow task, not the workflow (as a `StatefulError` would), so that the state
    stays in the history until a worker that decodes it takes the task over.
    """


@dataclass(frozen=True)
class Joined:
    """What a workflow that joined by its own code carries to its next run.

    Attributes:
        at: when what it was given was true, in Unix milliseconds.
        registered: it is told what is set from then on.
    """

    at: int = member(integer(0))
    registered: bool = member(FLAG, False)


@dataclass(frozen=True)
class Start:
    """The `stateful-node` header: the state a run wakes with.

    Attributes:
        ledger: what `Ledger.dump` wrote.
        run: id of the run that wrote it by continuing as new; None at a start.
        api_url: the workflow's own API address; None at a start.
        parent_api_url: its parent's own at its start, or what that one's parent had.
        waiting: messages not judged yet.
        lost: the state of an earlier run was lost, and nothing was set since.
        since: when the first run began, in Unix milliseconds; None at a start.
        joined: of a workflow that joined by its own code; else None.
        renewing: what is known, by name, of credentials that a source mints here.
    """

    # First: a later format may have any other members.
    ledger: Mapping[str, Any] = member(_ledger, write=lambda ledger: ledger)
    run: str | None = member(optional(TEXT), None)
    api_url: str | None = member(optional(TEXT), None)
    parent_api_url: str | None = member(optional(TEXT), None)
    waiting: tuple[str, ...] = member(list_of(TEXT, MOST), ())
    lost: bool = member(FLAG, False)
    since: int | None = member(optional(integer(0)), None)
    joined: Joined | None = member(optional(partial(read, Joined)), None)
    renewing: Mapping[str, Renewing] = member(
        optional(mapping_of(partial(read, Renewing), NAME), {}), factory=dict
    )

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return to_json(self)

    def to_payload(self) -> Payload:
        """The header's payload."""
        return PayloadConverter.default.to_payload(self.to_json())

    @classmethod
    def from_headers(cls, headers: Mapping[str, Payload]) -> Start | None:
        """Read the header, or None where there is none.

        Raises:
            HeaderUnreadable: where it is there and encoded.
            ValueError: where it is there and malformed.
            StateTooNew: where a later version of this library wrote it.
        """
        data = _from_headers(headers, NODE_HEADER)
        return None if data is None else cls.from_json(data)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Start:
        """Read what `to_json` wrote; raises as `from_headers`."""
        try:
            return read(cls, data)
        except AnswerMalformed as error:
            raise ValueError(f"the header {NODE_HEADER} is malformed: {error}") from None


@dataclass(frozen=True)
class Use:
    """The `stateful-use` header: what an activity of a node may open, and where it stands.

    Attributes:
        tokens: for each credential name its state, the API's address, and where it is held and
            small enough the sealed token.
        own: for each name the revocation that stands at the workflow itself, where one does:
            what `seal_token` has to come after.
        last: for each such name the token that it revoked there, whose terms the next one keeps.
        api_url: the API's address of a workflow without a token.
    """

    root: str
    tree: str
    api_url: str | None
    tokens: Mapping[str, Mapping[str, str | None]]
    own: Mapping[str, str]
    last: Mapping[str, str]

    def to_payload(self) -> Payload:
        """The header's payload."""
        return PayloadConverter.default.to_payload(vars(self))

    @classmethod
    def from_headers(cls, headers: Mapping[str, Payload]) -> Use | None:
        """Read the header; None where there is none or this worker cannot decode it."""
        try:
            data = _from_headers(headers, USE_HEADER)
            return None if data is None else cls(**data)
        except (TypeError, ValueError, HeaderUnreadable):
            return None


def is_readable(payload: Payload) -> bool:
    """Whether a header came as it was written, and not as a payload codec made it."""
    return payload.metadata.get("encoding") == b"json/plain"


def _from_headers(headers: Mapping[str, Payload], name: str) -> dict[str, Any] | None:
    payload = headers.get(name)
    if payload is None:
        return None
    if not is_readable(payload):
        raise HeaderUnreadable(
            f"the header {name} came encoded, and this worker does not decode headers: give the "
            "client of every worker, and every client that starts workflows, the same "
            "header_codec_behavior= and the same payload codec. The workflow waits for that, and "
            "goes on where such a worker takes it over"
        )
    try:
        data: object = PayloadConverter.default.from_payload(payload)
    except (ValueError, RecursionError):
        raise ValueError(f"the header {name} is not JSON") from None
    return cast("dict[str, Any]", data) if isinstance(data, dict) else None
