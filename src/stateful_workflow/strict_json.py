"""JSON objects (RFC 8259) in which each member has a name of its own; pure.

Where a name comes twice, readers differ in which of the two they take, so that one that checks an
object and one that acts upon it would not see the same.
"""

from __future__ import annotations

import json
from typing import Any, cast


def json_object(raw: bytes | str) -> dict[str, Any]:
    """Read an object.

    Args:
        raw: the text, or the same in UTF-8.

    Raises:
        ValueError: it is not JSON, no object, or an object in it names a member twice. The error
            holds nothing of the text, which may be a secret.
    """
    value: object = None
    problem = "it is no JSON object"
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique)
    except _NamedTwice:
        problem = "it names a member twice"
    except (ValueError, RecursionError):
        problem = "it is not JSON"
    # Raised inside an except clause, the error would carry the text as its context.
    if not isinstance(value, dict):
        raise ValueError(problem)
    return cast("dict[str, Any]", value)


class _NamedTwice(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _NamedTwice
    return members
