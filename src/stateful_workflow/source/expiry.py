"""When a token expires, by what is said of it; pure."""

from __future__ import annotations

import base64
import re
from datetime import datetime, timezone
from typing import Final

from ..errors import AnswerUnusable
from ..text.strict_json import json_object

_YEAR_9999: Final = 253_402_300_799


def expiry(
    token: str, now: float, margin: float = 0, *, lasts: object = None, at: object = None
) -> float | None:
    """The Unix seconds from which a token is not to be used; None where nobody says any.

    The earliest counts of what its provider says and what it says itself as a JWT (``exp``, RFC
    7519 section 4.1.4; the signature is the provider's affair).

    Args:
        now: Unix seconds.
        margin: seconds before its expiry from which it is not to be used, yet never more than half
            of the time that it has left.
        lasts: the seconds that it lives from now on, as a number or a text; None where unknown.
        at: its expiry, as Unix seconds, the same as a text, or RFC 3339; None where unknown.

    Raises:
        AnswerUnusable: `lasts` or `at` are nothing of the kind, such as milliseconds.
    """
    said = [_exp(token)]
    if lasts is not None:
        said.append(now + _number(lasts))
    if at is not None:
        said.append(_moment(at))
    known = [each for each in said if each is not None]
    if not known:
        return None
    end = min(known)
    return end - min(margin, max(end - now, 0) / 2)


def _exp(token: str) -> float | None:
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json_object(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return _number(claims["exp"])
    except (ValueError, KeyError, AnswerUnusable):  # a token of another kind
        return None


def _number(value: object) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float, str)):
            number = float(value)
            if 0 <= number <= _YEAR_9999:
                return number
    except (ValueError, OverflowError):
        pass
    raise AnswerUnusable("the provider gave an expiry that is no number of seconds")


def _moment(value: object) -> float:
    if isinstance(value, str) and "T" in value:
        try:  # Python 3.10 reads no Z, and three or six digits of a second only.
            time = datetime.fromisoformat(re.sub(r"\.\d+", "", value).replace("Z", "+00:00"))
        except ValueError:
            pass
        else:
            return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
    return _number(value)
