"""docs/vectors.json opened by a third implementation: the package jose on Node.js.

Nothing of it is ours: language, JSON, base64url and the primitives, which are Node.js's own
build of OpenSSL. Skipped where there is no `node` or no `jose`; README.md says how to have them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import cast

import pytest

from tests.builders import Json

from . import ours
from .ours import KEYS, Opening

SCRIPT = Path(__file__).parent / "open_with_jose.mjs"
MODULES = "JOSE_NODE_MODULES"
NOT_FOUND = 3
SECONDS = 40


def run(cases: list[Json]) -> Json:
    """What the script answers; skips where it cannot be run."""
    node = shutil.which("node")
    environment = dict(os.environ)
    folder = environment.get(MODULES)
    if folder:
        environment["NODE_PATH"] = folder
    if node is None:
        pytest.skip("no node on the PATH")
    answered = subprocess.run(
        [node, str(SCRIPT)],
        input=json.dumps(cases),
        capture_output=True,
        check=False,
        encoding="utf-8",
        env=environment,
        timeout=SECONDS,
    )
    # Who names a folder wants the test to run.
    if answered.returncode == NOT_FOUND and not folder:
        pytest.skip(f"node does not find the package jose; {MODULES} may name its node_modules")
    assert answered.returncode == 0, answered.stderr
    return cast("Json", json.loads(answered.stdout))


@cache
def results() -> dict[tuple[str, str, str], Json]:
    """For each opening's name, issuer and reader what jose says; one run for all."""
    openings = [opening for opening, _ in ours.GOOD]
    openings += [*ours.POLICY, *ours.FORGED, *ours.UNSIGNED, *ours.SHUT, *ours.BROKEN]
    openings += [
        Opening(entry["name"], entry["message"], [entry["issuer"]], "reader")
        for entry in ours.REVOCATIONS
    ]
    tried = [(each, issuer) for each in openings for issuer in each.issuers]
    answer = run(
        [
            {"message": each.message, "issuer": KEYS[issuer], "reader": KEYS[each.reader]}
            for each, issuer in tried
        ]
    )
    assert len(answer["results"]) == len(tried) >= 55
    return {
        (each.name, issuer, each.reader): result
        for (each, issuer), result in zip(tried, answer["results"], strict=True)
    }


def judged(opening: Opening) -> list[Json]:
    """What it says with each issuer the message may be taken to be by."""
    return [results()[opening.name, issuer, opening.reader] for issuer in opening.issuers]


def test_it_opens_every_token_for_each_of_its_readers() -> None:
    assert len(ours.GOOD) >= 8
    for opening, entry in ours.GOOD:
        (result,) = judged(opening)
        opened = (result.get("claims"), result.get("token"))
        assert opened == (entry["claims"], entry["token"]), (opening.name, result)


def test_it_verifies_every_revocation() -> None:
    assert len(ours.REVOCATIONS) >= 3
    for entry in ours.REVOCATIONS:
        result = results()[entry["name"], entry["issuer"], "reader"]
        assert result == {"verified": True, "payload": entry["claims"]}, entry["name"]


def test_it_opens_what_only_our_policy_refuses() -> None:
    assert len(ours.POLICY) >= 5
    for opening in ours.POLICY:
        (result,) = judged(opening)
        assert result.get("token") in {entry["token"] for entry in ours.TOKENS}, opening.name


def test_it_verifies_no_forged_message() -> None:
    assert len(ours.FORGED) >= 4
    for opening in (*ours.FORGED, *ours.UNSIGNED):
        for result in judged(opening):
            assert result.keys() == {"error"}, opening.name
            assert result["error"] in {
                "ERR_JWS_SIGNATURE_VERIFICATION_FAILED",
                "ERR_JOSE_ALG_NOT_ALLOWED",
            }


def test_it_decrypts_no_broken_message() -> None:
    assert len(ours.SHUT) >= 7
    for opening in (*ours.SHUT, *ours.BROKEN):
        (result,) = judged(opening)
        assert result["verified"] is True, opening.name
        assert "token" not in result, opening.name
        assert result["error"] == "ERR_JWE_DECRYPTION_FAILED", opening.name
