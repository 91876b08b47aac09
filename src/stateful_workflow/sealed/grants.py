"""What a grant's message holds: the grant, and the terms of the tokens minted with it. Pure.

It is sealed for the workers of sources alone, and signed for one workflow and one credential name.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from ..errors import TokenMalformed
from ..text.strict_json import json_object
from .issuing import Place, Terms, capped
from .message import DEFAULT_NAME, Claims, Renewal, valid_name

AUDIENCE: Final = "sources"
"""Of the readers that the workers of sources hold, and nobody else: they alone open grants."""

_TERMS: Final = {"origins", "types", "readers", "api_url", "allow_http"}


@dataclass(frozen=True)
class Granted:
    """What a grant's message is sealed over.

    Attributes:
        grant: for the source, a JSON object.
        terms: of the tokens, but for their expiry, which the source says.
        by: key id of the issuer who gave the first one, whose limits and life its successors share;
            None in the first one itself.
    """

    grant: Mapping[str, Any]
    terms: Terms
    by: str | None = None

    def to_text(self) -> str:
        """As it is sealed.

        Raises:
            TokenMalformed: the grant is no JSON object; nothing of it is shown.
        """
        terms = {name: value for name, value in self.terms.items() if value is not None}
        try:
            whole = {"grant": dict(self.grant), "terms": terms}
            whole |= {} if self.by is None else {"by": self.by}
            text = json.dumps(whole, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            text = ""
        if not text or "expires_in" in terms:
            raise TokenMalformed("a grant is a JSON object, and its tokens have their own expiry")
        self.from_text(text)  # or nothing would ever mint with it
        return text

    @classmethod
    def from_text(cls, text: str) -> Granted:
        """Read what was sealed; raises as `to_text`."""
        members: dict[str, Any] = {}
        with suppress(ValueError):
            members = json_object(text.encode())
        grant, terms, by = members.get("grant"), members.get("terms"), members.get("by")
        is_whole = isinstance(grant, dict) and isinstance(by, str | None)
        if not is_whole or not isinstance(terms, dict):
            raise TokenMalformed("the sealed grant is not what it must be")
        if not cast("dict[str, Any]", terms).keys() <= _TERMS:
            raise TokenMalformed("the sealed grant has terms that are not known here")
        return cls(cast("dict[str, Any]", grant), cast("Terms", terms), by)


def first_grant(place: Place, source: str, renewal: Renewal, now: float) -> Claims:
    """The claims of a grant that somebody gives a workflow; `now` is Unix seconds.

    Raises:
        TokenMalformed: the name of the source is none, or what stands there is ahead of the clock.
    """
    if not valid_name(source):
        raise TokenMalformed("the name of a source has letters, digits and . _ - only")
    return replace(place.claims(now), source=source, renewal=renewal, audiences=(AUDIENCE,))


def next_grant(before: Claims, now: float) -> Claims:
    """The claims of what an exchange made of a grant; `now` is Unix seconds.

    Raises:
        TokenMalformed: the one before is too far ahead of the clock.
    """
    return replace(before, version=capped(max(int(now * 1000), before.version + 1), now))


def authorizing(home: str, source: str, name: str) -> str:
    """The command by which somebody gives a workflow a grant."""
    of_name = [] if name == DEFAULT_NAME else ["--name", name]
    return shlex.join(["stateful", "token", "authorize", home, "--source", source, *of_name])
