"""JSON (RFC 8259) in which each member of an object has a name of its own; pure.

Where a name comes twice, readers differ in which of the two they take, so that one that checks an
object and one that acts upon it would not see the same.
"""

from __future__ import annotations

import json
from typing import Any, cast


class NamedTwice(ValueError):
    """An object names a member twice."""


def loads(raw: bytes | str) -> object:
    """Read a value, from a text or the same in UTF-8.

    Raises:
        NamedTwice: an object in it names a member twice.
        ValueError: it is not JSON. Neither error holds anything of the text, which may be a secret.
    """
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
        return cast("object", json.loads(text, object_pairs_hook=_unique))
    except NamedTwice:
        problem = NamedTwice("it names a member twice")
    except (ValueError, RecursionError):
        problem = ValueError("it is not JSON")
    # Raised inside an except clause, the error would carry the text as its context.
    raise problem


def json_object(raw: bytes | str) -> dict[str, Any]:
    """Read an object; raises as `loads`, or `ValueError` where it is none."""
    value = loads(raw)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return cast("dict[str, Any]", value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NamedTwice
    return members
