"""Answers to `apiTokenStatus`: genuine ones, and changes that make one nobody reads."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

HELD: Json = {
    "name": "apiToken",
    "state": "held",
    "version": 1_800_000_000_000,
    "fingerprint": "fc615837c69795ca",
    "authority": "acme",
    "issuer": "x-riTGhtYQcRkjCAcRnszW50_sI7tG6daMQo0gqdiv8",
    "origins": ["https://api.example.com"],
    "types": None,
    "readers": None,
    "expires_at": None,
    "overtaken": {},
    "kind": "token",
    "inherit": None,
    "in_force": True,
}
CHILD: Json = {
    "id": "phantom",
    "type": "Node",
    "life": "running",
    "reason": None,
    "withheld": [],
    "shared": [],
    "hard": [],
}


def status(root: str = "acme", **members: object) -> Json:
    """A status as a node without children and tokens answers, but for these members."""
    return {
        "id": "acme-a",
        "type": "Liar",
        "root": root,
        "parent": root,
        "tree": "5f2a7c0d9b3e4f1c8a6d2e7b9c0f1a34",
        "api_url": None,
        "needs_set": False,
        "recovering": False,
        "tokens": [],
        "children": [],
        "withheld": [],
        "undelivered": [],
        "waiting": [],
        "rejections": {"counts": {}, "last": []},
        "reports": {},
        "signals": 3,
        "courier": "q:stateful",
        **members,
    }


def _held(**members: object) -> Json:
    return {"tokens": [{**HELD, **members}]}


def _child(**members: object) -> Json:
    return {"children": [{**CHILD, **members}]}


MALFORMED: dict[str, Json] = {
    "version text": _held(version="abc"),
    "version null": _held(version=None),
    "version of 5,000 digits": _held(version="9" * 5000),
    "version 0": _held(version=0),
    "version 2^53": _held(version=2**53),
    "version true": _held(version=True),
    "version NaN": _held(version=float("nan")),
    "version infinite": _held(version=float("inf")),
    "authority object": _held(authority={}),
    "name no credential's": _held(name="a b"),
    "no state": {"tokens": [{k: v for k, v in HELD.items() if k != "state"}]},
    "state unknown": _held(state="lost"),
    "kind unknown": _held(kind="key"),
    "inherit number": _held(inherit=1),
    "in_force number": _held(in_force=1),
    "expires_at text": _held(expires_at="x"),
    "origins null": _held(origins=None),
    "origins too many": _held(origins=["https://api.example.com"] * 65),
    "types number": _held(types=7),
    "overtaken list": _held(overtaken=[]),
    "overtaken text": _held(overtaken={"a": "b"}),
    "overtaken surrogate": _held(overtaken={"\ud800": 1}),
    "child text": {"children": ["a"]},
    "child id object": _child(id={"a": 1}),
    "child id list": _child(id=[1]),
    "child id null": _child(id=None),
    "child id empty": _child(id=""),
    "child id 2,000 characters": _child(id="x" * 2000),
    "child id surrogate": _child(id="\ud800"),
    "child id starting object": _child(id={}, life="starting"),
    "child type object": _child(type={}),
    "child life unknown": _child(life="undead"),
    "child withheld text": _child(withheld="*"),
    "child hard numbers": _child(hard=[1]),
    "child twice": {"children": [CHILD, CHILD]},
    "children object": {"children": {}},
    "withheld null here": {"withheld": None},
    "withheld number": {"withheld": 7},
    "root object": {"root": {"a": 1}},
    "root list": {"root": ["a"]},
    "root null": {"root": None},
    "tree number": {"tree": 7},
    "type object": {"type": {"a": 1}},
    "api_url number": {"api_url": 7},
    "signals list": {"signals": []},
    "signals negative": {"signals": -1},
    "undelivered id object": {"undelivered": [{"id": {}, "name": "apiToken"}]},
    "undelivered ids mixed": {
        "undelivered": [{"id": 1, "name": "apiToken"}, {"id": "a", "name": "apiToken"}]
    },
    "waiting text": {"waiting": ["apiToken"]},
    "needs_set number": {"needs_set": 0},
    "recovering null": {"recovering": None},
}
