"""An older version of the library, from the repository's history."""

from __future__ import annotations

import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from .cluster import ROOT

COMMIT = "ac67df2"
"""The first commit on which the first increment, a token that flows through a tree, was whole."""


def older_library(directory: Path) -> Path:
    """Where Python finds the older version, unpacked into a directory.

    Skips the test where the history is not at hand, as in a shallow clone or a source archive.
    """
    command = ["git", "archive", "--format=zip", COMMIT, "src"]
    archived = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if archived.returncode != 0:
        pytest.skip(f"the history of commit {COMMIT} is needed (git fetch --unshallow)")
    with zipfile.ZipFile(io.BytesIO(archived.stdout)) as archive:
        archive.extractall(directory)
    return directory / "src"
