"""A secret as its keeper has it, a text or an object with named fields; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ..errors import AnswerUnusable, GrantRefused
from ..text.strict_json import json_object
from .expiry import expiry
from .protocol import Grant, Minted


def named(grant: Grant, member: str, otherwise: str | None = None) -> str:
    """What a member of a grant names.

    Raises:
        GrantRefused: nothing, so that no exchange can succeed until somebody authorizes again.
    """
    value = grant.get(member, otherwise)
    if not isinstance(value, str) or not value:
        raise GrantRefused(f"the grant names no {member!r}: authorize with one that does")
    return value


def minted(secret: str | Mapping[str, object], grant: Grant, margin: float, now: float) -> Minted:
    """The token of a secret.

    Args:
        secret: an object, or a text, which is the token or an object in JSON.
        grant: names the ``field`` of the token; of a text without one the whole is the token. It
            may name a field that ``expires`` as `expiry` reads it, and a list of ``values``.
        margin: as `expiry`.
        now: Unix seconds.

    Raises:
        AnswerUnusable: the secret has no such fields.
        GrantRefused: as `named`.
    """
    if isinstance(secret, str) and "field" not in grant:
        token = secret.rstrip("\r\n")
        if not token:
            raise AnswerUnusable("the secret is empty")
        return Minted(token, expiry(token, now, margin))
    try:
        fields = json_object(secret) if isinstance(secret, str) else secret
    except ValueError:
        fields = None
    if fields is None:
        raise AnswerUnusable("the secret is no JSON object, though the grant names a field of it")
    token = _text(fields, named(grant, "field"))
    at = fields.get(named(grant, "expires")) if "expires" in grant else None
    if "expires" in grant and at is None:
        raise AnswerUnusable("the secret has no field with the expiry that the grant names")
    names = grant.get("values", ())
    if not isinstance(names, (list, tuple)):
        raise GrantRefused("the grant's 'values' are no list: authorize with one that are")
    values = {str(name): _text(fields, name) for name in cast("list[object]", names)}
    return Minted(token, expiry(token, now, margin, at=at), values=values)


def _text(fields: Mapping[str, object], name: object) -> str:
    value = fields.get(name) if isinstance(name, str) else None
    if not isinstance(value, str) or not value:
        raise AnswerUnusable("the secret has no text in a field that the grant names")
    return value
