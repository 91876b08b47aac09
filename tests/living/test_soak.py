"""Fifteen seconds of ``./run soak``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.living.soak import soak


@pytest.mark.timeout(240)
async def test_tokens_of_three_seconds_keep_thirty_workflows_calling(tmp_path: Path) -> None:
    figures = await soak(15, tmp_path)
    assert figures.holds, figures
    assert figures.renewals > 6, figures
